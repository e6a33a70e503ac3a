"""Chat from end to end: a run on conversations, its answers, evaluation and export, and releases with a template."""

import io
import json
import sys

import jax
import numpy as np
import pytest

from t5lite import convert, evaluate, generate, preview
from t5lite.config import set_field
from t5lite.data.chat.messages import Conversation
from t5lite.data.rows import evaluation_rows
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.objectives.objective import make_batch
from t5lite.run.answers import ChatGenerator, Request, open_answerer
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.system.files import write_json
from t5lite.tasks.table import loss_sums
from t5lite.train import train
from tests.data.chat.conversations import TEMPLATES, said
from tests.data.tokenizers.test_tokenizer import OWN
from tests.interop.places import make_place
from tests.interop.test_parity import live
from tests.small import small_config, write_texts

TALKS = [said("sea?", "whale", "and old?", "ship. "), said("ship?", "old man", system="be cold")]
ROWS = [{"messages": TALKS[0]}, {"prompt": TALKS[1][:2], "completion": "old man"}]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


def chat_config(folder, architecture="decoder", steps=60, rows=ROWS):
    """A config that learns conversations by heart, with a tokenizer that has neither marks nor a template."""
    OWN.save(folder / "own" / "tokenizer")
    source = write_rows(folder / "chat.jsonl", rows)
    config = small_config(source, "chat", architecture)
    config.data.validation.source = source
    config.tokenizer.path = str(folder / "own")
    config.objective.inputs_length = 64
    if architecture == "encoder_decoder":
        config.objective.targets_length = 16
    config.batch_size, config.schedule.rate, config.budget.steps = 4, 1e-2, steps
    config.eval.max_new_tokens = 16
    config.checkpoint.every_steps = config.log_every_steps = steps
    return config


@pytest.fixture(scope="module", params=["decoder", "encoder_decoder"])
def taught(request, tmp_path_factory):
    """A run that has learned the conversations."""
    folder = tmp_path_factory.mktemp(request.param)
    train(chat_config(folder, request.param), folder / "run")
    return folder / "run"


def ask(place, capsys, *arguments):
    capsys.readouterr()
    generate.main(["--checkpoint", str(place), "--max_new_tokens=16", *arguments])
    return capsys.readouterr().out


def ask_rows(place, folder, capsys, rows, *arguments):
    write_rows(folder / "rows.jsonl", rows)
    out = ask(place, capsys, "--input_file", str(folder / "rows.jsonl"), "--json", *arguments)
    return [json.loads(line) for line in out.splitlines()]


def test_a_conversation_that_was_learned_comes_back(taught, tmp_path, capsys, monkeypatch):
    metrics = json.loads((taught / "result.json").read_text())["metrics"]["validation"]
    assert metrics["loss"] < 0.1 and metrics["exact_match"] == 1
    assert ask(taught, capsys, "--input", "sea?") == "whale\n"

    rows = [{"messages": TALKS[0][:3], "id": 5}, {"messages": TALKS[0]}, {"prompt": "sea?"}, {"inputs": "sea?"}]
    answers = ask_rows(taught, tmp_path, capsys, rows)
    assert [each["output"] for each in answers] == ["ship. ", "ship. ", "whale", "whale"]
    assert answers[0]["id"] == 5 and answers[0]["messages"] == TALKS[0][:3] and answers[0]["input"] == "and old?"

    monkeypatch.setattr(sys, "stdin", io.StringIO("sea?\nand old?\n/new\nsea?\n"))
    assert ask(taught, capsys, "--interactive") == "whale\nship. \nwhale\n"

    scored = ask_rows(taught, tmp_path, capsys, [{"messages": TALKS[0]}, ROWS[1]], "--score")
    assert [each["target"] for each in scored] == ["ship. ", "old man"] and all(each["logprob"] > -1 for each in scored)
    assert scored[0]["tokens"] == answers[1]["tokens"]

    capsys.readouterr()
    evaluate.main(["--checkpoint", str(taught), "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"]["validation"]["exact_match"] == 1


def test_an_export_answers_in_conversations_too(taught, tmp_path, capsys):
    convert.main(["--from", str(taught), "--to", f"hf:{tmp_path / 'hf'}"])
    answers = [ask_rows(place, tmp_path, capsys, [{"messages": TALKS[0]}])[0] for place in
               (taught, f"hf:{tmp_path / 'hf'}")]  # fmt: skip
    assert answers[0]["tokens"] == answers[1]["tokens"] and answers[1]["output"] == "ship. "
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert answers[0]["tokens"][-1] in np.atleast_1d(stops)


@live
def test_transformers_reads_the_exported_template(taught, tmp_path):
    import transformers

    convert.main(["--from", str(taught), "--to", f"hf:{tmp_path / 'hf'}"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer.apply_chat_template(TALKS[0][:3], add_generation_prompt=True, return_dict=False)
    generator = open_answerer(taught)
    read, _ = generator._encode_request(Request("", messages=TALKS[0][:3]), 16)
    start = [generator.conventions.start] if not generator.model.config.num_encoder_layers else []
    assert ids == [*start, *read.tolist()]


def test_what_is_packed_has_the_loss_of_what_is_not(tmp_path):
    config = chat_config(tmp_path, rows=[*ROWS, {"prompt": "a", "completion": "whale <|end|>"}])
    config.objective.inputs_length = 96
    experiment = open_experiment(config)
    table = experiment.vocabulary.table

    @jax.jit
    def sums(rows):
        keys = jax.random.split(jax.random.key(0), len(rows["targets"]))
        batch = make_batch(experiment.objective, keys, rows, table)
        params = experiment.model.init(jax.random.key(1), batch)["params"]
        outputs = experiment.model.apply({"params": params}, batch, method="outputs")
        return {name: value.sum() for name, value in loss_sums(outputs, batch).items()}

    packed = experiment.train_rows()(0)
    assert packed["targets_segment_ids"].max() > 1
    (alone,) = experiment.heldout_sources(experiment.objective).values()
    one_each = next(evaluation_rows(alone, 3, 3))
    one_each.pop("valid")
    first = {name: values[:1] for name, values in packed.items()}
    assert len(one_each["targets"]) == 3 and first["targets_segment_ids"].max() == 3
    together, apart = ({name: float(value) for name, value in sums(rows).items()} for rows in (first, one_each))
    assert together["weight"] == apart["weight"] > 0
    assert together["nll"] == pytest.approx(apart["nll"], rel=1e-4)


def test_preview_shows_what_is_trained(tmp_path, capsys, monkeypatch):
    config = chat_config(tmp_path)
    file = tmp_path / "config.json"
    write_json(file, json.loads(json.dumps(config.to_dict())))
    monkeypatch.setenv("COLUMNS", "400")
    preview.main(["--config", str(file), "--n=1"])
    out = capsys.readouterr().out
    assert "<|user|>sea?<|end|><|assistant|>⟦whale<|end|>⟧<|user|>and old?<|end|><|assistant|>⟦ship. <|end|>⟧" in out
    assert "<|system|>be cold<|end|><|user|>ship?<|end|><|assistant|>⟦old man<|end|>⟧" in out
    preview.main(["--config", str(file), "--n=1", "--json"])
    example = json.loads(capsys.readouterr().out.splitlines()[0])
    tokenizer = load_tokenizer(str(tmp_path / "own"), 0, ()).grow(
        20, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    )
    shown = preview.decode_with_styles(
        example["targets"], tokenizer, [preview.TRAINED] * len(example["targets"]), False
    )
    assert {span.style for span in shown.spans} == {preview.TRAINED}  # on a terminal, also the special tokens
    trained = [token for token, weight in zip(example["targets"], example["weights"], strict=True) if weight]
    text = tokenizer.decode(trained)
    assert sorted(text.split("<|end|>")) == sorted(["whale", "ship. ", "old man", ""])


def test_a_resume_with_another_template_is_refused(tmp_path):
    config = chat_config(tmp_path, steps=2)
    (tmp_path / "mine.jinja").write_text(TEMPLATES["plain"])
    config.tokenizer.specials = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    config.tokenizer.chat_template = str(tmp_path / "mine.jinja")
    train(config, tmp_path / "run")
    (tmp_path / "mine.jinja").write_text(TEMPLATES["plain"] + "{# changed #}")
    config.budget.steps = 4
    with pytest.raises(UserError, match=r"other data: tokenizer\.chat_template changed"):
        train(config, tmp_path / "run", allow_changes=["budget"])
    (tmp_path / "mine.jinja").write_text(TEMPLATES["plain"])
    assert train(config, tmp_path / "run", allow_changes=["budget"])["step"] == 4
    (tmp_path / "mine.jinja").unlink()  # the run has its own copy
    assert open_answerer(tmp_path / "run").chat.template.text == TEMPLATES["plain"]


def test_few_conversations_are_enough_and_the_last_is_held_out(tmp_path):
    config = chat_config(tmp_path)
    config.data.validation.source = None
    dataset = open_experiment(config).dataset
    assert [dataset.train["train"].store.num_documents, dataset.heldout["validation"].store.num_documents] == [2, 2]
    config.data.train.source = write_rows(tmp_path / "one.jsonl", ROWS[:1])
    with pytest.raises(UserError, match="has one conversation, too few to hold some out; set data"):
        open_experiment(config)


def test_what_was_too_long_stands_in_the_result(tmp_path, capsys):
    config = chat_config(tmp_path, steps=1, rows=[*ROWS, {"messages": said("sea " * 30, "old", "ship", "man")}])
    config.data.validation.source = f"files:{tmp_path}/chat.jsonl"
    result = train(config, tmp_path / "run")
    assert result["cut"]["train"]["messages"] == 2 and result["cut"]["train"]["histories"] == 1
    assert "the oldest messages of 1 of 3 conversations are left out (2 messages" in capsys.readouterr().err


def test_generation_leaves_out_the_oldest_messages_and_says_so(tmp_path, capsys):
    train(chat_config(tmp_path, steps=1), tmp_path / "run")
    long = said("sea " * 30, "old", "ship?")
    (answer,) = ask_rows(tmp_path / "run", tmp_path, capsys, [{"messages": long}])
    assert answer["cut"]["messages"] == 2 and answer["cut"]["read"] < 64 < answer["cut"]["tokens"]
    (short,) = ask_rows(tmp_path / "run", tmp_path, capsys, [{"messages": long[2:]}])
    assert short["tokens"] == answer["tokens"] and "cut" not in short


MISTAKES = {
    "'encoder'; it works on encoder_decoder and decoder": {"model.architecture": "encoder"},
    "is neither a file nor a known template; did you mean 'plain'": {"tokenizer.chat_template": "plane"},
    "pydocs/general has no conversations; give files": {"data.train.source": "pydocs/general"},
    "columns and templates have no meaning for chat": {"data.train.columns.inputs": "question"},
    "counts|closed set of labels": {"data.train.limit_per_label": 3},
    "closes what the assistant says .* by '<|end|>', which is no special token": {"tokenizer.specials": ("<|user|>",)},
    "no conversation that fits into config.objective.inputs_length": {"objective.inputs_length": 3},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_the_config_is_one_line(tmp_path, message):
    config = chat_config(tmp_path)
    for field, value in MISTAKES[message].items():
        set_field(config, field, value)
    with pytest.raises(UserError, match=message.replace("<|end|>", r"<\|end\|>")):
        open_experiment(config)


RELEASE_TEMPLATE = """{{ bos_token }}{% for m in messages %}
{{ '[' + m.role + '] ' + m.content + eos_token }}
{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"""


@pytest.mark.parametrize(
    ("family", "in_config"), [("gpt2", True), pytest.param("llama", False, marks=pytest.mark.slow)]
)
def test_a_release_is_trained_and_asked_with_its_own_template(family, in_config, tmp_path, capsys):
    place = make_place(tmp_path / "release", family)
    if in_config:
        facts = json.loads((place / "tokenizer_config.json").read_text()) | {"chat_template": RELEASE_TEMPLATE}
        (place / "tokenizer_config.json").write_text(json.dumps(facts))
    else:
        (place / "chat_template.jinja").write_text(RELEASE_TEMPLATE)
    tokenizer = load_tokenizer(f"hf:{place}", 0, ())
    config = chat_config(tmp_path, steps=1, rows=[{"messages": said("oil seed", "the rain", "tea", "or")}])
    config.tokenizer.path, config.init_from, config.objective.inputs_length = None, f"hf:{place}", 60
    experiment = open_experiment(config)
    assert experiment.vocabulary.rows == tokenizer.vocabulary.rows  # no marks were added
    row = experiment.train_rows()(0)
    text = tokenizer.decode_parts(row["targets"][0][row["trained"][0] > 0].tolist(), with_eos=True)
    name = tokenizer.names[tokenizer.vocabulary.eos]
    assert "".join(part for part, _ in text).split(name) == ["the rain", "or", ""]
    result = train(config, tmp_path / "run")
    assert np.isfinite(result["metrics"]["validation"]["loss"])
    for where in (f"hf:{place}", tmp_path / "run"):
        generator = open_answerer(where)
        prompt, _ = generator._encode_request(Request("oil seed"), 8)
        whole = generator.chat.encode(Conversation(said("oil seed", "the rain")))
        assert whole.tokens[: len(prompt)].tolist() == prompt.tolist() and whole.turns[0].start == len(prompt)
        assert generator.conventions.rules.stops[0] == tokenizer.vocabulary.eos
        assert ask(where, capsys, "--input", "oil seed")


def test_a_release_whose_template_cannot_be_used_answers_without_it(tmp_path, capsys):
    place = make_place(tmp_path / "release", "gpt2")
    (place / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    generator = open_answerer(f"hf:{place}")
    assert "closes what the assistant says" in capsys.readouterr().err
    assert (generator.objective.name, isinstance(generator, ChatGenerator)) == ("causal_lm", False)
    config = chat_config(tmp_path)
    config.tokenizer.path, config.init_from, config.objective.inputs_length = None, f"hf:{place}", 60
    with pytest.raises(UserError, match="the tokenizer's chat template closes what the assistant says"):
        open_experiment(config)


def test_a_release_reads_no_start_that_its_template_does_not_write(tmp_path):
    """Its tokenizer puts BOS in front of plain texts. What is trained from it has a start token, like every run."""
    place, template = make_place(tmp_path / "release", "llama"), RELEASE_TEMPLATE
    for written, expected in ((template, True), (template.removeprefix("{{ bos_token }}"), False)):
        (place / "chat_template.jinja").write_text(written)
        generator = open_answerer(f"hf:{place}")
        assert generator.conventions.prepend_start == expected
        assert generator._encode_request(Request("oil"), 8)[0][0] != generator.conventions.start


def test_a_run_on_text_goes_on_with_conversations(tmp_path):
    """Its tokenizer has no marks, so they are added. A run that goes on from the conversations has their template."""
    config = small_config(write_texts(tmp_path / "texts"), "causal_lm", "decoder")
    config.budget.steps = 1
    train(config, tmp_path / "text")
    config = chat_config(tmp_path)
    config.tokenizer.path, config.init_from = None, str(tmp_path / "text")
    before, after = load_tokenizer(str(tmp_path / "text"), 0, ()), open_experiment(config).dataset.tokenizer
    assert after.vocabulary.rows == before.vocabulary.rows + 4
    assert before.chat_template is None and after.chat_template == TEMPLATES["plain"]
    after.chat_template += "{# a template of its own #}"
    after.save(tmp_path / "chat" / "tokenizer")
    config = chat_config(tmp_path)
    config.tokenizer.path = str(tmp_path / "chat")
    assert open_experiment(config).dataset.chat.template.text == after.chat_template

"""Released weights of any class as a start: what is restored, new and left is named; what cannot answer says so."""

import json

import pytest

from t5lite import convert, generate
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.interop.classes import add_extras, contents, draw_class, write_class
from tests.interop.places import PLACES
from tests.small import small_config, write_pairs, write_texts

SHORT = {"bart": {"max_position_embeddings": 64}, "bert": {"max_position_embeddings": 64}, "gpt2": {"n_positions": 64}}


def make_class(folder, family, kind, **changes):
    """A folder of a class, complete with a tokenizer."""
    PLACES[family][1](folder)
    beside = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    said, state = draw_class(family, kind, 1, vocab_size=768, **SHORT.get(family, {}), **changes)
    return write_class(folder, {**beside, **said}, add_extras(family, said, state), 1)


def fails(verb, arguments, capsys):
    """The one line with which a verb refuses."""
    with pytest.raises(SystemExit) as caught:
        verb.main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# {(family, kind): what generate says of it; None: it answers}
WHAT_ANSWERS = {
    ("t5", "EncoderModel"): "the weights have no decoder",
    ("t5", "ForSequenceClassification"): "it is a T5ForSequenceClassification, whose head no model here has",
    ("bert", "Model"): "the weights have no head for tokens",
    ("bert", "ForTokenClassification"): None,
    ("gpt2", "ForSequenceClassification"): "it is a GPT2ForSequenceClassification",
    ("llama", "Model"): "the weights have no head for tokens",
}


@pytest.mark.parametrize(("family", "kind"), WHAT_ANSWERS)
def test_it_is_converted_and_back_and_answers_or_says_why_not(family, kind, tmp_path, capsys):
    changes = {"tie_word_embeddings": False} if family == "llama" else {}
    folder = make_class(tmp_path / "there", family, kind, **changes)
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "run")])
    convert.main(["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'back'}"])
    assert contents(tmp_path / "back") == contents(folder)
    capsys.readouterr()
    refusal, text = WHAT_ANSWERS[family, kind], "the [MASK] sea" if family == "bert" else "the sea"
    for place in (f"hf:{folder}", str(tmp_path / "run")):
        arguments = ["--checkpoint", place, "--input", text]
        if refusal is None:
            generate.main(arguments)
            assert "/label" in capsys.readouterr().out
        else:
            said = fails(generate, arguments, capsys)
            assert refusal in said and f"--config.init_from={place}" in said


# (family, kind, objective, architecture) -> (parts that are new, what is left)
STARTS = {
    ("bert", "Model", "supervised", "encoder"): ({"classifier"}, set()),
    ("bert", "ForPreTraining", "mlm", "encoder"): (set(), {"pooler", "next_sentence"}),
    ("bert", "ForQuestionAnswering", "mlm_nsp", "encoder"): (
        {"lm_head", "mlm_transform", "next_sentence", "pooler"},
        {"span"},
    ),
    ("t5", "EncoderModel", "span_corruption", "encoder_decoder"): ({"decoder"}, set()),
    ("t5", "Model", "supervised", "encoder"): ({"pooler", "classifier"}, {"decoder"}),
    ("gpt2", "ForSequenceClassification", "causal_lm", "decoder"): (set(), {"score.weight"}),
}


SLOW = [
    ("bert", "Model"),
    ("bert", "ForQuestionAnswering"),
    ("t5", "EncoderModel"),
    ("gpt2", "ForSequenceClassification"),
]


@pytest.mark.parametrize(
    ("family", "kind", "objective", "architecture"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each[:2] in SLOW)) for each in STARTS],
)
def test_a_run_starts_from_it_and_names_what_is_new_and_left(family, kind, objective, architecture, tmp_path, capsys):
    new, left = STARTS[family, kind, objective, architecture]
    folder = make_class(tmp_path / "there", family, kind, **({} if family == "bert" else {"tie_word_embeddings": True}))
    pairs = objective == "supervised"
    source = write_pairs(tmp_path / "pairs.jsonl") if pairs else write_texts(tmp_path / "texts", documents=20)
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "converted")])
    capsys.readouterr()
    places = [f"hf:{folder}", *([str(tmp_path / "converted")] if family == "bert" and kind == "ForPreTraining" else [])]
    for number, place in enumerate(places):
        config = small_config(source, objective, architecture)
        config.init_from, config.budget.steps, config.eval.rows, config.eval.generate_rows = place, 1, 4, 0
        config.objective.inputs_length = 24
        if not place.startswith("hf:"):
            config.model.update(json.loads((tmp_path / "converted" / "config.json").read_text())["model"])
        train(config, tmp_path / f"run {number}")
        line = next(line for line in capsys.readouterr().err.splitlines() if "parameters restored" in line)
        said = {}
        for part in line.split("; ")[1:]:
            count, word = part.split(" (")[0].split(" ", 1)
            names = part.split(" (")[1].rstrip(")").split(", ")
            assert int(count) == len(names)
            said[word] = {name.partition("/")[0] for name in names}
        assert (said.get("new", set()), said.get("left out", set())) == (new, left), line


def test_what_a_further_trained_run_did_not_train_is_not_exported(tmp_path, capsys):
    """Its export has its own parameters alone, under the names of today, in float32."""
    folder = make_class(tmp_path / "there", "bert", "ForQuestionAnswering")
    config = small_config(write_texts(tmp_path / "texts", documents=20), "mlm", "encoder")
    config.init_from, config.budget.steps, config.objective.inputs_length = f"hf:{folder}", 1, 24
    train(config, tmp_path / "run")
    convert.main(["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'out'}"])
    capsys.readouterr()
    found = contents(tmp_path / "out")
    assert not any("qa_outputs" in name or "position_ids" in name for name in found)
    assert {dtype for dtype, _, _ in found.values()} == {"F32"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_a_row_longer_than_a_sliding_window_is_refused(tmp_path, capsys):
    folder = make_class(tmp_path / "there", "llama", "ForCausalLM", model_type="mistral", sliding_window=16)
    arguments = ["--checkpoint", f"hf:{folder}", "--max_new_tokens", "4", "--input"]
    generate.main([*arguments, "the sea"])
    capsys.readouterr()
    assert "the network has 16 positions" in fails(generate, [*arguments, "the sea is cold " * 9], capsys)
    config = small_config(write_texts(tmp_path / "texts", documents=20), "causal_lm", "decoder")
    config.init_from, config.budget.steps, config.eval.generate_rows = f"hf:{folder}", 1, 0
    config.objective.inputs_length = 64
    with pytest.raises(UserError, match="reads at most 16"):
        train(config, tmp_path / "long")
    config.objective.inputs_length = 16
    train(config, tmp_path / "short")


def test_a_tokenizer_may_have_more_ids_than_the_weights_have_rows(tmp_path, capsys):
    folder = tmp_path / "there"
    PLACES["bart"][1](folder)
    beside = json.loads((folder / "config.json").read_text())
    rows = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-1]["id"]  # that of <mask>
    said, state = draw_class("bart", "ForConditionalGeneration", 1, vocab_size=rows, max_position_embeddings=64)
    write_class(folder, {**beside, **said}, state, 1)
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "run")])
    for place in (f"hf:{folder}", str(tmp_path / "run")):
        capsys.readouterr()
        generate.main(["--checkpoint", place, "--input", "the sea", "--max_new_tokens", "3", "--json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["tokens"] and "no text may hold '<mask>'" in captured.err
        with pytest.raises(SystemExit):
            generate.main(["--checkpoint", place, "--input", "the <mask> sea", "--max_new_tokens", "3"])
        assert f"a text needs '<mask>' (id {rows})" in capsys.readouterr().err.splitlines()[-1]
    config = small_config(write_texts(tmp_path / "texts", documents=20), "bart")
    config.init_from, config.budget.steps, config.objective.inputs_length = f"hf:{folder}", 1, 24
    config.eval.generate_rows = 0
    config.tokenizer.specials = ("[NEW]",)
    for name, source in (("released", f"hf:{folder}"), ("converted", str(tmp_path / "run"))):
        config.init_from = source
        train(config, tmp_path / name)
        assert "2 with new rows (lm_head/bias, token_embedding/embedding)" in capsys.readouterr().err
    average = ["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'back'}", "--average", "3"]
    assert "--average=3" in fails(convert, average, capsys) and not (tmp_path / "back").exists()

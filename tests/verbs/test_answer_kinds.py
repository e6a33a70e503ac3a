"""Numbers, several labels and spans: trained, evaluated, answered and exported, on every architecture."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from t5lite import convert, evaluate, generate, preview
from t5lite.config import to_dict
from t5lite.data.tokenizers.training import train_tokenizer
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.small import small_config

MOODS = {"joy": "happy", "fear": "scared", "anger": "mad"}
NAMES, CITIES = ("Anna", "Ben", "Carl", "Dora"), ("Paris", "Rome", "Oslo", "Lima")


def _number_rows(rng):
    for _ in range(400):
        good = int(rng.integers(10))
        yield {"inputs": " ".join(rng.permutation(["good"] * good + ["bad"] * (9 - good))), "targets": 100 + good / 2}


def _label_rows(rng):
    for _ in range(400):
        moods = [mood for mood in MOODS if rng.random() < 0.4]
        words = rng.permutation([*(MOODS[mood] for mood in moods), "the", "day"])
        yield {"inputs": " ".join(words), "targets": moods}


def _span_rows(rng):
    for _ in range(400):
        context, starts = "", {}
        for name in rng.permutation(NAMES)[:2]:
            starts[name] = len(context) + len(f"{name} saw "), str(rng.choice(CITIES))
            context += f"{name} saw {starts[name][1]}. "
        name = str(rng.choice([*starts, "Zoe"]))
        start, city = starts.get(name, (None, None))
        answers = {"text": [city], "answer_start": [start]} if city else {"text": [], "answer_start": []}
        yield {"question": f"{name}?", "context": context, "answers": answers}


def _tag_rows(rng):
    tags = {"Anna": "B-PER", "Ben": "B-PER", "Rome": "B-LOC", "sits": "O", "in": "O"}
    for _ in range(400):
        words = rng.choice(list(tags), int(rng.integers(2, 8))).tolist()
        yield {"inputs": words, "targets": [tags[word] for word in words]}


def _one_label_rows(rng):
    for _ in range(400):
        mood = str(rng.choice(list(MOODS)))
        yield {"inputs": " ".join(rng.permutation([MOODS[mood], "the", "day"])), "targets": mood}


ROWS = {"number": _number_rows, "labels": _label_rows, "span": _span_rows, "tags": _tag_rows, "label": _one_label_rows}


TOKENIZER = train_tokenizer(
    [json.dumps(row) for rows in ROWS.values() for row in rows(np.random.default_rng(0))], 320, 20, ("[CLS]", "[SEP]")
)


def _write(folder, answer):
    path = folder / f"{answer}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[answer](np.random.default_rng(0))))
    return f"files:{path}"


def _config(folder, answer, architecture):
    config = small_config(_write(folder, answer), "supervised", architecture)
    TOKENIZER.save(folder / "tokenizer")
    config.objective.answer, config.tokenizer.path = answer, str(folder)
    config.objective.targets_length = None
    config.batch_size, config.budget.steps, config.eval.rows, config.schedule.rate = 32, 60, None, 1e-2
    if (answer, architecture) not in FAST and architecture != "decoder":
        config.budget.steps, config.schedule.rate = 160, 3e-3  # encoders with T5's positions learn more slowly
    config.checkpoint.every_steps = config.budget.steps
    return config


# (answer, architecture) -> a metric and the least value that shows that the run has learned
LEARNED = {
    ("number", "encoder"): ("pearson", 0.6),
    ("labels", "decoder"): ("micro_f1", 0.9),
    ("span", "encoder_decoder"): ("squad_exact_match", 0.3),
    ("number", "decoder"): ("pearson", 0.9),
    ("number", "encoder_decoder"): ("spearman", 0.9),
    ("labels", "encoder"): ("label_macro_f1", 0.8),
    ("labels", "encoder_decoder"): ("equal_sets", 0.6),
    ("span", "encoder"): ("token_f1", 0.3),
    ("tags", "decoder"): ("entity_f1", 0.9),
    ("tags", "encoder_decoder"): ("accuracy", 0.6),
    ("label", "decoder"): ("accuracy", 0.8),
    ("label", "encoder_decoder"): ("accuracy", 0.8),
}
FAST = list(LEARNED)[:3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function (answer, architecture) -> (workdir, config, result), which trains each run once."""
    folder, done = tmp_path_factory.mktemp("kinds"), {}

    def run(answer, architecture):
        if (answer, architecture) not in done:
            config = _config(folder, answer, architecture)
            workdir = folder / f"{answer}_{architecture}"
            done[answer, architecture] = workdir, config, train(config, workdir)
        return done[answer, architecture]

    return run


@pytest.mark.parametrize(
    ("answer", "architecture"),
    [pytest.param(*each, marks=[] if each in FAST else [pytest.mark.slow]) for each in LEARNED],
)
def test_it_learns_and_evaluate_gives_the_same(answer, architecture, runs, tmp_path, capsys):
    workdir, _, result = runs(answer, architecture)
    metrics = result["metrics"]["validation"]
    name, least = LEARNED[answer, architecture]
    assert metrics[name] > least, metrics
    capsys.readouterr()
    predictions = tmp_path / "p.jsonl"
    evaluate.main(["--workdir", str(workdir), "--json", "--predictions", str(predictions)])
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["validation"] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 20 and all(row["inputs"] and isinstance(row["output"], str) for row in rows)
    if answer == "number":
        errors = [float(row["target"]) - float(row["output"]) for row in rows]
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(metrics["rmse"], rel=1e-3)
        assert {float(row["target"]) for row in rows} <= {100 + good / 2 for good in range(10)}
    evaluated = found["evaluated"]["validation"]
    assert evaluated["used"] == evaluated["of"] >= len(rows)
    if answer == "span":
        assert np.mean([row["output"] == row["target"] for row in rows]) == pytest.approx(metrics["exact_match"])


def _generate(workdir, capsys, rows, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    generate.main(["--workdir", str(workdir), "--input_file", str(path), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generate_answers_each_kind(runs, tmp_path, capsys):
    few, many = _generate(
        runs("number", "encoder")[0], capsys, [{"inputs": " ".join(["bad"] * 9)}, {"inputs": "good " * 9}], tmp_path
    )
    assert 98 < float(few["output"]) < 102.2 < float(many["output"]) < 107
    (both,) = _generate(runs("labels", "decoder")[0], capsys, [{"inputs": "a happy mad day"}], tmp_path)
    assert both["output"] == "anger, joy" and both["scores"]["fear"] < 0.5 < both["scores"]["joy"]
    context = "Dora saw Rome. Ben saw Oslo. "
    (span,) = _generate(
        runs("span", "encoder_decoder")[0], capsys, [{"question": "Ben?", "context": context, "id": 7}], tmp_path
    )
    assert span["id"] == 7 and (span["output"] == "" or context[span["start"] :].startswith(span["output"]))


def test_an_answer_does_not_depend_on_the_texts_beside_it(runs, tmp_path, capsys):
    """Padding and other rows change nothing, on each architecture."""
    for answer, architecture in FAST:
        workdir, config, _ = runs(answer, architecture)
        path = Path(config.data.train.source.removeprefix("files:"))
        rows = [json.loads(line) for line in path.read_text().splitlines()[:5]]
        together = _generate(workdir, capsys, rows, tmp_path)
        alone = [_generate(workdir, capsys, [row], tmp_path)[0] for row in rows]
        assert [each["output"] for each in together] == [each["output"] for each in alone]


def test_a_scale_goes_on_with_its_head(runs, tmp_path, capsys):
    """A run from a run with numbers keeps the scale, also on other numbers, and takes over the head."""
    workdir, config, _ = runs("number", "encoder")
    config = config.copy_and_resolve_references()
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps({"inputs": "good bad", "targets": 7 * i}) + "\n" for i in range(40)))
    config.data.train.source, config.init_from, config.budget.steps = f"files:{path}", str(workdir), 1
    train(config, tmp_path / "next")
    assert " new" not in capsys.readouterr().err.partition("parameters restored")[2].partition("\n")[0]
    shutil.move(workdir, tmp_path / "moved")  # a run that goes on no longer needs the other run
    with config.unlocked():
        config.budget.steps = 1
    train(config, tmp_path / "next")
    shutil.move(tmp_path / "moved", workdir)
    scales = [json.loads((each / "provenance.json").read_text())["scale"] for each in (workdir, tmp_path / "next")]
    assert scales[0] == scales[1] and scales[0][0] == pytest.approx(102.25, abs=0.3)


def test_preview_shows_the_true_answers(runs, tmp_path, capsys):
    for answer, architecture in FAST:
        _, config, _ = runs(answer, architecture)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(to_dict(config)))
        preview.main(["--config", str(path), "--n", "3"])
        said = capsys.readouterr().out
        assert f"{answer}: " in said or answer == "labels"
        preview.main(["--config", str(path), "--n", "2", "--json"])
        assert answer in json.loads(capsys.readouterr().out.splitlines()[0])["answers"]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "encoder"])
def test_preview_shows_a_span_as_text_within_its_context(tmp_path, capsys, architecture):
    config = _config(tmp_path, "span", architecture)
    config.objective.inputs_length = 80  # a whole context in a window
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    preview.main(["--config", str(tmp_path / "config.json"), "--n", "32"])
    said = capsys.readouterr().out.replace("\n", " ")
    examples = re.findall(
        r"inputs \(\d+ tokens\): (.*?) (?:targets [^:]*: +)?span: (.*?)  *(?:token types|padding)", said
    )
    assert len(examples) == 32
    rows = {(row["question"] + row["context"]).replace(" ", ""): row for row in _span_rows(np.random.default_rng(0))}
    for inputs, answer in examples:
        text = re.sub(r"\[CLS\]|\[SEP\]|</s>| ", "", inputs)
        row = rows[re.sub("[⟦⟧]", "", text)]
        true, start = row["answers"]["text"], row["answers"]["answer_start"]
        assert answer == (true[0] if true else "no answer in this window of the context")
        assert re.findall("⟦(.*?)⟧", text) == true
        if true:
            assert text.partition("⟦")[0] == (row["question"] + row["context"][: start[0]]).replace(" ", "")
    assert {"no answer"} < {answer[:9] for _, answer in examples}


WRONG = {
    "word": ("number", {"inputs": "a", "targets": "many"}, "'many' is not a number"),
    "nan": ("number", {"inputs": "a", "targets": "nan"}, "'nan' is not a number"),
    "underscore": ("number", {"inputs": "a", "targets": "1_0"}, "'1_0' is not a number"),
    "text for labels": ("labels", {"inputs": "a", "targets": "joy"}, "is no list"),
    "label twice": ("labels", {"inputs": "a", "targets": ["joy", "joy"]}, "a label stands twice"),
    "label is a list": ("labels", {"inputs": "a", "targets": [["joy"]]}, "column 'targets'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_refused_with_file_and_line(name, tmp_path):
    answer, row, message = WRONG[name]
    config = _config(tmp_path, answer, "encoder")
    path = tmp_path / f"{answer}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if answer == "number":
        rows = [each | {"targets": "1.5"} for each in rows]
    path.write_text("".join(json.dumps(each) + "\n" for each in [*rows, row]))
    with pytest.raises(UserError) as caught:
        train(config, tmp_path / "run")
    assert message in str(caught.value) and ".jsonl, line 401" in str(caught.value) and "\n" not in str(caught.value)


REFUSED = {
    "unknown": ("encoder", {"objective.answer": "nmber"}, "unknown answer 'nmber'; did you mean 'number'?"),
    "of windows": ("encoder", {"objective.name": "mlm"}, "mlm has no answers"),
    "span on a decoder": ("decoder", {"objective.answer": "span"}, "on other models set config.objective.answer=text"),
    "no labels": ("encoder", {"objective.answer": "label", "data.labels": False}, "needs labels"),
    "labels of numbers": (
        "encoder",
        {"data.labels": True},
        "data.labels=True: the answers of this task are never labels",
    ),
    "short": ("encoder", {"objective.inputs_length": 2}, "must be at least 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(name, tmp_path):
    architecture, fields, message = REFUSED[name]
    config = _config(tmp_path, "number", architecture)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match="config") as caught:
        train(config, tmp_path / "run")
    assert message in str(caught.value)


def test_the_label_of_free_text_is_refused(tmp_path):
    config = _config(tmp_path, "label", "decoder")
    path = tmp_path / "label.jsonl"
    path.write_text("".join(json.dumps({"inputs": "a", "targets": f"text {i}"}) + "\n" for i in range(1100)))
    with pytest.raises(UserError, match="the training targets are no closed set"):
        train(config, tmp_path / "run")


BERT = {
    "positions": "learned", "max_positions": 40, "norm": "layer", "norm_position": "post", "activation": "gelu",
    "biases": "all", "embedding_norm": True, "logits_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("answer", ["number", pytest.param("labels", marks=pytest.mark.slow),
                                    pytest.param("span", marks=pytest.mark.slow)])  # fmt: skip
def test_a_bert_goes_out_and_comes_back_with_the_same_answers(answer, tmp_path, capsys):
    config = _config(tmp_path, answer, "encoder")
    config.model.update(BERT)
    config.budget.steps = 10
    train(config, tmp_path / "run")
    convert.main(["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'out'}"])
    rows = [json.loads(line) for line in (tmp_path / f"{answer}.jsonl").read_text().splitlines()][:4]
    mine, out = (_generate(place, capsys, rows, tmp_path) for place in (tmp_path / "run", f"hf:{tmp_path / 'out'}"))
    if answer == "number":
        assert [float(each["output"]) for each in out] == pytest.approx(
            [float(each["output"]) for each in mine], rel=1e-5
        )
        assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "regression"
    else:
        assert [each["output"] for each in out] == [each["output"] for each in mine]

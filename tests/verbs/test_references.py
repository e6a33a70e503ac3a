"""Several references for each pair: trained on the first, scored against the best, and said."""

import json

import numpy as np
import pytest

from t5lite import evaluate
from t5lite.system.errors import UserError
from t5lite.tasks.metrics import METRICS
from t5lite.train import train
from tests.small import sentence, small_config


def write_rows(path, make_targets, rows=60):
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(rows):
            text = sentence(rng, 6)
            file.write(json.dumps({"inputs": text, "targets": make_targets(text)}) + "\n")
    return f"files:{path}"


SPLIT = lambda text: [text, f"{text.split()[0]} or {text.split()[-1]}", "the sea"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{"one" or "several": (workdir, result)}: the same first references and tokenizer; only "several" has more."""
    folder, results = tmp_path_factory.mktemp("references"), {}
    for name, make in (("one", lambda text: text), ("several", SPLIT)):
        config = small_config(write_rows(folder / f"{name}.jsonl", make), "supervised")
        config.data.validation.source = write_rows(folder / f"{name}_held.jsonl", make, 12)
        config.data.labels = False if name == "one" else None
        config.tokenizer.path = None if name == "one" else str(folder / "one")
        results[name] = folder / name, train(config, folder / name)
    return results


def test_training_is_on_the_first_reference(runs):
    (_, several), (_, one) = runs["several"], runs["one"]
    assert several["params_sha256"] == one["params_sha256"]
    assert several["metrics"]["validation"]["loss"] == one["metrics"]["validation"]["loss"]


def test_the_result_and_the_log_say_how_references_are_used(runs, capsys):
    workdir, result = runs["several"]
    assert result["references"]["rows"] == {"data.train": 60, "data.validation": 12}
    assert "first" in result["references"]["use"] and "references" not in runs["one"][1]
    evaluate.main(["--checkpoint", str(workdir)])
    assert "several references in 12 of 12 rows of data.validation: training and losses take the first" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def test_answers_are_scored_against_the_best_reference(runs, tmp_path, capsys):
    workdir, _ = runs["several"]
    file = tmp_path / "p.jsonl"
    evaluate.main(["--checkpoint", str(workdir), "--json", "--predictions", str(file)])
    found = json.loads(capsys.readouterr().out)["metrics"]["validation"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        assert row["target"] == SPLIT(row["target"][0]) and "more_references" not in row
        for name in ("token_f1", "rougeL"):
            assert row["scores"][name] == max(METRICS[name].score([each], row["output"]) for each in row["target"])
    better = [
        row for row in rows if row["scores"]["token_f1"] > METRICS["token_f1"].score(row["target"][:1], row["output"])
    ]
    assert better, "some answer is nearer to another reference than to the first"
    evaluate.main(["--score_file", str(file), "--json"])
    again = json.loads(capsys.readouterr().out)["metrics"]["file"]
    assert {name: again[name] for name in again} == pytest.approx({name: found[name] for name in again})


def test_changed_references_are_changed_data(tmp_path):
    config = small_config(write_rows(tmp_path / "a.jsonl", SPLIT), "supervised")
    config.budget.steps = 1
    train(config, tmp_path / "run")
    write_rows(tmp_path / "a.jsonl", lambda text: [text, "another"])
    config.budget.steps = 2
    with pytest.raises(UserError, match=r"data\.train"):
        train(config, tmp_path / "run", ["budget"])


def test_labels_and_several_references_do_not_mix(tmp_path, capsys):
    """Held-out rows with several references of a run with a closed set of labels."""
    label = lambda text: "about the sea" if "whale" in text else "other"
    config = small_config(write_rows(tmp_path / "a.jsonl", label, 200), "supervised")
    config.budget.steps = 1
    train(config, tmp_path / "run")
    source = write_rows(tmp_path / "b.jsonl", lambda text: ["other", "about the sea"], 5)
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", str(tmp_path / "run"), f"--config.data.validation.source={source}"])
    assert "some rows have several references, but the training targets are a closed set" in capsys.readouterr().err

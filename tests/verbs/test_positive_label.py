"""The F1 of one label (eval.positive_label): in training, evaluate and the report, for all answers with labels."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from t5lite import evaluate
from t5lite.reporting.report import write_report
from t5lite.run.evaluation import load_evaluator
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.reporting.fakes import write_run
from tests.small import sentence, small_config, write_pairs

SEA = "about the sea"


def write_rows(path, answer, rows=120):
    """Write a .jsonl of a task with this kind of answer."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(rows):
        words = sentence(rng, 6).split()
        tags = ["x" if word < "n" else "y" for word in words]
        inputs, targets = {"tags": (words, tags), "labels": (" ".join(words), sorted(set(tags)))}[answer]
        lines.append(json.dumps({"inputs": inputs, "targets": targets}) + "\n")
    path.write_text("".join(lines))
    return f"files:{path}"


def config_for(folder, architecture="encoder", answer=None, label=SEA):
    path = folder / "rows.jsonl"
    source = write_pairs(path) if answer in (None, "label", "text") else write_rows(path, answer)
    config = small_config(source, "supervised", architecture)
    config.objective.answer, config.eval.positive_label = answer, label
    config.budget.steps, config.checkpoint.every_steps, config.eval.generate_rows = 2, 2, 0
    return config


def f1_of_matrix(classes, label):
    """Compute the F1 from a confusion matrix by scikit-learn."""
    matrix, place = np.array(classes["confusion"]), classes["labels"].index(label)
    true, chosen = (each.ravel() == place for each in np.indices(matrix.shape))
    return f1_score(true, chosen, sample_weight=matrix.ravel(), zero_division=0)


@pytest.mark.parametrize(
    ("architecture", "answer"),
    [("encoder", "label"), ("encoder_decoder", "text"), pytest.param("decoder", "label", marks=pytest.mark.slow)],
)
def test_training_and_evaluate_give_the_f1_of_the_label_with_an_interval(tmp_path, capsys, architecture, answer):
    config = config_for(tmp_path, architecture, answer)
    config.eval.every_steps, config.early_stopping.metric = 1, "validation/positive_f1"
    result = train(config, tmp_path / "run")
    found = result["metrics"]["validation"]["positive_f1"]
    assert found == pytest.approx(f1_of_matrix(result["classes"]["validation"], SEA))
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(tmp_path / "run"), "--config.eval.positive_label=other", "--json"])
    printed = json.loads(capsys.readouterr().out)
    other = printed["metrics"]["validation"]["positive_f1"]
    assert other == pytest.approx(f1_of_matrix(printed["classes"]["validation"], "other"))
    low, high = printed["intervals"]["validation"]["positive_f1"]
    assert low <= other <= high


def test_tags_have_it_too(tmp_path):
    result = train(config_for(tmp_path, "encoder", "tags", "x"), tmp_path / "run")
    metrics, classes = result["metrics"]["validation"], result["classes"]["validation"]
    assert metrics["positive_f1"] == pytest.approx(f1_of_matrix(classes, "x"), abs=1e-6)


def test_several_labels_have_it_too(tmp_path):
    metrics = train(config_for(tmp_path, "encoder", "labels", "y"), tmp_path / "run")["metrics"]["validation"]
    evaluator, params, _ = load_evaluator(tmp_path / "run")
    answers = evaluator.read_predictions(params)["validation"]
    true, chosen = (
        ["y" in text.split(" | ") for text in texts] for texts in zip(*(each[1:3] for each in answers), strict=True)
    )
    assert metrics["positive_f1"] == pytest.approx(f1_score(true, chosen, zero_division=0)) and any(true)
    evaluator.with_details = True
    found = evaluator.evaluate_all(params)["validation"]
    intervals = evaluator.intervals["validation"]
    assert set(intervals) == {"micro_f1", "label_macro_f1", "equal_sets", "positive_f1"}
    assert all(low <= found[name] <= high for name, (low, high) in intervals.items())


def test_without_the_field_there_is_no_such_metric(tmp_path):
    config = config_for(tmp_path, label=None)
    config.model.architecture = "bag_of_words"
    assert "positive_f1" not in train(config, tmp_path / "run")["metrics"]["validation"]


def test_a_bag_of_words_has_it(tmp_path):
    config = config_for(tmp_path)
    config.model.architecture = "bag_of_words"
    result = train(config, tmp_path / "run")
    expected = f1_of_matrix(result["classes"]["validation"], SEA)
    assert result["metrics"]["validation"]["positive_f1"] == pytest.approx(expected) and expected > 0.8


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder", "bag_of_words"])
def test_a_label_that_the_data_does_not_have_is_refused(tmp_path, architecture):
    config = config_for(tmp_path, architecture, label="about the see")
    with pytest.raises(UserError, match=r"eval\.positive_label: the data has no label 'about the see'; did you mean"):
        train(config, tmp_path / "run")


def test_data_without_labels_is_refused(tmp_path):
    config = config_for(tmp_path, "encoder_decoder")
    config.data.labels = False
    with pytest.raises(UserError, match="no label 'about the sea'; it has no labels at all"):
        train(config, tmp_path / "run")


def test_runs_with_different_positive_labels_are_not_compared(tmp_path):
    runs = [
        write_run(tmp_path, f"{label}-{seed}", {"accuracy": 0.5 + seed / 9, "positive_f1": 0.4 + seed / 8},
                  seed=seed, fields={"eval.positive_label": label})
        for label in ("yes", "no") for seed in range(3)
    ]  # fmt: skip
    report = write_report(runs, tmp_path / "out", "t")
    assert {each.metric for each in report.comparisons} == {"accuracy"}
    assert any("positive_f1 on validation: not compared, because eval.positive_label" in note for note in report.notes)

"""Early stopping and the test set, in whole runs."""

import json
import os
import signal

import pytest

from t5lite.run import evaluation
from t5lite.run.evaluation import load_evaluator
from t5lite.system.errors import Interrupted, UserError
from t5lite.train import train
from t5lite.training.checkpoint import hash_params
from t5lite.training.reading import choose_steps, saved_steps
from tests.small import small_config, write_pairs, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def stopping_config(source, objective="span_corruption", architecture="encoder_decoder", **fields):
    config = small_config(source, objective, architecture)
    config.budget.steps, config.eval.every_steps, config.checkpoint.every_steps = 40, 2, 1000
    config.early_stopping.update({"metric": "validation/loss", "patience": 2, **fields})
    return config


def read(workdir, name="result.json"):
    return json.loads((workdir / name).read_text())


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def params_digest(workdir, step=None):
    _, params, step = load_evaluator(workdir, step=step)
    return step, hash_params(params)


def test_a_run_without_an_improvement_keeps_its_initial_parameters(texts, tmp_path):
    train(stopping_config(texts, min_delta=10.0), tmp_path)
    result = read(tmp_path)
    assert (result["step"], result["ended_at"], result["ended_by"]) == (0, 4, "patience")
    assert saved_steps(tmp_path) == [0, 4]
    assert result["metrics"]["validation"] == pytest.approx(
        {name: value for name, value in log(tmp_path)[0].items() if name not in ("step", "split")}, rel=1e-5
    )
    assert params_digest(tmp_path) == (0, result["params_sha256"]) == params_digest(tmp_path, "best")
    assert params_digest(tmp_path, "4")[1] != result["params_sha256"]
    assert max(line["step"] for line in log(tmp_path)) == 4


def test_the_best_evaluation_is_kept_however_many_are_saved_after_it(texts, tmp_path):
    config = stopping_config(texts, patience=3)
    config.schedule.rate, config.checkpoint.every_steps, config.checkpoint.keep = 0.3, 1, 1  # it soon diverges
    train(config, tmp_path)
    result = read(tmp_path)
    losses = {line["step"]: line["loss"] for line in log(tmp_path) if line["split"] == "validation"}
    assert result["ended_by"] == "patience"
    assert losses[result["step"]] == min(losses.values())
    assert set(saved_steps(tmp_path)) == {result["step"], result["ended_at"]}
    assert choose_steps(tmp_path, None) == [result["step"], result["ended_at"]]
    assert load_evaluator(tmp_path, average=2)[2] == result["ended_at"], "an average is of the newest checkpoints"
    assert result["metrics"]["validation"]["loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def test_a_budget_that_ends_first_also_keeps_the_best(texts, tmp_path):
    config = stopping_config(texts, patience=30, min_delta=0.2)
    config.budget.steps = 6
    train(config, tmp_path)
    result = read(tmp_path)
    assert (result["ended_at"], result["ended_by"]) == (6, "budget")
    losses = {line["step"]: line["loss"] for line in log(tmp_path) if line["split"] == "validation"}
    assert result["metrics"]["validation"]["loss"] == pytest.approx(losses[result["step"]], rel=1e-5)


@pytest.mark.parametrize("moment", ["evaluation", pytest.param("step", marks=pytest.mark.slow)])
def test_a_stopped_run_ends_like_one_that_was_not_stopped(texts, tmp_path, monkeypatch, moment):
    config = stopping_config(texts, patience=3)
    config.schedule.rate = 0.3
    train(config, tmp_path / "whole")
    ends = read(tmp_path / "whole")["ended_at"]
    evaluate, begun = evaluation.Evaluator._evaluate, []

    def stopped(self, *arguments):
        begun.append(arguments)
        if len(begun) == ends // 2:  # one evaluation before the last one
            if moment == "step":
                metrics = evaluate(self, *arguments)
            os.kill(os.getpid(), signal.SIGTERM)
            return metrics if moment == "step" else evaluate(self, *arguments)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "_evaluate", stopped)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    of_loss = lambda name: [(e["step"], e["split"], e["loss"]) for e in log(tmp_path / name)]
    assert of_loss("stopped") == of_loss("whole")
    results = [read(tmp_path / name) for name in ("stopped", "whole")]
    for result in results:
        result["cost"] = result["cost"]["tokens"]
    assert results[0] == results[1]


def test_a_metric_of_generated_answers_can_stop_a_run(pairs, tmp_path):
    train(stopping_config(pairs, "supervised", metric="validation/exact_match", min_delta=2.0), tmp_path)
    evaluations = [line for line in log(tmp_path) if line["split"] == "validation"]
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert all("exact_match" in line for line in evaluations)


def test_a_metric_that_is_not_evaluated_is_refused_at_the_first_evaluation(texts, tmp_path):
    with pytest.raises(UserError, match=r"validation/accuracy is not evaluated; known: validation/loss"):
        train(stopping_config(texts, metric="validation/accuracy"), tmp_path)


def test_changed_evaluations_are_refused_because_they_change_the_end(texts, tmp_path):
    config = stopping_config(texts)
    train(config, tmp_path)
    (tmp_path / "result.json").unlink()
    config.eval.rows = 8
    with pytest.raises(UserError, match=r"eval\.rows \(was 16, now 8\)"):
        train(config, tmp_path)


def test_the_test_set_is_read_once_at_the_end(pairs, tmp_path, monkeypatch):
    held_out = write_pairs(tmp_path / "test.jsonl", 60, seed=5)
    config = small_config(pairs, "supervised", "encoder")
    config.data.test.source, config.eval.every_steps, config.eval.rows = held_out, 2, None
    evaluate, seen = evaluation.Evaluator._evaluate, []

    def noted(self, params, split, *arguments):
        seen.append(split)
        return evaluate(self, params, split, *arguments)

    monkeypatch.setattr(evaluation.Evaluator, "_evaluate", noted)
    train(config, tmp_path / "run")
    assert seen.count("test") == 1
    assert "test" not in {line["split"] for line in log(tmp_path / "run")}
    result = read(tmp_path / "run")
    assert set(result["metrics"]) == {"validation", "test"}
    assert result["evaluated"]["test"] == {"used": 60, "of": 60}  # eval.rows is unset: all rows at the end
    evaluator, params, _ = load_evaluator(tmp_path / "run")
    assert evaluator.evaluate_all(params)["test"] == pytest.approx(result["metrics"]["test"])


def test_labels_of_the_test_set_must_occur_in_training(pairs, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"inputs": "the sea", "targets": "unseen"}) + "\n")
    config = small_config(pairs, "supervised", "encoder")
    config.data.test.source = f"files:{tmp_path}/test.jsonl"
    with pytest.raises(UserError, match=r"data\.test: the label 'unseen' never occurs"):
        train(config, tmp_path / "run")


def test_epochs_count_the_rows_of_training(pairs, tmp_path):
    config = small_config(pairs, "supervised", "encoder")
    config.budget.steps, config.budget.epochs = None, 0.5  # 190 pairs, batches of 8
    train(config, tmp_path)
    assert read(tmp_path)["step"] == 12

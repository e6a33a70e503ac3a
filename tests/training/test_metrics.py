"""The log: every line once, whatever happened in between; metrics mean what they say."""

import json
import math

import numpy as np
import pytest

from t5lite.tasks.metrics import compute_metrics
from t5lite.training.metrics import MetricsLog


def _steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_beyond_the_checkpoint_and_half_lines_are_cut(tmp_path):
    log = MetricsLog(tmp_path, keep_until=-1)
    for step in (1, 5, 10, 12):
        log.write(step, "train", {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    log = MetricsLog(tmp_path, keep_until=10)
    log.write(11, "train", {"loss": 1.0})
    log.close()
    assert _steps(tmp_path) == [1, 5, 10, 11]


def test_what_json_cannot_hold_becomes_null(tmp_path):
    log = MetricsLog(tmp_path, keep_until=-1)
    log.write(1, "train", {"loss": math.nan})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_metrics_from_sums():
    sums = {"nll": 20.0, "weight": 10.0, "correct": 4.0, "bytes": 40.0}
    metrics = compute_metrics(sums)
    assert metrics["loss"] == 2.0 and metrics["token_accuracy"] == 0.4
    assert math.isclose(metrics["perplexity"], math.exp(2))
    assert math.isclose(metrics["bits_per_byte"], 20 / math.log(2) / 40)
    assert "bits_per_byte" not in compute_metrics({name: value for name, value in sums.items() if name != "bytes"})


def test_accuracy_and_macro_f1_against_a_case_by_hand():
    sums = {"nll": 1.0, "weight": 3.0, "confusion": np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])}
    # Label 0: 1 hit of 2 true and 1 chosen; label 1: 1 hit of 1 and 1; label 2: chosen once, never true.
    found = compute_metrics({f"classifier/{name}": value for name, value in sums.items()})
    del found["loss"]
    assert found == {
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3),
        "matthews": pytest.approx((2 * 3 - 2 - 1) / np.sqrt((9 - 3) * (9 - 5))),
        "majority_accuracy": pytest.approx(2 / 3),
        "majority_macro_f1": pytest.approx(4 / 5 / 2),  # always label 0: F1 4/5 and 0
        "most_chosen": pytest.approx(1 / 3),
    }

"""Metrics of numbers and of sets of labels, beside scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from t5lite.tasks import numbers
from t5lite.tasks.intervals import bootstrap_rows
from t5lite.tasks.labels import LABELS
from t5lite.tasks.metrics import compute_metrics


def _texts(values):
    return [f"{value:.10g}" for value in values]


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    true, given = rng.normal(size=50), rng.normal(size=50)
    references, outputs = [[text] for text in _texts(true)], _texts(given + true)
    assert numbers.pearson(references, outputs) == pytest.approx(stats.pearsonr(true, given + true).statistic)
    assert numbers.spearman(references, outputs) == pytest.approx(stats.spearmanr(true, given + true).statistic)
    assert numbers.rmse(references, outputs) == pytest.approx(np.sqrt(np.mean(np.square(given))))
    assert numbers.mean_rmse(references, outputs) == pytest.approx(true.std())


def test_an_output_without_a_number_counts_as_minus_1_as_in_t5s_code():
    references = [["1"], ["2"], ["3"], ["6"]]
    assert numbers.rmse(references, ["1", "2", "3", "a lot"]) == pytest.approx(7 / 2)
    assert numbers.pearson(references, ["1", "2", "3", "nan"]) == pytest.approx(
        stats.pearsonr([1, 2, 3, 6], [1, 2, 3, -1]).statistic
    )
    assert numbers.spearman(references, ["none", "", "nan", "inf"]) == 0.0
    shares = [numbers.is_no_number(["1"], output) for output in ("3.8", "-2", "1e3", "", "3.8 points", "nan")]
    assert shares == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("texts", [[], ["1"], ["2", "2"]])
def test_correlations_that_are_not_defined_are_zero(texts):
    assert numbers.pearson([[text] for text in texts], texts) == numbers.spearman([[t] for t in texts], texts) == 0.0


def test_scores_of_sets_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    true, chosen = rng.random((40, 5)) < 0.3, rng.random((40, 5)) < 0.3
    true[:, 4] = chosen[:, 4] = False  # a label that nobody has or gets
    counts = np.stack([true.sum(0), chosen.sum(0), (true & chosen).sum(0)], axis=1).astype(float)
    sums = {"nll": 1.0, "weight": 40.0, "label_counts": counts, "equal_sets": float((true == chosen).all(1).sum())}
    found = compute_metrics({f"labeller/{name}": value for name, value in sums.items()})
    assert found["micro_f1"] == pytest.approx(f1_score(true, chosen, average="micro"))
    assert found["label_macro_f1"] == pytest.approx(f1_score(true[:, :4], chosen[:, :4], average="macro"))
    constant = np.eye(5, dtype=bool).cumsum(axis=0)[:, np.argsort(np.argsort(-true.sum(0), kind="stable"))]
    best = max(f1_score(true, np.tile(row, (40, 1)), average="micro") for row in constant)
    assert found["majority_micro_f1"] == pytest.approx(best)
    assert found["equal_sets"] == pytest.approx(np.mean((true == chosen).all(1)))


def _row_sums(true, chosen):
    counts = np.stack([true, chosen, true & chosen], axis=-1).astype(np.float32)
    return {
        "label_counts": counts,
        "equal_sets": (true == chosen).all(1).astype(np.float32),
        "weight": np.ones(len(true)),
    }


def test_intervals_of_sets_of_labels_are_those_of_drawing_texts_again():
    rng = np.random.default_rng(2)
    true = rng.random((150, 4)) < 0.4
    chosen = np.where(rng.random((150, 4)) < 0.75, true, ~true)
    found = bootstrap_rows(LABELS.metrics, _row_sums(true, chosen), {"positive": np.float64(2)})
    assert set(found) == {"micro_f1", "label_macro_f1", "equal_sets", "positive_f1"}
    draws = rng.integers(150, size=(600, 150))
    scores = {
        "micro_f1": lambda a, b: f1_score(a, b, average="micro"),
        "label_macro_f1": lambda a, b: f1_score(a, b, average="macro"),
        "equal_sets": lambda a, b: np.mean((a == b).all(1)),
        "positive_f1": lambda a, b: f1_score(a[:, 2], b[:, 2]),
    }
    for name, score in scores.items():
        low, high = np.percentile([score(true[draw], chosen[draw]) for draw in draws], (2.5, 97.5))
        assert found[name] == pytest.approx((low, high), abs=0.2 * (high - low)), name


def test_the_labels_of_a_text_are_drawn_together():
    """Eight copies of a label say no more than one."""
    rng = np.random.default_rng(3)
    true, chosen = rng.random((2, 100, 1)) < 0.5
    once, eight = (bootstrap_rows(["micro_f1"], _row_sums(*(np.tile(each, (1, copies)) for each in (true, chosen))))
                   for copies in (1, 8))  # fmt: skip
    assert eight["micro_f1"] == pytest.approx(once["micro_f1"])

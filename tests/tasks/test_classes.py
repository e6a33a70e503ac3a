"""Metrics of classes are scikit-learn's; the score of the most frequent class; what is said of a bad classifier."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from t5lite.tasks.metrics import METRICS, describe_weakness, score_classes
from t5lite.tasks.task import calibration_sums, confusion


@pytest.fixture(scope="module", params=[2, 5])
def answers(request):
    """(true classes, logits, weights): 300 texts, of which some have no answer."""
    rng, classes = np.random.default_rng(request.param), request.param
    gold = rng.integers(0, classes, 300)
    logits = rng.normal(0, 1.5, (300, classes)) + 2 * np.eye(classes)[gold] * (rng.random((300, 1)) < 0.6)
    return gold, logits.astype(np.float32), (rng.random(300) < 0.8).astype(np.float32)


def sums_of(gold, logits, weights):
    sums = {"confusion": confusion(jnp.asarray(logits), jnp.asarray(gold), jnp.asarray(weights))}
    sums |= calibration_sums(jnp.asarray(logits), jnp.asarray(gold), jnp.asarray(weights))
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def test_they_are_scikit_learns(answers):
    gold, logits, weights = answers
    sums, counted = sums_of(*answers), weights > 0
    true, chosen = gold[counted], logits.argmax(axis=1)[counted]
    value = lambda name: METRICS[name].compute(sums)
    assert value("matthews") == pytest.approx(matthews_corrcoef(true, chosen))
    assert value("accuracy") == pytest.approx(accuracy_score(true, chosen))
    probabilities = np.asarray(jax.nn.softmax(logits))[counted]
    distance = np.square(probabilities - np.eye(logits.shape[1])[true]).sum(axis=1).mean()
    assert value("brier") == pytest.approx(distance, rel=1e-5)
    if logits.shape[1] == 2:  # of two classes, scikit-learn counts one
        assert value("brier") == pytest.approx(2 * brier_score_loss(true, probabilities[:, 1]), rel=1e-5)
    expected = precision_recall_fscore_support(true, chosen, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert [each[name] for each in score_classes(sums["confusion"])] == pytest.approx(list(values))


def test_the_f1_of_one_label_is_scikit_learns(answers):
    gold, logits, weights = answers
    true, chosen = gold[weights > 0], logits.argmax(axis=1)[weights > 0]
    for label in range(logits.shape[1]):
        sums = sums_of(*answers) | {"positive": np.float64(label)}
        expected = f1_score(true == label, chosen == label)
        assert METRICS["positive_f1"].compute(sums) == pytest.approx(expected)
        missed = 7.0 * np.eye(logits.shape[1])[label]  # answers that were cut off count as true, and as not chosen
        expected = f1_score([*(true == label), *[True] * 7], [*(chosen == label), *[False] * 7])
        assert METRICS["positive_f1"].compute(sums | {"missed": missed}) == pytest.approx(expected)


def test_the_f1_of_one_of_several_labels_at_once_is_scikit_learns():
    true, chosen = np.random.default_rng(0).random((2, 50, 4)) < 0.4
    counts = np.stack([true.sum(0), chosen.sum(0), (true & chosen).sum(0)], axis=1).astype(np.float64)
    for label in range(4):
        sums = {"label_counts": counts, "positive": np.float64(label)}
        assert METRICS["positive_f1"].compute(sums) == pytest.approx(f1_score(true[:, label], chosen[:, label]))


def test_an_unknown_or_absent_label_has_no_f1():
    sums = {"confusion": np.zeros((2, 2)), "positive": np.float64(1)}
    assert METRICS["positive_f1"].compute(sums) == 0


def test_the_most_frequent_class_scores_as_a_system_that_always_chooses_it(answers):
    gold, _, weights = answers
    true = gold[weights > 0]
    chosen = np.full(len(true), np.bincount(true).argmax())
    sums = sums_of(*answers)
    assert METRICS["majority_accuracy"].compute(sums) == pytest.approx(accuracy_score(true, chosen))
    assert METRICS["majority_macro_f1"].compute(sums) == pytest.approx(f1_score(true, chosen, average="macro"))


def test_the_calibration_error_by_hand():
    """Four answers in two bins: at 0.6 half are right, at 0.9 all are."""
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    sums = sums_of(np.array([0, 0, 0, 1]), np.log(probabilities).astype(np.float32), np.ones(4, np.float32))
    assert METRICS["calibration_error"].compute(sums) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4, abs=1e-6)
    certain = sums_of(np.array([0, 1]), np.array([[50, -50], [-50, 50]], np.float32), np.ones(2, np.float32))
    assert METRICS["calibration_error"].compute(certain) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[50, 10], [10, 30]], None),
        ([[60, 0], [40, 0]], "accuracy 0.600 is no better than 0.600.*; 100.0% of the answers are of the same class"),
        ([[59, 1], [38, 2]], "^97.0% of the answers are of the same class$"),  # a little better than the majority
        ([[30, 30], [30, 10]], "^accuracy 0.400 is no better than 0.600, the accuracy of the most frequent class"),
        ([[97, 0], [2, 1]], None),  # one class is nearly always right
    ],
)
def test_a_classifier_that_learned_nothing_is_named(matrix, said):
    sums = {"confusion": np.array(matrix, np.float64)}
    metrics = {name: METRICS[name].compute(sums) for name in ("accuracy", "majority_accuracy", "most_chosen")}
    found = describe_weakness(metrics)
    if said is None:
        assert found is None
    else:
        assert re.search(said, found)


def test_other_objectives_have_no_majority():
    assert describe_weakness({"loss": 2.0, "accuracy": 0.1}) is None


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.array([[4.0, 0], [0, 0]])])
def test_an_empty_or_one_sided_matrix_gives_finite_numbers(matrix):
    sums = {"confusion": matrix, "calibration": np.zeros((15, 3)), "brier": np.float64(0)}
    for name in ("matthews", "calibration_error", "brier", "majority_accuracy", "majority_macro_f1", "most_chosen"):
        assert np.isfinite(METRICS[name].compute(sums))

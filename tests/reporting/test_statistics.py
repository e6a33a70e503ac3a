"""Intervals: compared with cases computed by hand, and how often they contain the true mean."""

import numpy as np
import pytest

from t5lite.reporting.statistics import (
    RESAMPLES,
    estimate,
    mean_interval,
    percentile_interval,
    resampling_weights,
    stretch_factor,
)


def _coverage(interval, samples, truth):
    """Return the share of intervals that contain `truth`. samples: [trials, n], split into parts to save memory."""
    n = samples.shape[1]
    parts = np.array_split(samples, max(1, samples.size // n * len(resampling_weights(n)) // 2_000_000))
    contains = [(low <= truth) & (truth <= high) for low, high in map(interval, parts)]
    return np.concatenate(contains).mean()


def test_all_resamples_of_few_values_are_used():
    weights = resampling_weights(3)
    assert weights.shape == (27, 3) and np.allclose(weights.sum(axis=1), 1)
    assert (np.isclose(weights, 1).any(axis=1)).sum() == 3  # one resample for each value has only this value
    assert resampling_weights(6).shape == (6**6, 6) and resampling_weights(7).shape == (RESAMPLES, 7)


def test_three_values_against_a_case_by_hand():
    low, high = percentile_interval(np.array([1.0, 2.0, 6.0]))
    assert (low, high) == (1.0, 6.0)  # of 27 means, the smallest and the largest have a share of 1/27 > 2.5 % each
    by = 4.302653 / 1.959964 * np.sqrt(3 / 2)
    assert stretch_factor(3) == pytest.approx(by, rel=1e-6)
    result = estimate([1.0, 2.0, 6.0])
    assert (result.mean, result.n) == (3.0, 3)
    assert (result.low, result.high) == pytest.approx((3 - by * 2, 3 + by * 3))


@pytest.mark.parametrize("values", [[0.3, 0.1, 0.4], [3.0, -1.0], [0.1, 0.7, 0.2, 0.9, 0.4, 0.5, 0.3, 2.0]])
def test_swapping_the_groups_changes_only_the_signs_of_the_interval(values):
    there, back = estimate(values), estimate([-value for value in values])
    assert (back.mean, back.low, back.high) == (-there.mean, -there.high, -there.low)


@pytest.mark.parametrize(("n", "trials"), [(2, 8000), (3, 4000), (5, 3000), (10, 1000)])
def test_intervals_contain_the_true_mean_as_often_as_stated(n, trials):
    rng = np.random.default_rng(n)
    assert 0.92 <= _coverage(mean_interval, rng.normal(size=(trials, n)), 0.0) <= 0.98
    assert _coverage(mean_interval, rng.gamma(4.0, size=(trials, n)), 4.0) >= 0.88


def test_the_plain_percentile_interval_of_three_seeds_is_too_narrow():
    samples = np.random.default_rng(0).normal(size=(4000, 3))
    assert _coverage(percentile_interval, samples, 0.0) < 0.85


def test_one_seed_has_a_mean_and_no_interval():
    result = estimate([2.5])
    assert (result.mean, result.low, result.high, result.n, result.resolved) == (2.5, None, None, 1, None)


@pytest.mark.parametrize("broken", [None, float("nan"), float("inf")])
def test_a_value_that_is_not_finite_leaves_no_mean(broken):
    result = estimate([1.0, broken, 2.0])
    assert (result.mean, result.low, result.resolved, result.n) == (None, None, None, 3)


def test_a_difference_is_resolved_when_the_interval_excludes_0():
    assert estimate([1.0, 1.1, 0.9]).resolved is True
    assert estimate([-1.0, -1.1, -0.9]).resolved is True
    assert estimate([1.0, 1.1, -0.9]).resolved is False


def test_equal_values_of_all_seeds_do_not_resolve_a_difference():
    same = estimate([0.1, 0.5 - 0.4, 0.1])  # equal except for rounding
    assert same.low == same.high == same.mean and same.resolved is None
    assert estimate([0.0, 0.0, 0.0]).resolved is False
    assert estimate([0.0, 0.0]).resolved is None  # too few seeds for a verdict

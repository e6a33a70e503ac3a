"""The mean over a few seeds and its uncertainty: a bootstrap interval that is stretched for small samples.

METHOD, which every report prints, says how. The percentile bootstrap of a mean over n values is too narrow for a small
n, for two reasons (Hesterberg 2015). The spread of the resamples is too small by the factor sqrt((n - 1) / n). Their
quantiles follow a normal distribution, where few values need Student's t. So both arms of the interval are stretched by

    t(0.975, n - 1) / z(0.975) * sqrt(n / (n - 1))        9.17 for n = 2, 2.69 for 3, 1.58 for 5, 1.22 for 10

This keeps the asymmetry of the bootstrap. Resamples are drawn with a fixed seed where there are too many to use all
n**n, so the same values have the same interval everywhere. (scipy.stats.bootstrap draws even where all could be used.)
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
FEWEST_SEEDS = 3  # a difference with fewer seeds has an interval but no verdict
EXACT_UP_TO = 6
RESAMPLES = 10_000
METHOD = (
    "Intervals are 95 % bootstrap intervals of the mean over seeds, from the percentiles of all resamples; beyond "
    f"{EXACT_UP_TO} seeds, of {RESAMPLES:,} resamples. The plain percentile interval is too narrow for few seeds: "
    "with 3 seeds it is the range of the values, which holds the true mean about three times in four (Hesterberg "
    "2015, What Teachers Should Know about the Bootstrap). So the interval is stretched about the mean by t(0.975, "
    "n − 1) / z(0.975) · √(n / (n − 1)). Differences are paired by seed. Intervals cover what changes with the "
    "seed, not what other held-out data would change. Where a metric has a range, its intervals end there: no "
    f"accuracy is above 1. A difference is resolved when its interval excludes 0 and it rests on {FEWEST_SEEDS} "
    "seeds or more. A difference below a millionth of the values is rounding and counts as 0."
)
ROUNDING = 1e-6  # relative to a value; metrics are sums of float32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its interval.

    low, high: None where n is 1.
    mean, low, high: None where a value is not finite.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def has_spread(self) -> bool:
        """Whether the interval has a width: not all seeds have the same value."""
        return self.low is not None and self.high is not None and self.low < self.high

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes 0. None with too few seeds, or where all seeds have one value other than 0."""
        if self.mean is None or self.low is None or self.high is None or self.n < FEWEST_SEEDS:
            return None
        if not self.has_spread:
            return False if self.mean == 0 else None
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Estimate":
        """Return the estimate with its interval cut at `low` and `high`, the range of possible values."""
        if self.low is None or self.high is None:
            return self
        return dataclasses.replace(self, low=max(self.low, low), high=min(self.high, high))


@functools.cache
def resampling_weights(n: int) -> np.ndarray:
    """Return float64 [R, n], rows that sum to 1: the share of each of n values in each of R resamples."""
    if n <= EXACT_UP_TO:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
        return np.stack([(drawn == value).mean(axis=1) for value in range(n)], axis=1)
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def percentile_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), each [...]: the plain percentile bootstrap of the mean of `values` [..., n]."""
    means = values @ resampling_weights(values.shape[-1]).T
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(means, tail, axis=-1, method="inverted_cdf")
    # Mirrored, so that the interval of b - a is exactly the interval of a - b with the signs changed.
    return low, -np.quantile(-means, tail, axis=-1, method="inverted_cdf")


def stretch(n: int) -> float:
    """Return the factor by which both arms of the percentile interval of n values grow."""
    quantile = (1 + CONFIDENCE) / 2
    return float(stdtrit(n - 1, quantile) / ndtri(quantile)) * math.sqrt(n / (n - 1))


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), each [...]: the stretched interval of the mean of `values` [..., n], for n >= 2."""
    low, high = percentile_interval(values)
    mean = values.mean(axis=-1)
    by = stretch(values.shape[-1])
    return mean - by * (mean - low), mean + by * (high - mean)


def estimate(values: Sequence[float | None], rounding: float = 0.0) -> Estimate:
    """Return the mean of `values`, one a seed, with its interval. A value of None, or not finite, leaves no mean.

    rounding: values that differ by no more than this are equal.
    """
    n = len(values)
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    if n == 0 or not np.isfinite(numbers).all():
        return Estimate(None, None, None, n)
    mean = float(numbers.mean())
    if n == 1:
        return Estimate(mean, None, None, n)
    if np.ptp(numbers) <= max(1e-9 * np.abs(numbers).max(), rounding):
        return Estimate(mean, mean, mean, n)
    low, high = mean_interval(numbers)
    return Estimate(mean, float(low), float(high), n)


def differences(a: Sequence[float], b: Sequence[float]) -> tuple[list[float], Estimate]:
    """Return b - a for each seed, and their mean with its interval. A difference within the rounding counts as 0."""
    values = np.array([a, b], np.float64)
    rounding = ROUNDING * np.abs(values).max(axis=0)
    deltas = values[1] - values[0]
    deltas = np.where(np.abs(deltas) <= rounding, 0.0, deltas).tolist()
    return deltas, estimate(deltas, rounding=float(rounding.min()))

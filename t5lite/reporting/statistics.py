"""The mean over a few seeds and its uncertainty: a bootstrap interval that is widened for small samples.

Every report prints METHOD, which explains the interval. For small n, the percentile bootstrap of a mean over n values
is too narrow, for two reasons (Hesterberg 2015). First, the spread of the resamples is too small by the factor
sqrt((n - 1) / n). Second, their quantiles are those of a normal distribution, but few values need Student's t. So the
distances from the mean to both ends of the interval are multiplied by

    t(0.975, n - 1) / z(0.975) * sqrt(n / (n - 1))        9.17 for n = 2, 2.69 for 3, 1.58 for 5, 1.22 for 10

This keeps the asymmetry of the bootstrap. Up to n = EXACT_UP_TO, all n**n resamples are used. For larger n, resamples
are drawn with a fixed seed, so the same values always have the same interval. (scipy.stats.bootstrap always draws.)
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
FEWEST_SEEDS = 3  # a difference over fewer seeds gets no verdict
EXACT_UP_TO = 6
RESAMPLES = 10_000
METHOD = (
    "Intervals are 95 % bootstrap intervals of the mean over seeds. They are percentiles of all resamples; for more "
    f"than {EXACT_UP_TO} seeds, of {RESAMPLES:,} random resamples. This interval is too narrow for few seeds: with 3 "
    "seeds it is the range of the values, which contains the true mean about three times in four (Hesterberg 2015, "
    "What Teachers Should Know about the Bootstrap). So both distances from the mean to the ends are multiplied by "
    "t(0.975, n − 1) / z(0.975) · √(n / (n − 1)). Differences are paired by seed. Intervals show the variation between "
    "seeds, not the variation between other sets of held-out data. No interval goes beyond the range of its metric: "
    "no accuracy is above 1. A difference is resolved if its interval excludes 0 and it has at least "
    f"{FEWEST_SEEDS} seeds. A difference below a millionth of the values is due to rounding and counts as 0."
)
ROUNDING = 1e-6  # relative to a value; metrics are sums of float32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its interval.

    low, high: None if n is 1.
    mean, low, high: None if a value is not finite.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def has_spread(self) -> bool:
        """Whether the interval has a width. It has none if all seeds have the same value."""
        return self.low is not None and self.high is not None and self.low < self.high

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes 0. None for too few seeds, or if all seeds have one value that is not 0."""
        if self.mean is None or self.low is None or self.high is None or self.n < FEWEST_SEEDS:
            return None
        if not self.has_spread:
            return False if self.mean == 0 else None
        return self.low > 0 or self.high < 0

    def clip(self, low: float, high: float) -> "Estimate":
        """Return the estimate with its interval cut at `low` and `high`, the range of possible values."""
        if self.low is None or self.high is None:
            return self
        return dataclasses.replace(self, low=max(self.low, low), high=min(self.high, high))


@functools.cache
def resampling_weights(n: int) -> np.ndarray:
    """Return float64 [R, n]: the share of each of n values in each of R resamples. Each row sums to 1."""
    if n <= EXACT_UP_TO:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
        return np.stack([(drawn == value).mean(axis=1) for value in range(n)], axis=1)
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def percentile_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), each [...]: the plain percentile bootstrap of the mean of `values` [..., n]."""
    means = values @ resampling_weights(values.shape[-1]).T
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(means, tail, axis=-1, method="inverted_cdf")
    # Computed from -means, so that the interval of b - a is exactly the interval of a - b with changed signs.
    return low, -np.quantile(-means, tail, axis=-1, method="inverted_cdf")


def stretch_factor(n: int) -> float:
    """Return the factor that widens the percentile interval of n values on both sides of the mean."""
    quantile = (1 + CONFIDENCE) / 2
    return float(stdtrit(n - 1, quantile) / ndtri(quantile)) * math.sqrt(n / (n - 1))


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), each [...]: the widened interval of the mean of `values` [..., n], for n >= 2."""
    low, high = percentile_interval(values)
    mean = values.mean(axis=-1)
    factor = stretch_factor(values.shape[-1])
    return mean - factor * (mean - low), mean + factor * (high - mean)


def estimate(values: Sequence[float | None], rounding: float = 0.0) -> Estimate:
    """Return the mean of `values`, one for each seed, with its interval. If a value is not finite, the mean is None.

    rounding: values count as equal if they differ by at most this.
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
    """Return ([b - a for each seed], their mean with its interval). A difference within the rounding counts as 0."""
    values = np.array([a, b], np.float64)
    rounding = ROUNDING * np.abs(values).max(axis=0)
    deltas = values[1] - values[0]
    deltas = np.where(np.abs(deltas) <= rounding, 0.0, deltas).tolist()
    return deltas, estimate(deltas, rounding=float(rounding.min()))

"""Metrics that compare numbers. References and outputs are the texts of numbers.

    pearson([["1"], ["2"], ["4"]], ["0.9", "2.2", "3.9"])     0.996

An output that is no number, as a generated text may be, counts as -1: T5's code reads it so for STS-B, whose numbers go
from 0 to 5. The metric "not_numbers" counts such outputs. Of several references, the first counts.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np

References = Sequence[str]
NO_NUMBER = -1.0


def read_numbers(references: Sequence[References], outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the given numbers, float64 [n] each."""
    true = np.array([_parse(each[0]) for each in references])
    given = np.array([_parse(output) for output in outputs])
    return true, np.where(np.isnan(given), NO_NUMBER, given)


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    return math.isfinite(_parse(text))


def is_no_number(references: References, output: str) -> float:
    """Return 1.0 if the output is no finite number, else 0.0."""
    del references
    return float(not is_number(output))


def _parse(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _correlate(name: str) -> Callable[[Sequence[References], Sequence[str]], float]:
    """Return the function (references, outputs) -> correlation; 0 if all true or all given numbers are equal."""

    def correlate(references: Sequence[References], outputs: Sequence[str]) -> float:
        from scipy import stats

        true, given = read_numbers(references, outputs)
        if len(true) < 2 or np.ptp(true) == 0 or np.ptp(given) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nearly equal numbers
            value = float(getattr(stats, name)(true, given).statistic)
        return value if math.isfinite(value) else 0.0

    return correlate


pearson, spearman = _correlate("pearsonr"), _correlate("spearmanr")


def mean_rmse(references: Sequence[References], outputs: Sequence[str]) -> float:
    """Return the root mean squared error of always answering the mean of the references."""
    true, _ = read_numbers(references, outputs)
    return float(true.std()) if true.size else 0.0


def rmse(references: Sequence[References], outputs: Sequence[str]) -> float:
    """Return the root of the mean squared difference, in the units of the numbers."""
    true, given = read_numbers(references, outputs)
    return float(np.sqrt(np.mean(np.square(true - given)))) if true.size else 0.0

"""The cost of runs: tokens, compute, time and memory, with or without the runs that a run started from."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from t5lite.reporting.runs import Run, is_number


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of training. None: not known.

    peak_bytes: the largest memory use at one time. All other fields are summed over runs.
    """

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    device_seconds: float | None = None
    peak_bytes: float | None = None


def read_cost(run: Run) -> Cost:
    """Return the cost of the run itself."""
    known = (run.result or {}).get("cost") or {}
    values = {field.name: known.get(field.name) for field in dataclasses.fields(Cost)}
    return Cost(**{name: float(x) for name, x in values.items() if is_number(x)})


def read_cost_with_origins(run: Run) -> Cost:
    """Return the cost of the run and of all runs that it started from, as far as their workdirs can be read."""
    return _combine([read_cost(each) for each in (run, *run.origins)], np.sum)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean of each field; for peak memory, the maximum."""
    return _combine(costs, np.mean)


def _combine(costs: Sequence[Cost], how: Callable[[Sequence[float]], float]) -> Cost:
    """Combine each field of `costs` by `how`; peak memory by the maximum.

    If one of the costs lacks a field, the field is None in the result.
    """
    values = {field.name: [getattr(each, field.name) for each in costs] for field in dataclasses.fields(Cost)}
    known = {name: each for name, each in values.items() if each and None not in each}
    return Cost(**{name: float((np.max if name == "peak_bytes" else how)(each)) for name, each in known.items()})

"""The cost of runs: tokens, compute, time and memory, for a run alone or with the runs that it started from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5lite.reporting.runs import Run


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of training. None: not known.

    peak_bytes: the most memory at any one time. All other fields add up over runs.
    """

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    device_seconds: float | None = None
    peak_bytes: float | None = None


def cost(run: Run) -> Cost:
    """Return the cost of the run itself."""
    found = (run.result or {}).get("cost", {})
    return Cost(**{field.name: _number(found.get(field.name)) for field in dataclasses.fields(Cost)})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def cost_with_origins(run: Run) -> Cost:
    """Return the cost of the run and of all runs that it started from, as far as their workdirs can be read."""
    return _combine([cost(each) for each in (run, *run.origins)], np.sum)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean of each field; for peak memory, the maximum."""
    return _combine(costs, np.mean)


def _combine(costs: Sequence[Cost], how: Callable[[Sequence[float]], float]) -> Cost:
    combined: dict[str, float | None] = {}
    for field in dataclasses.fields(Cost):
        values = [getattr(each, field.name) for each in costs]
        use = np.max if field.name == "peak_bytes" else how
        # The known part of a cost is not the cost.
        combined[field.name] = None if None in values or not values else float(use(values))
    return Cost(**combined)


def unread_origin(run: Run) -> str | None:
    """Return the `init_from` that cannot be read as a workdir: of the run, or of the last run in its chain of origins.

    None where every origin can be read, or where the chain ends in a run from scratch.
    """
    last = (run, *run.origins)[-1]
    text = last.config.get("init_from")
    return str(text) if text and last.referred("init_from") is None else None

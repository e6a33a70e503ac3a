"""What runs took: tokens, compute, time and memory, alone and with all that they started from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5lite.reporting.runs import Run


@dataclasses.dataclass(frozen=True)
class Cost:
    """What training took. peak_bytes: the most at any one time; the others add up. None: not known."""

    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    device_seconds: float | None = None
    peak_bytes: float | None = None


def cost(run: Run) -> Cost:
    """What the run itself took."""
    found = (run.result or {}).get("cost", {})
    return Cost(**{field.name: _number(found.get(field.name)) for field in dataclasses.fields(Cost)})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def cost_with_origins(run: Run) -> Cost:
    """What the run took and all that it started from, as far as their workdirs can be read."""
    return _combine([cost(each) for each in (run, *run.origins)], np.sum)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of each; of peak memory the most."""
    return _combine(costs, np.mean)


def _combine(costs: Sequence[Cost], how: Callable[[Sequence[float]], float]) -> Cost:
    combined: dict[str, float | None] = {}
    for field in dataclasses.fields(Cost):
        values = [getattr(each, field.name) for each in costs]
        use = np.max if field.name == "peak_bytes" else how
        # What is known of a part is not the whole.
        combined[field.name] = None if None in values or not values else float(use(values))
    return Cost(**combined)


def unread_origin(run: Run) -> str | None:
    """What the run, or one that it started from, started from and cannot be read; None where all can, or none is."""
    last = (run, *run.origins)[-1]
    text = last.config.get("init_from")
    return str(text) if text and last.referred("init_from") is None else None

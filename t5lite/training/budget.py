"""The length of a run: its budget, in whatever unit, as a number of steps.

Steps, tokens and FLOPs are converted by arithmetic. Minutes are measured once, on a copy of the training state that is
thrown away. The number of steps is then written to workdir/budget.json, so schedules depend on steps alone.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from t5lite.system.files import NUMBER, read_json, write_json
from t5lite.system.hosts import from_primary, is_primary

FILE = "budget.json"
PROBE_SECONDS, PROBE_STEPS = 10.0, 5


def convert_budget(budget: ConfigDict, tokens_per_step: float, flops_per_step: float) -> int | None:
    """Return the number of steps in a budget of steps, tokens or FLOPs; None for minutes.

    A budget of tokens counts all places of a batch, padding included.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, math.ceil(budget.tokens / tokens_per_step))
    if budget.flops is not None:
        return max(1, math.ceil(budget.flops / flops_per_step))
    return None


def convert_minutes(minutes: float, workdir: Path, measure: Callable[[], float]) -> int:
    """Return the number of steps in `minutes`, as recorded in `workdir`; without a record, measure and record it.

    measure: returns the seconds that one step takes.
    """
    path = workdir / FILE
    recorded = read_json(path, "delete it to have the time of a step measured anew", {"minutes": NUMBER, "steps": int})
    if recorded is not None and recorded["minutes"] == minutes:
        return recorded["steps"]
    seconds = from_primary(measure())
    steps = max(1, round(60 * minutes / seconds))
    if is_primary():
        write_json(path, {"minutes": minutes, "seconds_per_step": seconds, "steps": steps})
    return steps


def seconds_per_step(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, rows: Any) -> float:
    """Return the median seconds of a compiled step, without the first, which warms up. Each step donates the state."""
    times: list[float] = []
    start = time.perf_counter()
    while from_primary(len(times) < PROBE_STEPS + 1 or time.perf_counter() - start < PROBE_SECONDS):
        before = time.perf_counter()
        state, metrics = step(state, rows)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - before)
    return statistics.median(times[1:])

"""The length of a run: convert a budget of steps, epochs, tokens, FLOPs or minutes to a number of steps.

An epoch has as many rows as all training sources together. Tokens and FLOPs are converted by arithmetic. For minutes,
the time of a step is measured once, with a training state that is then thrown away. The number of steps is written to
workdir/budget.json. So schedules depend on steps alone.
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


def convert_budget(
    budget: ConfigDict, count_steps_per_epoch: Callable[[], float], tokens_per_step: float, flops_per_step: float
) -> int | None:
    """Return the number of steps in a budget of steps, epochs, tokens or FLOPs; None for a budget of minutes.

    Args:
        count_steps_per_epoch: returns the number of steps in an epoch. It is only called for a budget of epochs.
        tokens_per_step: the size of a batch's arrays, padding included.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.epochs is not None:
        return max(1, math.ceil(budget.epochs * count_steps_per_epoch()))
    if budget.tokens is not None:
        return max(1, math.ceil(budget.tokens / tokens_per_step))
    if budget.flops is not None:
        return max(1, math.ceil(budget.flops / flops_per_step))
    return None


def convert_minutes(minutes: float, workdir: Path, measure: Callable[[], float]) -> int:
    """Return the number of steps in `minutes`. The first call measures the time of a step and records the number.

    Args:
        workdir: the folder with the record, budget.json.
        measure: returns the seconds that one step takes.
    """
    path = workdir / FILE
    recorded = read_json(path, "delete it, and the time of a step is measured again", {"minutes": NUMBER, "steps": int})
    if recorded is not None and recorded["minutes"] == minutes:
        return recorded["steps"]
    seconds = from_primary(measure())
    steps = max(1, round(60 * minutes / seconds))
    if is_primary():
        write_json(path, {"minutes": minutes, "seconds_per_step": seconds, "steps": steps})
    return steps


def measure_step_seconds(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, rows: Any) -> float:
    """Return the median seconds of a compiled step. The first step is not counted, because it includes the warm-up.

    Consumes `state`, because each step donates it.
    """
    times: list[float] = []
    start = time.perf_counter()
    while from_primary(len(times) < PROBE_STEPS + 1 or time.perf_counter() - start < PROBE_SECONDS):
        before = time.perf_counter()
        state, metrics = step(state, rows)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - before)
    return statistics.median(times[1:])

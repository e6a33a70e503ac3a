"""Find the operation that makes the first NaN, for `train --debug_nans`."""

import traceback
from pathlib import Path
from typing import Any

import jax
from jax.experimental import checkify
from jax.sharding import Mesh

from t5lite.training.step import TrainState, TrainStep

PACKAGE = Path(__file__).parents[1]


def find_first_nan(step: TrainStep, state: TrainState, rows: Any, mesh: Mesh) -> str:
    """Return a text that names the operation that makes the first NaN in a step, and its lines in the code.

    The lines are those of this package, innermost first. The step is compiled again, with a check after each operation.
    This takes a while.

    Args:
        step: the function of the step, not jitted.
        state: the state before the step.
    """
    checked = jax.jit(checkify.checkify(step, errors=checkify.nan_checks))
    with jax.set_mesh(mesh):
        error, _ = checked(state, rows)
    exception = error.get_exception()
    if exception is None:
        return "no operation makes a NaN; a number has grown to infinity"
    frames = traceback.extract_tb(exception.traceback_info.as_python_traceback())
    frames = [frame for frame in reversed(frames) if PACKAGE in Path(frame.filename).parents]
    lines = [f"{Path(f.filename).relative_to(PACKAGE.parent)}:{f.lineno} in {f.name}" for f in frames]
    return f"{error.get().strip().rstrip('.')}, at {', from '.join(lines)}"

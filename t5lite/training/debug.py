"""Find the operation that made a NaN: for `train --debug_nans`."""

import traceback
from pathlib import Path
from typing import Any

import jax
from jax.experimental import checkify
from jax.sharding import Mesh

from t5lite.training.step import TrainState, TrainStep

PACKAGE = Path(__file__).parents[1]


def find_first_nan(step: TrainStep, state: TrainState, rows: Any, mesh: Mesh) -> str:
    """Return the operation that makes the first NaN in a step, and its places in the code, innermost first.

    The step is compiled again with a check of each operation, which takes a while.

    Args:
        step: the function of the step, not jitted.
        state: the state before the step.
    """
    checked = jax.jit(checkify.checkify(step, errors=checkify.nan_checks))
    with jax.set_mesh(mesh):
        error, _ = checked(state, rows)
    found = error.get_exception()
    if found is None:
        return "no operation makes a NaN; a number has grown to infinity"
    frames = traceback.extract_tb(found.traceback_info.as_python_traceback())
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    places = [f"{Path(f.filename).relative_to(PACKAGE.parent)}:{f.lineno} in {f.name}" for f in reversed(ours)]
    return f"{error.get().strip().rstrip('.')}, at {', from '.join(places)}"

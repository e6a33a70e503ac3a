"""Which operation made a number that is not one: for `train --debug_nans`."""

import traceback
from pathlib import Path
from typing import Any

import jax
from jax.experimental import checkify
from jax.sharding import Mesh

from t5lite.training.step import TrainState, TrainStep

PACKAGE = Path(__file__).parents[1]


def first_nan(step: TrainStep, state: TrainState, rows: Any, mesh: Mesh) -> str:
    """The operation that makes the first NaN in a step, and where it stands in the code, innermost first.

    step: not jitted. state: before it. The step is compiled anew, checking each operation: that takes a while.
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

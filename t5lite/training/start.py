"""How a run finds its weights: its own checkpoint, else another run's parameters, else none.

1. workdir/checkpoints   everything: parameters, optimizer, step, what was spent
2. init_from             parameters only; optimizer and schedule start at step 0
3. scratch
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from t5lite.errors import UserError
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.training.checkpoint import Checkpoints, newest, params_shapes, read_params
from t5lite.training.hosts import agree
from t5lite.training.loop import Progress
from t5lite.training.sharding import params_shardings
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class HandOff:
    """Which parameters came from the run at `source`, which are new here, and which of its own were left."""

    source: str
    step: int
    restored: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def report(self) -> str:
        """One line for people: how many were restored, and the names of what is new or left."""
        line = f"from {self.source} at step {self.step}: {len(self.restored)} parameters restored"
        for word, names in (("new", self.new), ("left", self.left)):
            if names:
                line += f"; {len(names)} {word} ({', '.join(names)})"
        return line


def find_weights(
    trainer: Trainer, checkpoints: Checkpoints, init_from: str | None
) -> tuple[TrainState, Progress, HandOff | None]:
    """The state to go on from, in the order of the module's docstring, what it has cost so far, and the hand-off."""
    own = checkpoints.latest_step()
    if own is not None:
        state, progress = checkpoints.restore(own, trainer.shapes, trainer.shardings)
        return state, Progress(**progress), None
    state = trainer.init()
    if init_from is None:
        return state, Progress(), None
    state, hand_off = hand_over(state, trainer, Path(init_from))
    return state, Progress(), hand_off


def hand_over(state: TrainState, trainer: Trainer, source: Path) -> tuple[TrainState, HandOff]:
    """`state` with the parameters that the newest checkpoint in `source` has under the same path.

    Raises UserError where a path's shape differs, or where nothing matches.
    """
    checkpoint, step = newest(source)
    theirs, ours = params_shapes(checkpoint), flatten_dict(state.params, sep="/")
    for path in sorted(theirs.keys() & ours.keys()):
        if theirs[path] != ours[path].shape:
            raise UserError(
                f"{path} has shape {theirs[path]} in init_from={source} but {ours[path].shape} in this config's model; "
                "give the config the other run's model"
            )
    restored = sorted(theirs.keys() & ours.keys())
    if not restored:
        raise UserError(f"init_from={source} has no parameter of this config's model")
    shardings = flatten_dict(trainer.shardings.params, sep="/")
    like = {
        path: jax.ShapeDtypeStruct(ours[path].shape, ours[path].dtype, sharding=shardings[path]) for path in restored
    }
    values = flatten_dict(read_params(checkpoint, unflatten_dict(like, sep="/")), sep="/")
    params = unflatten_dict({**ours, **values}, sep="/")
    hand_off = HandOff(
        str(source), step, tuple(restored), tuple(sorted(ours.keys() - theirs)), tuple(sorted(theirs.keys() - ours))
    )
    return state.replace(params=params), hand_off


def load_params(workdir: Path, model: Transformer, batch: Batch, mesh: Mesh) -> tuple[Any, int]:
    """(parameters of `model`, step) from the newest checkpoint in `workdir`; `batch` gives the shapes of its inputs."""
    checkpoint, step = newest(workdir)
    agree({"step of the checkpoint": step})
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    shapes = shapes["params"]
    found = params_shapes(checkpoint)
    for path, leaf in flatten_dict(shapes, sep="/").items():
        if found.get(path) != leaf.shape:
            raise UserError(f"{checkpoint}: {path} should have shape {leaf.shape}, has {found.get(path, 'no value')}")
    shardings = params_shardings(shapes, mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return read_params(checkpoint, like), step

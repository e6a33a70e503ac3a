"""How a run finds its weights: its own checkpoint, else another run's parameters, else none.

1. workdir/checkpoints   everything: parameters, optimizer, step, what was spent
2. init_from             parameters only (their average where that run has one); optimizer and schedule start at step 0.
                         The head of a run with other labels is left there: this one's is new
3. scratch

A damaged checkpoint counts as none: the one before it takes its place, with a warning.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from t5lite.errors import UserError
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.progress import say
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.reading import Items, chosen_steps, evaluated, intact
from t5lite.training.record import Record
from t5lite.training.sharding import params_shardings
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer
from t5lite.training.watch import Progress
from t5lite.training.workdir import read_labels

OF_LABELS = ("classifier", "tagger")  # the heads whose outputs are a run's labels, in their order


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
    trainer: Trainer,
    checkpoints: Checkpoints,
    init_from: str | None,
    init_from_step: str | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[TrainState, Progress, HandOff | None]:
    """The state to go on from, in the order of the module's docstring, what it has cost so far, and the hand-off.

    labels: of the run that starts.
    """
    if checkpoints.latest_step() is not None:
        state, progress = checkpoints.restore(trainer.shapes, trainer.shardings)
        return state, Progress(**progress), None
    state = trainer.init()
    if init_from is None:
        return state, Progress(), None
    state, hand_off = hand_over(state, trainer, Path(init_from), init_from_step, labels)
    return state, Progress(), hand_off


def hand_over(
    state: TrainState, trainer: Trainer, source: Path, step: str | None = None, labels: Sequence[str] | None = None
) -> tuple[TrainState, HandOff]:
    """`state` with the parameters that a checkpoint in `source` has under the same path. The state is used up.

    step: of the checkpoint, as for `chosen_steps`. Raises UserError where a path's shape differs, or where nothing
    matches.
    """
    ours, shardings = (flatten_dict(tree, sep="/") for tree in (state.params, trainer.shardings.params))

    def wanted(record: Record) -> Items:
        common = _common(record.shapes(record.evaluated), ours, source, labels)
        like = {
            path: jax.ShapeDtypeStruct(ours[path].shape, ours[path].dtype, sharding=shardings[path]) for path in common
        }
        # What is to be replaced makes room first: there is never a second copy of the parameters.
        _free([ours[path] for path in like])
        _free(jax.tree.leaves(state.average))
        return {record.evaluated: unflatten_dict(like, sep="/")}

    record, items = next(intact(source, chosen_steps(source, step), wanted))
    values, theirs = flatten_dict(items[record.evaluated], sep="/"), record.shapes(record.evaluated).keys()
    params = unflatten_dict({**ours, **values}, sep="/")
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    named = (sorted(values), sorted(ours.keys() - values.keys()), sorted(theirs - values.keys()))
    return state.replace(params=params, average=average), HandOff(str(source), record.step, *map(tuple, named))


def _common(
    theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, Any], source: Path, labels: Sequence[str] | None
) -> list[str]:
    """The paths of the parameters to take over: those of the same path, but no head for other labels."""
    common = theirs.keys() & ours.keys()
    heads = {path for path in common if path.split("/")[0] in OF_LABELS}
    if heads and read_labels(source) != (None if labels is None else list(labels)):
        common -= heads
    if not common:
        raise UserError(f"init_from={source} has no parameter of this config's model")
    for path in sorted(common):
        if theirs[path] != ours[path].shape:
            raise UserError(
                f"{path} has shape {theirs[path]} in init_from={source} but {ours[path].shape} in this config's model; "
                "give the config the other run's model"
            )
    return sorted(common)


def _free(arrays: list[jax.Array]) -> None:
    for array in arrays:
        if not array.is_deleted():
            array.delete()


def load_params(
    workdir: Path, model: Transformer, batch: Batch, mesh: Mesh, step: str | None = None, average: int = 1
) -> tuple[Any, int]:
    """(parameters of `model`, step) from a checkpoint in `workdir`; `batch` gives the shapes of its inputs.

    step: as for `chosen_steps`. average: the mean of the parameters of so many checkpoints, the newest; their step is
    then that of the newest of them.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    shardings = params_shardings(shapes, mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    total, steps = None, []
    for record, items in intact(workdir, chosen_steps(workdir, step), evaluated(like)):
        params = items.pop(record.evaluated)
        total = params if total is None else jax.tree.map(jnp.add, total, params)
        steps.append(record.step)
        if len(steps) == average:
            break
    if len(steps) < average:
        raise UserError(f"{workdir} has {len(steps)} intact checkpoints, fewer than the {average} to average")
    if average > 1:
        say(f"mean of the parameters at the steps {', '.join(map(str, sorted(steps)))}")
        total = jax.tree.map(lambda x: x / average, total)
    return total, steps[0]

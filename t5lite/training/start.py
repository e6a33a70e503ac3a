"""How a run finds its weights: in its own checkpoint, else from another run's parameters, else from scratch.

1. workdir/checkpoints   everything: parameters, optimizer, step, and the cost so far
2. init_from             parameters only, from a run (their average where it has one) or from released weights, hf:DIR.
                         Optimizer and schedule start at step 0. A head for other labels is not taken: the head is new
3. scratch

A damaged checkpoint counts as missing: the checkpoint before it is used, with a warning.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from t5lite.interop.family import part_of
from t5lite.interop.kept import read_kept
from t5lite.interop.released import Released, folder_of, is_released, load_parameters, open_released
from t5lite.system.errors import UserError
from t5lite.system.hosts import gather
from t5lite.system.progress import say
from t5lite.tasks.table import TASKS
from t5lite.tasks.text import TEXT
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.reading import FOLDER, Items, choose_steps, read_intact
from t5lite.training.record import DamagedCheckpoint, Record, read_record
from t5lite.training.step import TrainState
from t5lite.training.tables import keep_leaves, leaf_mask
from t5lite.training.trainer import Trainer
from t5lite.training.watch import Progress
from t5lite.training.workdir import read_labels

Shapes = Mapping[str, tuple[int, ...]]
# (shapes of the source's parameters, a function that returns its labels) -> the arrays to read from the source
Wanted = Callable[[Shapes, Callable[[], Sequence[str] | None]], dict[str, jax.ShapeDtypeStruct]]
VOCABULARY_AXES = {"token_embedding/embedding": 0, "lm_head/kernel": 1, "lm_head/bias": 0}  # {path: vocabulary axis}
# Names for users, of the parts that released weights can lack.
PARTS = dict.fromkeys(("lm_head", "mlm_transform"), TEXT.part) | {head: task.part for head, task in TASKS.items()}


@dataclasses.dataclass(frozen=True)
class HandOff:
    """Which parameters came from `source`, which are new in this run, and which parameters of `source` were left out.

    step: the step of the checkpoint; None for released weights.
    grown: the restored parameters that have new rows here, for a larger vocabulary.
    """

    source: str
    step: int | None
    restored: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    grown: tuple[str, ...] = ()

    def report(self) -> str:
        """Return one line for people: how many parameters were restored, and the names of the new and the left ones."""
        at = "" if self.step is None else f" at step {self.step}"
        line = f"from {self.source}{at}: {len(self.restored)} parameters restored"
        for word, names in (("with new rows", self.grown), ("new", self.new), ("left", self.left)):
            if names:
                line += f"; {len(names)} {word} ({', '.join(names)})"
        return line


def find_weights(
    trainer: Trainer,
    checkpoints: Checkpoints,
    init_from: str | None,
    init_from_step: str | None = None,
    labels: Sequence[str] | None = None,
    known_rows: int | None = None,
) -> tuple[TrainState, Progress, HandOff | None]:
    """Return the state to go on from, in the order of the module's docstring, its progress so far, and the hand-off.

    Args:
        labels: the labels of the run that starts.
        known_rows: as for `hand_over`.
    """
    if checkpoints.latest_step() is not None:
        state, progress = checkpoints.restore(trainer.shapes, trainer.shardings)
        return state, Progress(**progress), None
    state = trainer.init()
    if init_from is None:
        return state, Progress(), None
    state, hand_off = hand_over(state, trainer, init_from, init_from_step, labels, known_rows)
    return state, Progress(), hand_off


def read_shapes(source: str, step: str | None = None) -> Shapes:
    """Return the shapes of the parameters of `source`, a workdir or `hf:DIR`, without reading their values.

    Raises UserError where there is no checkpoint, or where no checkpoint has an intact record.
    """
    if is_released(source):
        return _open_released(source, step).shapes
    workdir = Path(source)
    steps = choose_steps(workdir, step)
    for number in steps:
        with contextlib.suppress(DamagedCheckpoint):
            record = read_record(workdir.absolute() / FOLDER / str(number))
            return record.shapes(record.params_item)
    raise DamagedCheckpoint(
        f"none of the checkpoints of {source} is intact; put a copy of one in its place if there is one"
    )


def check_shapes(theirs: Shapes, ours: Shapes, source: str, labels: Sequence[str] | None = None) -> None:
    """Raise before anything is compiled what `hand_over` would raise.

    Args:
        ours: the shapes of this run's parameters.
    """
    _find_common(theirs, ours, source, lambda: _read_labels(source), labels)


def _read_labels(source: str) -> Sequence[str] | None:
    return open_released(folder_of(source)).labels if is_released(source) else read_labels(Path(source))


def hand_over(
    state: TrainState,
    trainer: Trainer,
    source: str,
    step: str | None = None,
    labels: Sequence[str] | None = None,
    known_rows: int | None = None,
) -> tuple[TrainState, HandOff]:
    """Return `state` with the parameters that `source`, a workdir or `hf:DIR`, has at the same path. Consumes `state`.

    Raises UserError where the shapes at a path differ by more than rows of a larger vocabulary, or where no path is in
    both.

    Args:
        step: which checkpoint of a workdir, as for `choose_steps`.
        known_rows: take over only the first `known_rows` rows of the vocabulary; the rest stay new. None: take over all
            rows of `source`.
    """
    ours, shardings = (flatten_dict(tree, sep="/") for tree in (state.params, trainer.shardings.params))
    grown: dict[str, np.ndarray] = {}

    def wanted(theirs: Shapes, their_labels: Callable[[], Sequence[str] | None]) -> dict[str, jax.ShapeDtypeStruct]:
        common = _find_common(theirs, {path: leaf.shape for path, leaf in ours.items()}, source, their_labels, labels)
        has_new_rows = lambda path: theirs[path] != ours[path].shape or (known_rows and path in VOCABULARY_AXES)
        grown.update({path: gather(ours[path]) for path in common if has_new_rows(path)})
        # Arrays that will be replaced are freed first, so there is never a second copy of the parameters.
        _free([ours[path] for path in common])
        _free(jax.tree.leaves(state.average))
        return {
            path: jax.ShapeDtypeStruct(
                theirs[path], ours[path].dtype, sharding=None if path in grown else shardings[path]
            )
            for path in common
        }

    theirs, values, at, heads = (_from_released if is_released(source) else _from_run)(source, step, wanted)
    for path, rows in grown.items():
        rows, known = rows.copy(), [slice(size) for size in theirs[path]]
        there = theirs[path][VOCABULARY_AXES[path]]
        known[VOCABULARY_AXES[path]] = slice(min(known_rows or there, there))
        rows[tuple(known)] = gather(values[path])[tuple(known)]
        values[path] = jax.device_put(rows, shardings[path])
    params = unflatten_dict({**ours, **values}, sep="/")
    average = None
    if state.average is not None:
        average = jax.tree.map(jnp.copy, keep_leaves(params, leaf_mask(state.average)))
    named = (sorted(values), sorted(ours.keys() - values.keys()), sorted({*theirs, *heads} - values.keys()))
    return state.replace(params=params, average=average), HandOff(source, at, *map(tuple, named), tuple(sorted(grown)))


def _from_run(
    source: str, step: str | None, wanted: Wanted
) -> tuple[Shapes, dict[str, jax.Array], int, tuple[str, ...]]:
    """Return (shapes of all parameters, the wanted parameters, their step, tensors that the run keeps) of a run."""
    workdir = Path(source)
    kept = read_kept(workdir)

    def items_of(record: Record) -> Items:
        like = wanted(record.shapes(record.params_item), lambda: read_labels(workdir))
        return {record.params_item: unflatten_dict(like, sep="/")}

    record, items = next(read_intact(workdir, choose_steps(workdir, step), items_of))
    heads = () if kept is None else kept.heads
    return record.shapes(record.params_item), flatten_dict(items[record.params_item], sep="/"), record.step, heads


def _from_released(
    source: str, step: str | None, wanted: Wanted
) -> tuple[Shapes, dict[str, jax.Array], None, tuple[str, ...]]:
    """Return what `_from_run` returns, for released weights, which have no step."""
    released = _open_released(source, step)
    values = load_parameters(released, wanted(released.shapes, lambda: released.labels))
    return released.shapes, values, None, released.heads


def _open_released(source: str, step: str | None) -> Released:
    if step is not None:
        raise UserError(f"config.init_from_step={step}: {source} is no run and has no steps; leave it unset")
    return open_released(folder_of(source))


def _find_common(
    theirs: Shapes,
    ours: Shapes,
    source: str,
    their_labels: Callable[[], Sequence[str] | None],
    labels: Sequence[str] | None,
) -> list[str]:
    """Return the paths of the parameters to take over: the paths in both, without heads for other labels."""
    common = theirs.keys() & ours.keys()
    of_labels = {head for head, task in TASKS.items() if task.has_labels}
    heads = {path for path in common if path.split("/")[0] in of_labels}
    if heads and list(their_labels() or ()) != list(labels or ()):
        common -= heads
    if not common:
        raise UserError(f"init_from={source} has no parameter of this config's model")
    for path in sorted(common):
        if theirs[path] != ours[path] and not _has_grown(path, theirs[path], ours[path]):
            raise UserError(
                f"{path} has shape {theirs[path]} in init_from={source} but {ours[path]} in this config's model; "
                "its config and its checkpoint do not go together"
            )
    return sorted(common)


def _has_grown(path: str, before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Return whether a parameter's shapes differ only by more rows for a larger vocabulary."""
    axis = VOCABULARY_AXES.get(path)
    return (
        axis is not None
        and now[axis] > before[axis]
        and (*now[:axis], *now[axis + 1 :])
        == (
            *before[:axis],
            *before[axis + 1 :],
        )
    )


def _free(arrays: list[jax.Array]) -> None:
    for array in arrays:
        if not array.is_deleted():
            array.delete()


def load_params(place: str | Path, like: Any, step: str | None = None, average: int = 1) -> tuple[Any, int]:
    """Return (parameters, step) of a checkpoint in a workdir, or (parameters, 0) of `hf:DIR`.

    Args:
        like: the shapes of the parameters with shardings, as `sharded_shapes` returns them.
        step: as for `choose_steps`.
        average: return the mean over this many checkpoints, the newest intact ones, and the newest of their steps.
    """
    flat = flatten_dict(like, sep="/")
    if is_released(place):
        if step is not None or average > 1:
            raise UserError(f"--step and --average are of runs, and {place} is none; leave them out")
        released = open_released(folder_of(place))
        _require_answers(place, released.refusal, flat.keys() - released.shapes.keys())
        return unflatten_dict(load_parameters(released, flat), sep="/"), 0
    workdir, total, steps = Path(place), None, []
    kept = read_kept(workdir)

    def wanted(record: Record) -> Items:
        if kept is not None:
            _require_answers(place, kept.refusal, flat.keys() - record.shapes(record.params_item).keys())
        return {record.params_item: like}

    for record, items in read_intact(workdir, choose_steps(workdir, step), wanted):
        params = items.pop(record.params_item)
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


def _require_answers(place: str | Path, refusal: str | None, lacking: Collection[str]) -> None:
    """Raise UserError for released weights that cannot answer: their head is of another kind, or a part is missing."""
    parts = " and ".join(sorted({PARTS.get(part_of(path), part_of(path)) for path in lacking}))
    reason = refusal or (f"the weights have no {parts}" if parts else None)
    if reason is not None:
        raise UserError(f"{place} cannot answer: {reason}; train it first: --config.init_from={place}")

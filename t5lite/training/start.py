"""How a run finds its weights: in its own checkpoint, else in another run or in released weights, else from scratch.

1. workdir/checkpoints   everything: parameters, optimizer state, step, and totals of the run
2. init_from             only parameters, from a run (its average if it has one) or from released weights, hf:DIR.
                         Optimizer and schedule start at step 0. A head for other labels is not taken over
3. scratch               initial parameters from the seed

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

from t5lite.interop.family import name_part
from t5lite.interop.kept import read_kept
from t5lite.interop.released import Released, get_folder, is_released, load_parameters, open_released
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
from t5lite.training.watch import Totals
from t5lite.training.workdir import read_labels

Shapes = Mapping[str, tuple[int, ...]]
# (shapes of the source's parameters, a function that returns the source's labels) -> the arrays to read from the source
SelectArrays = Callable[[Shapes, Callable[[], Sequence[str] | None]], dict[str, jax.ShapeDtypeStruct]]
VOCABULARY_AXES = {"token_embedding/embedding": 0, "lm_head/kernel": 1, "lm_head/bias": 0}  # {path: vocabulary axis}
# {part of a model: its name in messages}
PARTS = dict.fromkeys(("lm_head", "mlm_transform"), TEXT.part) | {head: task.part for head, task in TASKS.items()}


@dataclasses.dataclass(frozen=True)
class HandOff:
    """The paths of the parameters that a run took over from `source`.

    step: the step of the checkpoint; None for released weights.
    restored: parameters from `source`.
    new: parameters that `source` does not have.
    left: parameters of `source` that the run does not use.
    grown: restored parameters with new rows, because the run has a larger vocabulary.
    """

    source: str
    step: int | None
    restored: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    grown: tuple[str, ...] = ()

    def report(self) -> str:
        """Return a line for the user: the number of restored parameters, and the paths of new and unused parameters."""
        step = "" if self.step is None else f" at step {self.step}"
        line = f"from {self.source}{step}: {len(self.restored)} parameters restored"
        for kind, paths in (("with new rows", self.grown), ("new", self.new), ("left out", self.left)):
            if paths:
                line += f"; {len(paths)} {kind} ({', '.join(paths)})"
        return line


def find_weights(
    trainer: Trainer,
    checkpoints: Checkpoints,
    init_from: str | None,
    init_from_step: str | None = None,
    labels: Sequence[str] | None = None,
    known_rows: int | None = None,
) -> tuple[TrainState, Totals, HandOff | None]:
    """Return (state, progress, hand-off) at the start of a run, from the first source of the module's list that exists.

    progress: the totals of the run up to this state. hand-off: None without `init_from`, and for a resumed run.

    Args:
        labels: the labels of the run that starts.
        known_rows: as for `hand_over`.
    """
    if checkpoints.latest_step() is not None:
        state, progress = checkpoints.restore(trainer.shapes, trainer.shardings)
        return state, Totals(**progress), None
    state = trainer.init()
    if init_from is None:
        return state, Totals(), None
    state, hand_off = hand_over(state, trainer, init_from, init_from_step, labels, known_rows)
    return state, Totals(), hand_off


def read_shapes(source: str, step: str | None = None) -> Shapes:
    """Return {path: shape} of the parameters of `source`, a workdir or `hf:DIR`, without reading their values.

    Raises UserError if there is no checkpoint, or if no checkpoint has an intact record.
    """
    if is_released(source):
        return _open_released(source, step).shapes
    workdir = Path(source)
    steps = choose_steps(workdir, step)
    for number in steps:
        with contextlib.suppress(DamagedCheckpoint):
            record = read_record(workdir.absolute() / FOLDER / str(number))
            return record.shapes(record.params_item)
    raise DamagedCheckpoint(f"none of the checkpoints of {source} is intact; replace one by a copy if you have one")


def check_shapes(source_shapes: Shapes, shapes: Shapes, source: str, labels: Sequence[str] | None = None) -> None:
    """Raise the UserError that `hand_over` would raise for these shapes, before anything is compiled.

    Args:
        source_shapes: the shapes of the parameters of `source`.
        shapes: the shapes of the parameters of this run.
        labels: the labels of this run.
    """
    _find_common(source_shapes, shapes, source, lambda: _read_labels(source), labels)


def _read_labels(source: str) -> Sequence[str] | None:
    return open_released(get_folder(source)).labels if is_released(source) else read_labels(Path(source))


def hand_over(
    state: TrainState,
    trainer: Trainer,
    source: str,
    step: str | None = None,
    labels: Sequence[str] | None = None,
    known_rows: int | None = None,
) -> tuple[TrainState, HandOff]:
    """Return `state` with the parameters that `source` has at the same paths, and the hand-off. Consumes `state`.

    Args:
        source: a workdir or `hf:DIR`.
        step: which checkpoint of a workdir, as for `choose_steps`.
        labels: the labels of this run.
        known_rows: take over only the first `known_rows` rows of the vocabulary; the other rows stay new. None: take
            over all rows of `source`.

    Raises:
        UserError: if shapes at a path differ by more than the rows of a larger vocabulary, or if no path is in both.
    """
    own, shardings = (flatten_dict(tree, sep="/") for tree in (state.params, trainer.shardings.params))
    grown: dict[str, np.ndarray] = {}

    def select_arrays(
        source_shapes: Shapes, get_source_labels: Callable[[], Sequence[str] | None]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {path: leaf.shape for path, leaf in own.items()}
        common = _find_common(source_shapes, shapes, source, get_source_labels, labels)
        has_new_rows = lambda path: source_shapes[path] != shapes[path] or (known_rows and path in VOCABULARY_AXES)
        grown.update({path: gather(own[path]) for path in common if has_new_rows(path)})
        # Arrays that will be replaced are freed first, so there is never a second copy of the parameters.
        _free([own[path] for path in common])
        _free(jax.tree.leaves((state.average, state.pretrained)))
        return {
            path: jax.ShapeDtypeStruct(
                source_shapes[path], own[path].dtype, sharding=None if path in grown else shardings[path]
            )
            for path in common
        }

    read = _read_from_released if is_released(source) else _read_from_run
    source_shapes, values, source_step, heads = read(source, step, select_arrays)
    for path, rows in grown.items():
        rows, known = rows.copy(), [slice(size) for size in source_shapes[path]]
        source_rows = source_shapes[path][VOCABULARY_AXES[path]]
        known[VOCABULARY_AXES[path]] = slice(min(known_rows or source_rows, source_rows))
        rows[tuple(known)] = gather(values[path])[tuple(known)]
        values[path] = jax.device_put(rows, shardings[path])
    params = unflatten_dict({**own, **values}, sep="/")
    average = None
    if state.average is not None:
        average = jax.tree.map(jnp.copy, keep_leaves(params, leaf_mask(state.average)))
    pretrained = None
    if state.pretrained is not None:
        mixed = flatten_dict(state.pretrained, sep="/").keys()
        if mixed - values.keys():
            raise UserError(f"config.mixout: init_from={source} has no {min(mixed - values.keys())}; set mixout to 0")
        pretrained = unflatten_dict({path: jnp.copy(values[path]) for path in mixed}, sep="/")
    paths = (values, own.keys() - values.keys(), {*source_shapes, *heads} - values.keys(), grown)
    hand_off = HandOff(source, source_step, *(tuple(sorted(each)) for each in paths))
    return state.replace(params=params, average=average, pretrained=pretrained), hand_off


def _read_from_run(
    source: str, step: str | None, select_arrays: SelectArrays
) -> tuple[Shapes, dict[str, jax.Array], int, tuple[str, ...]]:
    """Return (shapes of all parameters, the selected parameters, their step, names of unused tensors) of a run.

    Unused tensors: tensors in a converted workdir for heads that no model here has (interop/kept.py).
    """
    workdir = Path(source)
    kept = read_kept(workdir)

    def select_items(record: Record) -> Items:
        like = select_arrays(record.shapes(record.params_item), lambda: read_labels(workdir))
        return {record.params_item: unflatten_dict(like, sep="/")}

    record, items = next(read_intact(workdir, choose_steps(workdir, step), select_items))
    heads = () if kept is None else kept.heads
    return record.shapes(record.params_item), flatten_dict(items[record.params_item], sep="/"), record.step, heads


def _read_from_released(
    source: str, step: str | None, select_arrays: SelectArrays
) -> tuple[Shapes, dict[str, jax.Array], None, tuple[str, ...]]:
    """Return the same values as `_read_from_run`, for released weights. The step is None."""
    released = _open_released(source, step)
    values = load_parameters(released, select_arrays(released.shapes, lambda: released.labels))
    return released.shapes, values, None, released.heads


def _open_released(source: str, step: str | None) -> Released:
    if step is not None:
        raise UserError(f"config.init_from_step={step}: {source} is not a run, so it has no steps; leave it unset")
    return open_released(get_folder(source))


def _find_common(
    source_shapes: Shapes,
    shapes: Shapes,
    source: str,
    get_source_labels: Callable[[], Sequence[str] | None],
    labels: Sequence[str] | None,
) -> list[str]:
    """Return the paths of the parameters to take over: the paths in both, without heads for other labels."""
    common = source_shapes.keys() & shapes.keys()
    label_heads = {head for head, task in TASKS.items() if task.has_labels}
    heads = {path for path in common if path.split("/")[0] in label_heads}
    if heads and list(get_source_labels() or ()) != list(labels or ()):
        common -= heads
    if not common:
        raise UserError(f"init_from={source} has no parameter of this config's model; choose another run or model")
    for path in sorted(common):
        if source_shapes[path] != shapes[path] and not _has_grown(path, source_shapes[path], shapes[path]):
            raise UserError(
                f"{path} has shape {source_shapes[path]} in init_from={source} but {shapes[path]} in this config's "
                "model; its config and its checkpoint do not go together"
            )
    return sorted(common)


def _has_grown(path: str, before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Return whether the shapes of a parameter differ only by new rows for a larger vocabulary."""
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
    """Free the device memory of `arrays` now. They cannot be used afterwards."""
    for array in arrays:
        if not array.is_deleted():
            array.delete()


def load_params(source: str | Path, like: Any, step: str | None = None, average: int = 1) -> tuple[Any, int]:
    """Return (parameters, step) of a checkpoint in a workdir, or (parameters, 0) of `hf:DIR`.

    Args:
        source: a workdir or `hf:DIR`.
        like: the shapes of the parameters with shardings, as `sharded_shapes` returns them.
        step: as for `choose_steps`.
        average: return the mean over this many of the newest intact checkpoints, and the newest of their steps.
    """
    flat = flatten_dict(like, sep="/")
    if is_released(source):
        if step is not None or average > 1:
            raise UserError(f"{source} is not a run, so --step and --average do not apply; leave them out")
        released = open_released(get_folder(source))
        _require_parts(source, released.refusal, flat.keys() - released.shapes.keys())
        return unflatten_dict(load_parameters(released, flat), sep="/"), 0
    workdir, total, steps = Path(source), None, []
    kept = read_kept(workdir)

    def select_arrays(record: Record) -> Items:
        if kept is not None:
            _require_parts(source, kept.refusal, flat.keys() - record.shapes(record.params_item).keys())
        return {record.params_item: like}

    steps_to_read = choose_steps(workdir, step)
    if average > 1:  # early stopping may keep an earlier step, which then comes first
        steps_to_read = sorted(steps_to_read, reverse=True)
    for record, items in read_intact(workdir, steps_to_read, select_arrays):
        params = items.pop(record.params_item)
        total = params if total is None else jax.tree.map(jnp.add, total, params)
        steps.append(record.step)
        if len(steps) == average:
            break
    if len(steps) < average:
        raise UserError(
            f"{workdir} has {len(steps)} intact checkpoints, fewer than the {average} to average; lower --average"
        )
    if average > 1:
        say(f"mean of the parameters at the steps {', '.join(map(str, sorted(steps)))}")
        total = jax.tree.map(lambda x: x / average, total)
    return total, steps[0]


def _require_parts(source: str | Path, refusal: str | None, missing: Collection[str]) -> None:
    """Raise UserError for released weights that cannot answer: their head is of another kind, or a part is missing.

    refusal: why the head does not fit, or None. missing: the paths of missing parameters.
    """
    parts = " and ".join(sorted({PARTS.get(name_part(path), name_part(path)) for path in missing}))
    reason = refusal or (f"the weights have no {parts}" if parts else None)
    if reason is not None:
        raise UserError(f"{source} cannot answer: {reason}; train it first: --config.init_from={source}")

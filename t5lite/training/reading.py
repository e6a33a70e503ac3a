"""Reading checkpoints: only what was saved is ever returned, and an earlier checkpoint stands in for a damaged one.

    record, items = next(intact(workdir, chosen_steps(workdir, None), evaluated(like)))

What is restored is held against the checksums in the checkpoint's record (record.py), so it does not matter which file
was truncated, flipped or lost, nor whether Orbax noticed.
"""

import contextlib
import errno
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5lite.config import load_json
from t5lite.system.errors import UserError
from t5lite.system.files import NUMBER, has_shape
from t5lite.system.hosts import agree, from_primary, to_primary
from t5lite.system.progress import warn
from t5lite.training.metrics import read_log
from t5lite.training.policy import make_policy
from t5lite.training.record import Damaged, Record, checksums, read_record
from t5lite.training.tables import flatten_with_paths

FOLDER = "checkpoints"
BEST = "best"

Items = dict[str, Any]  # {item: tree of arrays}
Wanted = Callable[[Record], Items]

# What keeps a checkpoint from being read, and says nothing of what is in it.
NO_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints in a workdir, in their order; Orbax's unfinished ones have other names."""
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def chosen_steps(workdir: Path, step: str | None) -> list[int]:
    """The steps that will do, in order of preference. step: a number, "best" by the run's own metric; None: the newest.

    One that is asked for has no stand-in. Raises UserError where there is none.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(
            f"{workdir} has no complete checkpoint in {FOLDER}/: it is not the workdir of a run that saved one"
        )
    if step is None:
        return steps[::-1]
    known = f"its checkpoints are of the steps {', '.join(map(str, steps))}"
    if step == BEST:
        policy = make_policy(load_json(workdir / "config.json"))
        ranked = policy.ranked(scores_of(workdir, policy.metric))
        if not ranked:
            raise UserError(f"no checkpoint in {workdir} was evaluated by {policy.metric}; {known}")
        return ranked[:1]
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step!r}; {known}, or say {BEST!r}")
    return [int(step)]


def scores_of(workdir: Path, metric: str) -> dict[int, float | None]:
    """{step: value of the metric} of all checkpoints; None where it was not evaluated, or where that cannot be read.

    The log stands in for a record without it: of a run that stopped while it evaluated, and did so when it went on.
    """
    split, _, name = metric.rpartition("/")
    logged = (values for _, values in read_log(workdir / "metrics.jsonl") if values["split"] == split)
    later = {values["step"]: values[name] for values in logged if has_shape(values.get(name), NUMBER)}
    scores: dict[int, float | None] = {}
    for step in saved_steps(workdir):
        try:
            record = read_record(workdir.absolute() / FOLDER / str(step))
            scores[step] = record.metrics.get(metric, later.get(step))
        except UserError:
            scores[step] = None
    return scores


def intact(workdir: Path, steps: Sequence[int], wanted: Wanted) -> Iterator[tuple[Record, Items]]:
    """(record, {item: arrays}) of those of the checkpoints at `steps` that are intact; a warning for each other.

    wanted(record): the arrays to read, as {item: tree of jax.ShapeDtypeStruct with shardings}. Raises Damaged where
    none is intact, and UserError where a checkpoint has other arrays than are wanted. All hosts must call it together.
    """
    damaged: list[str] = []
    agree({"checkpoints": [str(workdir), *steps]})
    for index, step in enumerate(steps):
        record, items, wrong = _read(workdir.absolute() / FOLDER / str(step), wanted)
        # What one host cannot read, none goes on from. All must know before the checksums, which they make together.
        wrong = next(filter(None, from_primary(to_primary(wrong))), None) or _altered(items, record)
        if wrong is None:
            yield record, items
        else:
            damaged.append(f"{workdir.absolute() / FOLDER / str(step)} is damaged: {wrong}")
            if index + 1 < len(steps):
                warn(f"{damaged[-1]}; GOING BACK to the checkpoint of step {steps[index + 1]}")
        del record, items
    if len(damaged) == len(steps):
        many = f"none of the {len(steps)} checkpoints is intact: " if len(steps) > 1 else ""
        raise Damaged(f"{many}{damaged[0]}; put a copy of it in its place if there is one; nothing was changed")


def evaluated(like: Any) -> Wanted:
    """For `intact`: the parameters that the tree `like` has, of the average where there is one."""
    return lambda record: {record.evaluated: like}


def _read(checkpoint: Path, wanted: Wanted) -> tuple[Record | None, Items | None, str | None]:
    """(record, arrays, None), the arrays not yet held against their checksums, or (None, None, what is damaged)."""
    try:
        record = read_record(checkpoint)
        like = wanted(record)
        for path, leaf in flatten_with_paths(like):
            saved = record.leaves.get(path)
            found = "nothing" if saved is None else f"{saved.dtype} {saved.shape}"
            if found != f"{leaf.dtype} {leaf.shape}":
                raise UserError(f"{checkpoint}: {path} should be {leaf.dtype} {leaf.shape}, is {found}")
        return record, {name: _read_item(checkpoint / name, tree) for name, tree in like.items()}, None
    except Damaged as error:
        return None, None, str(error)  # only the text: the exception holds on to the arrays


def _altered(items: Items, record: Record) -> str | None:
    """What is not as it was saved."""
    wrong = [path for path, found in checksums(items).items() if found != record.leaves[path].checksum]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more} is not what was saved" if wrong else None


def _read_item(folder: Path, like: Any) -> Any:
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    hush_orphans()
    try:
        # Not a Checkpointer, in which hosts that could read would wait for one that could not.
        # As little in flight as is possible: what is read stands beside what it becomes.
        largest = max((math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like)), default=0)
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + largest // 10**9)
        with contextlib.closing(handler):
            return handler.restore(folder, args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # whatever Orbax and TensorStore make of broken bytes
        for code in NO_DAMAGE:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                raise UserError(f"cannot read {folder}: {os.strerror(code)}") from error
        raise Damaged(f"{folder.name}: {_in_short(error)}") from error


@functools.cache
def hush_orphans() -> None:
    """When one of Orbax's reads or writes fails, the others go on, and complain to an event loop that is closed.

    A page each, in which the one line that says what is wrong would be lost.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _in_short(error: BaseException) -> str:
    """What began it: Orbax wraps TensorStore's errors, which name the file, in pages of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__

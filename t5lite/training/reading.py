"""Reading checkpoints: only what was saved is ever returned, and an earlier checkpoint stands in for a damaged one.

    step, params = next(intact(workdir, chosen_steps(workdir, None), lambda folder: read_evaluated(folder, like)))

What is restored is held against the checksums in the checkpoint's record (record.py), so it does not matter which file
was truncated, flipped or lost, nor whether Orbax noticed.
"""

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from t5lite.config import load_json
from t5lite.errors import UserError
from t5lite.files import NUMBER, has_shape
from t5lite.progress import warn
from t5lite.training.checksums import checksums
from t5lite.training.hosts import agree, from_primary, to_primary
from t5lite.training.metrics import read_log
from t5lite.training.policy import make_policy
from t5lite.training.record import Damaged, Record, read_record
from t5lite.training.tables import flatten_with_paths

FOLDER = "checkpoints"
BEST = "best"

Read = TypeVar("Read")

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


def intact(workdir: Path, steps: Sequence[int], read: Callable[[Path], Read]) -> Iterator[tuple[int, Read]]:
    """(step, what `read` makes of its checkpoint) of those of `steps` that are intact, with a warning for each other.

    Raises Damaged where none is.
    """
    damaged: list[str] = []
    agree({"checkpoints": [str(workdir), *steps]})
    for index, step in enumerate(steps):
        found, wrong = None, None
        try:
            found = read(workdir.absolute() / FOLDER / str(step))
        except Damaged as error:
            wrong = str(error)  # only the text: the exception holds on to the arrays
        # What one host cannot read, none goes on from.
        wrong = next(filter(None, from_primary(to_primary(wrong))), None)
        if wrong is not None:
            damaged.append(wrong)
            if index + 1 < len(steps):
                warn(f"{wrong}; GOING BACK to the checkpoint of step {steps[index + 1]}")
            continue
        yield step, found
        del found
    if len(damaged) == len(steps):
        many = f"none of the {len(steps)} checkpoints is intact: " if len(steps) > 1 else ""
        raise Damaged(f"{many}{damaged[0]}; put a copy of it in its place if there is one; nothing was changed")


def read_items(checkpoint: Path, like: dict[str, Any], record: Record) -> dict[str, Any]:
    """Of each item those arrays that `like` ({item: tree of jax.ShapeDtypeStruct with shardings}) has, verified.

    Raises Damaged, and UserError where the checkpoint has other arrays than `like`.
    """
    for path, wanted in flatten_with_paths(like):
        leaf = record.leaves.get(path)
        found = "nothing" if leaf is None else f"{leaf.dtype} {leaf.shape}"
        if found != f"{wanted.dtype} {wanted.shape}":
            raise UserError(f"{checkpoint}: {path} should be {wanted.dtype} {wanted.shape}, is {found}")
    items = {name: _read_item(checkpoint / name, tree) for name, tree in like.items()}
    wrong = [path for path, found in checksums(items).items() if found != record.leaves[path].checksum]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Damaged(f"{checkpoint} is damaged: {wrong[0]}{more} is not what was saved")
    return items


def _read_item(folder: Path, like: Any) -> Any:
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    hush_orphans()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder, args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # whatever Orbax and TensorStore make of broken bytes
        for code in NO_DAMAGE:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                raise UserError(f"cannot read {folder}: {os.strerror(code)}") from error
        raise Damaged(f"{folder.parent} is damaged: {folder.name}: {_in_short(error)}") from error


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


def read_evaluated(checkpoint: Path, like: Any) -> Any:
    """Those parameters of a checkpoint that the tree `like` has: of the average where it has one."""
    record = read_record(checkpoint)
    return read_items(checkpoint, {record.evaluated: like}, record)[record.evaluated]

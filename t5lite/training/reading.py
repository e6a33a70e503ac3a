"""Reading checkpoints: only what was saved is ever returned, and an earlier checkpoint replaces a damaged one.

    record, items = next(read_intact(workdir, choose_steps(workdir, None), select_evaluated(like)))

Restored arrays are compared with the checksums in the checkpoint's record (record.py). So it does not matter which file
was truncated, changed or lost, or whether Orbax noticed.
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
from t5lite.system.hosts import check_agreement, from_primary, to_primary
from t5lite.system.progress import warn
from t5lite.training.metrics import read_log
from t5lite.training.policy import make_policy
from t5lite.training.record import DamagedCheckpoint, Record, checksums, read_record
from t5lite.training.tables import flatten_with_paths

FOLDER = "checkpoints"
BEST = "best"

Items = dict[str, Any]  # {item: tree of arrays}
Wanted = Callable[[Record], Items]

# Errors of reading that do not mean that the checkpoint is damaged.
NO_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints in a workdir, ascending. Orbax's unfinished checkpoints have other names."""
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def choose_steps(workdir: Path, step: str | None) -> list[int]:
    """Return the steps of the checkpoints that may be read, in order of preference.

    A checkpoint that was asked for has no replacement. Raises UserError where there is none.

    Args:
        step: a number, or "best" by the run's own metric; None: the newest, then the earlier ones.
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
        ranked = policy.rank_steps(read_scores(workdir, policy.metric))
        if not ranked:
            raise UserError(f"no checkpoint in {workdir} was evaluated by {policy.metric}; {known}")
        return ranked[:1]
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step!r}; {known}, or say {BEST!r}")
    return [int(step)]


def read_scores(workdir: Path, metric: str) -> dict[int, float | None]:
    """Return {step: value of the metric} of all checkpoints; None where it was not evaluated or cannot be read.

    Where a record lacks the metric, the log replaces it: a run may stop during an evaluation and finish it after
    resuming.
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


def read_intact(workdir: Path, steps: Sequence[int], wanted: Wanted) -> Iterator[tuple[Record, Items]]:
    """Yield (record, {item: arrays}) of each intact checkpoint at `steps`. Before it skips a damaged one, it warns.

    Raises DamagedCheckpoint where none is intact, and UserError where a checkpoint has other arrays than wanted. All hosts must
    call this together.

    Args:
        wanted: `wanted(record)` returns the arrays to read, as {item: tree of jax.ShapeDtypeStruct with shardings}.
    """
    damaged: list[str] = []
    check_agreement({"checkpoints": [str(workdir), *steps]})
    for index, step in enumerate(steps):
        record, items, wrong = _read(workdir.absolute() / FOLDER / str(step), wanted)
        # If one host cannot read a checkpoint, no host uses it. All must know before the checksums, computed together.
        wrong = next(filter(None, from_primary(to_primary(wrong))), None) or _describe_changes(items, record)
        if wrong is None:
            yield record, items
        else:
            damaged.append(f"{workdir.absolute() / FOLDER / str(step)} is damaged: {wrong}")
            if index + 1 < len(steps):
                warn(f"{damaged[-1]}; GOING BACK to the checkpoint of step {steps[index + 1]}")
        del record, items
    if len(damaged) == len(steps):
        many = f"none of the {len(steps)} checkpoints is intact: " if len(steps) > 1 else ""
        raise DamagedCheckpoint(
            f"{many}{damaged[0]}; put a copy of it in its place if there is one; nothing was changed"
        )


def select_evaluated(like: Any) -> Wanted:
    """Return `wanted` of `read_intact` for the parameters in the tree `like`, from the average where there is one."""
    return lambda record: {record.params_item: like}


def _read(checkpoint: Path, wanted: Wanted) -> tuple[Record | None, Items | None, str | None]:
    """Return (record, arrays, None), with checksums not yet compared, or (None, None, what is damaged)."""
    try:
        record = read_record(checkpoint)
        like = wanted(record)
        for path, leaf in flatten_with_paths(like):
            saved = record.leaves.get(path)
            found = "nothing" if saved is None else f"{saved.dtype} {saved.shape}"
            if found != f"{leaf.dtype} {leaf.shape}":
                raise UserError(f"{checkpoint}: {path} should be {leaf.dtype} {leaf.shape}, is {found}")
        return record, {name: _read_item(checkpoint / name, tree) for name, tree in like.items()}, None
    except DamagedCheckpoint as error:
        return None, None, str(error)  # only the text: the exception would keep the arrays in memory


def _describe_changes(items: Items, record: Record) -> str | None:
    """Return which arrays differ from what was saved, as text; None: none."""
    wrong = [path for path, found in checksums(items).items() if found != record.leaves[path].checksum]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more} is not what was saved" if wrong else None


def _read_item(folder: Path, like: Any) -> Any:
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    silence_late_errors()
    try:
        # Not a Checkpointer: in it, hosts that can read would wait for one that cannot.
        # As few concurrent bytes as possible: the bytes that are read need memory beside the arrays made from them.
        largest = max((math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like)), default=0)
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + largest // 10**9)
        with contextlib.closing(handler):
            return handler.restore(folder, args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for broken bytes
        for code in NO_DAMAGE:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                raise UserError(f"cannot read {folder}: {os.strerror(code)}") from error
        raise DamagedCheckpoint(f"{folder.name}: {_shorten_error(error)}") from error


@functools.cache
def silence_late_errors() -> None:
    """Silence the complaints of Orbax's other reads or writes when one has failed: they find their event loop closed.

    Each complaint is a page long, and the one line that says what is wrong would be lost among them.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _shorten_error(error: BaseException) -> str:
    """Return the first cause. Orbax wraps TensorStore's errors, which name the file, in pages of its own text."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__

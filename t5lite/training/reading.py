"""Read and verify checkpoints. Damaged arrays are never returned.

If several checkpoints may be read, the next one replaces a damaged one.

    record, items = next(read_intact(workdir, choose_steps(workdir, None), select_evaluated(like)))

Restored arrays are compared with the checksums in the checkpoint's record (record.py). So damage to any array that is
read is noticed, even if Orbax does not notice. Arrays that are not read are not checked.
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
from t5lite.training.early_stopping import make_early_stopping
from t5lite.training.metrics import read_log
from t5lite.training.policy import make_policy
from t5lite.training.record import DamagedCheckpoint, Record, compute_checksums, read_record
from t5lite.training.tables import flatten_with_paths
from t5lite.training.workdir import read_result

FOLDER = "checkpoints"
BEST = "best"

Items = dict[str, Any]  # {item: tree of arrays}
SelectArrays = Callable[[Record], Items]

# Errors of reading that do not mean that the checkpoint is damaged.
NO_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints in a workdir, ascending. Unfinished checkpoints have other names."""
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def choose_steps(workdir: Path, step: str | None) -> list[int]:
    """Return the steps of the checkpoints that may be read, in order of preference.

    Raises UserError if the workdir has no checkpoint, or not the one that `step` asks for.

    Args:
        step: a number, or "best" for the best checkpoint by the run's metric. Then no other checkpoint may replace it.
            None: all checkpoints. The checkpoint of a complete run's result comes first, then the newest ones.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(
            f"{workdir} has no complete checkpoint in {FOLDER}/; give the workdir of a run that has saved a checkpoint"
        )
    if step is None:
        kept_step = (read_result(workdir) or {}).get("step")  # early stopping may keep an earlier step than the newest
        return sorted(steps, key=lambda each: (each == kept_step, each), reverse=True)
    advice = f"give one of the steps {', '.join(map(str, steps))}"
    if step == BEST:
        config = load_json(workdir / "config.json")
        policy, early_stopping = make_policy(config), make_early_stopping(config)
        if early_stopping is not None:
            early_stopping.replay(values for _, values in read_log(workdir / "metrics.jsonl"))
            best_first = [early_stopping.best_step] if early_stopping.best_step in steps else []
        else:
            best_first = policy.rank_steps(read_scores(workdir, policy.metric))
        if not best_first:
            metric = policy.metric if early_stopping is None else early_stopping.metric
            raise UserError(f"no checkpoint in {workdir} was evaluated by {metric}; {advice}")
        return best_first[:1]
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step!r}; {advice}, or {BEST!r}")
    return [int(step)]


def read_scores(workdir: Path, metric: str) -> dict[int, float | None]:
    """Return {step: value of the metric} for all checkpoints. The value is None if it is missing or unreadable.

    If the record of a checkpoint lacks the metric, the value comes from metrics.jsonl. This happens if a signal stops
    an evaluation: the checkpoint is saved without metrics. The resumed run repeats the evaluation and logs its metrics.
    """
    split, _, name = metric.rpartition("/")
    entries = (values for _, values in read_log(workdir / "metrics.jsonl") if values["split"] == split)
    logged = {values["step"]: values[name] for values in entries if has_shape(values.get(name), NUMBER)}
    scores: dict[int, float | None] = {}
    for step in saved_steps(workdir):
        try:
            record = read_record(workdir.absolute() / FOLDER / str(step))
            scores[step] = record.metrics.get(metric, logged.get(step))
        except UserError:
            scores[step] = None
    return scores


def read_intact(workdir: Path, steps: Sequence[int], select_arrays: SelectArrays) -> Iterator[tuple[Record, Items]]:
    """Yield (record, {item: arrays}) of each intact checkpoint at `steps`. Skip damaged checkpoints, with a warning.

    All hosts must call this function together.

    Args:
        select_arrays: `select_arrays(record)` returns the arrays to read: {item: tree of jax.ShapeDtypeStruct with
            shardings}.

    Raises:
        DamagedCheckpoint: if no checkpoint is intact.
        UserError: if a checkpoint lacks an array that `select_arrays` asks for, or has it with another shape or dtype.
    """
    damaged: list[str] = []
    check_agreement({"checkpoints": [str(workdir), *steps]})
    for index, step in enumerate(steps):
        record, items, damage = _read(workdir.absolute() / FOLDER / str(step), select_arrays)
        # If one host cannot read a checkpoint, no host uses it. All hosts must know this before they compute checksums,
        # because they compute them together.
        damage = next(filter(None, from_primary(to_primary(damage))), None) or _describe_changes(items, record)
        if damage is None:
            yield record, items
        else:
            damaged.append(f"{workdir.absolute() / FOLDER / str(step)} is damaged: {damage}")
            if index + 1 < len(steps):
                warn(f"{damaged[-1]}; GOING BACK to the checkpoint of step {steps[index + 1]}")
        del record, items
    if len(damaged) == len(steps):
        prefix = f"none of the {len(steps)} checkpoints is intact: " if len(steps) > 1 else ""
        raise DamagedCheckpoint(f"{prefix}{damaged[0]}; replace it by a copy if you have one; nothing was changed")


def select_evaluated(like: Any) -> SelectArrays:
    """Return a function for `read_intact` that selects the parameters to evaluate.

    like: tree of jax.ShapeDtypeStruct with shardings. The average of the parameters is read if the checkpoint has one.
    """
    return lambda record: {record.params_item: like}


def _read(checkpoint: Path, select_arrays: SelectArrays) -> tuple[Record | None, Items | None, str | None]:
    """Return (record, arrays, None), or (None, None, damage) for a damaged checkpoint. Do not compare checksums yet."""
    try:
        record = read_record(checkpoint)
        like = select_arrays(record)
        for path, leaf in flatten_with_paths(like):
            saved = record.leaves.get(path)
            actual = "missing" if saved is None else f"{saved.dtype} {saved.shape}"
            if actual != f"{leaf.dtype} {leaf.shape}":
                raise UserError(
                    f"{checkpoint}: {path} is {actual}, but this config needs {leaf.dtype} {leaf.shape}; "
                    "use the config of the run that saved it"
                )
        return record, {name: _read_item(checkpoint / name, tree) for name, tree in like.items()}, None
    except DamagedCheckpoint as error:
        return None, None, str(error)  # return only the text: the exception would keep arrays in memory


def _describe_changes(items: Items, record: Record) -> str | None:
    """Return a text that names the arrays whose checksums differ from the record; None if all are equal."""
    changed = [path for path, value in compute_checksums(items).items() if value != record.leaves[path].checksum]
    total = f" ({len(changed)} arrays differ in all)" if len(changed) > 1 else ""
    return f"the array {changed[0]} differs from its checksum in the record{total}" if changed else None


def _read_item(folder: Path, like: Any) -> Any:
    """Return the arrays of an item, with the shapes, dtypes and shardings of `like`."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    silence_late_errors()
    try:
        # Do not use a Checkpointer: hosts that can read would wait in it for a host that cannot.
        # Read as few bytes at a time as possible, because they need memory in addition to the arrays.
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
    """Silence asyncio's error messages in this process, and uncaught exceptions "Event loop is closed".

    After a read or a write has failed, Orbax still runs others. Each of them fails too, with a whole page of text. The
    user would not see the one line that names the error.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous_hook(unraisable)

    sys.unraisablehook = hook


def _shorten_error(error: BaseException) -> str:
    """Return the text of the first cause, at most 300 characters.

    The first cause is TensorStore's error, which names the file. Orbax adds pages of text around it.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__

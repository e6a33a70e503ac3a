"""Orbax checkpoints of a run: saved in the background, kept by a policy, verified when they are read.

    checkpoints/60/params/  opt_state/  average/ (only with `ema_decay`)  pretrained/ (only with `mixout`)
    checkpoints/60/record/ (see record.py)
    checkpoints/damaged-60/                                               a checkpoint that a restart rejected

Parameters are a separate item, so that a later run can read them without the optimizer state.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5lite.system.errors import UserError
from t5lite.system.hosts import gather, is_primary, wait_for_all
from t5lite.tasks.metrics import Metrics
from t5lite.training.policy import Policy
from t5lite.training.reading import FOLDER, Items, read_intact, read_scores, saved_steps, silence_late_errors
from t5lite.training.record import ITEM, Record, describe_leaves, seal
from t5lite.training.step import TrainState
from t5lite.training.tables import flatten_with_paths


class Checkpoints:
    """The checkpoints that one run writes and keeps. Use only one such object for a workdir at a time.

    best_step: a step whose checkpoint is kept in addition to those that the policy keeps; None: no such step.
    """

    def __init__(self, workdir: Path, policy: Policy):
        self.workdir, self.folder, self.policy = workdir, workdir.absolute() / FOLDER, policy
        self._scores = read_scores(workdir, policy.metric)
        self._metrics: dict[int, dict[str, float]] = {}
        self.best_step: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self, enable_async_checkpointing=True, lightweight_initialize=True
        )
        silence_late_errors()
        with _explain_write_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tell Orbax which checkpoints to keep."""
        kept_steps = self.policy.select_kept_steps({each.step: self._scores.get(each.step) for each in checkpoints})
        return [each.step in kept_steps or each.step == self.best_step for each in checkpoints]

    def note_metrics(self, step: int, metrics: Mapping[str, Metrics]) -> None:
        """Note the metrics {split: {name: value}} of `step`. `save` writes them into the checkpoint of this step.

        Raises UserError if the policy keeps the best checkpoints but its metric is not among `metrics`.
        """
        scores = {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
        if self.policy.keep_best is not None and self.policy.metric not in scores:
            raise UserError(f"checkpoint.metric={self.policy.metric} is not evaluated; known: {', '.join(scores)}")
        self._metrics = {step: scores}
        if step in self._scores:  # the step was saved before it was evaluated
            self._scores[step] = scores.get(self.policy.metric)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Start to save `state` and `progress` in the background.

        The arrays are copied before this method returns, so the caller may donate them.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        items = _make_items(state)
        record = Record(step, progress, self._metrics.get(step, {}), describe_leaves(items))
        self._scores[step] = record.metrics.get(self.policy.metric)
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with _explain_write_errors(self.folder):
            self._manager.save(step, args=ocp.args.Composite(**trees, **{ITEM: ocp.args.JsonSave(seal(record))}))

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Return (state, progress) of the checkpoint of `step`; None: of the newest intact checkpoint.

        The state is placed by `shardings`. Renames checkpoints that are damaged and newer than the restored one. If all
        are damaged, renames none and raises UserError.
        """
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

        def select_arrays(record: Record) -> Items:
            items = _make_items(like)
            unknown = record.leaves.keys() - dict(flatten_with_paths(items))
            if unknown:
                raise UserError(
                    f"{self.folder / str(record.step)}: {min(unknown)} has no place in a run of this config; "
                    "use the config of the run that saved it"
                )
            # The saved average includes the frozen parameters, but the state's average does not.
            return items if like.average is None else {**items, "average": like.average}

        steps = saved_steps(self.workdir)[::-1] if step is None else [step]
        record, items = next(read_intact(self.workdir, steps, select_arrays))
        self._set_aside(steps[: steps.index(record.step)])
        return TrainState(jax.device_put(np.int32(record.step), shardings.step), **items), record.progress

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Rename the checkpoints of `steps` to damaged-STEP, or to damaged-STEP-N if this name is taken."""
        if not steps:
            return
        if is_primary():
            with _explain_write_errors(self.folder):
                for step in steps:
                    names = (f"damaged-{step}", *(f"damaged-{step}-{n}" for n in range(2, 1000)))
                    free = next(name for name in names if not (self.folder / name).exists())
                    (self.folder / str(step)).rename(self.folder / free)
        wait_for_all()
        self._manager.reload()

    def wait(self) -> None:
        """Wait until the save in the background is complete."""
        with _explain_write_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def _make_items(state: TrainState) -> Items:
    """Return the items of a checkpoint, {name: tree}: everything in the state except the step.

    Orbax does not save empty trees, such as the optimizer state of converted weights, so they are left out. The saved
    average includes the frozen parameters, because readers of the average do not read the parameters.
    """
    average = None if state.average is None else state.evaluated_params
    items = {"params": state.params, "opt_state": state.opt_state, "average": average, "pretrained": state.pretrained}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


# Errors of a full or read-only disk, or of missing rights. The user can correct them.
USER_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR
)  # fmt: skip


@contextlib.contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of a disk that is full or must not be written into a UserError that names `folder`."""
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore reports a failed write as a ValueError, whose message contains the system's message.
        code = getattr(error, "errno", None)
        causes = [cause for cause in USER_ERRORS if cause == code or os.strerror(cause) in str(error)]
        if not causes:
            raise
        raise UserError(f"cannot write {folder}: {os.strerror(causes[0])}; earlier checkpoints are intact") from error


def hash_params(params: Any) -> str:
    """Return the SHA-256 of all leaves in the order of their paths.

    For each leaf, the digest reads path, dtype, shape, and the little-endian bytes in C order. The leaves are gathered
    one at a time. All hosts must call this function together.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten_with_paths(params):
        value = gather(leaf)
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        digest.update(f"{path} {leaf.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()

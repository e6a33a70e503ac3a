"""Orbax checkpoints of a run, and reading parameters out of another's.

    checkpoints/60/params/…  opt_state/…  progress/   the step, and what adds up over restarts (tokens, seconds)

Parameters are an item of their own, so that the next stage reads them alone.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5lite.errors import UserError
from t5lite.training.hosts import whole
from t5lite.training.step import TrainState
from t5lite.training.tables import flatten_with_paths

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run, newest `keep` of them kept, saved in the background."""

    def __init__(self, workdir: Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.folder = workdir.absolute() / FOLDER
        with _explained(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Start saving; the arrays are copied before this returns, so the caller may donate them."""
        step = int(state.step)
        if step == self.latest_step():
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            progress=ocp.args.JsonSave(progress),
        )
        with _explained(self.folder):
            self._manager.save(step, args=items)

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of `step`, placed by `shardings`, and what `save` was given beside it."""
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(like.params),
            opt_state=ocp.args.StandardRestore(like.opt_state),
            progress=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"cannot restore {self.folder / str(step)}: {error}; delete that folder to go on from the one before"
            ) from error
        state_step = jax.device_put(np.int32(step), shardings.step)
        return TrainState(state_step, restored.params, restored.opt_state), restored.progress

    def wait(self) -> None:
        """Return when the save in the background is complete."""
        with _explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


FULL_OR_FORBIDDEN = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR
)  # fmt: skip


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore reports a failed write as a ValueError, with the system's message within its own.
        code = getattr(error, "errno", None)
        causes = [cause for cause in FULL_OR_FORBIDDEN if cause == code or os.strerror(cause) in str(error)]
        if not causes:
            raise
        raise UserError(f"cannot write {folder}: {os.strerror(causes[0])}; earlier checkpoints are intact") from error


def newest(workdir: Path) -> tuple[Path, int]:
    """(folder, step) of the newest complete checkpoint in `workdir`."""
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        raise UserError(f"{workdir} has no {FOLDER}/: it is not the workdir of a run that saved one")
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
    if not steps:
        raise UserError(f"{folder} holds no complete checkpoint")
    return folder / str(max(steps)), max(steps)


def params_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters in the folder of one checkpoint."""
    with _readable(checkpoint):
        metadata = ocp.PyTreeCheckpointer().metadata(checkpoint / "params").item_metadata.tree
    return {path: tuple(leaf.shape) for path, leaf in flatten_with_paths(metadata)}


def read_params(checkpoint: Path, like: Any) -> Any:
    """Those parameters of a checkpoint that the tree `like` (jax.ShapeDtypeStruct with shardings) has."""
    with _readable(checkpoint):
        args = ocp.args.PyTreeRestore(
            item=like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        return ocp.PyTreeCheckpointer().restore(checkpoint / "params", args=args)


@contextlib.contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"cannot read the parameters of {checkpoint}: {error}") from error


def params_sha256(params: Any) -> str:
    """SHA-256 over the leaves in path order: path, dtype, shape, little-endian C-order bytes, gathered one by one.

    All hosts must call it together.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten_with_paths(params):
        value = whole(leaf)
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        digest.update(f"{path} {leaf.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()

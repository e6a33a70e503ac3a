"""Metrics on disk: metrics.jsonl, with one object a line, and TensorBoard.

    {"step": 10, "split": "train", "loss": 7.31, "tokens": 50080, …}
    {"step": 60, "split": "validation", "loss": 6.02, "perplexity": 411.6, …}

A line is on disk before the checkpoint of its step. When a run is resumed, lines later than the checkpoint are cut, so
each line occurs once.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from t5lite.system.errors import UserError
from t5lite.system.files import NUMBER, explain_write_errors, has_shape, write_atomically


class MetricsLog:
    """Appends to workdir/metrics.jsonl and workdir/tensorboard/. First drops all entries beyond step `keep_until`.

    Every method that writes raises UserError where the disk is full. This is why events are written directly: the
    thread in tensorboardX's SummaryWriter would die of the error, and the run would wait for the thread for ever.
    """

    def __init__(self, workdir: Path, keep_until: int):
        self.path, board = workdir / "metrics.jsonl", workdir / "tensorboard"
        truncate(self.path, keep_until)
        with self._writing():
            self._file = self.path.open("ab", buffering=0)
            board.mkdir(exist_ok=True)
            self._board = EventsWriter(str(board / "events"))
            self._add(keep_until + 1, session_log=SessionLog(status=SessionLog.START))  # TensorBoard drops later events

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Append a line, with `notes` after the metrics. It is with the operating system when this returns."""
        self.write_all(step, {split: metrics}, notes)

    def write_all(
        self, step: int, splits: Mapping[str, Mapping[str, float]], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Append a line for each split, all at once: a kill leaves all of them or none."""
        lines = []
        for split, metrics in splits.items():
            short = {name: _short(value) for name, value in metrics.items()}
            lines.append(json.dumps({"step": step, "split": split, **short, **(notes or {})}) + "\n")
        with self._writing():
            _write_whole(self._file, "".join(lines).encode())
            for split, metrics in splits.items():
                for name, value in metrics.items():
                    self._add(step, summary=scalar(f"{split}/{name}", value))
            self._board.flush()

    def has_evaluation(self, step: int) -> bool:
        """Return whether there is a line about held-out text at `step`."""
        return any(values["step"] == step and values["split"] != "train" for _, values in read_log(self.path))

    def sync(self) -> None:
        """Force metrics.jsonl to the disk."""
        with self._writing():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files. Data that was not synchronized and does not fit on the disk is lost without an error."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()

    def _add(self, step: int, **what: Any) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **what))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return explain_write_errors(
            self.path.parent, "the same command goes on from the last checkpoint once there is room"
        )


def _write_whole(file: Any, line: bytes) -> None:
    """Write all of `line` to an unbuffered file. If a full disk takes only a part, the next start cuts that part."""
    while line:
        line = line[file.write(line) :]


class NoLog:
    """A MetricsLog that writes nothing, for all hosts except the first."""

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], notes: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def write_all(
        self, step: int, splits: Mapping[str, Mapping[str, float]], notes: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def has_evaluation(self, step: int) -> bool:
        return False

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _short(value: float) -> float | None:
    """Return a float with seven digits, the precision of float32; None for a number that JSON cannot hold."""
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def read_log(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines of a metrics.jsonl and their values; none where there is no file. Broken lines are left out."""
    try:
        written = path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    read = []
    for line in written:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if has_shape(values, {"step": int, "split": str}):
                read.append((line, values))
    return read


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps beyond `step`, and broken lines, such as a last line that a kill left incomplete."""
    if path.exists():
        write_atomically(path, "".join(f"{line}\n" for line, values in read_log(path) if values["step"] <= step))


def first_losses(path: Path) -> dict[str, float | None]:
    """Return {split: loss at step 0} from a metrics.jsonl: the held-out loss of the weights that the run began with."""
    first = [values for _, values in read_log(path) if values["step"] == 0]
    return {
        values["split"]: values["loss"] for values in first if "loss" in values and has_shape(values["loss"], NUMBER)
    }

"""Metrics on disk: metrics.jsonl, with one JSON object in each line, and TensorBoard files.

    {"step": 10, "split": "train", "loss": 7.31, "tokens": 50080, …}
    {"step": 60, "split": "validation", "loss": 6.02, "perplexity": 411.6, …}

The line of a step is on disk before the checkpoint of this step. When a run is resumed, lines after the step of the
checkpoint are removed, so each line occurs once.
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
    """Append metrics to workdir/metrics.jsonl and workdir/tensorboard/.

    Each method that writes raises UserError if the disk is full. For this reason events are written directly, without
    tensorboardX's SummaryWriter: its thread would end with the error, and the run would wait for the thread for ever.

    keep_until: a step. The constructor removes all entries of later steps.
    """

    def __init__(self, workdir: Path, keep_until: int):
        self.path, board = workdir / "metrics.jsonl", workdir / "tensorboard"
        truncate(self.path, keep_until)
        with self._writing():
            self._file = self.path.open("ab", buffering=0)
            board.mkdir(exist_ok=True)
            self._board = EventsWriter(str(board / "events"))
            # TensorBoard then drops older events of later steps.
            self._write_event(keep_until + 1, session_log=SessionLog(status=SessionLog.START))

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Append a line, with `notes` after the metrics. The line survives if this process is killed afterwards."""
        self.write_all(step, {split: metrics}, notes)

    def write_all(
        self, step: int, splits: Mapping[str, Mapping[str, float]], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Append a line for each split in one write. So if the process is killed, all lines are written or none."""
        lines = []
        for split, metrics in splits.items():
            rounded = {name: _round(value) for name, value in metrics.items()}
            lines.append(json.dumps({"step": step, "split": split, **rounded, **(notes or {})}) + "\n")
        with self._writing():
            _write_all_bytes(self._file, "".join(lines).encode())
            for split, metrics in splits.items():
                for name, value in metrics.items():
                    self._write_event(step, summary=scalar(f"{split}/{name}", value))
            self._board.flush()

    def read(self) -> list[dict[str, Any]]:
        """Return the values of all lines."""
        return [values for _, values in read_log(self.path)]

    def has_evaluation(self, step: int) -> bool:
        """Return whether the log has a line about held-out text at `step`."""
        return any(values["step"] == step and values["split"] != "train" for values in self.read())

    def sync(self) -> None:
        """Make sure that metrics.jsonl is on the disk (fsync)."""
        with self._writing():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files. If the disk is full, data that `sync` has not yet written is lost without an error."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()

    def _write_event(self, step: int, **content: Any) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return explain_write_errors(
            self.path.parent, "the same command goes on from the last checkpoint once there is room"
        )


def _write_all_bytes(file: Any, data: bytes) -> None:
    """Write all of `data` to an unbuffered file. If a full disk takes only a part, the next start removes this part."""
    while data:
        data = data[file.write(data) :]


class NoLog:
    """A MetricsLog that writes nothing: for all hosts except host 0."""

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], notes: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def write_all(
        self, step: int, splits: Mapping[str, Mapping[str, float]], notes: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def read(self) -> list[dict[str, Any]]:
        return []

    def has_evaluation(self, step: int) -> bool:
        return False

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _round(value: float) -> float | None:
    """Return `value` rounded to seven digits, the precision of float32; None for NaN and infinity. Keep an int."""
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def read_log(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return [(line, its values)] of a metrics.jsonl, without broken lines; [] if there is no file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if has_shape(values, {"step": int, "split": str}):
                entries.append((line, values))
    return entries


def truncate(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, and broken lines, such as an incomplete last line of a killed process."""
    if path.exists():
        write_atomically(path, "".join(f"{line}\n" for line, values in read_log(path) if values["step"] <= step))


def read_first_losses(path: Path) -> dict[str, float | None]:
    """Return {split: loss at step 0} from a metrics.jsonl: the held-out loss of the run's initial weights."""
    first = [values for _, values in read_log(path) if values["step"] == 0]
    return {
        values["split"]: values["loss"] for values in first if "loss" in values and has_shape(values["loss"], NUMBER)
    }

"""Runs of a study, each a process of its own, so that one that fails, or is killed, leaves the others alone.

Output of the runs goes to this process's stderr. On a terminal and one at a time they have a pseudo-terminal there,
and so show their progress bars; several at a time write whole lines, with the run's name before each.
"""

import codecs
import collections
import contextlib
import dataclasses
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from t5lite.config import to_dict
from t5lite.studies.study import Study, references, unmet_need
from t5lite.system.errors import RUN_ME_AGAIN, Interrupted, UserError
from t5lite.system.files import write_json
from t5lite.system.memory import computes_on_cpu

POLL_SECONDS = 0.1
TAIL = 400  # lines, more than a traceback has
OURS = "t5lite: "  # how a user's mistake ends
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclasses.dataclass
class _Process:
    """A run under way. tail: its last lines. slot: its share of the machine."""

    process: subprocess.Popen
    slot: int
    reader: threading.Thread
    tail: collections.deque[str]

    def reason(self) -> str:
        """Why it failed, in a line."""
        code = self.process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return _reason(list(self.tail)) or f"exit code {code}"


def _reason(tail: list[str]) -> str:
    """What a failed run said last: its own message, or the line of the exception that ended it."""
    lines = [line for line in tail if line.strip()]
    said = lines[-1].strip() if lines else ""
    headers = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if headers and not said.startswith(OURS):
        # After the frames, which are indented; an exception may have further lines, and JAX adds a note of its own.
        said = next((line for line in lines[headers[-1] + 1 :] if not line[0].isspace()), said)
    return said.removeprefix(OURS).strip()


def train_command(config: Path, workdir: Path, flags: Sequence[str] = ()) -> list[str]:
    """The command that trains the config in the file `config`, with further `flags`."""
    return [sys.executable, "-m", "t5lite.train", "--config", str(config), "--workdir", str(workdir), *flags]


def run_study(
    study: Study,
    folder: Path,
    is_complete: Callable[[str], bool],
    parallel: int = 1,
    command: Callable[[Path, Path], list[str]] = train_command,
) -> dict[str, str]:
    """Run what is not complete, each run in `folder`/name once what it needs is complete, `parallel` at a time.

    `study` is in an order in which its runs can run. `is_complete(name)` may raise UserError, which counts as that
    run's failure. Returns {name: why the run has no result}. Raises Interrupted after SIGINT or SIGTERM, once the runs
    under way have saved their last steps; or where one of them alone was stopped so.
    """
    if importlib.util.find_spec("libtpu") is not None and not computes_on_cpu():
        parallel = 1  # a process holds the TPU whole
    work = _Work(study, folder, is_complete, parallel, command)
    with _signals() as received:
        try:
            while work.waiting or work.running:
                work.start_what_can()
                work.collect(interrupted=bool(received))
                if received:
                    raise Interrupted("stopped; the same command goes on from there")
        finally:
            work.stop()
    return work.absent


class _Work:
    """The runs of a study: waiting, running, complete, or absent for a reason."""

    def __init__(self, study: Study, folder: Path, is_complete: Callable, parallel: int, command: Callable):
        self.study, self.folder, self.parallel = study, folder, parallel
        self.is_complete, self.command = is_complete, command
        self.waiting = list(study)
        self.running: dict[str, _Process] = {}
        self.complete: set[str] = set()
        self.absent: dict[str, str] = {}

    def start_what_can(self) -> None:
        """Start runs whose needs are complete, as far as there are slots; give up those that wait for nothing."""
        for name in list(self.waiting):
            reason = unmet_need(self.study[name], self.absent)
            if reason is not None:
                self.absent[name] = reason
            elif not self.complete.issuperset(references(self.study[name])) or len(self.running) == self.parallel:
                continue
            else:
                self._start_or_skip(name)
            self.waiting.remove(name)

    def _start_or_skip(self, name: str) -> None:
        try:
            if self.is_complete(name):
                print(f"== {self._numbered(name)}: complete", file=sys.stderr, flush=True)
                self.complete.add(name)
                return
        except UserError as error:
            self.absent[name] = f"failed: {error}"
            return
        print(f"== {self._numbered(name)}", file=sys.stderr, flush=True)
        path = self.folder / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_dict(self.study[name]))
        slot = min(set(range(self.parallel)) - {run.slot for run in self.running.values()})
        self.running[name] = _start(self.command(path, self.folder / name), name, slot, self.parallel)

    def _numbered(self, name: str) -> str:
        return f"{name} ({1 + list(self.study).index(name)} of {len(self.study)})"

    def collect(self, interrupted: bool) -> None:
        """Note which runs have ended, and how; wait a moment if none has."""
        codes = {name: run.process.poll() for name, run in self.running.items()}
        if self.running and all(code is None for code in codes.values()):
            time.sleep(POLL_SECONDS)
        for name, code in codes.items():
            if code is None:
                continue
            ended = self.running.pop(name)
            ended.reader.join(timeout=5)  # what it said last may still be on its way
            if code == 0:
                self.complete.add(name)
            elif code == RUN_ME_AGAIN and not interrupted:
                raise Interrupted(f"{name} was stopped; the same command goes on from there")
            elif not interrupted:
                self.absent[name] = f"failed: {ended.reason()}"

    def stop(self) -> None:
        """Have what still runs save its last step, and wait until it has."""
        for run in self.running.values():
            run.process.terminate()
        for run in self.running.values():
            run.process.wait()
            run.reader.join(timeout=5)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append themselves to, where this is the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _start(command: list[str], name: str, slot: int, parallel: int) -> _Process:
    read_end, write_end = _channel(parallel)
    environment = os.environ | share_of_gpus(gpus(), slot, parallel)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end, env=environment
        )
    finally:
        os.close(write_end)
    if parallel > 1 and computes_on_cpu() and hasattr(os, "sched_setaffinity"):
        # Before it counts the cores: each with all of them would be slower than each with its share.
        cores = sorted(os.sched_getaffinity(0))
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores[slot % len(cores) :: parallel] or cores)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL)
    reader = threading.Thread(target=_copy, args=(read_end, tail, f"{name}: " if parallel > 1 else ""), daemon=True)
    reader.start()
    return _Process(process, slot, reader, tail)


def _channel(parallel: int) -> tuple[int, int]:
    """The two ends of what a run writes to: a pseudo-terminal where it can have the terminal to itself."""
    if parallel == 1 and sys.stderr.isatty():
        import termios

        read_end, write_end = os.openpty()
        termios.tcsetwinsize(write_end, termios.tcgetwinsize(sys.stderr.fileno()))
        return read_end, write_end
    return os.pipe()


def _copy(read_end: int, tail: collections.deque[str], prefix: str) -> None:
    """Pass on what a run writes and keep the last lines. With a prefix: in whole lines, each after it."""
    pending = ""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a character may come in two parts
    with open(read_end, "rb", buffering=0) as file:
        while True:
            try:
                written = file.read(65536)
            except OSError:  # a pseudo-terminal's way of ending
                written = b""
            if not written:
                break
            text = decode(written)
            *lines, pending = (pending + _CONTROL.sub("", text)).replace("\r", "\n").split("\n")
            sys.stderr.write("".join(f"{prefix}{line}\n" for line in lines) if prefix else text)
            sys.stderr.flush()
            tail.extend(lines)
    tail.append(pending)
    if prefix and pending:
        sys.stderr.write(f"{prefix}{pending}\n")


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def share_of_gpus(gpus: list[str], slot: int, parallel: int) -> dict[str, str]:
    """Environment for the run in `slot` of `parallel`: GPUs of its own where there are enough, else a part of one."""
    if parallel == 1 or not gpus:
        return {}
    if parallel <= len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::parallel])}
    on_one = -(-parallel // len(gpus))
    # JAX takes three quarters of a GPU's memory when it starts, and the second run would find too little.
    fraction = f"{0.9 / on_one:.2f}"
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)], "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction}

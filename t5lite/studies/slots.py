"""A slot: a share of the machine, and the worker in it (worker.py), which runs one run of a study after the other.

Output of the runs goes to this process's stderr. On a terminal and one at a time they have a pseudo-terminal there,
and so show their progress bars; several at a time write whole lines, with the run's name before each.
"""

import codecs
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from t5lite.studies import worker
from t5lite.system.cores import ALL_CORES
from t5lite.system.memory import computes_on_cpu

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Slot:
    """Slot `number` of `parallel`. run: the name of what it runs now, if anything."""

    def __init__(self, number: int, parallel: int, module: str):
        self.number, self.parallel, self.module = number, parallel, module
        self.run: str | None = None
        self._process: subprocess.Popen | None = None
        self._channel: socket.socket | None = None
        self._deterministic = False
        self._reader: threading.Thread | None = None

    def fileno(self) -> int:
        """What is readable when the run has ended: for `select`."""
        return self._channel.fileno()

    def suits(self, deterministic: bool) -> bool:
        """Whether there is a worker for such a run: a process tells JAX once whether it is to be deterministic."""
        is_alive = self._process is not None and self._process.poll() is None
        return is_alive and self._deterministic == deterministic

    def start(self, run: str, arguments: Sequence[str], deterministic: bool) -> None:
        """Have the worker run the module's verb with `arguments`; a new worker where none suits."""
        if not self.suits(deterministic):
            self.close()
            self._start_worker(deterministic)
        read_end, write_end = _output(self.parallel)
        with contextlib.suppress(BrokenPipeError):  # of a worker that was killed: `outcome` says so
            socket.send_fds(self._channel, [json.dumps(list(arguments)).encode()], [write_end])
        os.close(write_end)
        self.run = run
        prefix = f"{run}: " if self.parallel > 1 else ""
        self._reader = threading.Thread(target=_copy, args=(read_end, prefix), daemon=True)
        self._reader.start()

    def _start_worker(self, deterministic: bool) -> None:
        self._channel, theirs = socket.socketpair()
        command = [sys.executable, "-m", worker.__name__, str(theirs.fileno()), self.module]
        environment = os.environ | share_of_gpus(gpus(), self.number, self.parallel)
        cores: list[int] = []
        if self.parallel > 1 and computes_on_cpu() and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            environment[ALL_CORES] = ",".join(map(str, cores))
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
            )
        self._deterministic = deterministic
        if cores:
            # Before it counts the cores: each with all of them would be slower than each with its share.
            share = cores[self.number % len(cores) :: self.parallel] or cores
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, share)

    def outcome(self) -> tuple[int, str]:
        """The exit code of the run that has ended, 0: it is complete, and the reason in a line. The slot is free."""
        said, code, reason = b"", 0, ""
        with contextlib.suppress(ConnectionResetError):  # of a worker that was killed before it read its arguments
            said = self._channel.recv(worker.LONGEST)
        if said != worker.DONE:
            code = self._process.wait()
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else said.decode() or f"exit code {code}"
        self._reader.join(timeout=5)  # what it said last may still be on its way
        self.run = None
        return code, reason

    def stop(self) -> None:
        """Ask the run to save its last step and to end. `close` waits for that."""
        if self.run is not None:
            self._process.terminate()

    def close(self) -> None:
        """End the worker, when it has nothing more to run."""
        if self._process is not None:
            self._channel.close()
            self._process.wait()
            self._reader.join(timeout=5)


def _output(parallel: int) -> tuple[int, int]:
    """The two ends of what a run writes to: a pseudo-terminal where it can have the terminal to itself."""
    if parallel == 1 and sys.stderr.isatty():
        import termios

        read_end, write_end = os.openpty()
        termios.tcsetwinsize(write_end, termios.tcgetwinsize(sys.stderr.fileno()))
        return read_end, write_end
    return os.pipe()


def _copy(read_end: int, prefix: str) -> None:
    """Pass on what a run writes. With a prefix: in whole lines, each after it."""
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
            if prefix:
                *lines, pending = (pending + _CONTROL.sub("", text)).replace("\r", "\n").split("\n")
                text = "".join(f"{prefix}{line}\n" for line in lines)
            sys.stderr.write(text)
            sys.stderr.flush()
    if pending:
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

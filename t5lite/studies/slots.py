"""A slot: a share of the machine with a worker process (worker.py), which executes one run of a study after another.

The output of the runs goes to the stderr of this process. If this is a terminal and runs are not parallel, a run writes
to a pseudo-terminal, so it shows its progress bar. Parallel runs write whole lines, each after the run's name.
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
    """Slot `number` of `parallel` slots.

    module: the name of the module whose `main` executes a run.
    run: the name of the current run; None if the slot is free.
    """

    def __init__(self, number: int, parallel: int, module: str):
        self.number, self.parallel, self.module = number, parallel, module
        self.run: str | None = None
        self._process: subprocess.Popen | None = None
        self._channel: socket.socket | None = None
        self._deterministic = False
        self._reader: threading.Thread | None = None

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the run has ended. `select` calls this."""
        return self._channel.fileno()

    def can_run(self, deterministic: bool) -> bool:
        """Return whether the slot's worker can execute a run with this value of `deterministic`.

        A process can set up JAX only once, so all runs of a worker have the same value.
        """
        is_alive = self._process is not None and self._process.poll() is None
        return is_alive and self._deterministic == deterministic

    def start(self, run: str, arguments: Sequence[str], deterministic: bool) -> None:
        """Let the worker call `main` of the module with `arguments`. If the worker cannot, start a new worker first."""
        if not self.can_run(deterministic):
            self.close()
            self._start_worker(deterministic)
        read_end, write_end = _open_output(self.parallel)
        with contextlib.suppress(BrokenPipeError):  # the worker was killed; `finish` reports this
            socket.send_fds(self._channel, [json.dumps(list(arguments)).encode()], [write_end])
        os.close(write_end)
        self.run = run
        prefix = f"{run}: " if self.parallel > 1 else ""
        self._reader = threading.Thread(target=_copy, args=(read_end, prefix), daemon=True)
        self._reader.start()

    def _start_worker(self, deterministic: bool) -> None:
        self._channel, far_end = socket.socketpair()
        command = [sys.executable, "-m", worker.__name__, str(far_end.fileno()), self.module]
        environment = os.environ | share_gpus(list_gpus(), self.number, self.parallel)
        cores: list[int] = []
        if self.parallel > 1 and computes_on_cpu() and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            environment[ALL_CORES] = ",".join(map(str, cores))
        with far_end:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[far_end.fileno()], env=environment
            )
        self._deterministic = deterministic
        if cores:
            # Set the cores before the worker counts them. Workers that all use all cores are slower than workers that
            # have a share each.
            share = cores[self.number % len(cores) :: self.parallel] or cores
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, share)

    def finish(self) -> tuple[int, str]:
        """Free the slot after its run has ended. Return (exit code of the run, reason); (0, "") if it is complete."""
        answer, code, reason = b"", 0, ""
        with contextlib.suppress(ConnectionResetError):  # the worker was killed before it read its arguments
            answer = self._channel.recv(worker.MAX_MESSAGE_BYTES)
        if answer != worker.DONE:
            code = self._process.wait()
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else answer.decode() or f"exit code {code}"
        self._reader.join(timeout=5)  # the reader may not have copied the last output yet
        self.run = None
        return code, reason

    def stop(self) -> None:
        """Ask the run to save its last step and to end. Call `close` to wait for the end."""
        if self.run is not None:
            self._process.terminate()

    def close(self) -> None:
        """Wait until the current run, if any, has ended. Then end the worker."""
        if self._process is not None:
            self._channel.close()
            self._process.wait()
            self._reader.join(timeout=5)


def _open_output(parallel: int) -> tuple[int, int]:
    """Return (read end, write end) for the output of a run.

    They are a pseudo-terminal if this process writes to a terminal and runs one run at a time, and a pipe otherwise.
    """
    if parallel == 1 and sys.stderr.isatty():
        import termios

        read_end, write_end = os.openpty()
        termios.tcsetwinsize(write_end, termios.tcgetwinsize(sys.stderr.fileno()))
        return read_end, write_end
    return os.pipe()


def _copy(read_end: int, prefix: str) -> None:
    """Copy the output of a run to stderr. With a prefix: copy whole lines only, each after the prefix."""
    pending = ""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a read may end inside a character
    with open(read_end, "rb", buffering=0) as file:
        while True:
            try:
                data = file.read(65536)
            except OSError:  # the end of a pseudo-terminal
                data = b""
            if not data:
                break
            text = decode(data)
            if prefix:
                *lines, pending = (pending + _CONTROL.sub("", text)).replace("\r", "\n").split("\n")
                text = "".join(f"{prefix}{line}\n" for line in lines)
            sys.stderr.write(text)
            sys.stderr.flush()
    if pending:
        sys.stderr.write(f"{prefix}{pending}\n")


def list_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def share_gpus(gpus: list[str], slot: int, parallel: int) -> dict[str, str]:
    """Return environment variables that assign GPUs to `slot`: own GPUs, or a part of a GPU if there are too few."""
    if parallel == 1 or not gpus:
        return {}
    if parallel <= len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::parallel])}
    runs_per_gpu = -(-parallel // len(gpus))
    # By default, JAX takes three quarters of a GPU's memory when it starts. A second run would find too little memory.
    fraction = f"{0.9 / runs_per_gpu:.2f}"
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)], "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction}

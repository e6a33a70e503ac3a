"""Several hosts on this machine: a process each, with CPU devices of its own, joined by real sockets."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[1]
SECONDS = 240  # after which a test has failed


def start(command: Sequence[str], hosts: int = 2, each: Callable[[int], Sequence[str]] = lambda host: ()) -> list:
    """The processes of `python {command}` on so many hosts; `each(host)` are arguments of one of them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_TO_COMPILE}
    address = ["--coordinator_address", f"localhost:{port}", "--num_processes", str(hosts), "--heartbeat_timeout", "5"]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *address, "--process_id", str(host), *each(host)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for host in range(hosts)
    ]  # fmt: skip


def wait(processes: Sequence[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each host; none outlives the call."""
    until = time.monotonic() + SECONDS
    try:
        said = [process.communicate(timeout=max(until - time.monotonic(), 0)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *outputs) for process, outputs in zip(processes, said, strict=True)]

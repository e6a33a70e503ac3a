"""Several hosts on this machine: a process each, with one CPU device, joined by real sockets."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tests.small import small_config

ROOT = Path(__file__).parents[1]
SECONDS = 400  # after which a test has failed


def config_of(source: str, data: int, fsdp: int) -> ConfigDict:
    """A decoder, because it is quick to trace: every process does that anew."""
    config = small_config(source, "causal_lm", "decoder")
    config.model.num_encoder_layers = 0
    config.model.dropout = 0.1
    config.mesh.data, config.mesh.fsdp = data, fsdp
    config.budget.steps, config.checkpoint.every_steps, config.eval.every_steps = 80, 7, 40
    return config


def start(
    command: Sequence[str], hosts: int = 2, devices: int = 1, caches: Path | None = None
) -> list[subprocess.Popen]:
    """The processes of `python {command}` on so many hosts. devices: of each; caches: where each has its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"{count}\d+", f"{count}{devices}", os.environ["XLA_FLAGS"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    address = ["--coordinator_address", f"localhost:{port}", "--num_processes", str(hosts), "--heartbeat_timeout", "10"]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *address, "--process_id", str(host)],
            env=environment | ({} if caches is None else {"T5LITE_CACHE": str(caches / f"cache{host}")}),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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

"""The worker process of a slot: it executes one run after another, and imports and compiles only once.

    python -m t5lite.studies.worker DESCRIPTOR MODULE

DESCRIPTOR is the number of a socket to the runner (runner.py). For each run, the runner sends the arguments of
`MODULE.main` as a JSON list, together with the file for the run's output. The worker answers DONE, or why the run
failed.

After a failed run the worker ends with the run's exit code, and the next run gets a new worker. So nothing of the
failed run remains, such as threads that are still saving, or arrays that a traceback keeps in memory.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

from t5lite.system.errors import LONGEST_MESSAGE, RUN_ME_AGAIN, end_process

DONE = b"\0"
MAX_MESSAGE_BYTES = 2**16


def serve(channel: socket.socket, module: str) -> None:
    """Execute each run that the runner sends through `channel`, until the runner closes its end."""
    null_output = os.open(os.devnull, os.O_WRONLY)
    while True:
        message, outputs, *_ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1)
        if not message:
            return
        _redirect_output(*outputs)
        os.close(*outputs)
        code, reason = _run(module, json.loads(message))
        gc.collect()  # frees the run's arrays: the next run may need all memory of the device
        _redirect_output(null_output)  # closes the run's output, so that the thread that reads it ends
        must_end = code != 0 or _has_joined_hosts()
        with contextlib.suppress(BrokenPipeError):  # the runner has ended, or only waits for this process to end
            channel.sendall(reason.encode() if must_end else DONE)
        if must_end:
            end_process(code)


def _redirect_output(output: int) -> None:
    """Let stdout and stderr write to the file descriptor `output`."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())


def _run(module: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Execute a run. Return (exit code, reason in one line); the reason is empty if the code is 0."""
    try:
        importlib.import_module(module).main(arguments)
    except SystemExit as stop:  # the verb has already printed the reason (cli.verb)
        return stop.code or 0, str(stop.__context__ or "")
    except BaseException as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}".partition("\n")[0][:LONGEST_MESSAGE]
    return 0, ""


def _has_joined_hosts() -> bool:
    """Return whether the run used several hosts (system/joining.py). A process can join other hosts only once."""
    hosts = sys.modules.get("t5lite.system.hosts")
    return hosts is not None and hosts.count_hosts() > 1


def main() -> None:
    """Serve the runner at the other end of the socket DESCRIPTOR."""
    for number in (signal.SIGINT, signal.SIGTERM):  # between runs there is nothing to save or to print
        signal.signal(number, lambda *_: end_process(RUN_ME_AGAIN))
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    serve(channel, sys.argv[2])
    end_process(0)


if __name__ == "__main__":
    main()

"""The process of a slot: it runs one command of a verb after the other, and pays once for imports and compilation.

    python -m t5lite.studies.worker DESCRIPTOR MODULE

DESCRIPTOR is a socket to the runner (runner.py). For each run the runner sends the arguments of `MODULE.main`, a JSON
list, with the file that takes the run's output. The answer is DONE, or why the run failed.

A worker whose run failed ends, with the exit code that the run alone would have had. What the run left behind, such as
threads that still save and arrays in a traceback, ends with it. The next run gets a new worker.
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
LONGEST = 2**16  # bytes of a message


def serve(channel: socket.socket, module: str) -> None:
    """Run what comes through `channel`, until it is closed at the other end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    while True:
        message, outputs, *_ = socket.recv_fds(channel, LONGEST, 1)
        if not message:
            return
        _write_to(*outputs)
        os.close(*outputs)
        code, reason = _run(module, json.loads(message))
        gc.collect()  # the run's arrays: the next one may need all of the device's memory
        _write_to(nowhere)  # so that the reader of the output comes to its end
        ends = code != 0 or _has_joined_hosts()
        with contextlib.suppress(BrokenPipeError):  # the runner is gone, or waits for the process alone
            channel.sendall(reason.encode() if ends else DONE)
        if ends:
            end_process(code)


def _write_to(output: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())


def _run(module: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of a run and, where that is not 0, the reason in a line."""
    try:
        importlib.import_module(module).main(arguments)
    except SystemExit as stop:  # the verb has said why (cli.verb)
        return stop.code or 0, str(stop.__context__ or "")
    except BaseException as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}".partition("\n")[0][:LONGEST_MESSAGE]
    return 0, ""


def _has_joined_hosts() -> bool:
    """Whether the run was one of several hosts' (system/hosts.py). A process can join hosts only once."""
    hosts = sys.modules.get("t5lite.system.hosts")
    return hosts is not None and hosts.count_hosts() > 1


def main() -> None:
    """Serve the runner at the other end of the socket DESCRIPTOR."""
    for number in (signal.SIGINT, signal.SIGTERM):  # between runs there is nothing to save, and nothing to say
        signal.signal(number, lambda *_: end_process(RUN_ME_AGAIN))
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    serve(channel, sys.argv[2])
    end_process(0)


if __name__ == "__main__":
    main()

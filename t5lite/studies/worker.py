"""The process of a slot: it runs one command of a verb after the other, and pays once for imports and compilation.

    python -m t5lite.studies.worker DESCRIPTOR MODULE

DESCRIPTOR is a socket to the runner (runner.py). For each run the runner sends the arguments of `MODULE.main`, a JSON
list, with the file that takes the run's output. The worker answers DONE, or why the run failed.

After a failed run the worker ends with the run's exit code, and the next run gets a new worker. So nothing stays of the
failed run, such as threads that still save and arrays in a traceback.
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
    """Run each run that the runner sends through `channel`, until the runner closes its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    while True:
        message, outputs, *_ = socket.recv_fds(channel, LONGEST, 1)
        if not message:
            return
        _write_to(*outputs)
        os.close(*outputs)
        code, reason = _run(module, json.loads(message))
        gc.collect()  # frees the run's arrays: the next run may need all memory of the device
        _write_to(nowhere)  # closes the run's output, so that its reader ends
        ends = code != 0 or _has_joined_hosts()
        with contextlib.suppress(BrokenPipeError):  # the runner is gone, or only waits for the process to end
            channel.sendall(reason.encode() if ends else DONE)
        if ends:
            end_process(code)


def _write_to(output: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())


def _run(module: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of a run and the reason in a line, empty where the code is 0."""
    try:
        importlib.import_module(module).main(arguments)
    except SystemExit as stop:  # the verb has said why (cli.verb)
        return stop.code or 0, str(stop.__context__ or "")
    except BaseException as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}".partition("\n")[0][:LONGEST_MESSAGE]
    return 0, ""


def _has_joined_hosts() -> bool:
    """Return whether the run was on several hosts (system/joining.py). A process can join hosts only once."""
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

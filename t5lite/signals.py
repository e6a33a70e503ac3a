"""SIGTERM, by which schedulers take a machine back, as an end that clears up after itself.

The training loop has a handler of its own (training/loop.py), which saves first. Everywhere else nothing is lost by an
end at once: files and folders appear whole or not at all.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from t5lite.errors import RUN_ME_AGAIN, Interrupted

GRACE_SECONDS = 3.0
LINE = "stopped by SIGTERM; run the same command again"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises Interrupted. Where Python does not come to it, as in a long compilation, the process ends
    all the same after GRACE_SECONDS, with the same line and exit code.
    """
    reacted = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        reacted.set()
        raise Interrupted(LINE)

    def watch() -> None:
        while numbers := heard.recv(1):  # Python sends each signal's number at once, whatever its main thread does
            ours = signal.getsignal(signal.SIGTERM) is on_signal
            if numbers[0] == signal.SIGTERM and ours and not reacted.wait(GRACE_SECONDS):
                print(f"t5lite: {LINE}", file=sys.stderr, flush=True)
                os._exit(RUN_ME_AGAIN)

    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    handler, wakeup = signal.signal(signal.SIGTERM, on_signal), signal.set_wakeup_fd(told.fileno())
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        told.close()

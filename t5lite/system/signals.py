"""End cleanly on SIGTERM, by which schedulers take a machine back, and on SIGINT (Ctrl-C).

The training loop has its own handlers (system/stopping.py), which save first. Everywhere else an end at once loses
nothing: files and folders appear whole or not at all.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from t5lite.system.errors import RUN_ME_AGAIN, STOPPED_AT_ONCE, Interrupted, end_process

GRACE_SECONDS = 3.0  # to leave the block after a signal
SHORT_GRACE_SECONDS = 0.5  # after a second Ctrl-C
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides the cursor


def end_on_signals() -> None:
    """Make SIGTERM and SIGINT end the process with a line and RUN_ME_AGAIN.

    This is for the seconds in which a verb is imported. An end loses nothing then, but other people's code might
    swallow an exception.
    """

    def on_signal(number: int, frame: Any) -> None:
        os.write(2, f"t5lite: {_line(number)}\n".encode())
        end_process(RUN_ME_AGAIN)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM and SIGINT raise Interrupted within the block.

    Python may not get to raise it, for example in a long compilation. If the block still runs after GRACE_SECONDS, the
    process ends all the same, with the same line and exit code. A second SIGINT ends it after SHORT_GRACE_SECONDS,
    whoever handles SIGINT then.
    """

    def on_signal(number: int, frame: Any) -> None:
        raise Interrupted(_line(number))

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    _hush_where_none_can_be_raised()
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(told.fileno())
    is_ours = lambda number: signal.getsignal(number) is on_signal
    threading.Thread(target=_watch, args=(heard, is_ours), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        told.close()


@functools.cache
def _hush_where_none_can_be_raised() -> None:
    """Do not report an Interrupted that cannot be raised.

    A signal may come inside a callback that cannot raise, such as JAX's at each garbage collection. Python would print
    pages about that. The process ends after the grace.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            before(unraisable)

    sys.unraisablehook = hook


def _line(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; run the same command again"


def _watch(heard: socket.socket, is_ours: Callable[[int], bool]) -> None:
    """End the process if a signal has not ended it.

    heard: Python sends the number of each signal here at once, whatever the main thread does; closed at the other end
    when the block is left. is_ours: whether our handler of a signal is set.
    """
    interrupts, patience = 0, _Patience()
    while True:
        heard.settimeout(patience.left())
        try:
            numbers = heard.recv(1)
        except TimeoutError:
            if patience.number is None or is_ours(patience.number):
                patience.end()
            # The signal was lost, and by now another handler is set: send the signal again.
            interrupts -= patience.number == signal.SIGINT
            os.kill(os.getpid(), patience.number)
            patience = _Patience()
            continue
        if not numbers:
            return
        interrupts += numbers[0] == signal.SIGINT
        if interrupts == 2:
            patience = _Patience(None, SHORT_GRACE_SECONDS)
        elif interrupts < 2 and is_ours(numbers[0]):
            patience = _Patience(numbers[0], GRACE_SECONDS)


class _Patience:
    """How long to wait after a signal. number: the signal; None: a second SIGINT. seconds: None if no signal came."""

    def __init__(self, number: int | None = None, seconds: float | None = None):
        self.number = number
        self.until = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self.until is None else max(self.until - time.monotonic(), 0.001)

    def end(self) -> NoReturn:
        """End the process with a line and an exit code."""
        line, code = ("interrupted", STOPPED_AT_ONCE) if self.number is None else (_line(self.number), RUN_ME_AGAIN)
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR.encode())
            os.write(2, f"t5lite: {line}\n".encode())
        end_process(code)

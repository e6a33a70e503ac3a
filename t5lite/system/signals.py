"""End cleanly on SIGTERM, by which schedulers take a machine back, and on SIGINT (Ctrl-C).

    end_on_signals()    while a verb is imported: the process ends at once
    terminable()        in a verb: a signal raises Interrupted, and the process ends even if that cannot be raised
    Stopping()          in a training loop: a signal only asks to stop, and the loop saves first

Outside the loop an end at once loses nothing: files and folders appear whole or not at all.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from t5lite.system.errors import RUN_ME_AGAIN, STOPPED_AT_ONCE, Interrupted, end_process

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 3.0  # to leave the block after a signal
SHORT_GRACE_SECONDS = 0.5  # after a second Ctrl-C
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides the cursor

_raised: list[int] = []  # the signals for which `terminable` has raised Interrupted


class EvaluationStopped(Exception):
    """An evaluation was given up because the run must stop. It wrote nothing, and the next start repeats it."""


def end_on_signals() -> None:
    """Make SIGTERM and SIGINT end the process with a line and RUN_ME_AGAIN.

    This is for the seconds in which a verb is imported. An end loses nothing then, but other people's code might
    swallow an exception.
    """

    def on_signal(number: int, frame: Any) -> None:
        os.write(2, f"t5lite: {_line(number)}\n".encode())
        end_process(RUN_ME_AGAIN)

    for number in STOPS:
        signal.signal(number, on_signal)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM and SIGINT raise Interrupted within the block.

    Python may not get to raise it, for example in a long compilation. If the block still runs after GRACE_SECONDS, the
    process ends all the same, with the same line and exit code. If other code swallows the exception and a training
    loop begins, the loop stops at once (`Stopping`). A second SIGINT ends the process after SHORT_GRACE_SECONDS,
    whoever handles SIGINT then.
    """

    def on_signal(number: int, frame: Any) -> None:
        _raised.append(number)
        raise Interrupted(_line(number))

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    _hush_where_none_can_be_raised()
    _raised.clear()
    heard, told = socket.socketpair()
    told.setblocking(False)
    is_over = threading.Event()
    before = {number: signal.signal(number, on_signal) for number in STOPS}
    wakeup = signal.set_wakeup_fd(told.fileno())
    is_raising = lambda number: signal.getsignal(number) is on_signal
    threading.Thread(target=_watch, args=(heard, is_over, is_raising), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        _raised.clear()
        is_over.set()
        told.close()


class Stopping:
    """Within the block SIGINT and SIGTERM only ask to stop. A SIGINT after that interrupts at once.

    received: the signals so far.
    """

    def __init__(self) -> None:
        from t5lite.system.hosts import AnyHost  # which imports JAX; the verbs' own import must stay quick

        self.received: list[int] = []
        self._before: dict[int, Any] = {}
        self._any_host = AnyHost()

    def __enter__(self) -> "Stopping":
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in STOPS:
                self._before[number] = signal.signal(number, self._on_signal)
            self.received += _raised  # a signal for which Interrupted was swallowed before this block
        return self

    def __exit__(self, *raised: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(number)

    def asked(self, at_once: bool) -> bool:
        """Return whether any host was asked to stop.

        All hosts must call this in the same order. at_once: see AnyHost.
        """
        return self._any_host(bool(self.received), at_once)

    def between_batches(self) -> None:
        """Raise EvaluationStopped if any host was asked to stop. Call this before each batch of an evaluation."""
        if self.asked(at_once=False):
            raise EvaluationStopped


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


def _watch(heard: socket.socket, is_over: threading.Event, is_raising: Callable[[int], bool]) -> None:
    """End the process if a signal has not ended it.

    Args:
        heard: Python sends the number of each signal here at once, whatever the main thread does. The other end is
            closed when the block is over.
        is_over: set when the block is over.
        is_raising: whether a signal would raise Interrupted now.
    """
    interrupts = 0
    while numbers := heard.recv(1):
        interrupts += numbers[0] == signal.SIGINT
        if interrupts == 2:
            wait, is_due, line, code = SHORT_GRACE_SECONDS, lambda: True, "interrupted", STOPPED_AT_ONCE
        elif is_raising(numbers[0]):
            wait, is_due = GRACE_SECONDS, functools.partial(is_raising, numbers[0])
            line, code = _line(numbers[0]), RUN_ME_AGAIN
        else:
            continue
        threading.Thread(target=_end_after, args=(wait, is_over, is_due, line, code), daemon=True).start()


def _end_after(seconds: float, is_over: threading.Event, is_due: Callable[[], bool], line: str, code: int) -> None:
    """End the process with a line and an exit code, unless the block is over by then or the end is not due."""
    if is_over.wait(seconds) or not is_due():
        return
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(2, SHOW_CURSOR.encode())
        os.write(2, f"t5lite: {line}\n".encode())
    end_process(code)

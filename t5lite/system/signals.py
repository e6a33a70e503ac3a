"""End cleanly on SIGINT (Ctrl-C) and on SIGTERM, which schedulers send before they take a machine away.

    end_on_signals()    while a verb is imported: a signal ends the process at once
    raise_on_signals()  in a verb: a signal raises Interrupted. If Python cannot raise it, the process ends all the same
    Stopping()          in a training loop: a signal asks the loop to stop, and the loop saves first

Outside the training loop nothing is lost if the process ends at once: files and folders appear complete or not at all.
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
GRACE_SECONDS = 3.0  # the time that a block has to end after a signal
SHORT_GRACE_SECONDS = 0.5  # the same, after a second Ctrl-C
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides the cursor

_raised: list[int] = []  # the signals for which `raise_on_signals` has raised Interrupted


class EvaluationStopped(Exception):
    """An evaluation ended early because the run must stop. It wrote nothing, and the next start repeats it."""


def end_on_signals() -> None:
    """Make SIGTERM and SIGINT end the process with a line and the exit code RUN_ME_AGAIN.

    This is for the seconds in which a verb is imported. Nothing can be lost then. An exception would not be safe,
    because imported code could catch it.
    """

    def on_signal(number: int, frame: Any) -> None:
        os.write(2, f"t5lite: {_stop_line(number)}\n".encode())
        end_process(RUN_ME_AGAIN)

    for number in STOPS:
        signal.signal(number, on_signal)


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGINT raise Interrupted within the block.

    Sometimes Python cannot raise it, for example during a long compilation. If the block still runs after
    GRACE_SECONDS, the process ends with the same line and exit code. If other code catches the exception and a training
    loop begins, the loop stops at once (`Stopping`). A second SIGINT ends the process after SHORT_GRACE_SECONDS, also
    if another handler of SIGINT is active then.
    """

    def on_signal(number: int, frame: Any) -> None:
        _raised.append(number)
        raise Interrupted(_stop_line(number))

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    _hide_unraisable_interrupts()
    _raised.clear()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    is_over = threading.Event()
    before = {number: signal.signal(number, on_signal) for number in STOPS}
    wakeup = signal.set_wakeup_fd(sender.fileno())
    is_raising = lambda number: signal.getsignal(number) is on_signal
    threading.Thread(target=_watch, args=(receiver, is_over, is_raising), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        _raised.clear()
        is_over.set()
        sender.close()


class Stopping:
    """Make SIGINT and SIGTERM only ask to stop within the block. A SIGINT after that interrupts at once.

    received: the signals that have come.
    """

    def __init__(self) -> None:
        from t5lite.system.hosts import AnyHost  # here, because it imports JAX: importing a verb must stay quick

        self.received: list[int] = []
        self._before: dict[int, Any] = {}
        self._any_host = AnyHost()

    def __enter__(self) -> "Stopping":
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in STOPS:
                self._before[number] = signal.signal(number, self._on_signal)
            self.received += _raised  # signals whose Interrupted was caught by other code before this block
        return self

    def __exit__(self, *raised: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(number)

    def must_stop(self, at_once: bool) -> bool:
        """Return whether any host was asked to stop.

        All hosts must call this in the same order. at_once: see AnyHost.
        """
        return self._any_host(bool(self.received), at_once)

    def raise_if_stopped(self) -> None:
        """Raise EvaluationStopped if any host was asked to stop. Call this before each batch of an evaluation."""
        if self.must_stop(at_once=False):
            raise EvaluationStopped


@functools.cache
def _hide_unraisable_interrupts() -> None:
    """Make Python print nothing about an Interrupted that it cannot raise.

    A signal may come inside a callback that cannot raise, such as JAX's callback at each garbage collection. Python
    would print pages about that. The process ends after GRACE_SECONDS.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            before(unraisable)

    sys.unraisablehook = hook


def _stop_line(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; run the same command again"


def _watch(receiver: socket.socket, is_over: threading.Event, is_raising: Callable[[int], bool]) -> None:
    """End the process if a signal has not ended it in time.

    Args:
        receiver: gets the number of each signal at once, even if the main thread is busy. The sender is closed when the
            block is over.
        is_over: set when the block is over.
        is_raising: whether a signal would raise Interrupted now.
    """
    interrupts = 0
    while numbers := receiver.recv(1):
        interrupts += numbers[0] == signal.SIGINT
        if interrupts == 2:
            wait, is_due, line, code = SHORT_GRACE_SECONDS, lambda: True, "interrupted", STOPPED_AT_ONCE
        elif is_raising(numbers[0]):
            wait, is_due = GRACE_SECONDS, functools.partial(is_raising, numbers[0])
            line, code = _stop_line(numbers[0]), RUN_ME_AGAIN
        else:
            continue
        threading.Thread(target=_end_after, args=(wait, is_over, is_due, line, code), daemon=True).start()


def _end_after(seconds: float, is_over: threading.Event, is_due: Callable[[], bool], line: str, code: int) -> None:
    """Wait, then end the process with a line and an exit code, unless the block is over or `is_due()` is false."""
    if is_over.wait(seconds) or not is_due():
        return
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(2, SHOW_CURSOR.encode())
        os.write(2, f"t5lite: {line}\n".encode())
    end_process(code)

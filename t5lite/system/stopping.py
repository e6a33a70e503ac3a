"""SIGINT and SIGTERM while a run trains: a request to stop, which all hosts learn at the same place."""

import contextlib
import signal
from typing import Any

from t5lite.system.hosts import AnyHost


class EvaluationStopped(Exception):
    """An evaluation was given up because the run must stop. Nothing of it is written; the next start makes it again."""


class Stopping:
    """Within the block SIGINT and SIGTERM only ask to stop. A SIGINT after that interrupts at once."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._any_host = AnyHost()

    def __enter__(self) -> "Stopping":
        with contextlib.suppress(ValueError):  # not the main thread, which alone may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *raised: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received.append(number)

    def asked(self, at_once: bool) -> bool:
        """Return whether any host was asked to stop.

        All hosts must call this in the same order. at_once: see AnyHost.
        """
        return self._any_host(bool(self._received), at_once)

    def between_batches(self) -> None:
        """Raise EvaluationStopped if any host was asked to stop. Call this before each batch of an evaluation."""
        if self.asked(at_once=False):
            raise EvaluationStopped

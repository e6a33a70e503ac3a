"""What came of running a verb: it succeeded, it refused in one line with exit code 2, or it failed, which is a bug.

A failure is a traceback, another exit code, more than one line of refusal, a refusal that does not print, or a run
that takes longer than anything of its size may.
"""

import contextlib
import io
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

SECONDS = 120  # what a case may take, on a machine that has other work too


class Outcome(NamedTuple):
    """kind: "succeeded", "refused" or "failed". said: what it printed, the line of a refusal, or the failure."""

    kind: str
    said: str = ""


class _TooLong(BaseException):
    """Not an Exception, so that no handler on the way takes it for something else."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _TooLong(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[object], seconds: float = SECONDS) -> Outcome:
    """What comes of `main(argv)`, a verb's, in this process."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _at_most(seconds):
            main([str(argument) for argument in argv])
    except SystemExit as stop:
        return _of_exit(stop.code, err.getvalue())
    except BaseException:
        return Outcome("failed", traceback.format_exc())
    return Outcome("succeeded", out.getvalue())


def _of_exit(code: object, said: str) -> Outcome:
    lines = [line for line in said.split("\n") if line.startswith("t5lite: ")]
    if code != 2 or len(lines) != 1 or "Traceback" in said:
        return Outcome("failed", f"exit code {code}, {len(lines)} lines of refusal:\n{said}")
    if not lines[0].isprintable() or said.rstrip("\n").split("\n")[-1] != lines[0]:
        return Outcome("failed", f"a refusal that is not one printable line:\n{said!r}")
    return Outcome("refused", lines[0])

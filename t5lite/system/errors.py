"""The error class for a user's mistake, and how a process ends on each error.

Raise `UserError` for anything that the user can put right: a missing file, an unknown field, a batch that the mesh does
not divide. The `main` of each verb runs under `clean_exit`, which prints such an error as one line on stderr and exits
with code 2. `Interrupted` says that a signal stopped the work and that the work is saved: exit code 75, "run me again".
`clean_exit` lists a few more codes. Any other exception is a bug of t5lite and keeps its traceback.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

RUN_ME_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
STOPPED_AT_ONCE = 130  # a shell's code for a program that Ctrl-C ended


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop, and has saved its state.

    It is a KeyboardInterrupt because it may be raised inside other people's code, which catches other exceptions. JAX
    would take them for a device that does not start, a file reader for damage.
    """


LONGEST_MESSAGE = 2000  # characters


class UserError(Exception):
    """A mistake that the user can correct. The message says what, where and what to do, in one line.

    The message may quote a file's name or contents. Characters that do not print, and could move a terminal's cursor or
    turn the direction of its text, appear as escapes. A long message is cut in the middle.
    """

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(message).split()))
        half = LONGEST_MESSAGE // 2
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f"{line[:half]} … {line[-half:]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown `name`: the nearest of the `known` names if one is close, else a list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def last_words(error: BaseException) -> tuple[str | None, int]:
    """Return the line and the exit code with which a process ends on `error`; (None, 1) for a bug."""
    if isinstance(error, Interrupted):
        return str(error), RUN_ME_AGAIN
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", STOPPED_AT_ONCE
    if isinstance(error, BrokenPipeError):
        return "the reader of standard output is gone", 141
    if isinstance(error, UserError):
        return str(error), 2
    # JAX's error is known by its message, because this module does not import JAX.
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        advice = "lower batch_size or eval.batch_size, or make the model smaller"
        return str(UserError(f"out of memory ({error}); {advice}")), 2
    return None, 1


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """End the process on an error in the block, with one line on stderr and an exit code. A bug keeps its traceback.

    2: a `UserError`, or not enough memory. 75: `Interrupted`. 130: Ctrl-C. 141: the reader of standard output is gone
    (no line).
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        line, code = last_words(error)
        if line is None:
            raise
        if isinstance(error, BrokenPipeError):
            # Buffered output has nowhere to go. Without this Python prints an error about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"t5lite: {line}", file=sys.stderr)
        sys.exit(code)


def end_process(code: int) -> NoReturn:
    """Flush what was printed and end the process at once.

    The interpreter's own end waits for every thread. A compilation's thread may crash JAX at its end. The threads of a
    failed Orbax save give up only after ten minutes.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal came during the flush
            stream.flush()
    os._exit(code)

"""The error class for a user's mistake, and how a process ends on each error.

Raise `UserError` for everything that the user can correct: a missing file, an unknown field, a batch size that the mesh
does not divide. The `main` of each verb runs inside `clean_exit`, which prints such an error as one line on stderr and
exits with code 2. `Interrupted` means that a signal stopped the work and that the work is saved: exit code 75, "run me
again". `clean_exit` lists the other codes. Any other exception is a bug of t5lite and keeps its traceback.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

RUN_ME_AGAIN = 75  # EX_TEMPFAIL in sysexits.h
STOPPED_AT_ONCE = 130  # the code that a shell gives a program ended by Ctrl-C


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop, and has saved its state.

    It is a KeyboardInterrupt because it can be raised inside code of other libraries, which catch other exceptions. JAX
    would take another exception for a device that does not start. A file reader would take it for a damaged file.
    """


LONGEST_MESSAGE = 2000  # characters


class UserError(Exception):
    """A mistake that the user can correct. The message says in one line what is wrong, where, and what to do.

    The message may quote the name or the contents of a file. Characters that do not print appear as escapes, because
    they could move a terminal's cursor or change the direction of its text. A long message is cut in the middle.
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


def describe_end(error: BaseException) -> tuple[str | None, int]:
    """Return (line to print, exit code) of a process that ends on `error`; (None, 1) for a bug."""
    if isinstance(error, Interrupted):
        return str(error), RUN_ME_AGAIN
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", STOPPED_AT_ONCE
    if isinstance(error, BrokenPipeError):
        return "the reader of standard output is gone", 141
    if isinstance(error, UserError):
        return str(error), 2
    # JAX's error is recognised by its message, because this module does not import JAX.
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
        line, code = describe_end(error)
        if line is None:
            raise
        if isinstance(error, BrokenPipeError):
            # Nobody reads the buffered output. Without this line, Python prints an error about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"t5lite: {line}", file=sys.stderr)
        sys.exit(code)


def end_process(code: int) -> NoReturn:
    """Flush the printed text and end the process at once.

    sys.exit would wait for every thread. The thread of a compilation can crash JAX when the interpreter ends. The
    threads of a failed Orbax save end only after ten minutes.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal came during the flush
            stream.flush()
    os._exit(code)

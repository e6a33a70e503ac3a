"""The one error class for a user's mistake.

Raise `UserError` for anything that the person at the keyboard can put right: a missing file, an unknown field, a batch
that the mesh does not divide. A verb's `main` runs under `clean_exit`, which prints such an error as one line on stderr
and exits with code 2. `Interrupted` says that work was stopped by a signal and saved: exit code 75, "run me again".
Every other exception is a bug of ours and keeps its traceback.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

RUN_ME_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
STOPPED_AT_ONCE = 130  # a shell's code of what Ctrl-C ended


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop, and has saved where it stood.

    A KeyboardInterrupt, because it is raised in the midst of other people's code as well, and that lets no other
    exception through: JAX would take it for a device that does not start, a reader of files for damage.
    """


LONGEST_MESSAGE = 2000  # characters


class UserError(Exception):
    """A mistake that the user can mend. The message says what, where and what to do, in one line.

    It may quote a file's name or contents: what does not print, and would move a terminal's cursor or turn the
    direction of its text, appears as an escape, and what is long is cut in the middle.
    """

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(message).split()))
        half = LONGEST_MESSAGE // 2
        super().__init__(line if len(line) <= LONGEST_MESSAGE else f"{line[:half]} … {line[-half:]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest of the `known` ones where one is close, else a list of them all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def last_words(error: BaseException) -> tuple[str | None, int]:
    """The line and the exit code with which a process ends on `error`; (None, 1): a bug, which keeps its traceback."""
    if isinstance(error, Interrupted):
        return str(error), RUN_ME_AGAIN
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", STOPPED_AT_ONCE
    if isinstance(error, BrokenPipeError):
        return "the reader of standard output is gone", 141
    if isinstance(error, UserError):
        return str(error), 2
    # The RuntimeError is JAX's, which this module does not import.
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        advice = "lower batch_size or eval.batch_size, or make the model smaller"
        return str(UserError(f"out of memory ({error}); {advice}")), 2
    return None, 1


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Turn a `UserError` inside, or memory that was not enough, into one line on stderr and exit code 2, `Interrupted`
    into a line and 75; Ctrl-C into 130; a reader gone into 141.
    """
    try:
        yield
    except BrokenPipeError:
        # Whatever is still buffered has nowhere to go; without this Python complains of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (Exception, KeyboardInterrupt) as error:
        line, code = last_words(error)
        if line is None:
            raise
        print(f"t5lite: {line}", file=sys.stderr)
        sys.exit(code)


def end_process(code: int) -> NoReturn:
    """End at once, with what was printed. The interpreter's own end waits for every thread: for a compilation's, at the
    end of which JAX may crash, and for Orbax's of a save that failed, which give up after ten minutes.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the last: a signal came while it was flushed
            stream.flush()
    os._exit(code)

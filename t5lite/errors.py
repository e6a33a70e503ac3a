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

RUN_ME_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class Interrupted(Exception):
    """The work was asked to stop, and has saved where it stood."""


class UserError(Exception):
    """A mistake that the user can mend. The message says what, where and what to do, in one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest of the `known` ones where one is close, else a list of them all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def last_words(error: BaseException) -> tuple[str | None, int]:
    """The line and the exit code with which a process ends on `error`; (None, 1): a bug, which keeps its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, BrokenPipeError):
        return "the reader of standard output is gone", 141
    if isinstance(error, UserError):
        return str(error), 2
    return (str(error), RUN_ME_AGAIN) if isinstance(error, Interrupted) else (None, 1)


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Turn a `UserError` inside into one line on stderr and exit code 2, `Interrupted` into a line and 75; Ctrl-C into
    130; a reader gone into 141.
    """
    try:
        yield
    except BrokenPipeError:
        # Whatever is still buffered has nowhere to go; without this Python complains of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (KeyboardInterrupt, UserError, Interrupted) as error:
        line, code = last_words(error)
        print(f"t5lite: {line}", file=sys.stderr)
        sys.exit(code)

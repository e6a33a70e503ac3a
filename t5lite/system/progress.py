"""Show the progress of long work on stderr: a bar with the time left on a terminal, else a line every 15 seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

Advance = Callable[..., None]


def duration(seconds: float) -> str:
    """Return `seconds` as 42s, 3m05s or 2h10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


_display: Progress | None = None  # a terminal can show only one display at a time
_quiet = False


def keep_quiet() -> None:
    """Show no progress in this process from now on, because another process shows it."""
    global _quiet
    _quiet = True


def say(line: str) -> None:
    """Print a line about the work on stderr, unless `keep_quiet` was called."""
    if not _quiet:
        print(line, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning on stderr, in one line."""
    say(f"t5lite: WARNING: {' '.join(message.split())}")


@contextlib.contextmanager
def progress(title: str, total: float, done: float = 0, show_count: bool = True) -> Iterator[Advance]:
    """Show the progress of the block, which calls `advance(units=1, note="")`.

    If another progress is shown already, a second bar appears below it, and disappears at the end of the block.

    Args:
        total: the number of units of work.
        done: the number of units that are done already.
        show_count: on a terminal show the number of units, not a percentage.
    """
    if _quiet:
        yield lambda units=1, note="": None
        return
    is_terminal = sys.stderr.isatty()
    with _show_bar(title, total, done, show_count) if is_terminal else _print_lines(title, total, done) as advance:
        yield advance


@contextlib.contextmanager
def _show_bar(title: str, total: float, done: float, show_count: bool) -> Iterator[Advance]:
    global _display
    with contextlib.ExitStack() as stack:
        outer = _display
        if outer is None:
            amount = MofNCompleteColumn() if show_count else TaskProgressColumn()
            # Without markup, because titles contain names that the user chose.
            description, note = (
                TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]")
            )
            columns = [description, BarColumn(), amount, TimeRemainingColumn(), note]
            _display = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        bar = _display
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(units: float = 1, note: str | None = None) -> None:
            bar.update(task, advance=units, **({} if note is None else {"note": note}))

        try:
            yield advance
        finally:
            if outer is not None:
                bar.remove_task(task)
            _display = outer


@contextlib.contextmanager
def _print_lines(title: str, total: float, done: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    first = done

    def advance(units: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > first:
            last = now
            seconds_left = max(total - done, 0) * (now - start) / (done - first)
            share = 100 * min(done / total, 1) if total else 100
            print(f"{title}: {share:.0f} %, {duration(seconds_left)} left  {note}".rstrip(), file=sys.stderr)

    yield advance

"""Progress of long work, on stderr: a bar with its ETA on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

Advance = Callable[..., None]


def duration(seconds: float) -> str:
    """`seconds` as 42s, 3m05s or 2h10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


@contextlib.contextmanager
def progress(title: str, total: float, done: float = 0, show_count: bool = True) -> Iterator[Advance]:
    """Show work of `total` units, `done` of them already. The block calls `advance(units, note="")` as it goes."""
    if sys.stderr.isatty():
        count = [MofNCompleteColumn()] if show_count else [TaskProgressColumn()]
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            *count,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=done, note="")

            def advance(units: float = 1, note: str = "") -> None:
                bar.update(task, advance=units, **({"note": note} if note else {}))

            yield advance
        return

    start = last = time.monotonic()
    first = done

    def advance(units: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done > first:
            last = now
            left = (total - done) * (now - start) / (done - first)
            print(
                f"{title}: {100 * done / total:.0f} %, {duration(max(left, 0))} left  {note}".rstrip(), file=sys.stderr
            )

    yield advance

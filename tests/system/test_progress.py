"""Progress: durations as text, a bar on a terminal, and lines elsewhere."""

import io
import sys

import pytest

from t5lite.system import progress as progress_module
from t5lite.system.progress import duration, progress

DURATIONS = {0: "0s", 42.4: "42s", 59.6: "1m00s", 185: "3m05s", 3599.9: "1h00m", 7800: "2h10m", 10**6: "277h46m"}


@pytest.mark.parametrize(("seconds", "text"), DURATIONS.items())
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake_clock = Clock()
    monkeypatch.setattr(progress_module, "time", fake_clock)
    return fake_clock


def test_elsewhere_than_on_a_terminal_a_line_is_printed_every_15_seconds_on_stderr(clock, capsys):
    with progress("reading", 400, done=100) as advance:
        for _ in range(10):
            clock.now += 5
            advance(20, "all well")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading: 40 %, 1m00s left  all well",
        "reading: 55 %, 45s left  all well",
        "reading: 70 %, 30s left  all well",
    ]


def test_short_work_is_silent(clock, capsys):
    with progress("reading", 10) as advance:
        for _ in range(10):
            advance(1)
    assert capsys.readouterr().err == ""


def test_work_beyond_the_total_is_no_error_and_leaves_nothing(clock, capsys):
    with progress("reading", 10) as advance:
        clock.now += 20
        advance(30)
    assert "0s left" in capsys.readouterr().err


def test_work_of_an_unknown_total_is_no_error(clock, capsys):
    """If a source does not know its number of bytes, the total is 0."""
    with progress("reading", 0) as advance:
        clock.now += 20
        advance(30)
    assert capsys.readouterr().err.startswith("reading")


@pytest.mark.parametrize("total", [0, 10])
@pytest.mark.parametrize("show_count", [False, True])
def test_a_terminal_has_a_bar(monkeypatch, total, show_count):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("reading", total, show_count=show_count) as advance:
        advance(4, note="all well")
        advance(6)
    assert "reading" in terminal.getvalue() and "all well" in terminal.getvalue()
    assert ("10/10" in terminal.getvalue()) == (show_count and total > 0)


def test_a_title_on_a_terminal_is_no_markup(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("training [/red] runs/[bold]a", 10) as advance:
        advance(10, note="[/]")
    assert "training [/red] runs/[bold]a" in terminal.getvalue() and "[/]" in terminal.getvalue()


def test_an_exception_inside_passes_through():
    with pytest.raises(KeyError), progress("reading", 10):
        raise KeyError

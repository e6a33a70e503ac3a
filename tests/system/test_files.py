"""Files on a full disk: the old file stays, and an error tells the user."""

import contextlib
import json
import resource
from pathlib import Path

import pytest

from t5lite.system.errors import UserError
from t5lite.system.files import FORMAT, check_format, write_atomically, write_json
from t5lite.training.metrics import MetricsLog


@contextlib.contextmanager
def full_disk(size):
    """Make all files of the process fail to grow beyond `size` bytes, also a file into which pytest reports."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", [b"x" * 5000, "é" * 3000])
def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, content):
    write_atomically(tmp_path / "result.json", "old")
    with (
        full_disk(1000),
        pytest.raises(UserError, match=r"result\.json: File too large; nothing was replaced"),
    ):
        write_atomically(tmp_path / "result.json", content)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "old"


def test_a_newer_format_asks_for_an_update_and_a_format_that_is_no_integer_is_damage():
    check_format(FORMAT, "runs/a")
    with pytest.raises(UserError, match=r"runs/a has format 2, made by a newer t5lite; .*: update t5lite$"):
        check_format(FORMAT + 1, "runs/a")
    for number in (None, "1", 1.0, True, [1]):
        with pytest.raises(UserError) as raised:
            check_format(number, "runs/a")
        assert str(raised.value) == (
            f"runs/a is damaged: its format should be a whole number, but is {number!r}; restore it"
        )


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.5, float("nan")], "y": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None], "y": None}


def _lines(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("already", [0, 50], ids=["events", "lines"])
def test_metrics_that_do_not_fit_end_in_an_error_and_the_log_goes_on_once_there_is_room(tmp_path, already):
    metrics, log = {"loss": 1.0, "accuracy": 0.5}, MetricsLog(tmp_path, keep_until=-1)
    for step in range(already):
        log.write(step, "train", metrics)
    log.close()
    log, written = MetricsLog(tmp_path, keep_until=already), already
    refusal = "File too large; the same command goes on from the last checkpoint"
    with full_disk(3500):  # events are larger than lines, but each start writes a new file of events
        with pytest.raises(UserError, match=refusal):
            while written < 1000:
                log.write(written, "train", metrics)
                written += 1
        log.close()
    line_count = (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")
    assert line_count in (written, written + 1) and written > already + 3, "no line is lost without an error"
    log = MetricsLog(tmp_path, keep_until=written - 2)
    log.write(written - 1, "train", metrics)
    log.sync()
    log.close()
    assert _lines(tmp_path) == list(range(written))

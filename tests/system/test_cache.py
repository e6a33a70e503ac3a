"""The cache: a folder is complete or does not exist, and different facts have different fingerprints."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from t5lite.system.cache import atomic_folder, cache_dir, fingerprint
from t5lite.system.errors import UserError


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    with atomic_folder(tmp_path / "a" / "final") as temporary:
        (temporary / "file").write_text("x")
        assert not (tmp_path / "a" / "final").exists()
    assert (tmp_path / "a" / "final" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["final"]
    assert (tmp_path / "a" / "final").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError, GeneratorExit])
def test_nothing_is_left_when_the_block_fails(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "final") as temporary:
        (temporary / "file").write_text("x")
        raise error("broken")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_dead_builders_are_removed_and_folders_of_living_builders_stay(tmp_path):
    context = multiprocessing.get_context("fork")

    def build(name, started):
        with atomic_folder(tmp_path / name) as temporary:
            (temporary / "file").write_text(name)
            started.set()
            time.sleep(60)

    builders = {}
    for name in ("killed", "living"):
        started = context.Event()
        builders[name] = context.Process(target=build, args=(name, started))
        builders[name].start()
        assert started.wait(30)
    try:
        builders["killed"].kill()
        builders["killed"].join(30)
        assert len(list(tmp_path.iterdir())) == 2
        with atomic_folder(tmp_path / "other"):
            pass
        assert sorted(path.name.split(".")[1] for path in tmp_path.glob(".*")) == ["living"]
        assert [path.read_text() for path in tmp_path.glob(".*/file")] == ["living"]
    finally:
        builders["living"].kill()
        builders["living"].join(30)


def test_a_folder_made_meanwhile_stays(tmp_path):
    with atomic_folder(tmp_path / "final") as temporary:
        (temporary / "file").write_text("second")
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "file").write_text("first")
    assert (tmp_path / "final" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def _build(final: Path, value: int, barrier) -> None:
    with atomic_folder(final) as temporary:
        for name in "ab":
            (temporary / name).write_text(str(value))
            barrier.wait(timeout=30)
            time.sleep(0.01 * value)


def test_two_builders_at_once_make_one_complete_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    builders = [context.Process(target=_build, args=(tmp_path / "final", value, barrier)) for value in (0, 1)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len({(tmp_path / "final" / name).read_text() for name in "ab"}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_full_disk_is_an_error_in_one_line_and_leaves_nothing(tmp_path):
    full = pytest.raises(UserError, match=r"cannot write .*No space left on device; free some space")
    with full, atomic_folder(tmp_path / "final"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(UserError, match=r"cannot write in .*set T5LITE_CACHE")
    with refused, atomic_folder(tmp_path / "file" / "final"):
        pass


def test_the_environment_chooses_the_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("T5LITE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "t5lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "t5lite"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5LITE_CACHE", "near")
    assert cache_dir() == tmp_path / "near"


def test_a_fingerprint_depends_on_facts_not_on_their_order():
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})
    facts = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"b": 1}, {}, None]
    assert len({fingerprint(fact) for fact in facts}) == len(facts)
    assert len(fingerprint({})) == 16

"""Hostile input ends in success or in one line and exit code 2, and nothing of a file is executed.

A few cases of each fuzzer, always the same; `python -m tests.fuzz` tries others for as long as it is let.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest

from t5lite import prepare
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.ground import Ground
from tests.fuzz.outcome import run


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fuzz")
        patch.setenv("T5LITE_CACHE", str(folder / "cache"))
        yield Ground(folder)


@pytest.mark.parametrize("name", FUZZERS)
def test_every_case_succeeds_or_is_refused_in_one_line(ground, tmp_path, name):
    fuzzer = FUZZERS[name]

    @hypothesis.settings(
        max_examples=fuzzer.tests,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(fuzzer.cases(ground))
    def holds(case):
        outcome = fuzzer.run(case, ground, Path(tempfile.mkdtemp(dir=tmp_path)))
        assert outcome.kind != "failed", outcome.said
        assert not ground.trace.exists()

    holds()


# The fuzzers' own judgement


def test_a_traceback_another_exit_code_or_a_second_line_is_a_failure():
    def crash(argv):
        raise KeyError("x")

    def exits(code, said):
        def main(argv):
            print(said, file=sys.stderr)
            sys.exit(code)

        return main

    assert run(crash, []).kind == "failed"
    assert run(exits(1, "t5lite: no"), []).kind == "failed"
    assert run(exits(2, "no"), []).kind == "failed"
    assert run(exits(2, "t5lite: no\nt5lite: and no"), []).kind == "failed"
    assert run(exits(2, "t5lite: no \x1b[31m"), []).kind == "failed"
    assert run(exits(2, "Traceback\nt5lite: no"), []).kind == "failed"
    assert run(exits(2, "progress\nt5lite: no"), []) == ("refused", "t5lite: no")
    assert run(lambda argv: None, []).kind == "succeeded"


def test_a_case_that_does_not_end_is_a_failure():
    def endless(argv):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    assert "still running" in run(endless, [], seconds=0.2).said


def test_the_ground_is_sound(ground):
    assert run(prepare.main, ["--config", ground.config]).kind == "succeeded"

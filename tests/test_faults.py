"""Runs killed at random moments and started again end as if nobody had killed them."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 30])
def test_a_killed_run_ends_as_if_it_had_not_been(faults, tmp_path, number):
    trials = list(faults.run_trials(tmp_path, number, seed=number))
    assert {trial["case"] for trial in trials} == set(faults.CASES)
    assert sum(len(trial["kills"]) for trial in trials) >= number
    assert all(trial["survived"] for trial in trials), trials

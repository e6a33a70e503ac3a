"""Budgets become steps, once."""

import jax.numpy as jnp
import pytest

from t5lite.config import base_config
from t5lite.training.budget import convert_budget, convert_minutes, measure_step_seconds


@pytest.mark.parametrize(
    "name, value, steps",
    [("steps", 7, 7), ("epochs", 2.0, 25), ("epochs", 0.01, 1), ("tokens", 1001.0, 11), ("flops", 5e6, 5)],
)
def test_steps_epochs_tokens_and_flops_are_arithmetic(name, value, steps):
    budget = base_config().budget
    budget[name] = value
    count = (lambda: 12.3) if name == "epochs" else (lambda: 1 / 0)
    assert convert_budget(budget, count, tokens_per_step=100, flops_per_step=1e6) == steps


def test_minutes_are_measured_once_and_recorded(tmp_path):
    budget = base_config().budget
    budget.minutes = 2.0
    assert convert_budget(budget, lambda: 1.0, 100, 1e6) is None
    assert convert_minutes(2.0, tmp_path, lambda: 0.5) == 240
    assert convert_minutes(2.0, tmp_path, lambda: 1 / 0) == 240
    assert convert_minutes(1.0, tmp_path, lambda: 0.5) == 120


def test_the_probe_passes_the_donated_state_on(monkeypatch):
    monkeypatch.setattr("t5lite.training.budget.PROBE_SECONDS", 0.0)
    seen = []

    def step(state, rows):
        seen.append(int(state))
        return state + rows, jnp.zeros(())

    assert measure_step_seconds(step, jnp.int32(0), 1) > 0
    assert seen == list(range(6))

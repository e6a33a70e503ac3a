"""Schedules against their formulas, step by step."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from t5lite.system.errors import UserError
from t5lite.training.schedules import make_schedule

RATE, WARMUP, TOTAL = 0.02, 10, 100


def rates(total=TOTAL, **fields):
    schedule = make_schedule({"rate": RATE, "warmup_steps": WARMUP, **fields}, total)
    return np.array([schedule(step) for step in range(total + 1)])


def formula(decay, total=TOTAL, warmup=WARMUP):
    return np.array([RATE * ((s + 1) / (warmup + 1) if s < warmup else decay(s)) for s in range(total + 1)])


@pytest.mark.parametrize(
    ("fields", "decay"),
    [
        ({"name": "constant"}, lambda s: 1.0),
        ({"name": "inverse_square_root"}, lambda s: math.sqrt(WARMUP / max(s, WARMUP))),
        ({"name": "cosine", "final_fraction": 0.1}, lambda s: 0.1 + 0.45 * (1 + math.cos(math.pi * (s - 10) / 90))),
        ({"name": "linear", "final_fraction": 0.1}, lambda s: 1 - 0.9 * (s - 10) / 90),
        (
            {"name": "warmup_stable_decay", "decay_fraction": 0.25, "decay_shape": "linear"},
            lambda s: 1.0 if s < 75 else 1 - (s - 75) / 25,
        ),
        (
            {"name": "warmup_stable_decay", "decay_fraction": 0.25, "final_fraction": 0.1},
            lambda s: 1.0 if s < 75 else 1 - 0.9 * math.sqrt((s - 75) / 25),
        ),
    ],
)
def test_each_schedule_follows_its_formula(fields, decay):
    np.testing.assert_allclose(rates(**fields), formula(decay), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["constant", "inverse_square_root", "cosine", "linear", "warmup_stable_decay"])
def test_without_warm_up_the_first_update_has_the_peak_and_no_update_has_none(name):
    values = rates(total=20, name=name, warmup_steps=0)
    assert values[0] == np.float32(RATE) and (values[:20] > 0).all()


def test_a_schedule_is_float32_and_the_same_inside_jit():
    schedule = make_schedule(ml_collections.ConfigDict({"name": "cosine", "rate": 1e-3, "warmup_steps": 3}), 10)
    for step in range(10):
        traced = jax.jit(schedule)(jnp.int32(step))
        assert traced.dtype == jnp.float32 and traced.shape == ()
        np.testing.assert_allclose(traced, schedule(step), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosin"}, r"schedule\.name.*'cosine'"),
        ({"rate": -1.0}, r"schedule\.rate"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps"),
        ({"final_fraction": 1.5}, r"schedule\.final_fraction"),
        ({"decay_fraction": 0.0}, r"schedule\.decay_fraction"),
        ({"name": "warmup_stable_decay", "decay_fraction": 0.95}, r"schedule\.decay_fraction.*do not fit"),
        ({"decay_shape": "sqrt"}, r"schedule\.decay_shape"),
        ({"warmup": 3}, r"schedule\.warmup: unknown field.*warmup_steps"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        make_schedule({"rate": RATE, "warmup_steps": WARMUP, **fields}, TOTAL)


@pytest.mark.parametrize("name", ["constant", "inverse_square_root", "cosine", "linear"])
def test_a_run_shorter_than_its_warm_up_ends_within_it(name):
    values = rates(total=5, name=name, warmup_steps=10)
    np.testing.assert_allclose(values[:5], RATE * np.arange(1, 6) / 11, rtol=1e-6)

"""Learning-rate schedules: functions from the 0-based step of an update to its rate, a float32 scalar.

    rate       ____________________                constant
              /
             /  \\__                                inverse_square_root, cosine, linear
            /      \\______
           /  ________________
          /                   \\                    warmup_stable_decay
    step 0    warmup_steps     \\_ total_steps

Warm-up is linear: (step + 1) / (warmup_steps + 1) of the peak. So step `warmup_steps` has the peak rate, and no update
has a rate of 0 (as in nanoGPT). For the same reason, a decay reaches `final_fraction` of the peak at `total_steps`, one
step after the last update. A run that is shorter than its warm-up ends during the warm-up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5lite.checks import STEPS
from t5lite.config import base_config
from t5lite.system.errors import UserError, nearest

Schedule = Callable[[Any], jax.Array]


def _inverse_square_root(s: dict, total_steps: int) -> optax.Schedule:
    """Return 1/sqrt(max(step, warm-up)), scaled to `rate` at the end of warm-up (Raffel et al. 2020, T5)."""
    start = max(s["warmup_steps"], 1)
    return lambda step: s["rate"] * jnp.sqrt(start / jnp.maximum(step + s["warmup_steps"], start))


def _cosine(s: dict, total_steps: int) -> optax.Schedule:
    """Return half a cosine from the peak to the final fraction (Loshchilov and Hutter 2017, SGDR)."""
    return optax.cosine_decay_schedule(s["rate"], max(total_steps - s["warmup_steps"], 1), s["final_fraction"])


def _linear(s: dict, total_steps: int) -> optax.Schedule:
    """Return a straight line from the peak to the final fraction (Devlin et al. 2019, BERT)."""
    steps = max(total_steps - s["warmup_steps"], 1)
    return optax.linear_schedule(s["rate"], s["rate"] * s["final_fraction"], steps)


def _warmup_stable_decay(s: dict, total_steps: int) -> optax.Schedule:
    """Return the peak, then a decay over the last `decay_fraction` of all steps (Hu et al. 2024, MiniCPM).

    The shape "linear" decays as 1 - progress, and "1-sqrt" as 1 - sqrt(progress). Hägele et al. 2024 found "1-sqrt" to
    be better.
    """
    decay_steps = max(1, round(s["decay_fraction"] * total_steps))
    stable_steps = total_steps - s["warmup_steps"] - decay_steps
    if stable_steps < 0:
        raise UserError(
            f"schedule.decay_fraction: {s['warmup_steps']} steps of warm-up and {decay_steps} of decay do not fit"
            f" in {total_steps} steps; lower schedule.decay_fraction or schedule.warmup_steps"
        )
    power = {"linear": 1.0, "1-sqrt": 0.5}[s["decay_shape"]]

    def schedule(step):
        progress = jnp.clip((step - stable_steps) / decay_steps, 0.0, 1.0)
        return s["rate"] * (1.0 - (1.0 - s["final_fraction"]) * progress**power)

    return schedule


# The schedules after warm-up. Each takes the number of steps since the end of warm-up.
_AFTER_WARMUP = {
    "constant": lambda s, total_steps: optax.constant_schedule(s["rate"]),
    "inverse_square_root": _inverse_square_root,
    "cosine": _cosine,
    "linear": _linear,
    "warmup_stable_decay": _warmup_stable_decay,
}


def fill_settings(fields: Mapping, defaults: Mapping, group: str) -> dict:
    """Return `defaults`, updated with the `fields` that are not None. Raises UserError for an unknown field."""
    for field in fields:
        if field not in defaults:
            raise UserError(f"{group}.{field}: unknown field; {nearest(field, defaults)}")
    return {**defaults, **{field: value for field, value in fields.items() if value is not None}}


def _check(s: dict, total_steps: int) -> None:
    if s["name"] not in _AFTER_WARMUP:
        raise UserError(f"schedule.name: unknown schedule {s['name']!r}; {nearest(s['name'], _AFTER_WARMUP)}")
    if s["rate"] < 0:
        raise UserError(f"schedule.rate is {s['rate']}; it must not be negative")
    if total_steps < 1:
        raise UserError(f"schedule: the run has {total_steps} steps, but needs at least 1; raise the budget")
    if total_steps > STEPS:
        raise UserError(f"schedule: the run has {total_steps:.3g} steps, more than {STEPS:,}; lower the budget")
    if s["warmup_steps"] < 0:
        raise UserError(f"schedule.warmup_steps is {s['warmup_steps']}; it must not be negative")
    if not 0 <= s["final_fraction"] <= 1:
        raise UserError(f"schedule.final_fraction is {s['final_fraction']}; it must be from 0 to 1")
    if not 0 < s["decay_fraction"] <= 1:
        raise UserError(f"schedule.decay_fraction is {s['decay_fraction']}; it must be above 0 and at most 1")
    if s["decay_shape"] not in ("linear", "1-sqrt"):
        raise UserError(f"schedule.decay_shape is {s['decay_shape']!r}; it must be 'linear' or '1-sqrt'")


def make_schedule(fields: Mapping, total_steps: int) -> Schedule:
    """Return the schedule that `fields` describe, for a run of `total_steps`.

    The schedule is a function. Its argument is the 0-based step of an update, a number or a traced scalar. It returns
    the learning rate, a float32 scalar.

    Args:
        fields: the fields of the config's `schedule`. A missing field has the config's default.

    Raises:
        UserError: for an unknown name and for values out of range. The message names the field.
    """
    s = fill_settings(fields, base_config().schedule, "schedule")
    _check(s, total_steps)
    schedule, warmup = _AFTER_WARMUP[s["name"]](s, total_steps), s["warmup_steps"]
    if warmup:
        first = optax.linear_schedule(s["rate"] / (warmup + 1), s["rate"], warmup)
        schedule = optax.join_schedules([first, schedule], [warmup])
    return lambda step: jnp.asarray(schedule(step), jnp.float32)

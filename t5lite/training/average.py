"""The exponential moving average of a run's parameters (Polyak and Juditsky 1992 of averaging; the decay of Kingma and
Ba 2015, with their correction for the start).

    after t steps   average = Σ_i (1 − d) dᵗ⁻ⁱ params_i / (1 − dᵗ)   over the steps i = 1 … t

so what a run began with has no weight, and after the first step the average is the parameters.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def updated_average(average: Any, params: Any, decay: float, updates: Array) -> Any:
    """The average with `params` in it. updates: the steps so far, this one included (int32 scalar, from 1). A step
    whose update is left out counts too: its parameters, which are those of the step before, are averaged once more.
    """
    # In one step of recurrence: the share of the newest is (1 − d) / (1 − dᵗ).
    share = (1 - decay) / -jnp.expm1(updates.astype(jnp.float32) * math.log(decay))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

"""The exponential moving average of a run's parameters.

Averaging is by Polyak and Juditsky (1992); the decay and its correction for the start are by Kingma and Ba (2015).

    after t steps   average = Σ_i (1 − d) dᵗ⁻ⁱ params_i / (1 − dᵗ)   over the steps i = 1 … t

So the initial parameters have no weight, and after the first step the average equals the parameters.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def update_average(average: Any, params: Any, decay: float, updates: Array) -> Any:
    """Return the average with `params` included.

    A step whose update is left out counts too: its parameters, unchanged since the step before, are averaged once more.

    Args:
        updates: int32 scalar, the number of steps so far, this one included.
    """
    # As a recurrence: the newest parameters have the share (1 − d) / (1 − dᵗ).
    share = (1 - decay) / -jnp.expm1(updates.astype(jnp.float32) * math.log(decay))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

"""The exponential moving average of a run's parameters.

Sources: Polyak and Juditsky (1992) for averaging, Kingma and Ba (2015) for the decay and for the correction at the
start.

    after t steps   average = Σ_i (1 − d) dᵗ⁻ⁱ params_i / (1 − dᵗ)   over the steps i = 1 … t

So the initial parameters have no weight, and after the first step the average equals the parameters.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def update_average(average: Any, params: Any, decay: float, steps: Array) -> Any:
    """Return the average after one more step, which has the parameters `params`.

    A step whose update is skipped counts too: its unchanged parameters are included once more.

    Args:
        steps: int32 scalar, the number of steps so far, including this step.
    """
    # The sum as a recurrence: the newest parameters have the share (1 − d) / (1 − dᵗ).
    share = (1 - decay) / -jnp.expm1(steps.astype(jnp.float32) * math.log(decay))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

"""The moving average: against the sum of its definition, in a run, over restarts and hand-offs."""

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.training.average import update_average


def test_it_is_the_weighted_sum_of_the_docstring():
    rng, decay = np.random.default_rng(0), 0.9
    params = rng.normal(size=(30, 5, 4))
    average = {"w": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}  # what a run began with has no weight
    update = jax.jit(lambda average, params, t: update_average(average, params, decay, t))
    for t in range(1, 31):
        average = update(average, {"w": jnp.asarray(params[t - 1], jnp.float32)}, jnp.int32(t))
        weights = (1 - decay) * decay ** (t - np.arange(1, t + 1)) / (1 - decay**t)
        np.testing.assert_allclose(average["w"], np.tensordot(weights, params[:t], axes=1), rtol=2e-5, atol=1e-6)
    assert average["w"].dtype == jnp.float32


def test_long_after_the_start_it_is_the_plain_recurrence():
    average, params = {"w": jnp.float32([1.0, 2.0])}, {"w": jnp.float32([3.0, -2.0])}
    updated = update_average(average, params, 0.999, jnp.int32(10**6))
    np.testing.assert_allclose(updated["w"], 0.999 * average["w"] + 0.001 * params["w"], rtol=1e-6)

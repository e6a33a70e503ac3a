"""With rotary embeddings, scores depend only on differences of positions."""

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.model.positions import rotate


def test_rotary_scores_depend_on_differences():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))
    turn = lambda x, shift: rotate(x, jnp.arange(6)[None] + shift, 10000.0)
    scores = lambda shift: jnp.einsum("bthk,bshk->bhts", turn(q, shift), turn(k, shift))
    np.testing.assert_allclose(scores(0), scores(100), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum("bthk,bshk->bhts", q, k)).max() > 0.1


def test_rotary_turns_pairs_half_a_head_apart():
    x = jnp.zeros((1, 1, 1, 4)).at[0, 0, 0, 0].set(1.0)
    turned = rotate(x, jnp.array([[1]]), 10000.0)[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(1), 0, np.sin(1), 0], atol=1e-6)

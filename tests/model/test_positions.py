"""Relative positions fall into T5's buckets, and rotary embeddings depend on differences alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.positions import RelativeBias, bucket_table, rotate

# Distance key - query -> bucket, by hand from T5's function with 32 buckets and maximum distance 128.
BIDIRECTIONAL = {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -15: 9, -16: 10, -22: 10, -23: 11, -31: 11, -32: 12,
                 -45: 12, -46: 13, -63: 13, -64: 14, -90: 14, -91: 15, -128: 15, -5000: 15,
                 1: 17, 7: 23, 8: 24, 12: 25, 63: 29, 64: 30, 91: 31, 5000: 31}  # fmt: skip
CAUSAL = {0: 0, 1: 0, 50: 0, -1: 1, -15: 15, -16: 16, -18: 16, -19: 17, -20: 17, -21: 18, -63: 26, -64: 26, -113: 31,
          -112: 30, -127: 31, -128: 31, -5000: 31}  # fmt: skip


@pytest.mark.parametrize(("bidirectional", "expected"), [(True, BIDIRECTIONAL), (False, CAUSAL)])
def test_buckets(bidirectional, expected):
    table = bucket_table(bidirectional, 32, 128)
    got = {distance: int(table[np.clip(distance, -128, 128) + 128]) for distance in expected}
    assert got == expected


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 7), (40, 40)])
def test_bias_of_indices_equals_bias_of_positions(bidirectional, queries, keys):
    module = RelativeBias(3, bidirectional, buckets=8, max_distance=16, stddev=1.0)
    variables = module.init(jax.random.key(0), queries, keys)
    bias = module.apply(variables, queries, keys)
    assert bias.shape == (1, 3, queries, keys)
    expected = module.apply(variables, jnp.arange(queries)[None], jnp.arange(keys)[None], method=RelativeBias.at)
    np.testing.assert_array_equal(bias, expected)
    table = bucket_table(bidirectional, 8, 16)
    by_hand = np.asarray(variables["params"]["embedding"])[table[np.clip(keys - 1, -16, 16) + 16]]
    np.testing.assert_array_equal(bias[0, :, 0, keys - 1], by_hand)


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

"""Distances have T5's buckets, and the bias for lengths equals the bias for positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.attention.bias import BucketBias, bucket_table

# {distance key - query: bucket}, by hand from T5's function with 32 buckets and maximum distance 128.
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
    values = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    meaning = BucketBias(jnp.asarray(values), bidirectional, max_distance=16)
    bias = meaning.compute(queries, keys)
    assert bias.shape == (1, 3, queries, keys)
    np.testing.assert_array_equal(bias, meaning.compute_at_positions(jnp.arange(queries)[None], jnp.arange(keys)[None]))
    table = bucket_table(bidirectional, 8, 16)
    by_hand = values[table[np.clip(keys - 1, -16, 16) + 16]]
    np.testing.assert_array_equal(bias[0, :, 0, keys - 1], by_hand)

"""Biases on attention scores that depend on the distance between key and query: T5's, and ALiBi's.

T5's bias is one number for each head and each bucket of the distance key - query. All layers of a stack share this
bias. Each near distance has its own bucket. Far distances share buckets, and the buckets grow logarithmically. For 32
buckets, both directions and max_distance 128:

    query - key    0 1 … 7 | 8-11 12-15 16-22 23-31 32-45 46-63 64-90 91-…
    bucket         0 1 … 7 |   8    9    10    11    12    13    14    15
    (keys after the query: the bucket of key - query, plus 16)

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; mesh-tensorflow has the function.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@flax.struct.dataclass
class BucketBias:
    """T5's bias: a number for each head and bucket of distance.

    values: float32 [buckets, H]. bidirectional, max_distance: see `bucket_table`.
    """

    values: Array
    bidirectional: bool = flax.struct.field(pytree_node=False)
    max_distance: int = flax.struct.field(pytree_node=False)

    def _find_bucket(self, distance: Array | np.ndarray) -> Array:
        table = jnp.asarray(bucket_table(self.bidirectional, self.values.shape[0], self.max_distance))
        return table[jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance]

    def compute(self, queries: int, keys: int) -> Array:
        """Return float32 [1, H, T, S]: the bias for queries at positions 0 … T-1 and keys at positions 0 … S-1.

        The bias depends only on the distance, so only T + S values are looked up, not T · S. T copies of these values
        follow each other, and this long row is cut into rows that are one value shorter. So each row is the row above,
        shifted by one. The gradient first sums over the rows, so only T + S values are scattered.
        """
        width = queries + keys
        distance = np.arange(width)
        distance = np.where(distance < keys, distance, distance - width)  # row[d mod width] is the value at d
        row_HxW = self.values[self._find_bucket(distance)].T
        tiled_HxTW = jnp.tile(row_HxW, (1, queries))[:, : queries * (width - 1)]
        return tiled_HxTW.reshape(1, -1, queries, width - 1)[..., :keys]

    def compute_at_positions(self, queries_BxT: Array, keys_BxS: Array) -> Array:
        """Return float32 [B, H, T, S]: the bias for any positions. With B = 1, all rows of the batch share the bias."""
        bucket_BxTxS = self._find_bucket(keys_BxS[:, None, :] - queries_BxT[:, :, None])
        return jnp.moveaxis(self.values[bucket_BxTxS], -1, 1)


@flax.struct.dataclass
class SlopeBias:
    """A bias that falls linearly with distance. Each of the H heads has its own slope (Press et al. 2022, ALiBi)."""

    num_heads: int = flax.struct.field(pytree_node=False)

    def compute(self, queries: int, keys: int) -> Array:
        """Return float32 [1, H, T, S]: the bias for queries at positions 0 … T-1 and keys at positions 0 … S-1."""
        return self.compute_at_positions(jnp.arange(queries)[None], jnp.arange(keys)[None])

    def compute_at_positions(self, queries_BxT: Array, keys_BxS: Array) -> Array:
        """Return float32 [B, H, T, S]: the bias for any positions. With B = 1, all rows of the batch share the bias."""
        distance_Bx1xTxS = jnp.abs(keys_BxS[:, None, :] - queries_BxT[:, :, None])[:, None]
        return -jnp.asarray(alibi_slopes(self.num_heads))[:, None, None] * distance_Bx1xTxS.astype(jnp.float32)


Bias = BucketBias | SlopeBias


def bucket_table(bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Return int32 [2 * max_distance + 1]: the bucket of each distance key - query from -max_distance to max_distance.

    A distance outside this range has the bucket of the nearest end. NumPy makes the table, so that all devices agree:
    logarithms differ between devices in the last bit, and bucket boundaries depend on this bit.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        back = np.abs(distance)
    else:
        # A causal stack sees later keys only within a prefix. The distance to a later key counts as 0.
        back = np.maximum(-distance, 0)
    exact = buckets // 2
    far = np.log(np.maximum(back, 1).astype(np.float32) / exact) / np.log(max_distance / exact) * (buckets - exact)
    far = np.minimum(exact + far.astype(np.int32), buckets - 1)
    return (offset + np.where(back < exact, back, far)).astype(np.int32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return float32 [H]: the slope of each head. The slope of head h (from 1) is 2 ** (-8 h / H).

    If H is not a power of two: first the slopes for the power of two below H, then every other slope for the power
    above H.
    """

    def compute_slopes(heads: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, heads + 1) / heads)

    below = 1 << (num_heads.bit_length() - 1)
    slopes = [compute_slopes(below), compute_slopes(2 * below)[::2][: num_heads - below]]
    return np.concatenate(slopes).astype(np.float32)

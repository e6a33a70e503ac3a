"""Where a token stands: T5's relative bias and rotary embeddings.

T5's bias is one number a head for each bucket of the distance key - query, added to the attention scores and shared by
all layers of a stack. Near distances have a bucket each, far ones share buckets that widen logarithmically:

    32 buckets, both directions:   distance  0 1 … 7 | 8-11 12-15 16-22 23-31 32-45 46-63 64-90 91-…
                                   bucket    0 1 … 7 |   8    9    10    11    12    13    14    15
    (keys after the query: + 16)

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; mesh-tensorflow has the function.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Array = jax.Array


def bucket_table(bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """Int32 [2 * max_distance + 1]: the bucket of each distance key - query from -max_distance to max_distance.

    Beyond either end all distances share a bucket. Made by NumPy, so that every device buckets alike: logarithms
    differ in the last bit from one to the next, and the boundaries lie on it.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        back = np.abs(distance)
    else:
        back = np.maximum(-distance, 0)  # A causal stack never looks ahead; within a prefix, ahead counts as 0.
    exact = buckets // 2
    far = np.log(np.maximum(back, 1).astype(np.float32) / exact) / np.log(max_distance / exact) * (buckets - exact)
    far = np.minimum(exact + far.astype(np.int32), buckets - 1)
    return (offset + np.where(back < exact, back, far)).astype(np.int32)


class RelativeBias(nn.Module):
    """T5's relative position bias of one stack. Parameter: embedding [buckets, H]."""

    num_heads: int
    bidirectional: bool
    buckets: int
    max_distance: int
    stddev: float

    def setup(self):
        shape = (self.buckets, self.num_heads)
        self.embedding = self.param("embedding", nn.initializers.normal(self.stddev), shape, jnp.float32)

    def _bucket(self, distance: Array | np.ndarray) -> Array:
        table = jnp.asarray(bucket_table(self.bidirectional, self.buckets, self.max_distance))
        return table[jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance]

    def __call__(self, queries: int, keys: int) -> Array:
        """Float32 [1, H, T, S] of queries at 0 … T-1 and keys at 0 … S-1.

        Depends on the difference alone, so T + S values are looked up, not T · S. Laid end to end and cut into rows of
        one fewer, copies of them move by one from row to row; the gradient is a sum over rows, without a scatter.
        """
        width = queries + keys
        distance = np.arange(width)
        distance = np.where(distance < keys, distance, distance - width)  # row[d mod width] is the value at d
        row_HxW = self.embedding[self._bucket(distance)].T
        tiled_HxTW = jnp.tile(row_HxW, (1, queries))[:, : queries * (width - 1)]
        return tiled_HxTW.reshape(1, self.num_heads, queries, width - 1)[..., :keys]

    def at(self, queries_BxT: Array, keys_BxS: Array) -> Array:
        """Float32 [B, H, T, S] of any positions, each row its own or B = 1 for all: for steps of generation."""
        bucket_BxTxS = self._bucket(keys_BxS[:, None, :] - queries_BxT[:, :, None])
        return jnp.moveaxis(self.embedding[bucket_BxTxS], -1, 1)


def rotate(x_BxTxHxK: Array, positions_BxT: Array, base: float) -> Array:
    """Rotary position embedding (Su et al. 2021) in float32, returned in the dtype of x.

    Dimension i turns together with i + K/2, as in Llama and GPT-NeoX, by positions · base ** (-2i / K).
    """
    half = x_BxTxHxK.shape[-1] // 2
    frequency = base ** (-np.arange(half, dtype=np.float32) / half)
    angle_BxTx1xk = positions_BxT[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle_BxTx1xk), jnp.cos(angle_BxTx1xk)
    a, b = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxK.dtype)

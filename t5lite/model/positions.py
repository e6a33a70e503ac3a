"""Positions of tokens: biases on attention scores (T5's, ALiBi), rotary embeddings, and embeddings added to tokens.

T5's bias is one number for each head and each bucket of the distance key - query. It is added to the attention scores;
all layers of a stack share it. Near distances have a bucket each. Far distances share buckets, which grow
logarithmically:

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

    All distances beyond an end belong to the bucket of that end. NumPy makes the table, so that all devices agree:
    logarithms differ between devices in the last bit, and bucket boundaries depend on that bit.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        back = np.abs(distance)
    else:
        back = np.maximum(-distance, 0)  # A causal stack looks ahead only within a prefix; there, ahead counts as 0.
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
        """Float32 [1, H, T, S]: the bias for queries at 0 … T-1 and keys at 0 … S-1.

        The bias depends on the distance alone, so T + S values are looked up, not T · S. Copies of these values are
        laid end to end and cut into rows that are one value shorter. So each row is the row above, moved by one. The
        gradient is a sum over rows, without a scatter.
        """
        width = queries + keys
        distance = np.arange(width)
        distance = np.where(distance < keys, distance, distance - width)  # row[d mod width] is the value at d
        row_HxW = self.embedding[self._bucket(distance)].T
        tiled_HxTW = jnp.tile(row_HxW, (1, queries))[:, : queries * (width - 1)]
        return tiled_HxTW.reshape(1, self.num_heads, queries, width - 1)[..., :keys]

    def at(self, queries_BxT: Array, keys_BxS: Array) -> Array:
        """Float32 [B, H, T, S]: the bias for any positions, for steps of generation. B = 1 serves all rows."""
        bucket_BxTxS = self._bucket(keys_BxS[:, None, :] - queries_BxT[:, :, None])
        return jnp.moveaxis(self.embedding[bucket_BxTxS], -1, 1)


class AlibiBias(nn.Module):
    """A bias that falls with distance, with a slope for each head (Press et al. 2022, ALiBi). No parameters."""

    num_heads: int

    def _of(self, distance: Array) -> Array:
        return -jnp.asarray(alibi_slopes(self.num_heads))[:, None, None] * jnp.abs(distance).astype(jnp.float32)

    def __call__(self, queries: int, keys: int) -> Array:
        """Float32 [1, H, T, S]: the bias for queries at 0 … T-1 and keys at 0 … S-1."""
        return self._of(jnp.arange(keys)[None] - jnp.arange(queries)[:, None])[None]

    def at(self, queries_BxT: Array, keys_BxS: Array) -> Array:
        """Float32 [B, H, T, S]: the bias for any positions, for steps of generation. B = 1 serves all rows."""
        return self._of((keys_BxS[:, None, :] - queries_BxT[:, :, None])[:, None])


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Float32 [H]: the slope of each head, 2 ** (-8 h / H) for h from 1.

    Where H is not a power of two: the slopes of the power of two below H, then every other slope of the next power.
    """

    def of_power(heads: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, heads + 1) / heads)

    below = 1 << (num_heads.bit_length() - 1)
    return np.concatenate([of_power(below), of_power(2 * below)[::2][: num_heads - below]]).astype(np.float32)


class LearnedPositions(nn.Module):
    """A table with a row for each position, added to the tokens. Parameter: embedding [offset + max_positions, D]."""

    max_positions: int
    offset: int
    d_model: int
    stddev: float

    @nn.compact
    def __call__(self, positions: Array) -> Array:
        shape = (self.offset + self.max_positions, self.d_model)
        embedding = self.param("embedding", nn.initializers.normal(self.stddev), shape, jnp.float32)
        return embedding[positions + self.offset]


def sinusoids(positions: Array, d_model: int) -> Array:
    """Float32 [..., D]: sin(p · 10000 ** (-2i / D)) for i below D/2, then the cosines (Vaswani et al. 2017)."""
    half = d_model // 2
    angle = positions[..., None].astype(jnp.float32) * (10000.0 ** (-np.arange(half, dtype=np.float32) / half))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def rotary_frequencies(head_dim: int, base: float, scaling: tuple | None) -> np.ndarray:
    """Float32 [K/2]: radians by which each pair of dimensions turns from one position to the next.

    Without scaling, base ** (-2i / K). Scaling is one of:

        ("linear", factor)                     every pair turns slower by the factor (Chen et al. 2023)
        ("llama3", factor, low, high, length)  pairs with fewer than `low` turns in the original `length` turn slower
                                               by the factor; pairs with more than `high` turns do not change; between
                                               them, a blend (Llama 3.1; formula: Hugging Face's modeling_rope_utils)
    """
    frequency = (base ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)
    if scaling is None:
        return frequency
    name, factor, *bounds = scaling
    if name == "linear":
        return frequency / np.float32(factor)
    low, high, length = bounds
    turns = length * frequency / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - blend) * frequency / factor + blend * frequency).astype(np.float32)


def rotate(x_BxTxHxK: Array, positions_BxT: Array, base: float, scaling: tuple | None = None) -> Array:
    """Apply rotary position embedding (Su et al. 2021) in float32; return the dtype of x.

    Dimensions i and i + K/2 turn together, as in Llama and GPT-NeoX, by the position times their frequency.
    """
    frequency = rotary_frequencies(x_BxTxHxK.shape[-1], base, scaling)
    angle_BxTx1xk = positions_BxT[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle_BxTx1xk), jnp.cos(angle_BxTx1xk)
    a, b = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxK.dtype)

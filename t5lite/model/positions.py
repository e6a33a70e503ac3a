"""Positions of tokens: the parameters of T5's bias, embeddings that are added to tokens, and rotary embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t5lite.model.attention.bias import BucketBias
from t5lite.model.module import Module

Array = jax.Array


class RelativeBias(Module):
    """The parameter of T5's bias, shared by the layers of a stack: embedding [buckets, H]."""

    num_heads: int
    bidirectional: bool
    buckets: int
    max_distance: int
    stddev: float

    @nn.compact
    def __call__(self) -> BucketBias:
        """Return the bias with the parameter as its values."""
        shape = (self.buckets, self.num_heads)
        embedding = self.param("embedding", nn.initializers.normal(self.stddev), shape, jnp.float32)
        return BucketBias(embedding, self.bidirectional, self.max_distance)


class LearnedPositions(Module):
    """A table with a row for each position. The rows are added to the tokens.

    Parameter: embedding [offset + max_positions, D].
    """

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
    """Return float32 [..., D]: sin(p · 10000 ** (-2i / D)) for i below D/2, then the cosines (Vaswani et al. 2017)."""
    half = d_model // 2
    angle = positions[..., None].astype(jnp.float32) * (10000.0 ** (-np.arange(half, dtype=np.float32) / half))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def rotary_frequencies(head_dim: int, base: float, scaling: tuple | None) -> np.ndarray:
    """Return float32 [K/2]: the angle (radians) by which each pair of dimensions turns from one position to the next.

    Without scaling: base ** (-2i / K). Scaling is one of:

        ("linear", factor)                     the angles are divided by the factor (Chen et al. 2023)
        ("llama3", factor, low, high, length)  the angles of pairs with fewer than `low` turns in the original `length`
                                               are divided by the factor; pairs with more than `high` turns do not
                                               change; other pairs have a weighted mean of both (Llama 3.1; formula:
                                               Hugging Face's modeling_rope_utils)
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

    Dimensions i and i + K/2 are a pair, as in Llama and GPT-NeoX. A pair turns by the position times its frequency.
    """
    frequency = rotary_frequencies(x_BxTxHxK.shape[-1], base, scaling)
    angle_BxTx1xk = positions_BxT[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle_BxTx1xk), jnp.cos(angle_BxTx1xk)
    a, b = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxK.dtype)

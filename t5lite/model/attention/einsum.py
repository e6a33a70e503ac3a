"""Attention as two products over whole arrays: all scores [B, H, T, S] exist at once."""

from typing import Any

import jax
import jax.numpy as jnp

from t5lite.model.attention.bias import Bias
from t5lite.model.attention.dropout import keep_weights
from t5lite.model.attention.mask import Mask

Array = jax.Array

# Finite, so that the weights of a query without keys are uniform and not NaN. Far below any score plus bias.
MASKED = -1e9


def prepare(bias: Bias | None, mask: Mask | None, queries: int, keys: int) -> dict[str, Any]:
    """Return bias [1, H, T, S] and mask [B or 1, 1, T, S] as arrays; None for a missing bias or mask."""
    return {"bias": None if bias is None else bias.compute(queries, keys),
            "mask": None if mask is None else mask.compute(queries, keys)}  # fmt: skip


def attend(q_BxTxHxK: Array, k_BxSxGxK: Array, v_BxSxGxK: Array, *, scale: float, dropout: float = 0.0,
           key: Array | None = None, bias: Array | None = None, mask: Array | None = None) -> Array:  # fmt: skip
    """Compute attention; see `attention.Attend`. There are G heads of keys, each shared by R heads of queries."""
    batch, length, heads, head_dim = q_BxTxHxK.shape
    q_BxTxGxRxK = q_BxTxHxK.reshape(batch, length, k_BxSxGxK.shape[2], -1, head_dim)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_BxTxGxRxK, k_BxSxGxK, preferred_element_type=jnp.float32)
    weights_BxHxTxS = softmax(scores.reshape(batch, heads, length, -1), bias, mask, scale).astype(v_BxSxGxK.dtype)
    if dropout:
        rows, heads, queries, keys = jnp.indices(weights_BxHxTxS.shape, sparse=True)
        keep_BxHxTxS = keep_weights(key, rows, heads, queries, keys, dropout)
        weights_BxHxTxS = jnp.where(keep_BxHxTxS, weights_BxHxTxS / (1 - dropout), 0)
    weights_BxGxRxTxS = weights_BxHxTxS.reshape(scores.shape)
    return jnp.einsum("bgrts,bsgk->btgrk", weights_BxGxRxTxS, v_BxSxGxK).reshape(q_BxTxHxK.shape)


def softmax(scores_BxHxTxS: Array, bias: Array | None, mask: Array | None, scale: float) -> Array:
    """Return the softmax over keys of the scaled, biased and masked scores, float32."""
    if scale != 1.0:
        scores_BxHxTxS *= scale
    if bias is not None:
        scores_BxHxTxS += bias
    if mask is not None:
        scores_BxHxTxS = jnp.where(mask, scores_BxHxTxS, MASKED)
    return jax.nn.softmax(scores_BxHxTxS, axis=-1)

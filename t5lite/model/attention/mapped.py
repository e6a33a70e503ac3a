"""Attention on a CPU: one head of one example at a time, so that its scores [T, S] stay in the processor's cache.

The backward pass computes scores again. On CPU, attention is bound by memory: at [8, 4, 512, 512] this takes a third of
the time of `einsum`.
"""

import functools

import jax
import jax.numpy as jnp

from t5lite.model.attention.dropout import keep_weights
from t5lite.model.attention.einsum import MASKED, prepare

Array = jax.Array
__all__ = ["attend", "prepare"]  # bias and mask as arrays, as for einsum

# Heads in one turn of the loops, forward and backward. The elementwise work on one head runs beside the products of
# another. On two cores a step takes 4 % less time than with one head in each turn.
UNROLL = (2, 4)


def attend(q: Array, k: Array, v: Array, *, scale: float, dropout: float = 0.0, key: Array | None = None,
           bias: Array | None = None, mask: Array | None = None) -> Array:  # fmt: skip
    """See `attention.Attend`."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return _mapped(scale, dropout, q, k, v, bias, mask, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mapped(scale, dropout, q, k, v, bias, mask, key):
    """Attention for q, k, v [B, T or S, H, K]. The forward pass saves two numbers for each query: the largest score,
    and the sum of exponentials.

    Their logsumexp, as usual, would not do: in a row that sees no key, float32 would lose the sum beside MASKED.
    """
    return _mapped_forward(scale, dropout, q, k, v, bias, mask, key)[0]


def _mapped_scores(heads, scale, index, q, k, bias, mask):
    """Float32 [T, S]: scores of head index % H of example index // H."""
    scores_TxS = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    if scale != 1.0:
        scores_TxS *= scale
    if bias is not None:
        scores_TxS += bias[index // heads % bias.shape[0], index % heads]
    return scores_TxS if mask is None else jnp.where(_mapped_mask(heads, index, mask), scores_TxS, MASKED)


def _mapped_mask(heads, index, mask):
    return mask[index // heads % mask.shape[0], 0]


def _mapped_keep(heads, dropout, key, index, shape):
    """[T, S]: the factors that dropout multiplies weights by, 0 or 1 / (1 - dropout)."""
    queries, keys = jnp.indices(shape, sparse=True)
    return keep_weights(key, index // heads, index % heads, queries, keys, dropout) * (1 / (1 - dropout))


def _take(index, heads, *arrays):
    """Return head index % H of example index // H, [T or S, K], of each array: a slice, without a transpose."""
    b, h = index // heads, index % heads
    return tuple(jax.lax.dynamic_slice(x, (b, 0, h, 0), (1, x.shape[1], 1, x.shape[3]))[0, :, 0] for x in arrays)


def _put(index, heads, array, value):
    return jax.lax.dynamic_update_slice(
        array, value[None, :, None].astype(array.dtype), (index // heads, 0, index % heads, 0)
    )


def _dot_of_transpose(a_TxS, b_TxK):
    """Return a.T @ b, float32 [S, K], for `a` much larger than `b`. On CPU, (b.T @ a).T takes half the time of XLA's
    own a.T @ b.

    The barrier keeps XLA from turning the product back.
    """
    product_KxS = jax.lax.dot_general(b_TxK, a_TxS, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product_KxS).T


def _mapped_forward(scale, dropout, q, k, v, bias, mask, key):
    batch, _, heads, _ = q.shape

    def one(y, index):
        q_TxK, k_SxK, v_SxK = _take(index, heads, q, k, v)
        scores_TxS = _mapped_scores(heads, scale, index, q_TxK, k_SxK, bias, mask)
        top_Tx1 = scores_TxS.max(axis=-1, keepdims=True)
        exp_TxS = jnp.exp(scores_TxS - top_Tx1)
        sum_Tx1 = exp_TxS.sum(axis=-1, keepdims=True)
        if dropout:
            exp_TxS *= _mapped_keep(heads, dropout, key, index, exp_TxS.shape)
        y_TxK = jnp.matmul(exp_TxS.astype(v.dtype), v_SxK, preferred_element_type=jnp.float32) / sum_Tx1
        return _put(index, heads, y, y_TxK), (top_Tx1, sum_Tx1)

    y, softmax = jax.lax.scan(one, jnp.zeros(q.shape, v.dtype), jnp.arange(batch * heads), unroll=UNROLL[0])
    return y, (q, k, v, y, softmax, bias, mask, key)


def _mapped_backward(scale, dropout, saved, dy):
    q, k, v, y, softmax, bias, mask, key = saved
    batch, _, heads, _ = q.shape
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def one(gradients, each):
        index, (top_Tx1, sum_Tx1) = each
        dq, dk, dv, dbias = gradients
        q_TxK, k_SxK, v_SxK, y_TxK, dy_TxK = _take(index, heads, q, k, v, y, dy)
        # Weights are exp / sum, and everything below is linear in dy. So dividing dy saves a pass over [T, S].
        dy_TxK = dy_TxK.astype(jnp.float32) / sum_Tx1
        # The gradient of softmax needs the mean of dweights under the weights, which equals y · dy.
        mean_Tx1 = (y_TxK.astype(jnp.float32) * dy_TxK).sum(axis=-1, keepdims=True)
        dy_TxK = dy_TxK.astype(v.dtype)
        exp_TxS = jnp.exp(_mapped_scores(heads, scale, index, q_TxK, k_SxK, bias, mask) - top_Tx1)
        dweights_TxS, dropped_TxS = dot(dy_TxK, v_SxK.T), exp_TxS
        if dropout:
            keep_TxS = _mapped_keep(heads, dropout, key, index, exp_TxS.shape)
            dweights_TxS, dropped_TxS = dweights_TxS * keep_TxS, exp_TxS * keep_TxS
        dv = _put(index, heads, dv, _dot_of_transpose(dropped_TxS.astype(v.dtype), dy_TxK))
        dscores_TxS = exp_TxS * (dweights_TxS - mean_Tx1)
        if mask is not None:
            dscores_TxS = jnp.where(_mapped_mask(heads, index, mask), dscores_TxS, 0)
        if bias is not None:
            dbias = dbias.at[index // heads % bias.shape[0], index % heads].add(dscores_TxS)
        dscores_TxS = (dscores_TxS * scale if scale != 1.0 else dscores_TxS).astype(q.dtype)
        dq = _put(index, heads, dq, dot(dscores_TxS, k_SxK))
        dk = _put(index, heads, dk, _dot_of_transpose(dscores_TxS, q_TxK))
        return (dq, dk, dv, dbias), None

    zeros = jax.tree.map(jnp.zeros_like, (q, k, v, bias))
    (dq, dk, dv, dbias), _ = jax.lax.scan(one, zeros, (jnp.arange(batch * heads), softmax), unroll=UNROLL[1])
    return dq, dk, dv, dbias, None, None


_mapped.defvjp(_mapped_forward, _mapped_backward)

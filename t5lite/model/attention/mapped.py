"""Attention on a CPU: one head of one example at a time, so that its scores [T, S] stay in the processor's cache.

The backward pass computes scores again. On a CPU, the speed of memory limits attention: with scores [8, 4, 512, 512],
this implementation takes a third of the time of `einsum`.
"""

import functools

import jax
import jax.numpy as jnp

from t5lite.model.attention.dropout import keep_weights
from t5lite.model.attention.einsum import MASKED, prepare

Array = jax.Array
__all__ = ["attend", "prepare"]  # `prepare` makes arrays of bias and mask, as in einsum.py

# The number of heads in one iteration of the loop, forward and backward. The elementwise work on one head then runs at
# the same time as the products of another head. On two cores a step takes 4 % less time than with one head.
UNROLL = (2, 4)


def attend(q: Array, k: Array, v: Array, *, scale: float, dropout: float = 0.0, key: Array | None = None,
           bias: Array | None = None, mask: Array | None = None) -> Array:  # fmt: skip
    """Compute attention; see `attention.Attend`."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    return _attend(scale, dropout, q, k, v, bias, mask, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, dropout, q, k, v, bias, mask, key):
    """Compute attention for q, k, v [B, T or S, H, K].

    The forward pass saves two numbers for each query: the largest score, and the sum of exponentials. Their logsumexp
    is not enough. If a query sees no key, the largest score is MASKED, and float32 loses the logarithm of the sum when
    it is added to such a large number.
    """
    return _attend_forward(scale, dropout, q, k, v, bias, mask, key)[0]


def _compute_scores(heads, scale, index, q, k, bias, mask):
    """Return float32 [T, S]: the scores of head index % H of example index // H."""
    scores_TxS = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    if scale != 1.0:
        scores_TxS *= scale
    if bias is not None:
        scores_TxS += bias[index // heads % bias.shape[0], index % heads]
    return scores_TxS if mask is None else jnp.where(_take_mask(heads, index, mask), scores_TxS, MASKED)


def _take_mask(heads, index, mask):
    return mask[index // heads % mask.shape[0], 0]


def _compute_dropout_factors(heads, dropout, key, index, shape):
    """Return [T, S]: the factor of each weight, 0 if dropout drops the weight, else 1 / (1 - dropout)."""
    queries, keys = jnp.indices(shape, sparse=True)
    return keep_weights(key, index // heads, index % heads, queries, keys, dropout) * (1 / (1 - dropout))


def _read_head(index, heads, *arrays):
    """Return [T or S, K] of each array: head index % H of example index // H. A slice needs no transpose."""
    b, h = index // heads, index % heads
    return tuple(jax.lax.dynamic_slice(x, (b, 0, h, 0), (1, x.shape[1], 1, x.shape[3]))[0, :, 0] for x in arrays)


def _write_head(index, heads, array, value):
    return jax.lax.dynamic_update_slice(
        array, value[None, :, None].astype(array.dtype), (index // heads, 0, index % heads, 0)
    )


def _multiply_transposed(a_TxS, b_TxK):
    """Return a.T @ b, float32 [S, K], for `a` much larger than `b`.

    On a CPU, (b.T @ a).T takes half the time of a.T @ b in XLA. The barrier prevents XLA from changing the product back
    to a.T @ b.
    """
    product_KxS = jax.lax.dot_general(b_TxK, a_TxS, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product_KxS).T


def _attend_forward(scale, dropout, q, k, v, bias, mask, key):
    batch, _, heads, _ = q.shape

    def process_head(y, index):
        q_TxK, k_SxK, v_SxK = _read_head(index, heads, q, k, v)
        scores_TxS = _compute_scores(heads, scale, index, q_TxK, k_SxK, bias, mask)
        top_Tx1 = scores_TxS.max(axis=-1, keepdims=True)
        exp_TxS = jnp.exp(scores_TxS - top_Tx1)
        sum_Tx1 = exp_TxS.sum(axis=-1, keepdims=True)
        if dropout:
            exp_TxS *= _compute_dropout_factors(heads, dropout, key, index, exp_TxS.shape)
        y_TxK = jnp.matmul(exp_TxS.astype(v.dtype), v_SxK, preferred_element_type=jnp.float32) / sum_Tx1
        return _write_head(index, heads, y, y_TxK), (top_Tx1, sum_Tx1)

    y, softmax = jax.lax.scan(process_head, jnp.zeros(q.shape, v.dtype), jnp.arange(batch * heads), unroll=UNROLL[0])
    return y, (q, k, v, y, softmax, bias, mask, key)


def _attend_backward(scale, dropout, saved, dy):
    q, k, v, y, softmax, bias, mask, key = saved
    batch, _, heads, _ = q.shape
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def process_head(gradients, each):
        index, (top_Tx1, sum_Tx1) = each
        dq, dk, dv, dbias = gradients
        q_TxK, k_SxK, v_SxK, y_TxK, dy_TxK = _read_head(index, heads, q, k, v, y, dy)
        # Weights are exp / sum, and the rest is linear in dy. So dy is divided by the sum: dy is smaller than [T, S].
        dy_TxK = dy_TxK.astype(jnp.float32) / sum_Tx1
        # The gradient of softmax needs the mean of dweights, weighted by the weights. This mean equals y · dy.
        mean_Tx1 = (y_TxK.astype(jnp.float32) * dy_TxK).sum(axis=-1, keepdims=True)
        dy_TxK = dy_TxK.astype(v.dtype)
        exp_TxS = jnp.exp(_compute_scores(heads, scale, index, q_TxK, k_SxK, bias, mask) - top_Tx1)
        dweights_TxS, dropped_TxS = dot(dy_TxK, v_SxK.T), exp_TxS
        if dropout:
            keep_TxS = _compute_dropout_factors(heads, dropout, key, index, exp_TxS.shape)
            dweights_TxS, dropped_TxS = dweights_TxS * keep_TxS, exp_TxS * keep_TxS
        dv = _write_head(index, heads, dv, _multiply_transposed(dropped_TxS.astype(v.dtype), dy_TxK))
        dscores_TxS = exp_TxS * (dweights_TxS - mean_Tx1)
        if mask is not None:
            dscores_TxS = jnp.where(_take_mask(heads, index, mask), dscores_TxS, 0)
        if bias is not None:
            dbias = dbias.at[index // heads % bias.shape[0], index % heads].add(dscores_TxS)
        dscores_TxS = (dscores_TxS * scale if scale != 1.0 else dscores_TxS).astype(q.dtype)
        dq = _write_head(index, heads, dq, dot(dscores_TxS, k_SxK))
        dk = _write_head(index, heads, dk, _multiply_transposed(dscores_TxS, q_TxK))
        return (dq, dk, dv, dbias), None

    zeros = jax.tree.map(jnp.zeros_like, (q, k, v, bias))
    (dq, dk, dv, dbias), _ = jax.lax.scan(process_head, zeros, (jnp.arange(batch * heads), softmax), unroll=UNROLL[1])
    return dq, dk, dv, dbias, None, None


_attend.defvjp(_attend_forward, _attend_backward)

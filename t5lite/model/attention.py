"""Attention: masks, and the product itself in several implementations that agree.

A mask is bool [B, 1, T, S], True where a query sees a key; None where every query sees every key. A query that sees no
key (padding) gets the average of all values. This is finite, and nothing uses it: padding is never a key and has no
loss.
"""

import functools

import jax
import jax.numpy as jnp

from t5lite.model.dropout import keep_weights

Array = jax.Array

# Finite, so that a row without keys is uniform rather than NaN. Far below any score plus bias in float32.
MASKED = -1e9
# Heads in one turn of the loops of `mapped_attention`, forward and backward. The elementwise work on one head runs
# beside the products of another. On two cores a step takes 4 % less time than with one head in each turn.
UNROLL = (2, 4)


def segment_mask(query_segments_BxT: Array | None, key_segments_BxS: Array | None) -> Array | None:
    """The mask of queries and keys in the same segment; 0 is padding. A side that is None is segment 1; None if both
    are.
    """
    if query_segments_BxT is None and key_segments_BxS is None:
        return None
    queries = 1 if query_segments_BxT is None else query_segments_BxT[:, None, :, None]
    keys = 1 if key_segments_BxS is None else key_segments_BxS[:, None, None, :]
    return (queries == keys) & (keys > 0)


def causal_mask(segments_BxT: Array | None, prefix_BxT: Array | None, length: int) -> Array:
    """The decoder's mask: causal, except that positions inside the prefix see the whole prefix."""
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if prefix_BxT is not None:
        mask = mask | (prefix_BxT[:, None, :, None] & prefix_BxT[:, None, None, :])
    same = segment_mask(segments_BxT, segments_BxT)
    return mask if same is None else mask & same


def attend(q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias_1xHxTxS: Array | None, mask: Array | None, *,
           scale: float, dropout: float = 0.0, key: Array | None = None,
           implementation: str = "auto") -> Array:  # fmt: skip
    """Return softmax(scale · q k + bias) v under the mask: [B, T, H, K] in the dtype of v, with softmax in float32.

    Keys and values may have fewer heads than queries. Then consecutive query heads share a head of keys and values.

    dropout: the rate for attention weights; 0 needs no PRNG `key`. PRNG key, row of the batch, head, query and key
    position decide which weights are dropped (`dropout.keep_weights`). So all implementations drop the same weights,
    on every mesh.
    """
    if implementation == "auto":
        implementation = choose(q_BxTxHxK.shape, k_BxSxHxK.shape)
    function = {"einsum": einsum_attention, "mapped": mapped_attention}[implementation]
    return function(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, bias_1xHxTxS, mask, scale=scale, dropout=dropout, key=key)


def attend_cached(q_BxTxHxK: Array, keys_BxHxKxS: Array, values_BxHxSxK: Array, bias_BxHxTxS: Array | None,
                  mask: Array | None, *, scale: float) -> Array:  # fmt: skip
    """`attend` to keys and values laid out as in a cache, for the few queries of a step; no dropout.

    Attention sees the first `mask.shape[-1]` slots; all slots without a mask.
    """
    slots = keys_BxHxKxS.shape[-1] if mask is None else mask.shape[-1]
    batch, length, heads, head_dim = q_BxTxHxK.shape
    # Query heads that share keys become further queries of one product.
    q_BxGxRTxK = q_BxTxHxK.swapaxes(1, 2).reshape(batch, keys_BxHxKxS.shape[1], -1, head_dim)
    scores_BxGxRTxS = jnp.matmul(q_BxGxRTxK, keys_BxHxKxS[..., :slots], preferred_element_type=jnp.float32)
    scores_BxHxTxS = scores_BxGxRTxS.reshape(batch, heads, length, slots)
    weights_BxHxTxS = _weights(scores_BxHxTxS, bias_BxHxTxS, mask, scale).astype(values_BxHxSxK.dtype)
    y_BxGxRTxK = jnp.matmul(weights_BxHxTxS.reshape(scores_BxGxRTxS.shape), values_BxHxSxK[:, :, :slots])
    return y_BxGxRTxK.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


def _weights(scores_BxHxTxS: Array, bias: Array | None, mask: Array | None, scale: float) -> Array:
    """Return the softmax over keys of the scaled, biased and masked scores, float32."""
    if scale != 1.0:
        scores_BxHxTxS *= scale
    if bias is not None:
        scores_BxHxTxS += bias
    if mask is not None:
        scores_BxHxTxS = jnp.where(mask, scores_BxHxTxS, MASKED)
    return jax.nn.softmax(scores_BxHxTxS, axis=-1)


def choose(query_shape: tuple[int, ...], key_shape: tuple[int, ...]) -> str:
    """Return the implementation for "auto": "mapped" where all scores would not fit a CPU's cache, else "einsum"."""
    batch, queries, heads, _ = query_shape
    alone = jax.sharding.get_abstract_mesh().size <= 1  # Mapping over the batch would undo its sharding.
    large = batch * heads * queries * key_shape[1] > 2**20 and queries > 1
    return "mapped" if alone and large and jax.default_backend() == "cpu" else "einsum"


def einsum_attention(q, k, v, bias, mask, *, scale, dropout, key):
    batch, length, heads, head_dim = q.shape
    # There are G heads of keys. R heads of queries share each.
    q_BxTxGxRxK = q.reshape(batch, length, k.shape[2], -1, head_dim)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_BxTxGxRxK, k, preferred_element_type=jnp.float32)
    weights_BxHxTxS = _weights(scores.reshape(batch, heads, length, -1), bias, mask, scale).astype(v.dtype)
    if dropout:
        rows, heads, queries, keys = jnp.indices(weights_BxHxTxS.shape, sparse=True)
        keep_BxHxTxS = keep_weights(key, rows, heads, queries, keys, dropout)
        weights_BxHxTxS = jnp.where(keep_BxHxTxS, weights_BxHxTxS / (1 - dropout), 0)
    weights_BxGxRxTxS = weights_BxHxTxS.reshape(scores.shape)
    return jnp.einsum("bgrts,bsgk->btgrk", weights_BxGxRxTxS, v).reshape(q.shape)


def mapped_attention(q, k, v, bias, mask, *, scale, dropout, key):
    """Compute one head of one example at a time, so that its scores [T, S] stay in cache. The backward pass computes
    scores again.

    On CPU, attention is bound by memory: at [8, 4, 512, 512] this takes a third of the time of `einsum_attention`.
    """
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

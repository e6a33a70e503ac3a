"""Attention: who sees whom, and the product itself in several implementations that agree.

A mask is bool [B, 1, T, S], True where a query sees a key, or None where all see all. A query that sees no key
(padding) averages over all values: finite, and read by nobody, since padding is never a key and has no loss.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array

# Finite, so that a row without keys is uniform rather than NaN, and far below any score plus bias in float32.
MASKED = -1e9


def segment_mask(query_segments_BxT: Array | None, key_segments_BxS: Array | None) -> Array | None:
    """Same segment, and not padding (0). A side that is None is one segment, 1; two Nones need no mask."""
    if query_segments_BxT is None and key_segments_BxS is None:
        return None
    queries = 1 if query_segments_BxT is None else query_segments_BxT[:, None, :, None]
    keys = 1 if key_segments_BxS is None else key_segments_BxS[:, None, None, :]
    return (queries == keys) & (keys > 0)


def causal_mask(segments_BxT: Array | None, prefix_BxT: Array | None, length: int) -> Array:
    """Of a decoder: no key after the query, but within a prefix, whose positions all see each other."""
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if prefix_BxT is not None:
        mask = mask | (prefix_BxT[:, None, :, None] & prefix_BxT[:, None, None, :])
    same = segment_mask(segments_BxT, segments_BxT)
    return mask if same is None else mask & same


def attend(q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias_1xHxTxS: Array | None, mask: Array | None, *,
           scale: float, dropout: float = 0.0, key: Array | None = None,
           implementation: str = "auto") -> Array:  # fmt: skip
    """Softmax(scale · q k + bias) v under the mask, [B, T, H, K] in the dtype of v; softmax in float32.

    dropout: the rate at which attention weights are dropped, with the PRNG `key`; 0 needs none.
    """
    if implementation == "auto":
        implementation = choose(q_BxTxHxK.shape, k_BxSxHxK.shape)
    function = {"einsum": einsum_attention, "mapped": mapped_attention}[implementation]
    return function(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, bias_1xHxTxS, mask, scale=scale, dropout=dropout, key=key)


def choose(query_shape: tuple[int, ...], key_shape: tuple[int, ...]) -> str:
    """What "auto" is: "mapped" where all scores together would leave a CPU's cache, else "einsum"."""
    batch, queries, heads, _ = query_shape
    alone = jax.sharding.get_abstract_mesh().size <= 1  # Mapping over the batch would undo its sharding.
    large = batch * heads * queries * key_shape[1] > 2**20 and queries > 1
    return "mapped" if jax.default_backend() == "cpu" and alone and large else "einsum"


def einsum_attention(q, k, v, bias, mask, *, scale, dropout, key):
    scores_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    if scale != 1.0:
        scores_BxHxTxS *= scale
    if bias is not None:
        scores_BxHxTxS += bias
    if mask is not None:
        scores_BxHxTxS = jnp.where(mask, scores_BxHxTxS, MASKED)
    weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1).astype(v.dtype)
    if dropout:
        keep = jax.random.bernoulli(key, 1 - dropout, weights_BxHxTxS.shape)
        weights_BxHxTxS = jnp.where(keep, weights_BxHxTxS / (1 - dropout), 0)
    return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS, v)


def mapped_attention(q, k, v, bias, mask, *, scale, dropout, key):
    """One head of one example at a time, so that its scores [T, S] stay in cache; they are made again for gradients.

    On CPU, attention is bound by memory: at [8, 4, 512, 512] this takes a third of the time of `einsum_attention`.
    """
    batch, _, heads, _ = q.shape
    q, k, v = (x.swapaxes(1, 2).reshape(batch * heads, x.shape[1], x.shape[3]) for x in (q, k, v))
    y = _mapped(heads, scale, dropout, q, k, v, bias, mask, key)
    return y.reshape(batch, heads, *y.shape[1:]).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mapped(heads, scale, dropout, q, k, v, bias, mask, key):
    """Of q, k, v [B * H, T or S, K]: the gradient keeps two numbers a query, the largest score and the sum.

    Not the usual one, their logsumexp: in a row that sees no key, float32 would lose the sum beside MASKED.
    """
    return _mapped_forward(heads, scale, dropout, q, k, v, bias, mask, key)[0]


def _mapped_scores(heads, scale, index, q, k, bias, mask):
    """Float32 [T, S] of the head index % H of example index // H."""
    scores_TxS = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    if scale != 1.0:
        scores_TxS *= scale
    if bias is not None:
        scores_TxS += bias[index // heads % bias.shape[0], index % heads]
    return scores_TxS if mask is None else jnp.where(_mapped_mask(heads, index, mask), scores_TxS, MASKED)


def _mapped_mask(heads, index, mask):
    return mask[index // heads % mask.shape[0], 0]


def _mapped_keep(dropout, key, index, shape):
    """What dropout multiplies the weights by: 0, or what makes up for it."""
    return jax.random.bernoulli(jax.random.fold_in(key, index), 1 - dropout, shape) * (1 / (1 - dropout))


def _mapped_forward(heads, scale, dropout, q, k, v, bias, mask, key):
    def one(each):
        index, q, k, v = each
        scores_TxS = _mapped_scores(heads, scale, index, q, k, bias, mask)
        top_Tx1 = scores_TxS.max(axis=-1, keepdims=True)
        exp_TxS = jnp.exp(scores_TxS - top_Tx1)
        sum_Tx1 = exp_TxS.sum(axis=-1, keepdims=True)
        if dropout:
            exp_TxS *= _mapped_keep(dropout, key, index, exp_TxS.shape)
        y_TxK = jnp.matmul(exp_TxS.astype(v.dtype), v, preferred_element_type=jnp.float32) / sum_Tx1
        return y_TxK.astype(v.dtype), (top_Tx1, sum_Tx1)

    y, softmax = jax.lax.map(one, (jnp.arange(q.shape[0]), q, k, v))
    return y, (q, k, v, y, softmax, bias, mask, key)


def _mapped_backward(heads, scale, dropout, saved, dy):
    q, k, v, y, softmax, bias, mask, key = saved
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def one(dbias, each):
        index, q, k, v, y, (top_Tx1, sum_Tx1), dy = each
        weights_TxS = jnp.exp(_mapped_scores(heads, scale, index, q, k, bias, mask) - top_Tx1) * (1 / sum_Tx1)
        dweights_TxS, dropped_TxS = dot(dy, v.T), weights_TxS
        if dropout:
            keep_TxS = _mapped_keep(dropout, key, index, weights_TxS.shape)
            dweights_TxS, dropped_TxS = dweights_TxS * keep_TxS, weights_TxS * keep_TxS
        dv_SxK = dot(dropped_TxS.astype(v.dtype).T, dy)
        # Softmax's own gradient needs the mean of dweights under the weights, which is y · dy.
        mean_Tx1 = (y.astype(jnp.float32) * dy.astype(jnp.float32)).sum(axis=-1, keepdims=True)
        dscores_TxS = weights_TxS * (dweights_TxS - mean_Tx1)
        if mask is not None:
            dscores_TxS = jnp.where(_mapped_mask(heads, index, mask), dscores_TxS, 0)
        if bias is not None:
            dbias = dbias.at[index // heads % bias.shape[0], index % heads].add(dscores_TxS)
        dscores_TxS = (dscores_TxS * scale if scale != 1.0 else dscores_TxS).astype(q.dtype)
        dq_TxK, dk_SxK = dot(dscores_TxS, k), dot(dscores_TxS.T, q)
        return dbias, (dq_TxK.astype(q.dtype), dk_SxK.astype(k.dtype), dv_SxK.astype(v.dtype))

    dbias = None if bias is None else jnp.zeros_like(bias)
    dbias, (dq, dk, dv) = jax.lax.scan(one, dbias, (jnp.arange(q.shape[0]), q, k, v, y, softmax, dy))
    return dq, dk, dv, dbias, None, None


_mapped.defvjp(_mapped_forward, _mapped_backward)

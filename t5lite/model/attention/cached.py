"""Attention in generation: the few queries of a step attend to the keys and values of a cache.

Products with few queries can read the layout of these keys and values without a copy.
"""

import jax
import jax.numpy as jnp

from t5lite.model.attention.einsum import softmax

Array = jax.Array


def attend_cached(q_BxTxHxK: Array, keys_BxGxKxS: Array, values_BxGxSxK: Array, *, scale: float,
                  bias: Array | None = None, mask: Array | None = None) -> Array:  # fmt: skip
    """Return softmax(scale · q k + bias) v under the mask, [B, T, H, K], without dropout.

    Bias and mask are arrays here, because each token can see other slots (beams, prompts of different lengths).

    Args:
      bias: float32 [B or 1, H, T, S].
      mask: bool [B or 1, 1, T, S]. Attention sees the first S slots. Without a mask, attention sees all slots.
    """
    slots = keys_BxGxKxS.shape[-1] if mask is None else mask.shape[-1]
    batch, length, heads, head_dim = q_BxTxHxK.shape
    # Query heads that share keys become additional queries of one product.
    q_BxGxRTxK = q_BxTxHxK.swapaxes(1, 2).reshape(batch, keys_BxGxKxS.shape[1], -1, head_dim)
    scores_BxGxRTxS = jnp.matmul(q_BxGxRTxK, keys_BxGxKxS[..., :slots], preferred_element_type=jnp.float32)
    scores_BxHxTxS = scores_BxGxRTxS.reshape(batch, heads, length, slots)
    weights_BxHxTxS = softmax(scores_BxHxTxS, bias, mask, scale).astype(values_BxGxSxK.dtype)
    y_BxGxRTxK = jnp.matmul(weights_BxHxTxS.reshape(scores_BxGxRTxS.shape), values_BxGxSxK[:, :, :slots])
    return y_BxGxRTxK.reshape(batch, heads, length, head_dim).swapaxes(1, 2)

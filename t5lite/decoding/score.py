"""Log-probabilities of given continuations: the same candidates for every row, the inputs read once.

score_candidates(model, params, inputs, lengths, candidates)    [B, C]
"""

import functools

import jax
import jax.numpy as jnp

from t5lite.decoding.prefill import prefill
from t5lite.model.transformer import Transformer

Array = jax.Array


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention"))
def score_candidates(
    model: Transformer, params: dict, inputs: Array, lengths: Array, candidates: Array, prefix_attention: bool = False
) -> Array:
    """Float32 [B, C]: log-probability of each candidate int32 [C, T] (closed by EOS, padded with 0) after each row.

    inputs int32 [B, L], lengths int32 [B]: the encoder's inputs, or a decoder's prompts, padded at their end.
    """
    width = candidates.shape[1]
    ready = prefill(model, params, inputs, lengths, steps=width, prefix_attention=prefix_attention)
    apply = functools.partial(model.apply, {"params": params})
    slots_S, steps_Tx1 = jnp.arange(ready.visible_BxS.shape[1]), jnp.arange(width)[:, None]
    own_TxS = (slots_S >= ready.first_slot) & (slots_S <= ready.first_slot + steps_Tx1)
    visible = ready.visible_BxS[:, None] | own_TxS

    def score(candidate_T: Array) -> Array:
        followed = jnp.broadcast_to(candidate_T[:-1], (len(inputs), width - 1))
        tokens_BxT = jnp.concatenate([ready.tokens_B[:, None], followed], axis=1)
        hidden, _ = apply(tokens_BxT, ready.cache, ready.first_slot, visible, method=Transformer.extend)
        log_probs = jax.nn.log_softmax(apply(hidden, method=Transformer.logits))
        own_BxT = jnp.take_along_axis(log_probs, candidate_T[None, :, None], axis=-1)[..., 0]
        return jnp.sum(own_BxT * (candidate_T > 0), axis=-1)

    return jax.lax.map(score, candidates).T

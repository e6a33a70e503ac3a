"""Log-probabilities of known targets (teacher forcing), in one pass after the inputs have been read.

    score_targets(model, params, inputs, lengths, targets, target_lengths)    float32 [B, T]: one score for each token
    score_candidates(model, params, inputs, lengths, candidates, …)           float32 [B, C]: one for each candidate

All rows have the same candidates. inputs int32 [B, L], lengths int32 [B]: the encoder's inputs, or a decoder's prompts,
padded at their end. EOS is scored if a target contains EOS.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.decoding.prefill import Prefilled, front_token, prefill
from t5lite.model.transformer import Transformer

Array = jax.Array


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention", "start", "prepend_start"))
def score_targets(model: Transformer, params: Any, inputs: Array, lengths: Array, targets: Array,
                  target_lengths: Array, *, prefix_attention: bool = False, start: int = 0,
                  prepend_start: bool = True) -> Array:  # fmt: skip
    """Return float32 [B, T]: the log-probability of each token of `targets` int32 [B, T], 0 beyond `target_lengths`.

    prefix_attention, start, prepend_start: see `generate.Generation`.
    """
    ready = prefill(model, params, inputs, lengths, steps=targets.shape[1], prefix_attention=prefix_attention,
                    start=front_token(model, start, prepend_start))  # fmt: skip
    logprobs_BxT = _score_after(model, params, ready, targets)
    return jnp.where(jnp.arange(targets.shape[1]) < target_lengths[:, None], logprobs_BxT, 0)


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention", "start", "prepend_start"))
def score_candidates(model: Transformer, params: Any, inputs: Array, lengths: Array, candidates: Array,
                     candidate_lengths: Array, *, prefix_attention: bool = False, start: int = 0,
                     prepend_start: bool = True) -> Array:  # fmt: skip
    """Return float32 [B, C]: the log-probability of each candidate as the answer to each row.

    candidates: int32 [C, T], with candidate_lengths [C]. The inputs are read once. Other arguments: see
    `score_targets`.
    """
    length = candidates.shape[1]
    ready = prefill(model, params, inputs, lengths, steps=length, prefix_attention=prefix_attention,
                    start=front_token(model, start, prepend_start))  # fmt: skip

    def score(candidate_T: Array, candidate_length: Array) -> Array:
        targets_BxT = jnp.broadcast_to(candidate_T, (len(inputs), length))
        logprobs_BxT = _score_after(model, params, ready, targets_BxT)
        return jnp.sum(jnp.where(jnp.arange(length) < candidate_length, logprobs_BxT, 0), axis=-1)

    return jax.lax.map(lambda each: score(*each), (candidates, candidate_lengths)).T


def _score_after(model: Transformer, params: Any, ready: Prefilled, targets_BxT: Array) -> Array:
    """Return float32 [B, T]: the log-probability of each target token after the inputs that have been read."""
    apply = functools.partial(model.apply, {"params": params})
    first, slots_S = ready.first_slot, jnp.arange(ready.visible_BxS.shape[1])
    new_TxS = (slots_S >= first) & (slots_S <= first + jnp.arange(targets_BxT.shape[1])[:, None])
    tokens_BxT = jnp.concatenate([ready.tokens_B[:, None], targets_BxT[:, :-1]], axis=1)
    hidden, _ = apply(tokens_BxT, ready.cache, first, ready.visible_BxS[:, None] | new_TxS, method=Transformer.extend)
    logits_BxTxV = apply(hidden, method=Transformer.logits)
    target_logits_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    return target_logits_BxT - jax.nn.logsumexp(logits_BxTxV, axis=-1)

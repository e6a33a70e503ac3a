"""Log-probabilities of known targets (teacher forcing), in one pass after the inputs have been read.

    score_targets(model, params, inputs, lengths, targets, target_lengths)    float32 [B, T]: one score for each token
    score_candidates(model, params, inputs, lengths, candidates, …)           float32 [B, C]: one for each candidate

inputs int32 [B, L], lengths int32 [B]: the encoder's inputs, or a decoder's prompts, padded at their end. EOS is scored
if a target contains EOS.

Long texts are less likely than short ones. So candidates of different lengths are compared by their sums of
log-probabilities, or by the sums divided by `count_units`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.prefill import Prefilled, front_token, prefill
from t5lite.model.transformer import Transformer

Array = jax.Array

# {name: description} of the ways to compare candidates of different lengths.
SCORE_BY = {
    "sum": "the sum of log-probabilities",
    "token": "the mean log-probability of a token",
    "byte": "the sum of log-probabilities divided by the bytes of the text in UTF-8",
}


def count_units(score_by: str, texts: Sequence[str], num_tokens: Sequence[int]) -> np.ndarray:
    """Return float32 [C]: the number by which the sum of each text's log-probabilities is divided.

    Args:
        score_by: a name in SCORE_BY.
        num_tokens: the number of scored tokens of each text, EOS included if it is scored.
    """
    units = {
        "sum": [1] * len(texts),
        "token": list(num_tokens),
        "byte": [len(text.encode()) for text in texts],
    }[score_by]
    return np.maximum(np.array(units, np.float32), 1)


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention", "start", "prepend_start"))
def score_targets(model: Transformer, params: Any, inputs: Array, lengths: Array, targets: Array,
                  target_lengths: Array, *, prefix_attention: bool = False, start: int = 0,
                  prepend_start: bool = True) -> Array:  # fmt: skip
    """Return float32 [B, T]: the log-probability of each token of `targets` int32 [B, T], 0 beyond `target_lengths`.

    prefix_attention, start, prepend_start: see `generate.Generation`.
    """
    ready = prefill(model, params, inputs, lengths, steps=targets.shape[1], prefix_attention=prefix_attention,
                    start=front_token(model, start, prepend_start))  # fmt: skip
    logprobs_BxT, _ = _score_after(model, params, ready, targets)
    return jnp.where(jnp.arange(targets.shape[1]) < target_lengths[:, None], logprobs_BxT, 0)


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention", "start", "prepend_start"))
def find_likeliest(model: Transformer, params: Any, inputs: Array, lengths: Array, targets: Array,
                   target_lengths: Array, *, prefix_attention: bool = False, start: int = 0,
                   prepend_start: bool = True) -> tuple[Array, Array]:  # fmt: skip
    """Return the result of `score_targets`, and bool [B, T]: whether each target token is the likeliest token.

    Beyond `target_lengths`, True.
    """
    ready = prefill(model, params, inputs, lengths, steps=targets.shape[1], prefix_attention=prefix_attention,
                    start=front_token(model, start, prepend_start))  # fmt: skip
    logprobs_BxT, is_likeliest_BxT = _score_after(model, params, ready, targets)
    is_target_BxT = jnp.arange(targets.shape[1]) < target_lengths[:, None]
    return jnp.where(is_target_BxT, logprobs_BxT, 0), is_likeliest_BxT | ~is_target_BxT


@functools.partial(jax.jit, static_argnames=("model", "prefix_attention", "start", "prepend_start"))
def score_candidates(model: Transformer, params: Any, inputs: Array, lengths: Array, candidates: Array,
                     candidate_lengths: Array, *, prefix_attention: bool = False, start: int = 0,
                     prepend_start: bool = True) -> Array:  # fmt: skip
    """Return float32 [B, C]: the log-probability of each candidate as the answer to each row.

    candidates: int32 [C, T], the same for all rows, with candidate_lengths [C]; or [B, C, T] with [B, C]. The inputs
    are read once. Other arguments: see `score_targets`.
    """
    length = candidates.shape[-1]
    ready = prefill(model, params, inputs, lengths, steps=length, prefix_attention=prefix_attention,
                    start=front_token(model, start, prepend_start))  # fmt: skip

    def score(targets: Array, target_lengths: Array) -> Array:
        targets_BxT = jnp.broadcast_to(targets, (len(inputs), length))
        logprobs_BxT, _ = _score_after(model, params, ready, targets_BxT)
        return jnp.sum(jnp.where(jnp.arange(length) < target_lengths[..., None], logprobs_BxT, 0), axis=-1)

    if candidates.ndim == 3:
        candidates, candidate_lengths = jnp.swapaxes(candidates, 0, 1), candidate_lengths.T
    return jax.lax.map(lambda each: score(*each), (candidates, candidate_lengths)).T


def _score_after(model: Transformer, params: Any, ready: Prefilled, targets_BxT: Array) -> tuple[Array, Array]:
    """Return the log-probability of each target token after the inputs, and whether the token is the likeliest.

    Both are [B, T], float32 and bool.
    """
    apply = functools.partial(model.apply, {"params": params})
    first, slots_S = ready.first_slot, jnp.arange(ready.visible_BxS.shape[1])
    new_TxS = (slots_S >= first) & (slots_S <= first + jnp.arange(targets_BxT.shape[1])[:, None])
    tokens_BxT = jnp.concatenate([ready.tokens_B[:, None], targets_BxT[:, :-1]], axis=1)
    hidden, _ = apply(tokens_BxT, ready.cache, first, ready.visible_BxS[:, None] | new_TxS, method=Transformer.extend)
    logits_BxTxV = apply(hidden, method=Transformer.logits)
    target_logits_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    logprobs_BxT = target_logits_BxT - jax.nn.logsumexp(logits_BxTxV, axis=-1)
    return logprobs_BxT, target_logits_BxT == logits_BxTxV.max(axis=-1)

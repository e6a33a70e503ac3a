"""Choose the next token of each row from logits: repetition penalty, temperature, top-k, top-p, min-p."""

import jax
import jax.numpy as jnp

Array = jax.Array

# Finite, so that a row in which all ids are forbidden has no NaN. The probability of such a logit is 0 in float32.
FORBIDDEN = -1e9


def penalise(scores: Array, seen: Array, penalty: Array | float) -> Array:
    """Make the ids `seen` (bool) less likely (Keskar et al. 2019). scores: logits or log-probabilities."""
    return jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)


def keep_top_k(logits_BxV: Array, top_k: int) -> Array:
    """Keep the `top_k` likeliest ids, and ids with the same logit as the last of them. Other logits: FORBIDDEN."""
    last_Bx1 = jax.lax.top_k(logits_BxV, min(top_k, logits_BxV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BxV < last_Bx1, FORBIDDEN, logits_BxV)


def keep_top_p(logits_BxV: Array, top_p: Array | float) -> Array:
    """Keep the smallest set of likeliest ids whose total probability is at least `top_p`. Other logits: FORBIDDEN.

    At least one id is kept. Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
    probability_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
    before_BxV = jnp.cumsum(probability_BxV, axis=-1) - probability_BxV
    last_Bx1 = jnp.min(jnp.where(before_BxV < top_p, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BxV < last_Bx1, FORBIDDEN, logits_BxV)


def keep_min_p(logits_BxV: Array, min_p: Array | float) -> Array:
    """Keep the ids with at least `min_p` times the largest probability. Other logits: FORBIDDEN.

    Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs".
    """
    least_Bx1 = logits_BxV.max(axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits_BxV < least_Bx1, FORBIDDEN, logits_BxV)


def argmax_ids(logits_BxV: Array) -> Array:
    """Return int32 [B]: the id with the largest logit. If several logits are equal, the first of these ids.

    It uses two simple reductions, which XLA vectorises on a CPU. XLA's own argmax takes several times as long.
    """
    is_largest_BxV = logits_BxV == jnp.max(logits_BxV, axis=-1, keepdims=True)
    ids_V = jnp.arange(logits_BxV.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(is_largest_BxV, ids_V, logits_BxV.shape[-1] - 1), axis=-1)


def choose_next_tokens(logits_BxV: Array, keys_B: Array | None, *, temperature: Array | float = 1.0, top_k: int = 0,
                top_p: Array | float | None = None, min_p: Array | float | None = None) -> Array:  # fmt: skip
    """Return int32 [B]: the likeliest id if `keys_B` is None, else an id that is drawn with the PRNG key of the row.

    The order is the same as in Hugging Face's transformers: temperature, top-k (0: all), top-p and min-p (None: all).
    """
    if keys_B is None:
        return argmax_ids(logits_BxV)
    logits_BxV = logits_BxV / temperature
    if top_k:
        logits_BxV = keep_top_k(logits_BxV, top_k)
    if top_p is not None:
        logits_BxV = keep_top_p(logits_BxV, top_p)
    if min_p is not None:
        logits_BxV = keep_min_p(logits_BxV, min_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)

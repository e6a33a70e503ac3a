"""Rules: how a window and its noise mask become one side of an example.

For tokens 10 … 15, mask T T F F T F and V = 1000:

    noise_span_to_unique_sentinel        999 12 13 998 15
    noise_span_to_same_sentinel          999 12 13 999 15
    noise_token_to_same_sentinel         999 999 12 13 999 15
    drop_noise                           12 13 15
    nonnoise_span_to_unique_sentinel     10 11 999 14 998
    nonnoise_span_to_same_sentinel       10 11 999 14 999
    drop_nonnoise                        10 11 14

A rule maps (tokens int32 [L], mask bool [L], V) to (new tokens [L], which of them to keep [L]); `compact` moves the
kept ones to the front. Source: text-to-text-transfer-transformer, t5/data/preprocessors.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5lite.vocabulary import EOS

Array = jax.Array
Rule = Callable[[Array, Array, int], tuple[Array, Array]]


def span_starts(mask: Array) -> Array:
    """Bool [L]: the first token of each span of the mask."""
    return mask & ~jnp.concatenate([jnp.zeros(1, bool), mask[:-1]])


def noise_span_to_unique_sentinel(tokens: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """The k-th noise span, k from 1, becomes the id V - k."""
    starts = span_starts(mask)
    return jnp.where(starts, size - jnp.cumsum(starts), tokens), starts | ~mask


def noise_span_to_same_sentinel(tokens: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Each noise span becomes the id V - 1."""
    starts = span_starts(mask)
    return jnp.where(starts, size - 1, tokens), starts | ~mask


def noise_token_to_same_sentinel(tokens: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Each noise token becomes the id V - 1."""
    return jnp.where(mask, size - 1, tokens), jnp.ones_like(mask)


def drop_noise(tokens: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Noise tokens vanish."""
    return tokens, ~mask


def inverted(rule: Rule) -> Rule:
    """The rule with noise and clean tokens exchanged."""
    return lambda tokens, mask, size: rule(tokens, ~mask, size)


nonnoise_span_to_unique_sentinel = inverted(noise_span_to_unique_sentinel)
nonnoise_span_to_same_sentinel = inverted(noise_span_to_same_sentinel)
drop_nonnoise = inverted(drop_noise)


def compact(tokens: Array, keep: Array, length: int, eos: bool) -> tuple[Array, Array]:
    """(int32 [length], how many of them): the kept tokens in front, EOS after them if asked for, then padding."""
    places = jnp.where(keep, jnp.cumsum(keep) - 1, length)
    compacted = jnp.zeros(length, jnp.int32).at[places].set(tokens, mode="drop")
    count = jnp.sum(keep, dtype=jnp.int32)
    if eos:
        compacted = compacted.at[count].set(EOS, mode="drop")
        count = count + 1
    return compacted, count

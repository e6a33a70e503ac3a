"""Noise masks: which tokens of a window are noise. Pure functions of a key, in static shapes.

A mask is bool [L], true on noise. Counts are fixed by the length, so that every example has the same shape.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def span_counts(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """(noise tokens, noise spans) in a window of `length` tokens.

    Rounded in float32, halves to even, as the original does on its device; float64 differs at some lengths (190,
    350, …). Spans are clamped to the noise and to the clean tokens, beyond which spans would be empty.
    """
    if noise_density == 0:
        return 0, 0
    noise = int(np.round(np.float32(length) * np.float32(noise_density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean_noise_span_length))), 1)
    return noise, min(spans, noise, length - noise)


def random_partition(key: Array, items: int, parts: int) -> Array:
    """Int32 [parts], positive, summing to `items`: each way to cut `items` into `parts` is equally likely."""
    # Choose parts - 1 of the items - 1 gaps between items, and measure the distances between the cuts.
    is_cut = jax.random.permutation(key, jnp.arange(items - 1) < parts - 1)
    cuts = jnp.flatnonzero(is_cut, size=parts - 1) + 1
    edges = jnp.concatenate([jnp.zeros(1, cuts.dtype), cuts, jnp.full(1, items, cuts.dtype)])
    return jnp.diff(edges).astype(jnp.int32)


def random_spans(key: Array, length: int, noise: int, spans: int) -> Array:
    """Mask of `noise` tokens in `spans` spans, clean and noise by turns, clean first: the last token is noise.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    section 3.3.4; text-to-text-transfer-transformer, `random_spans_noise_mask`.
    """
    if noise == 0:
        return jnp.zeros(length, bool)
    noise_key, clean_key = jax.random.split(key)
    noise_lengths = random_partition(noise_key, noise, spans)
    clean_lengths = random_partition(clean_key, length - noise, spans)
    starts_and_stops = jnp.cumsum(jnp.stack([clean_lengths, noise_lengths], axis=1).reshape(-1))
    # Each boundary flips between clean and noise; the last one lies past the end and is dropped.
    flips = jnp.zeros(length, jnp.int32).at[starts_and_stops].add(1, mode="drop")
    return jnp.cumsum(flips) % 2 == 1

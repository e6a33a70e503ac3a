"""Noise: which tokens of a window are noise, and in which spans. Pure functions with static shapes.

A `Process` chooses noise in windows of one length. It has a sampler, and bounds on the number of noise tokens and
spans. The lengths of inputs and targets follow from these bounds. If the number of noise tokens is random, the bounds
are its mean plus or minus six standard deviations. If a window has more noise than the upper bound, some noise is
turned off. If it has less than the lower bound, some clean tokens become noise. A token is clean if it is not noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.system.vocabulary import TokenTable

Array = jax.Array
DEVIATIONS = 6  # shapes fit a random count up to this many standard deviations above its mean
LIKELY_DEVIATIONS = 3  # all but one example in a thousand have a count within this many standard deviations


class Noise(NamedTuple):
    """Which tokens of a window [L] are noise.

    mask: bool [L].
    starts: bool [L], the first token of each span. A span may begin directly after another span.
    inserts: int32, the number of spans of length 0. They contain no token of the window.
    """

    mask: Array
    starts: Array
    inserts: Array


class Process(NamedTuple):
    """A way to choose noise in windows of one length.

    sample: (key, tokens [L], token table) -> Noise.
    least, most: bounds on the number of noise tokens.
    spans, clean_spans: the largest number of noise spans and of clean spans.
    likely_spans: a window rarely has more noise spans than this.
    mean, mean_span: the average number of noise tokens in a window and in a span; None if no formula is known.
    """

    sample: Callable[[Array, Array, TokenTable], Noise]
    least: int
    most: int
    spans: int
    clean_spans: int
    likely_spans: int
    mean: float | None = None
    mean_span: float | None = None


class Settings(NamedTuple):
    """Settings of a process. max_spans: noise after this many spans is turned off; None: no limit."""

    window: int
    noise_density: float | None
    mean_noise_span_length: float
    max_spans: int | None = None


def span_starts(mask: Array) -> Array:
    """Return bool [L]: the first token of each run of `mask`."""
    return mask & ~jnp.concatenate([jnp.zeros(1, bool), mask[:-1]])


def make_noise(mask: Array) -> Noise:
    """Return the noise in which each run of `mask` is a span."""
    return Noise(mask, span_starts(mask), jnp.int32(0))


def span_counts(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Return (noise tokens, noise spans) of a window of `length` tokens.

    Counts are rounded in float32, halves to even, as in the original code. Float64 gives other counts at some lengths
    (190, 350, …). There are at most as many spans as noise tokens, and at most as many as clean tokens, so that no span
    is empty.
    """
    if noise_density == 0:
        return 0, 0
    noise = int(np.round(np.float32(length) * np.float32(noise_density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean_noise_span_length))), 1)
    return noise, min(spans, noise, length - noise)


def random_subset(key: Array, among: Array, count: Array | int) -> Array:
    """Choose `count` of the indices where `among`, bool [L], is True. Return bool [L]. If there are fewer, choose all.

    All choices are equally likely. Each index draws 32 random bits, and the indices with the lowest draws are chosen.
    The highest of these draws is found bit by bit, by counting. On a CPU this is many times faster than sorting. If two
    draws are equal (one pair in 2^32), the lower index comes first, as in a stable sort.
    """
    draws = jax.random.bits(key, among.shape, jnp.uint32)

    def set_next_bit(step: Array, highest: Array) -> Array:
        higher = highest | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(jnp.sum(among & (draws < higher)) < count, higher, highest)

    highest = jax.lax.fori_loop(0, 32, set_next_bit, jnp.uint32(0))
    below, equal = among & (draws < highest), among & (draws == highest)
    return below | (equal & (jnp.cumsum(equal) <= count - jnp.sum(below)))


def random_partition(key: Array, items: int, parts: int) -> Array:
    """Cut `items` into `parts` positive lengths, int32 [parts]. All ways to cut are equally likely."""
    # Cut at parts - 1 of the items - 1 gaps between items. The lengths are the distances between cuts.
    is_cut = random_subset(key, jnp.ones(items - 1, bool), parts - 1)
    cuts = jnp.flatnonzero(is_cut, size=parts - 1) + 1
    edges = jnp.concatenate([jnp.zeros(1, cuts.dtype), cuts, jnp.full(1, items, cuts.dtype)])
    return jnp.diff(edges).astype(jnp.int32)


def random_spans(key: Array, length: int, noise: int, spans: int) -> Array:
    """Return bool [L]: `noise` tokens in `spans` spans.

    Clean and noise spans alternate, and a clean span comes first. So the last token is noise.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    section 3.3.4; text-to-text-transfer-transformer, `random_spans_noise_mask`.
    """
    if noise == 0:
        return jnp.zeros(length, bool)
    noise_key, clean_key = jax.random.split(key)
    noise_lengths = random_partition(noise_key, noise, spans)
    clean_lengths = random_partition(clean_key, length - noise, spans)
    starts_and_stops = jnp.cumsum(jnp.stack([clean_lengths, noise_lengths], axis=1).reshape(-1))
    # Each boundary switches between clean and noise. The last boundary is past the end of the window and is dropped.
    flips = jnp.zeros(length, jnp.int32).at[starts_and_stops].add(1, mode="drop")
    return jnp.cumsum(flips) % 2 == 1


def spans(settings: Settings) -> Process:
    """Return the process with T5's spans (`random_spans`). The window's length fixes the counts of tokens and spans."""
    window = settings.window
    noise, count = span_counts(window, settings.noise_density, settings.mean_noise_span_length)

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        return make_noise(random_spans(key, window, noise, count))

    return Process(sample, noise, noise, count, max(count, 1), count, noise, noise / count if count else None)


def upper_bound(count: int, mean: float, variance: float, deviations: int) -> int:
    """Return an upper bound on a random count: its mean plus `deviations` standard deviations, but at most `count`."""
    return min(count, math.ceil(mean + deviations * math.sqrt(variance)))


def limit_noise(mask: Array, least: int, most: int, max_spans: int | None) -> Array:
    """Return `mask` with at most `most` noise tokens, at most `max_spans` spans, and at least `least` noise tokens.

    The first `most` noise tokens and the first `max_spans` spans stay noise. If there are too few noise tokens, the
    first clean tokens become noise. With `max_spans`, `least` must be 0.
    """
    mask = mask & (jnp.cumsum(mask) <= most)
    if max_spans is not None:
        mask = mask & (jnp.cumsum(span_starts(mask)) <= max_spans)
    if least > 0:
        mask = mask | (jnp.cumsum(~mask) <= least - jnp.sum(mask))
    return mask


def iid(settings: Settings) -> Process:
    """Return the process in which each token is noise with probability `noise_density`, independent of the others."""
    window, density, limit = settings.window, settings.noise_density, settings.max_spans
    mean, variance = window * density, window * density * (1 - density)
    most = upper_bound(window, mean, variance, DEVIATIONS)
    least = max(math.floor(mean - DEVIATIONS * math.sqrt(variance)), 0) if limit is None else 0
    # A span starts where noise follows a clean token. Two neighbouring tokens cannot both start a span.
    start = density * (1 - density)
    likely, many = (
        upper_bound((window + 1) // 2, window * start + density, window * (start - 3 * start**2), deviations)
        for deviations in (LIKELY_DEVIATIONS, DEVIATIONS)
    )
    count = many if limit is None else min(many, limit)

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        mask = jax.random.uniform(key, (window,)) < density
        return make_noise(limit_noise(mask, least, most, None if limit is None else count))

    return Process(sample, least, most, count, count + 1, likely, mean)


def suffix(settings: Settings) -> Process:
    """Return the process with one span, at the end of the window.

    `noise_density` is the share of the window that is noise. If it is None, the span begins at a random index in
    [1, L - 1].
    """
    window = settings.window
    if settings.noise_density is not None:
        return spans(settings._replace(mean_noise_span_length=window))

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        return make_noise(jnp.arange(window) >= jax.random.randint(key, (), 1, window))

    return Process(sample, 1, window - 1, 1, 1, 1, window / 2, window / 2)


def no_noise(settings: Settings) -> Process:
    """Return the process without noise."""

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del key, tokens, table
        return make_noise(jnp.zeros(settings.window, bool))

    return Process(sample, 0, 0, 0, 1, 0, mean=0.0)


def word_numbers(tokens: Array, table: TokenTable) -> Array:
    """Return int32 [L]: the number of each token's word, from 0. Tokens before the first start of a word have -1."""
    return jnp.cumsum(jnp.asarray(table.starts_word)[tokens], dtype=jnp.int32) - 1


def word_budgets(most: int, noise_density: float) -> np.ndarray:
    """Return int32 [most + 1]: the number of words that become noise in a window of 0, 1, …, `most` words, rounded up.

    Computed in float64: in float32, a product may be slightly above the exact whole number.
    """
    return np.ceil(np.arange(most + 1) * noise_density - 1e-9).astype(np.int32)


def poisson_lengths(key: Array, budget: Array, most: int, mean: float) -> tuple[Array, Array]:
    """Return (lengths int32 [K], bool [K]: which lengths are in use). Lengths have a Poisson distribution.

    Some lengths are 0. Lengths are in use until their sum is `budget`. The last length is shortened to fit. most: the
    largest possible budget.
    """
    draws = math.ceil(most / mean + DEVIATIONS * math.sqrt(most) / mean) + 4
    terms = [math.exp(-mean)]
    while sum(terms) < 1 - 1e-7 and len(terms) < 1000:
        terms.append(terms[-1] * mean / len(terms))
    lengths = jnp.searchsorted(jnp.asarray(np.cumsum(terms), jnp.float32), jax.random.uniform(key, (draws,)))
    before = jnp.cumsum(lengths) - lengths
    return jnp.clip(budget - before, 0, lengths).astype(jnp.int32), before < budget


def make_word_spans(first: Array, lengths: Array, word: Array, is_start: Array) -> tuple[Array, Array]:
    """Return (mask, starts), both bool [L], for spans of whole words.

    If a span begins directly after another span, they stay two spans. A span that begins inside another span becomes a
    part of it.

    Args:
      first: int32 [K], the number of each span's first word; L: there is no such span.
      lengths: int32 [K], the number of words in each span.
      word: int32 [L], see `word_numbers`.
      is_start: bool [L], the first token of each word.
    """
    window = word.shape[0]
    ends = first + lengths

    def mark_words(begins: Array) -> Array:
        change = jnp.zeros(window + 1, jnp.int32).at[begins].add(1, mode="drop").at[ends].add(-1, mode="drop")
        return (jnp.cumsum(change)[word] > 0) & (word >= 0)

    begins = jnp.zeros(window, bool).at[first].set(True, mode="drop")[word] & is_start
    return mark_words(first), begins & ~mark_words(first + 1)


def poisson_words(settings: Settings) -> Process:
    """Return the process with spans of whole words. Their lengths have a Poisson distribution.

    Each span begins at a different random word. The lengths of all spans sum to `noise_density` of the words. Spans may
    overlap and then become one span, so less than `noise_density` of the words is noise. A span of length 0 is an
    insertion: [MASK] without a word. Source: Lewis et al. 2020, "BART: Denoising
    Sequence-to-Sequence Pre-training"; fairseq, denoising_dataset.py, `add_whole_word_mask`.
    """
    window, density, mean = settings.window, settings.noise_density, settings.mean_noise_span_length
    budgets = word_budgets(window, density)

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        lengths_key, words_key = jax.random.split(key)
        word = word_numbers(tokens, table)
        is_start = jnp.asarray(table.starts_word)[tokens]
        words = word[-1] + 1
        lengths, counts = poisson_lengths(lengths_key, jnp.asarray(budgets)[words], int(budgets[-1]), mean)
        in_use = counts & (lengths > 0)
        # The n-th span begins at the word with the n-th lowest draw.
        draws = jnp.where(is_start, jax.random.uniform(words_key, (window,)), 2.0)
        by_draw = word[jnp.argsort(draws)]
        rank = jnp.cumsum(in_use) - 1
        first = jnp.where(in_use & (rank < words), by_draw[rank], window)
        mask, starts = make_word_spans(first, lengths, word, is_start)
        inserts = jnp.sum(counts & (lengths == 0), dtype=jnp.int32)
        # Each span and each insertion needs one [MASK]. All of them must fit into the room of the noise tokens.
        return Noise(mask, starts, jnp.minimum(inserts, jnp.sum(mask) - jnp.sum(starts)))

    return Process(sample, 0, window, window, window, window)


# {process: the names of the config's fields that it depends on}
USES = {
    spans: ("noise_density", "mean_noise_span_length"),
    iid: ("noise_density",),
    suffix: ("noise_density",),
    no_noise: (),
    poisson_words: ("noise_density", "mean_noise_span_length"),
}

"""Noise: which tokens of a window are noise, and in which spans. Pure functions in static shapes.

A `Process` is a way to choose noise in windows of one length: a sampler, and the bounds within which its counts stay,
from which the shapes of both sides follow. Where the number of noise tokens is random the bounds are its mean and six
standard deviations; noise beyond them is turned off, and where too little would be left to fit, more is turned on.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.system.vocabulary import TokenTable

Array = jax.Array
DEVIATIONS = 6  # of a random count that shapes have room for
LIKELY_DEVIATIONS = 3  # within which a count lies in all but one example of a thousand


class Noise(NamedTuple):
    """Which tokens of a window [L] are noise.

    mask: bool [L]. starts: bool [L], the first token of each span; spans may touch. inserts: int32, the number of
    spans of length 0, which lie anywhere.
    """

    mask: Array
    starts: Array
    inserts: Array


class Process(NamedTuple):
    """A way to choose noise in windows of one length.

    sample: (key, tokens [L], token table) -> Noise. least, most: noise tokens. spans, clean_spans: the most spans of
    noise and of clean tokens. likely_spans: more than that are rare. mean, mean_span: noise tokens of a window and of
    a span, on average; None where no formula is known.
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
    """What a process may depend on. max_spans: noise beyond so many spans is turned off; None: no limit."""

    window: int
    noise_density: float | None
    mean_noise_span_length: float
    max_spans: int | None = None


def span_starts(mask: Array) -> Array:
    """Bool [L]: the first token of each run of `mask`."""
    return mask & ~jnp.concatenate([jnp.zeros(1, bool), mask[:-1]])


def of_mask(mask: Array) -> Noise:
    """The noise whose spans are the runs of `mask`."""
    return Noise(mask, span_starts(mask), jnp.int32(0))


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


def random_subset(key: Array, among: Array, count: Array | int) -> Array:
    """Bool [L]: `count` of the places in `among`, bool [L], each choice of them equally likely; all if it has fewer.

    Those with the lowest of 32 random bits a place. The highest of these draws is found bit by bit, by counting: on a
    CPU many times faster than to sort them. Of equal draws, one pair in 2^32, the first comes first, as in a sort.
    """
    draws = jax.random.bits(key, among.shape, jnp.uint32)

    def with_next_bit(step: Array, highest: Array) -> Array:
        higher = highest | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(jnp.sum(among & (draws < higher)) < count, higher, highest)

    highest = jax.lax.fori_loop(0, 32, with_next_bit, jnp.uint32(0))
    below, equal = among & (draws < highest), among & (draws == highest)
    return below | (equal & (jnp.cumsum(equal) <= count - jnp.sum(below)))


def random_partition(key: Array, items: int, parts: int) -> Array:
    """Int32 [parts], positive, summing to `items`: each way to cut `items` into `parts` is equally likely."""
    # Choose parts - 1 of the items - 1 gaps between items, and measure the distances between the cuts.
    is_cut = random_subset(key, jnp.ones(items - 1, bool), parts - 1)
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


def spans(settings: Settings) -> Process:
    """Spans of T5: their number and that of the noise tokens follow from the length, see `random_spans`."""
    window = settings.window
    noise, count = span_counts(window, settings.noise_density, settings.mean_noise_span_length)

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        return of_mask(random_spans(key, window, noise, count))

    return Process(sample, noise, noise, count, max(count, 1), count, noise, noise / count if count else None)


def room(count: int, mean: float, variance: float, deviations: int) -> int:
    """What a random number of `count` tokens does not exceed by more than so many standard deviations."""
    return min(count, math.ceil(mean + deviations * math.sqrt(variance)))


def bounded(mask: Array, least: int, most: int, max_spans: int | None) -> Array:
    """`mask` with noise turned off beyond `most` tokens and `max_spans` spans, and turned on where under `least`.

    From the left in each case. With a limit on spans `least` must be 0.
    """
    mask = mask & (jnp.cumsum(mask) <= most)
    if max_spans is not None:
        mask = mask & (jnp.cumsum(span_starts(mask)) <= max_spans)
    if least > 0:
        mask = mask | (jnp.cumsum(~mask) <= least - jnp.sum(mask))
    return mask


def iid(settings: Settings) -> Process:
    """Each token is noise with the probability `noise_density`, whatever the others are."""
    window, density, limit = settings.window, settings.noise_density, settings.max_spans
    mean, variance = window * density, window * density * (1 - density)
    most = room(window, mean, variance, DEVIATIONS)
    least = max(math.floor(mean - DEVIATIONS * math.sqrt(variance)), 0) if limit is None else 0
    # A span starts where noise follows a clean token; neighbouring places exclude one another.
    start = density * (1 - density)
    likely, many = (
        room((window + 1) // 2, window * start + density, window * (start - 3 * start**2), deviations)
        for deviations in (LIKELY_DEVIATIONS, DEVIATIONS)
    )
    count = many if limit is None else min(many, limit)

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        mask = jax.random.uniform(key, (window,)) < density
        return of_mask(bounded(mask, least, most, None if limit is None else count))

    return Process(sample, least, most, count, count + 1, likely, mean)


def suffix(settings: Settings) -> Process:
    """The last `noise_density` of the window; where that is None, all from a split point on, uniform in [1, L - 1]."""
    window = settings.window
    if settings.noise_density is not None:
        return spans(settings._replace(mean_noise_span_length=window))

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del tokens, table
        return of_mask(jnp.arange(window) >= jax.random.randint(key, (), 1, window))

    return Process(sample, 1, window - 1, 1, 1, 1, window / 2, window / 2)


def none(settings: Settings) -> Process:
    """No noise."""

    def sample(key: Array, tokens: Array, table: TokenTable) -> Noise:
        del key, tokens, table
        return of_mask(jnp.zeros(settings.window, bool))

    return Process(sample, 0, 0, 0, 1, 0, mean=0.0)


def word_numbers(tokens: Array, table: TokenTable) -> Array:
    """Int32 [L]: the word that each token belongs to, from 0; -1 before the first start of a word."""
    return jnp.cumsum(jnp.asarray(table.starts_word)[tokens], dtype=jnp.int32) - 1


def word_budgets(most: int, noise_density: float) -> np.ndarray:
    """Int32 [most + 1]: how many of 0, 1, … words are to be noise, rounded up.

    In float64: a product in float32 may lie above the whole number that it should be.
    """
    return np.ceil(np.arange(most + 1) * noise_density - 1e-9).astype(np.int32)


def poisson_lengths(key: Array, budget: Array, most: int, mean: float) -> tuple[Array, Array]:
    """(lengths int32 [K], which of them count [K]): drawn until they sum to `budget`, at most `most`; the last trimmed.

    Lengths are Poisson with the given mean, so some are 0.
    """
    draws = math.ceil(most / mean + DEVIATIONS * math.sqrt(most) / mean) + 4
    terms = [math.exp(-mean)]
    while sum(terms) < 1 - 1e-7 and len(terms) < 1000:
        terms.append(terms[-1] * mean / len(terms))
    lengths = jnp.searchsorted(jnp.asarray(np.cumsum(terms), jnp.float32), jax.random.uniform(key, (draws,)))
    before = jnp.cumsum(lengths) - lengths
    return jnp.clip(budget - before, 0, lengths).astype(jnp.int32), before < budget


def spans_of_words(first: Array, lengths: Array, word: Array, is_start: Array) -> tuple[Array, Array]:
    """(mask, starts), bool [L], of the spans of `lengths` words from the words `first` on, int32 [K]; L is no word.

    word: int32 [L], see `word_numbers`; is_start: bool [L], the first token of each word. Spans that touch remain two;
    one that begins inside another is a part of it.
    """
    window = word.shape[0]
    ends = first + lengths

    def covered(begins: Array) -> Array:
        change = jnp.zeros(window + 1, jnp.int32).at[begins].add(1, mode="drop").at[ends].add(-1, mode="drop")
        return (jnp.cumsum(change)[word] > 0) & (word >= 0)

    begins = jnp.zeros(window, bool).at[first].set(True, mode="drop")[word] & is_start
    return covered(first), begins & ~covered(first + 1)


def poisson_words(settings: Settings) -> Process:
    """Spans of whole words, of Poisson lengths, from distinct random words on, until `noise_density` of the words.

    Spans may touch, which leaves two, and overlap, which leaves one; so a little less becomes noise. A span of length
    0 is an insertion. Source: Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training"; fairseq,
    denoising_dataset.py, `add_whole_word_mask`.
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
        mask, starts = spans_of_words(first, lengths, word, is_start)
        inserts = jnp.sum(counts & (lengths == 0), dtype=jnp.int32)
        # A mask a span and one an insertion must fit into the places that the noise leaves.
        return Noise(mask, starts, jnp.minimum(inserts, jnp.sum(mask) - jnp.sum(starts)))

    return Process(sample, 0, window, window, window, window)


# The settings that each process depends on, by their names in a config.
USES = {
    spans: ("noise_density", "mean_noise_span_length"),
    iid: ("noise_density",),
    suffix: ("noise_density",),
    none: (),
    poisson_words: ("noise_density", "mean_noise_span_length"),
}

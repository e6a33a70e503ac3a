"""Noise other than T5's spans: independent tokens, suffixes, and the bounds on their counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.objectives import noise
from t5lite.system.vocabulary import EOS
from tests.objectives.made import (
    PLAIN,
    build,
    check_chances,
    check_share,
    check_uniform,
    examples,
    make,
    vocabulary,
    windows,
)
from tests.objectives.test_every_objective import interleave


@pytest.mark.parametrize(
    ("mask", "least", "most", "max_spans", "expected"),
    [
        ("..##.#..#", 0, 9, None, "..##.#..#"),
        ("..##.#..#", 0, 2, None, "..##....."),
        ("..##.#..#", 0, 3, None, "..##.#..."),
        ("..##.#..#", 0, 0, None, "........."),
        ("..##.#..#", 0, 9, 2, "..##.#..."),
        ("..##.#..#", 0, 9, 0, "........."),
        ("..##.#..#", 0, 3, 1, "..##....."),
        ("##.#", 0, 4, 1, "##.."),
        ("..##.#..#", 6, 9, None, "####.#..#"),
        ("..##.#..#", 9, 9, None, "#########"),
        ("..##.#..#", 4, 9, None, "..##.#..#"),
    ],
)
def test_noise_beyond_the_bounds_is_turned_off_and_what_is_missing_on(mask, least, most, max_spans, expected):
    bounded = noise.limit_noise(jnp.array([c == "#" for c in mask]), least, most, max_spans)
    assert "".join(".#"[int(token)] for token in bounded) == expected


def test_every_choice_of_two_of_the_first_five_places_is_equally_likely():
    """False alarm 1e-4."""
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = np.asarray(jax.jit(jax.vmap(lambda key: noise.random_subset(key, jnp.arange(8) < 5, 2)))(keys))
    assert (chosen.sum(axis=1) == 2).all() and not chosen[:, 5:].any()
    pairs = [(i, j) for j in range(5) for i in range(j)]
    check_chances([(chosen[:, i] & chosen[:, j]).sum() for i, j in pairs], np.full(10, 0.1))


@pytest.mark.parametrize("draws", [[3, 1, 2, 0, 4, 5], [7, 7, 7, 7, 7, 7], [5, 0, 5, 2**32 - 1, 0, 5], [2**32 - 1] * 6])
def test_the_lowest_draws_are_chosen_and_of_equal_ones_the_first(draws, monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda *given: jnp.array(draws, jnp.uint32))
    for count in range(7):
        expected = sorted(range(6), key=lambda place: draws[place])[:count]
        assert np.flatnonzero(noise.random_subset(None, jnp.ones(6, bool), count)).tolist() == sorted(expected)
    assert np.flatnonzero(noise.random_subset(None, jnp.arange(6) < 4, 9)).tolist() == [0, 1, 2, 3], (
        "no more than there are"
    )


@pytest.mark.parametrize(("length", "density"), [(511, 0.15), (511, 0.3), (64, 0.15), (9, 0.5), (2, 0.3)])
def test_the_bounds_of_independent_noise_are_six_standard_deviations(length, density):
    process = noise.iid(noise.Settings(length, density, 3.0))
    mean, deviation = length * density, (length * density * (1 - density)) ** 0.5
    assert process.most == min(length, int(np.ceil(mean + 6 * deviation)))
    assert process.least == max(0, int(np.floor(mean - 6 * deviation)))


def test_each_token_is_noise_with_the_density():
    """The share of noise among all tokens, first tokens and last tokens. False alarm 3e-4."""
    masks = _masks("token_masking", 400)
    assert build("token_masking", inputs_length=512).window == 511
    check_share(masks.sum(), masks.size, 0.3)
    for place in (0, -1):
        check_share(masks[:, place].sum(), len(masks), 0.3)


def test_runs_of_independent_noise_are_geometric():
    """P(k) = .85 · .15^(k - 1), for runs that begin far from the end of the window. False alarm 1e-4."""
    lengths = []
    for mask in _masks("iid_denoising", 400):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        lengths += [stop - start for start, stop in edges.reshape(-1, 2) if start < 490]
    chances = 0.85 * 0.15 ** np.arange(4)
    observed = np.bincount(np.minimum(lengths, 5), minlength=6)[1:]
    check_chances(observed, np.append(chances, 1 - chances.sum()))


def _masks(name, count):
    objective = build(name, inputs_length=512)
    return make(objective, windows(objective, count)).noise.mask


def test_no_token_ever_serves_as_a_sentinel():
    """16 sentinels are enough for 999 of 1000 windows. In eight of these 20,000 windows, some noise is turned off."""
    vocab = vocabulary(sentinels=16)
    objective = build("iid_denoising", vocab=vocab, inputs_length=64)
    tokens = np.repeat(windows(objective, 1, vocab=vocab), 20_000, axis=0)
    example = make(objective, tokens, vocab=vocab)
    spans = example.noise.starts.sum(axis=1)
    assert spans.max() == 15, "the last sentinel is for clean spans, which can be one more than noise spans"
    crowded = np.flatnonzero(spans == 15)
    assert len(crowded) > 8
    for i in crowded:
        targets = example.targets[i][example.targets_segment_ids[i] > 0].tolist()
        clean = [token for token in targets if token >= vocab.pieces]
        assert clean == [vocab.size - k for k in range(1, len(clean) + 1)] and len(clean) <= 16
        noise_tokens = [token for token in targets if token < vocab.pieces and token != EOS]
        assert noise_tokens == tokens[i][np.asarray(example.noise.mask[i])].tolist()


def test_two_sentinels_suffice_where_a_second_span_is_rare():
    vocab = vocabulary(sentinels=2)
    objective = build("iid_denoising", vocab=vocab, inputs_length=64, noise_density=0.001)
    example = make(objective, np.repeat(windows(objective, 1), 4000, axis=0), vocab=vocab)
    spans = example.noise.starts.sum(axis=1)
    assert spans.max() == 1 and (spans == 1).sum() > 100
    assert example.targets.max() < vocab.size


def test_a_tenth_of_the_noise_of_bert_style_becomes_a_random_piece():
    """All pieces of text are equally likely, and no other id is possible. False alarm 2e-4."""
    vocab = vocabulary(pieces=23)
    objective = build("bert_style", vocab=vocab, inputs_length=64)
    tokens = np.full((1000, objective.window), 5, np.int32)
    example = make(objective, tokens, vocab=vocab)
    assert (example.inputs[:, :-1][~example.noise.mask] == 5).all() and (example.targets[:, :-1] == 5).all()
    noise_tokens = example.inputs[:, :-1][example.noise.mask]
    random = noise_tokens[noise_tokens != vocab.size - 1]
    check_share(len(random), len(noise_tokens), 0.1)
    check_uniform(random, 3, 23)


def test_density_zero_is_no_noise():
    for name in ("iid_denoising", "text_infilling", "token_deletion"):
        objective = build(name, inputs_length=16, noise_density=0.0)
        for seen in examples(objective, windows(objective, 2)):
            assert seen.inputs == [*seen.window, EOS], name
            if name == "iid_denoising":
                assert seen.targets == [PLAIN.size - 1, EOS] and interleave(seen.inputs, seen.targets)


def test_a_prefix_ends_anywhere():
    """The split point is uniform in [1, L - 1]. False alarm 1e-4."""
    objective = build("prefix_lm", inputs_length=12)
    assert objective.window == 12, "inputs of at most 11 tokens and EOS"
    mask = make(objective, np.repeat(windows(objective, 1), 4000, axis=0)).noise.mask
    assert (np.diff(mask.astype(int), axis=1) >= 0).all(), "a suffix is noise"
    check_uniform(mask.argmax(axis=1), 1, 12)


def test_a_prefix_of_given_density_ends_where_it_says():
    for density, prefix in ((0.25, 48), (0.75, 16)):
        process = noise.suffix(noise.Settings(64, density, 3.0))
        mask = jax.jit(lambda key: process.sample(key, None, None).mask)(jax.random.key(0))  # noqa: B023 - at once
        assert mask.tolist() == [False] * prefix + [True] * (64 - prefix)

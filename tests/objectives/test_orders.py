"""Orders of a window: its sentences, uniform permutations, and rotation."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from t5lite.objectives import order
from tests.objectives.made import PLAIN, build, check_chances, check_uniform, examples, make, windows

STOPS = (3, 13)  # other tokens here are 4 … 9


@pytest.mark.parametrize(
    ("tokens", "numbers"),
    [
        ([4, 5, 3, 6, 3, 7, 8], [0, 0, 0, 1, 1, 2, 2]),
        ([4, 5, 3], [0, 0, 0]),
        ([4, 5, 6], [0, 0, 0]),
        (
            [4, 3, 3, 5, 3],
            [0, 0, 1, 1, 1],
        ),  # the first stop of a run ends a sentence; the other stops begin the next sentence
        ([4, 3, 13, 3, 5], [0, 0, 1, 1, 1]),
        ([3, 4, 3, 5], [0, 1, 1, 2]),
        ([3, 3, 3], [0, 1, 1]),
        ([3], [0]),
    ],
)
def test_sentences_end_with_the_first_of_several_stops(tokens, numbers):
    assert order.sentence_numbers(jnp.array(tokens), PLAIN.table).tolist() == numbers


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(st.sampled_from([*STOPS, 4, 5, 6]), min_size=12, max_size=12), seed=st.integers(0, 2**31))
def test_permuted_sentences_are_each_as_they_were(tokens, seed):
    numbers = order.sentence_numbers(jnp.array(tokens), PLAIN.table).tolist()
    parts = sorted([t for t, _ in group] for _, group in itertools.groupby(zip(tokens, numbers), lambda tn: tn[1]))  # noqa: B905
    permuted = _shuffle_sentences(jax.random.key(seed), jnp.array(tokens)).tolist()
    assert next(_arrangements(parts, permuted), None) is not None


_shuffle_sentences = jax.jit(lambda key, tokens: order.shuffle_sentences(key, tokens, PLAIN.table))


def _arrangements(parts, wanted):
    """Yield the orders of `parts` whose tokens, joined, are equal to `wanted`."""
    if not parts:
        yield []
    for i, part in enumerate(parts):
        if wanted[: len(part)] == part and part not in parts[:i]:
            for rest in _arrangements(parts[:i] + parts[i + 1 :], wanted[len(part) :]):
                yield [part, *rest]


def _check_permutations(sides, ways):
    """Check that all `ways` are equally likely. False alarm 1e-4."""
    sides = [tuple(side) for side in np.asarray(sides).tolist()]
    assert set(sides) == set(ways)
    check_chances([sides.count(way) for way in ways], np.full(len(ways), 1 / len(ways)))


def test_every_order_of_three_sentences_is_equally_likely():
    """Sentences have 1, 2 and 3 tokens. False alarm 1e-4."""
    parts = [(3,), (4, 13), (5, 6, 7)]
    tokens = jnp.array(sum(parts, ()))
    sides = jax.vmap(lambda key: _shuffle_sentences(key, tokens))(jax.random.split(jax.random.key(0), 3000))
    _check_permutations(sides, [sum(way, ()) for way in itertools.permutations(parts)])


def test_every_order_of_four_sentences_is_equally_likely():
    parts = [(4, 3), (5, 3), (6, 3), (7,)]
    tokens = jnp.array(sum(parts, ()))
    sides = jax.vmap(lambda key: _shuffle_sentences(key, tokens))(jax.random.split(jax.random.key(0), 6000))
    _check_permutations(sides, [sum(way, ()) for way in itertools.permutations(parts)])


def test_every_order_of_four_tokens_is_equally_likely():
    objective = build("deshuffling", inputs_length=5)
    tokens = np.repeat([[4, 5, 6, 7]], 6000, axis=0)
    example = make(objective, tokens)
    assert (example.targets[:, :4] == tokens).all()
    _check_permutations(example.inputs[:, :4], [*itertools.permutations([4, 5, 6, 7])])


def test_every_token_of_a_window_is_as_likely_to_become_its_first():
    """False alarm 1e-4."""
    objective = build("document_rotation", inputs_length=11)
    tokens = np.repeat(np.arange(4, 14)[None], 4000, axis=0)
    check_uniform(make(objective, tokens).inputs[:, 0], 4, 14)


def test_every_token_that_noise_left_is_as_likely_to_become_the_first():
    """A window of 10 tokens; each token is deleted with probability .3. False alarm 1e-4."""
    objective = build("bart", inputs_length=11, noises=["document_rotation", "token_deletion"])
    example = make(objective, np.repeat(np.arange(4, 14)[None], 6000, axis=0))
    clean = ~example.noise.mask
    left = clean.sum(axis=1)
    rank = np.array([np.flatnonzero(row).tolist().index(side[0] - 4) if row.any() else -1
                     for row, side in zip(clean, example.inputs, strict=True)])  # fmt: skip
    check_uniform(rank[left == 7], 0, 7)


def test_targets_are_the_window_in_its_own_order():
    for name in ("deshuffling", "sentence_permutation", "document_rotation", "bart"):
        objective = build(name)
        for seen in examples(objective, windows(objective, 16)):
            assert seen.targets[:-1] == seen.window and seen.inputs != seen.targets

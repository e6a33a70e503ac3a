"""Span corruption agrees with Google's code: lengths, counts, masks, inputs and targets."""

import collections
from math import comb

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from t5lite.config import base_config
from t5lite.objectives import noise, rules
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.lengths import corrupted_lengths, span_corruption_lengths
from t5lite.objectives.objective import make_batch, make_examples
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, Vocabulary

FIELDS = base_config().objective.to_dict() | {"inputs_length": 64}


@pytest.mark.parametrize(
    "inputs, density, mean, window, targets",
    [
        (64, 0.15, 3, 70, 14), (128, 0.15, 3, 141, 29), (256, 0.15, 3, 284, 58), (512, 0.15, 3, 568, 114),
        (1024, 0.15, 3, 1137, 229), (2048, 0.15, 3, 2274, 456), (64, 0.2, 2, 70, 22), (64, 0.2, 1, 63, 27),
        (512, 0.15, 8, 588, 100), (512, 0.5, 3, 766, 512), (512, 0.5, 8, 908, 512), (512, 0.15, 64, 600, 92),
        (512, 0.5, 64, 1006, 512), (512, 0.15, 32, 598, 94),
    ],
)  # fmt: skip
def test_lengths_are_those_of_the_original(inputs, density, mean, window, targets):
    assert span_corruption_lengths(inputs, density, mean) == (window, targets)
    assert corrupted_lengths(window, density, mean) == (inputs, targets)


def test_counts_are_rounded_in_float32_halves_to_even():
    assert noise.span_counts(568, 0.15, 3) == (85, 28)
    different = [n for n in range(2, 5000) if noise.span_counts(n, 0.15, 3)[0] != min(max(round(n * 0.15), 1), n - 1)]
    assert different[:4] == [190, 350, 390, 670]
    assert len(different) == 39


@pytest.mark.parametrize(
    "rule, expected",
    [
        (rules.noise_span_to_unique_sentinel, [999, 12, 13, 998, 15]),
        (rules.noise_span_to_same_sentinel, [999, 12, 13, 999, 15]),
        (rules.noise_token_to_same_sentinel, [999, 999, 12, 13, 999, 15]),
        (rules.drop_noise, [12, 13, 15]),
        (rules.nonnoise_span_to_unique_sentinel, [10, 11, 999, 14, 998]),
        (rules.nonnoise_span_to_same_sentinel, [10, 11, 999, 14, 999]),
        (rules.drop_nonnoise, [10, 11, 14]),
    ],
)
def test_rules_give_the_golden_sides(rule, expected):
    tokens = jnp.arange(10, 16)
    mask = jnp.array([True, True, False, False, True, False])
    ids = rules.Ids(size=1000, ordinary=np.arange(3, 900))
    side, count = rules.compact(*rule.apply(None, tokens, noise.make_noise(mask), ids), length=6)
    assert side[:count].tolist() == expected


def _sides(key, tokens, num_noise, num_spans, size):
    chosen = noise.make_noise(noise.random_spans(key, len(tokens), num_noise, num_spans))
    ids, room = rules.Ids(size, np.arange(3, 900)), 2 * len(tokens)
    inputs, targets = (
        rules.compact(*rule.apply(None, tokens, chosen, ids), room)
        for rule in (rules.noise_span_to_unique_sentinel, rules.nonnoise_span_to_unique_sentinel)
    )
    return chosen.mask, inputs, targets


@settings(max_examples=10, deadline=None)  # each compiles a program
@given(length=st.integers(2, 300), density=st.floats(0.01, 0.95), mean=st.floats(1.0, 20.0), seed=st.integers(0, 2**31))
def test_interleaving_both_sides_gives_the_window_back(length, density, mean, seed):
    size = 5000
    num_noise, num_spans = noise.span_counts(length, density, mean)
    tokens = jnp.arange(3, 3 + length)
    keys = jax.random.split(jax.random.key(seed), 8)
    sides = jax.jit(jax.vmap(lambda key: _sides(key, tokens, num_noise, num_spans, size)))(keys)
    masks, inputs_sides, targets_sides = jax.device_get(sides)
    for mask, inputs, n_inputs, targets, n_targets in zip(masks, *inputs_sides, *targets_sides, strict=True):
        inputs, targets = inputs[:n_inputs].tolist(), targets[:n_targets].tolist()
        assert mask.sum() == num_noise
        assert not mask[0] and mask[-1]
        assert np.sum(np.diff(mask.astype(int), prepend=0) == 1) == num_spans
        spans, here = {}, []
        for token in targets:
            if token >= size - num_spans:
                here = spans.setdefault(token, [])
            else:
                here.append(token)
        assert [t for token in inputs for t in spans.get(token, [token])] == tokens.tolist()
        assert targets[-1] < size - num_spans, "the targets must not end in a sentinel"


def _masks(count, length=568):
    num_noise, num_spans = noise.span_counts(length, 0.15, 3)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: noise.random_spans(key, length, num_noise, num_spans)))(
            jax.random.split(jax.random.key(0), count)
        )
    )


def test_span_lengths_are_those_of_uniform_partitions():
    """85 tokens in 28 spans: P(length k) = C(84 - k, 26) / C(84, 27). False alarm 1e-4."""
    lengths = collections.Counter()
    for mask in _masks(400):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        lengths.update((edges[1::2] - edges[::2]).tolist())
    # Lengths in one mask depend on each other, so the test uses only one span of each mask.
    firsts = []
    for mask in _masks(4000):
        start = int(np.argmax(mask))
        firsts.append(int(np.argmin(mask[start:])) or len(mask) - start)
    chances = np.array([comb(84 - k, 26) / comb(84, 27) for k in range(1, 12)])
    observed = np.array([sum(f == k for f in firsts) for k in range(1, 12)])
    observed = np.append(observed, len(firsts) - observed.sum())
    expected = np.append(chances, 1 - chances.sum()) * len(firsts)
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    total = sum(lengths.values())
    assert [round(100 * lengths[k] / total) for k in (1, 2, 3)] == pytest.approx([32, 22, 15], abs=2)


def test_every_partition_is_equally_likely():
    """6 items can be cut into 3 parts in 10 ways. False alarm 1e-4."""
    keys = jax.random.split(jax.random.key(1), 5000)
    parts = np.asarray(jax.jit(jax.vmap(lambda key: noise.random_partition(key, 6, 3)))(keys))
    counts = collections.Counter(map(tuple, parts.tolist()))
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_sides_end_in_eos_once_and_are_full():
    objective = make_objective(FIELDS, "encoder_decoder", Vocabulary.synthetic(1000, 100))
    rows = {"tokens": jnp.arange(3, 3 + 4 * objective.window).reshape(4, -1) % 900 + 3}
    batch = make_batch(objective, jax.random.split(jax.random.key(0), 4), rows, None)
    assert batch.inputs.shape == (4, 64) and batch.targets.shape == (4, 14)
    for side in (batch.inputs, batch.targets):
        assert (side[:, -1] == EOS).all() and (side == EOS).sum() == 4 and (side == 0).sum() == 0
    assert batch.targets[:, 0].tolist() == [1099] * 4
    assert (batch.decoder_inputs[:, 0] == 0).all() and (batch.decoder_inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert (batch.weights == 1).all()


def test_density_zero_leaves_inputs_and_a_lone_sentinel():
    objective = make_objective(FIELDS | {"noise_density": 0.0}, "encoder_decoder", Vocabulary.synthetic(1000, 100))
    rows = {"tokens": jnp.arange(3, 3 + objective.window)[None]}
    example = make_examples(objective, jax.random.split(jax.random.key(0), 1), rows, None)
    assert example.inputs[0].tolist() == [*range(3, 3 + 63), EOS]
    assert example.targets[0].tolist() == [1099, EOS]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"inputs_length": 1810}, "needs 101 sentinels"),
        ({"inputs_length": 512, "noise_density": 0.5}, "needs 128 sentinels"),
        ({"noise_density": 1.5}, "noise_density"),
        ({"mean_noise_span_length": 0.5}, "mean_noise_span_length"),
        ({"inputs_length": 1}, "inputs_length"),
        ({"name": "span_corruptio"}, "did you mean 'span_corruption'"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_objective(FIELDS | fields, "encoder_decoder", Vocabulary.synthetic(1000, 100))


def test_an_objective_without_meaning_on_an_architecture_is_refused():
    with pytest.raises(UserError, match="has no meaning"):
        make_objective(FIELDS, "encoder", Vocabulary.synthetic(1000, 100))

"""Rules for every objective on windows: no token is lost, sides are well formed, and the key decides the noise."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from t5lite.objectives.objective import example_keys, make_batch
from t5lite.system.vocabulary import EOS, MASK, PAD, UNKNOWN
from t5lite.training.sharding import batch_sharding, make_mesh
from tests.objectives.made import FALSE_ALARM, PLAIN, build, examples, is_stop, lay_out, make_with, rows_of, windows

SENTINELS = range(PLAIN.pieces, PLAIN.size)
SHUFFLING = ("deshuffling", "sentence_permutation", "document_rotation")
PARTS = ("span_corruption", "iid_denoising", "drop_tokens", "prefix_lm")
WHOLE = ("bert_style", "mass_style", "text_infilling", "token_masking", "token_deletion", "bart", *SHUFFLING)
ON_BOTH = (*PARTS, *WHOLE, "ul2")
MIXED = {"a": {"name": "iid_denoising"}, "b": {"name": "bart", "weight": 3.0, "mode": "[NLU]"}}
CASES = [
    *((name, architecture, {}) for name in ON_BOTH for architecture in ("encoder_decoder", "decoder")),
    *(("mixture", architecture, {"mixture": MIXED}) for architecture in ("encoder_decoder", "decoder")),
    ("causal_lm", "decoder", {}),
    ("fill_in_the_middle", "decoder", {}),
]
IDS = [f"{name}-{architecture}" for name, architecture, _ in CASES]


def split_at_sentinels(side, pieces=PLAIN.pieces):
    """Return the runs of tokens between sentinels. Check that the sentinels are the first, the second, … in order."""
    sentinels = [token for token in side if token in SENTINELS]
    assert sentinels == [PLAIN.size - k for k in range(1, len(sentinels) + 1)]
    return [
        list(run) for is_sentinel, run in itertools.groupby(side, lambda token: token in SENTINELS) if not is_sentinel
    ]


def interleave(inputs, targets):
    """Return the window that inputs and targets come from. They are joined at the sentinels."""
    sides = [split_at_sentinels(inputs), split_at_sentinels(targets)]
    if inputs[0] in SENTINELS:
        sides.reverse()
    return [token for pair in itertools.zip_longest(*sides, fillvalue=[]) for run in pair for token in run]


def sentences(tokens):
    """Split tokens into sentences. A sentence ends at a stop that follows no stop, and at the end of the window."""
    found = [[]]
    for before, token in zip([None, *tokens], tokens, strict=False):
        found[-1].append(token)
        if is_stop(token) and not (before and is_stop(before)):
            found.append([])
    return [sentence for sentence in found if sentence]


def check_sentences(permuted, window):
    """Check that `permuted` has all sentences of the window, in any order. All tokens are distinct."""
    left = {sentence[0]: sentence for sentence in sentences(window)}
    while permuted:
        sentence = left.pop(permuted[0])
        assert permuted[: len(sentence)] == sentence
        permuted = permuted[len(sentence) :]
    assert not left


def check_reconstruction(name, inputs, targets, window, noise):
    """Check that the window can be rebuilt from `inputs` and `targets` without EOS."""
    mask = np.asarray(noise.mask)
    clean = np.array(window)[~mask].tolist()
    kept = [token for token in inputs if token != PLAIN.specials[MASK]]
    if name in WHOLE:
        assert targets == window
    if name in ("span_corruption", "iid_denoising"):
        assert interleave(inputs, targets) == window
        if name == "span_corruption":
            assert inputs[0] not in SENTINELS and targets[-1] not in SENTINELS
    elif name in ("drop_tokens", "prefix_lm"):
        assert inputs == clean and targets == np.array(window)[mask].tolist()
    elif name in ("bert_style", "mass_style", "token_masking"):
        assert len(inputs) == len(window) and np.array(inputs)[~mask].tolist() == clean
        new = PLAIN.specials[MASK] if name == "token_masking" else PLAIN.size - 1
        random = [token for token in np.array(inputs)[mask] if token != new]
        assert not random if name != "bert_style" else all(UNKNOWN < token < PLAIN.pieces for token in random)
    elif name == "token_deletion":
        assert inputs == clean
    elif name == "text_infilling":
        assert kept == clean and len(inputs) - len(kept) == noise.starts.sum() + noise.inserts
    elif name == "bart":
        assert sorted(set(kept)) == sorted(kept) and set(kept) <= set(window)
        assert len(kept) == len(clean) and len(inputs) - len(kept) == noise.starts.sum() + noise.inserts
    elif name == "deshuffling":
        assert sorted(inputs) == sorted(window)
    elif name == "sentence_permutation":
        check_sentences(inputs, window)
    elif name == "document_rotation":
        first = window.index(inputs[0])
        assert inputs == window[first:] + window[:first]
    else:
        raise AssertionError(name)


def without_eos(side):
    assert side.count(EOS) == 1 and side[-1] == EOS
    return side[:-1]


@pytest.mark.parametrize("name", [*PARTS, *(name for name in WHOLE if name not in ("text_infilling", "bart"))])
def test_noise_comes_to_what_is_expected(name):
    """A normal test of the mean. If the number of noise tokens is fixed, the mean must be equal."""
    objective = build(name)
    made = make_with(objective, jax.random.split(jax.random.key(7), 2000), windows(objective, 2000))
    rates = np.asarray(made.noise.mask).mean(axis=1)
    error = rates.std() / np.sqrt(len(rates))
    assert abs(rates.mean() - objective.expected.density) <= max(stats.norm.isf(FALSE_ALARM / 2) * error, 1e-9)
    if objective.expected.span_length is not None:
        lengths = rates.sum() * objective.window / np.asarray(made.noise.starts).sum()
        assert lengths == pytest.approx(objective.expected.span_length, rel=0.05)


def test_each_example_of_a_run_has_a_key_of_its_own_whatever_the_batch_size():
    key = jax.random.key(0)
    small = [jax.random.key_data(example_keys(key, jnp.int32(step), 4)) for step in range(4)]
    large = [jax.random.key_data(example_keys(key, jnp.int32(step), 8)) for step in range(2)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))
    assert len(np.unique(np.concatenate(small), axis=0)) == 16


@pytest.mark.parametrize(
    ("name", "inputs_length"), [*((name, 64) for name in (*PARTS, *WHOLE)), *((name, 4) for name in (*PARTS, "bart"))]
)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_no_token_is_lost_and_eos_ends_each_side_once(name, inputs_length, seed):
    objective = build(name, inputs_length=inputs_length)
    for seen in examples(objective, windows(objective, 16, seed), seed):
        inputs, targets = without_eos(seen.inputs), without_eos(seen.targets)
        check_reconstruction(name, inputs, targets, seen.window, seen.noise)


@pytest.mark.parametrize(
    ("name", "architecture", "settings_of"),
    [
        # These are mixtures. On a decoder, their members have fast cases.
        pytest.param(
            *case, marks=[pytest.mark.slow] * (case[:2] in (("ul2", "decoder"), ("mixture", "decoder"))), id=name
        )
        for case, name in zip(CASES, IDS, strict=True)
    ],
)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_batches_are_well_formed(name, architecture, settings_of, seed):
    objective = build(name, architecture, **settings_of)
    encoder_length, decoder_length = objective.lengths
    for seen in examples(objective, windows(objective, 16, seed), seed):
        example, batch = seen.example, seen.batch
        assert example.inputs.shape == (objective.inputs_length,)
        assert example.targets.shape == (objective.targets_length,) == example.weights.shape
        padding = [0.0] * (objective.targets_length - len(seen.targets))
        assert example.weights.tolist() == [1.0] * len(seen.targets) + padding
        for side in (seen.inputs, seen.targets):
            assert all(PAD < token < PLAIN.rows for token in side)
        if architecture == "decoder":
            check_row(seen, decoder_length)
        else:
            assert batch.inputs.shape == (encoder_length,) and batch.targets.shape == (decoder_length,)
            assert (
                batch.inputs.tolist() == example.inputs.tolist() and batch.targets.tolist() == example.targets.tolist()
            )
            assert batch.weights.tolist() == example.weights.tolist()


def check_row(seen, length):
    """Check a decoder's row: inputs, then targets. Decoder inputs are one step behind; the loss is only on targets."""
    batch, row = seen.batch, seen.inputs + seen.targets
    padding = [0] * (length - len(row))
    assert batch.targets.tolist() == row + padding
    assert batch.decoder_inputs.tolist() == [PAD] + row[:-1] + padding
    assert batch.weights.tolist() == [0] * len(seen.inputs) + [1] * len(seen.targets) + padding
    if batch.targets_segment_ids is not None:
        assert batch.targets_segment_ids.tolist() == [1] * len(row) + padding
    if batch.prefix_mask is not None:
        prefix = len(seen.inputs) + 1 if seen.inputs else 0
        assert batch.prefix_mask.tolist() == [True] * prefix + [False] * (length - prefix)


@pytest.mark.parametrize("name", [*PARTS, *WHOLE])
def test_with_prefix_attention_a_decoder_sees_all_inputs(name):
    objective = build(name, "decoder", prefix_attention=True)
    for seen in examples(objective, windows(objective, 16)):
        assert seen.batch.prefix_mask.sum() == len(seen.inputs) + 1
        check_row(seen, objective.lengths[1])


def test_the_inputs_fill_the_length_that_was_asked_for():
    for name in (*PARTS, *WHOLE):
        for inputs_length in (4, 17, 64, 512):
            objective = build(name, inputs_length=inputs_length)
            assert objective.inputs_length == inputs_length, name


@pytest.mark.parametrize(("name", "architecture", "settings_of"), CASES, ids=IDS)
def test_an_example_depends_on_its_row_and_key_alone(name, architecture, settings_of):
    """At another index of the batch, the example is the same. With another key, it is different."""
    objective = build(name, architecture, **settings_of)
    tokens, keys = windows(objective, 16), jax.random.split(jax.random.key(0), 16)
    first, reversed_, other_keys = (
        make_with(objective, chosen_keys, chosen)
        for chosen_keys, chosen in ((keys, tokens), (keys[::-1], tokens[::-1]), (keys[::-1], tokens))
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), first, reversed_)
    if name == "causal_lm":
        jax.tree.map(np.testing.assert_array_equal, first, other_keys)
    else:
        sides = [np.concatenate([example.inputs, example.targets], axis=1) for example in (first, other_keys)]
        changed = (sides[0] != sides[1]).any(axis=1)
        assert changed.sum() >= 6, "not all: fill in the middle moves only half"


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("span_corruption", "encoder_decoder"),
        pytest.param("bart", "decoder", marks=pytest.mark.slow),
        ("fill_in_the_middle", "decoder"),
    ],
)
def test_a_batch_is_the_same_in_one_piece_row_by_row_and_over_eight_devices(name, architecture):
    objective = build(name, architecture)
    batch_of = jax.jit(lambda keys, rows: make_batch(objective, keys, rows, PLAIN.table))
    keys, rows = example_keys(jax.random.key(0), jnp.int32(3), 8), rows_of(objective, windows(objective, 8))
    together = batch_of(keys, rows)
    sharded = batch_of(*jax.device_put((keys, rows), batch_sharding(make_mesh(8, 1, 1))))
    assert len(sharded.targets.sharding.device_set) == 8
    alone = [batch_of(*jax.tree.map(lambda x: x[i : i + 1], (keys, rows))) for i in range(8)]  # noqa: B023
    alone = jax.tree.map(lambda *each: np.concatenate(each), *alone)
    in_two_steps = lay_out(objective, make_with(objective, keys, rows["tokens"]))
    for other in (sharded, alone, in_two_steps):
        jax.tree.map(np.testing.assert_array_equal, together, other)

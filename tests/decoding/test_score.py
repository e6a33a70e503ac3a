"""Scored targets have the log-probabilities of the model without a cache, and of generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding.generate import generate
from t5lite.decoding.score import SCORE_BY, count_units, find_likeliest, score_candidates, score_targets
from t5lite.decoding.settings import Settings
from tests.decoding.models import CONFIGS, LENGTHS, log_probs, model_and_params, prompts

TARGETS = np.array([[5, 0, 9, 1], [7, 1, 0, 0], [0, 0, 3, 0]])
TARGET_LENGTHS = np.array([4, 2, 3])


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_are_scored_token_by_token(name):
    prefix_attention = name == "t5_decoder"
    scores = score_targets(*model_and_params(name), prompts(), LENGTHS, TARGETS, TARGET_LENGTHS,
                           prefix_attention=prefix_attention)  # fmt: skip
    for row, length in enumerate(TARGET_LENGTHS):
        target = TARGETS[row, :length]
        expected = log_probs(name, row, target, prefix_attention)[np.arange(length), target]
        np.testing.assert_allclose(scores[row, :length], expected, atol=5e-5)
        assert (scores[row, length:] == 0).all()


@pytest.mark.parametrize("prepend_start", [True, False])
def test_what_was_generated_is_scored_as_it_was_then(prepend_start):
    model, params = model_and_params("decoder")
    settings = Settings(6, num_beams=3, num_return=3, length_penalty=0.8)
    options = dict(prepend_start=prepend_start)
    found = jax.device_get(generate(model, params, prompts(), LENGTHS, settings, eos=7, **options))
    for answer in range(3):
        logprobs = score_targets(model, params, prompts(), LENGTHS, found.tokens[:, answer], found.lengths[:, answer],
                                 **options)  # fmt: skip
        np.testing.assert_allclose(found.logprobs[:, answer], logprobs, atol=5e-5)
        scores = logprobs.sum(axis=1) / found.lengths[:, answer] ** 0.8
        np.testing.assert_allclose(found.scores[:, answer], scores, rtol=1e-4)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("name", ["encoder_decoder", "decoder"])
def test_the_tokens_of_a_greedy_answer_are_the_likeliest(name):
    model, params = model_and_params(name)
    found = jax.device_get(generate(model, params, prompts(), LENGTHS, Settings(5), eos=7))
    targets, lengths = found.tokens[:, 0].copy(), found.lengths[:, 0]
    logprobs, is_likeliest = find_likeliest(model, params, prompts(), LENGTHS, targets, lengths)
    assert is_likeliest.all()
    np.testing.assert_allclose(logprobs, found.logprobs[:, 0], atol=5e-5)
    targets[:, 0] += 1
    _, is_likeliest = find_likeliest(model, params, prompts(), LENGTHS, targets, lengths)
    assert not is_likeliest[:, 0].any()


def test_the_same_candidates_for_all_rows():
    model, params = model_and_params("encoder_decoder")
    scores = score_candidates(model, params, prompts(), LENGTHS, TARGETS, TARGET_LENGTHS)
    for row in range(3):
        for candidate, length in enumerate(TARGET_LENGTHS):
            target = TARGETS[candidate, :length]
            expected = log_probs("encoder_decoder", row, target)[np.arange(length), target].sum()
            np.testing.assert_allclose(scores[row, candidate], expected, rtol=1e-4)


def test_candidates_of_their_own_for_each_row():
    model, params = model_and_params("decoder")
    candidates = np.stack([TARGETS, TARGETS[::-1], TARGETS[[1, 1, 0]]])
    lengths = np.stack([TARGET_LENGTHS, TARGET_LENGTHS[::-1], TARGET_LENGTHS[[1, 1, 0]]])
    scores = score_candidates(model, params, prompts(), LENGTHS, candidates, lengths)
    shared = score_candidates(model, params, prompts(), LENGTHS, TARGETS, TARGET_LENGTHS)
    for row, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 1, 0])):
        np.testing.assert_allclose(scores[row], shared[row][jnp.array(order)], rtol=1e-5)


def count_flops(jaxpr):
    """Return the operations of the matrix products in a program. The body of a scan counts once for each turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * depth * np.prod(equation.outvars[0].aval.shape)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                total += turns * count_flops(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("name", ["encoder_decoder", "decoder"])
def test_inputs_are_read_once_for_all_candidates(name):
    """The work grows by the same amount with each candidate, and the inputs are no part of that amount."""
    model, params = model_and_params(name)

    def flops(length, candidates):
        given = (np.zeros((2, length), np.int32), np.full(2, length), np.zeros((candidates, 3), np.int32),
                 np.full(candidates, 3))  # fmt: skip
        return count_flops(jax.make_jaxpr(lambda *x: score_candidates(model, params, *x))(*given).jaxpr)

    for length in (20, 200):
        one, two, nine = (flops(length, n) for n in (1, 2, 9))
        assert nine - one == pytest.approx(8 * (two - one))
    # 180 more tokens of inputs: a candidate only attends to them.
    attention = (flops(200, 2) - flops(200, 1)) - (flops(20, 2) - flops(20, 1))
    reading = flops(200, 1) - flops(20, 1)
    assert 0 < attention < reading / 50


def test_units_of_scores():
    texts, num_tokens = ["a", "é!", ""], [2, 4, 1]
    units = {name: count_units(name, texts, num_tokens).tolist() for name in SCORE_BY}
    assert units == {"sum": [1, 1, 1], "token": [2, 4, 1], "byte": [1, 3, 1]}

"""Scored targets have the log-probabilities of the model without a cache, and of generation."""

import jax
import numpy as np
import pytest

from t5lite.decoding.generate import generate
from t5lite.decoding.score import score_candidates, score_targets
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


def test_the_same_candidates_for_all_rows():
    model, params = model_and_params("encoder_decoder")
    scores = score_candidates(model, params, prompts(), LENGTHS, TARGETS, TARGET_LENGTHS)
    for row in range(3):
        for candidate, length in enumerate(TARGET_LENGTHS):
            target = TARGETS[candidate, :length]
            expected = log_probs("encoder_decoder", row, target)[np.arange(length), target].sum()
            np.testing.assert_allclose(scores[row, candidate], expected, rtol=1e-4)

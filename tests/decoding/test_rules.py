"""The rules of a released model for answers: stops, forced and forbidden tokens. They hold for all settings."""

import numpy as np
import pytest

from t5lite.decoding.generate import generate
from t5lite.decoding.settings import Settings
from t5lite.system.errors import UserError
from tests.decoding.models import LENGTHS, NEVER, log_probs, model_and_params, prompts
from tests.decoding.test_beams import search_by_the_rules

STEPS = 5
ALLOWED = [3, 7, 20, 41, 60, 77, 90, 111]
NAMES = ("encoder_decoder", "decoder")
SETTINGS = [Settings(STEPS), Settings(STEPS, num_beams=3), Settings(STEPS, temperature=1e-4)]


def answers(name, settings, **options):
    """Return (tokens of the best answer, its score) for each row."""
    import jax

    keys = jax.random.split(jax.random.key(0), len(LENGTHS)) if settings.sampled else None
    options = {"eos": NEVER, "allowed": np.isin(np.arange(128), ALLOWED)} | options
    found = generate(*model_and_params(name), prompts(), LENGTHS, settings, keys=keys, **options)
    return [(found.tokens[row, 0, : found.lengths[row, 0]].tolist(), found.scores[row, 0]) for row in range(3)]


def greedy(name, row, allowed_ids):
    tokens = []
    for step in range(STEPS):
        scores = log_probs(name, row, tokens)[-1]
        tokens.append(max(allowed_ids(step), key=lambda token: scores[token]))
    return tokens


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "encoder_decoder")) for name in NAMES]
)
def test_each_of_several_stops_ends_an_answer(name):
    free = [tokens for tokens, _ in answers(name, Settings(STEPS))]
    for settings in (SETTINGS[0], SETTINGS[2]):
        for row, (tokens, _) in enumerate(answers(name, settings, eos=(NEVER, free[0][1], 7))):
            end = next((i for i, token in enumerate(free[row]) if token in (free[0][1], 7)), STEPS - 1)
            assert tokens == free[row][: end + 1]
    for tokens, _ in answers(name, SETTINGS[1], eos=(free[0][1], 7)):
        assert not {free[0][1], 7} & set(tokens[:-1])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("encoder_decoder", SETTINGS[0], id="greedy-encoder_decoder"),
        pytest.param("decoder", SETTINGS[2], id="samples-decoder"),
        pytest.param("decoder", SETTINGS[0], marks=pytest.mark.slow, id="greedy-decoder"),
        pytest.param("encoder_decoder", SETTINGS[2], marks=pytest.mark.slow, id="samples-encoder_decoder"),
    ],
)
def test_what_is_forced_comes_and_what_is_forbidden_does_not(name, settings):
    free = [tokens for tokens, _ in answers(name, settings)]
    rules = {"first": 99, "last": 98, "never_first": (free[0][1], 20)}

    def allowed_ids(step):
        if step in (0, STEPS - 1):
            return [99 if step == 0 else 98]
        return [token for token in ALLOWED if step > 1 or token not in rules["never_first"]]

    for row, (tokens, _) in enumerate(answers(name, settings, **rules)):
        assert tokens == greedy(name, row, allowed_ids)
    begin = {"never_first": (free[0][0],)}
    for row, (tokens, _) in enumerate(answers(name, settings, **begin)):
        assert tokens == greedy(name, row, lambda step: [t for t in ALLOWED if step or t != free[0][0]])


@pytest.mark.parametrize(("length_penalty", "early_stopping"), [(1.0, False), (2.0, True), (-1.0, "never")])
@pytest.mark.parametrize("name", NAMES)
def test_beams_count_nothing_for_what_is_forced(name, length_penalty, early_stopping):
    """The same as in transformers. EOS is one of the few ids, so that answers of several lengths compete."""
    settings = Settings(STEPS, num_beams=3, length_penalty=length_penalty, early_stopping=early_stopping)
    given = {"eos": 20, "first": 111, "last": 20, "allowed": np.isin(np.arange(128), ALLOWED)}

    def forced(row):
        def scores(tokens):
            found = log_probs(name, row, tokens)[-1].copy()
            if len(tokens) in (0, STEPS - 1):
                found[:] = -np.inf
                found[111 if not tokens else 20] = 0.0
            return found

        return scores

    for row, (tokens, score) in enumerate(answers(name, settings, **given)):
        expected_score, expected = search_by_the_rules(forced(row), 3, length_penalty, early_stopping)[0]
        assert tokens == expected
        np.testing.assert_allclose(score, expected_score, rtol=1e-4)


def test_a_prefix_keeps_its_place_and_nothing_at_all_is_refused():
    (tokens, _), *_ = answers("encoder_decoder", Settings(STEPS), first=99, prefixes=[[99, 60, 60], [], [99, 3]])
    assert tokens[:3] == [99, 60, 60]
    with pytest.raises(UserError, match="every id is suppressed"):
        answers("decoder", Settings(STEPS), allowed=np.zeros(128, bool))
    with pytest.raises(UserError, match="every id is suppressed"):
        answers("decoder", Settings(STEPS), never_first=ALLOWED)

"""Shortest length, n-grams that may not occur twice, and a forced first id: the same answers as transformers."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import numpy as np
import pytest

from t5lite.decoding.generate import Generation, generate, pad_rows
from t5lite.decoding.settings import Settings
from t5lite.interop.released import open_released
from t5lite.model.transformer import Transformer
from t5lite.system.errors import UserError
from tests.decoding.constraint_reference import CASES, MODELS, NEW_TOKENS, ROWS, ask, rows_of, weights
from tests.decoding.models import LENGTHS, NEVER, model_and_params, prompts
from tests.interop.own_outputs import params_of
from tests.interop.test_parity import live
from tests.interop.variants import write_folder

VECTORS = np.load(pathlib.Path(__file__).with_name("constraint_vectors.npz"))


@functools.cache
def model_of(name):
    with tempfile.TemporaryDirectory() as folder:
        released = open_released(write_folder(pathlib.Path(folder), MODELS[name], weights(name)))
        return Transformer(released.model), jax.tree.map(jax.numpy.asarray, params_of(released))


def answers(name, case, eos, **changes):
    """Return {row: (tokens of each answer, scores)} for all rows of the reference, which are padded here."""
    first = {"first": case["forced_bos"]} if "forced_bos" in case else {}
    fields = {key: value for key, value in case.items() if key != "forced_bos"} | changes
    settings = Settings(NEW_TOKENS, num_return=fields.get("num_beams", 1), **fields)
    inputs, lengths = pad_rows(ROWS)
    keys = jax.random.split(jax.random.key(0), len(inputs)) if settings.sampled else None
    found = jax.device_get(
        generate(*model_of(name), inputs, lengths, settings, eos=int(eos), keys=keys, prepend_start=False, **first)
    )
    return {row: (found.tokens[row], found.scores[row]) for row in rows_of(name, case)}


def assert_same(found, expected, eos):
    for row, (tokens, scores) in found.items():
        expected_tokens, expected_scores = expected[row]
        ended = np.cumsum(expected_tokens == eos, axis=-1) - (expected_tokens == eos) > 0
        np.testing.assert_array_equal(tokens, np.where(ended, 0, expected_tokens))
        if expected_scores is not None:
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-4)


def stored(name, index):
    keys = {row: f"{name}/{index}/{row}" for row in rows_of(name, CASES[index])}
    return {row: (VECTORS[f"{key}/tokens"], VECTORS.get(f"{key}/scores")) for row, key in keys.items()}


SLOW = {"encoder_decoder": (1, 2, 4, 6), "decoder": (0, 1, 4, 5)}  # cases of which another one has all parts


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param(name, index, marks=[pytest.mark.slow] * (index in SLOW[name]))
        for name in MODELS
        for index in range(len(CASES))
    ],
)
def test_constrained_answers_equal_the_vectors_of_transformers(name, index):
    eos = VECTORS[f"{name}/eos"]
    assert_same(answers(name, CASES[index], eos), stored(name, index), eos)


@pytest.mark.parametrize("name", MODELS)
def test_samples_follow_the_same_constraints(name):
    """At a temperature near 0 a sample is the likeliest token, so it is the greedy answer of transformers."""
    eos = VECTORS[f"{name}/eos"]
    assert_same(answers(name, CASES[3], eos, temperature=1e-4), stored(name, 3), eos)


@live
@pytest.mark.parametrize("name", MODELS)
def test_constrained_answers_equal_transformers_side_by_side(name):
    from tests.interop.make_vectors import reference_model

    model, eos = reference_model(MODELS[name], weights(name)), int(VECTORS[f"{name}/eos"])
    for case in CASES:
        assert_same(answers(name, case, eos), ask(model, name, case, eos), eos)


def ngrams(ids, size):
    return [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]


SAMPLES, BEAMS = dict(temperature=0.7, num_return=3), dict(num_beams=4, num_return=4)


@pytest.mark.parametrize(
    ("name", "size", "ids", "fields"),
    [
        pytest.param("decoder", 1, 40, SAMPLES, id="1-samples-decoder"),
        pytest.param("decoder", 2, 8, BEAMS, id="2-beams-decoder"),
        pytest.param("encoder_decoder", 3, 4, SAMPLES, marks=pytest.mark.slow, id="3-samples-encoder_decoder"),
        pytest.param("encoder_decoder", 5, 3, BEAMS, marks=pytest.mark.slow, id="5-beams-encoder_decoder"),
    ],
)
def test_no_answer_repeats_an_ngram_of_itself_or_of_its_prompt(name, size, ids, fields):
    """Rows are padded, and answers are made of few ids. So without the rule, they repeat."""
    allowed, steps = np.isin(np.arange(128), range(3, 3 + ids)), 15
    keys, repeated = jax.random.split(jax.random.key(0), len(LENGTHS)), {0: 0, size: 0}
    for tried in repeated:
        settings = Settings(steps, no_repeat_ngram_size=tried, **fields)
        given = {"eos": NEVER, "keys": keys, "allowed": allowed}
        found = jax.device_get(generate(*model_and_params(name), prompts(), LENGTHS, settings, **given))
        for row, tokens_RxM in enumerate(found.tokens):
            read = [0, *prompts()[row, : LENGTHS[row]].tolist()] if name == "decoder" else [0]
            for tokens in tokens_RxM.tolist():
                repeated[tried] += len(ngrams([*read, *tokens], size)) - len(set(ngrams([*read, *tokens], size)))
            repeated[tried] -= len(tokens_RxM) * (len(ngrams(read, size)) - len(set(ngrams(read, size))))
    assert repeated[size] == 0 < repeated[0]


def test_a_cache_that_grows_and_a_row_alone_change_nothing(monkeypatch):
    settings = Settings(9, no_repeat_ngram_size=2, num_beams=3, min_new_tokens=7)
    model, params = model_and_params("decoder")
    whole = jax.device_get(generate(model, params, prompts(), LENGTHS, settings, eos=7))
    alone = jax.device_get(generate(model, params, prompts()[1:2, : LENGTHS[1]], LENGTHS[1:2], settings, eos=7))
    np.testing.assert_array_equal(alone.tokens[0], whole.tokens[1])
    monkeypatch.setattr("t5lite.decoding.generate.FIRST_SLOTS", 2 * settings.streams)
    grown = jax.device_get(generate(model, params, prompts(), LENGTHS, settings, eos=7))
    np.testing.assert_array_equal(grown.tokens, whole.tokens)


def test_in_pieces_a_constrained_answer_is_the_same():
    model, params = model_and_params("decoder")
    settings = Settings(8, no_repeat_ngram_size=1, min_new_tokens=5)
    generation = Generation(model, params, prompts(), LENGTHS, settings, eos=7)
    for _ in generation.pieces(every=3):
        pass
    np.testing.assert_array_equal(
        generation.result().tokens, generate(model, params, prompts(), LENGTHS, settings, eos=7).tokens
    )


def test_a_rule_that_leaves_no_id_is_ignored_for_that_token():
    allowed = np.isin(np.arange(128), [3, 7, 20])
    for settings in (Settings(6, no_repeat_ngram_size=1), Settings(6, no_repeat_ngram_size=1, num_beams=2)):
        found = generate(*model_and_params("encoder_decoder"), prompts(), LENGTHS, settings, eos=NEVER, allowed=allowed)
        assert found.lengths.tolist() == [[6]] * 3 and set(np.unique(found.tokens)) == {3, 7, 20}


def test_another_shortest_length_needs_no_other_program():
    one, numbers = Settings(min_new_tokens=3).split()
    assert one == Settings(min_new_tokens=9).split()[0] and numbers == {"min_new_tokens": 3}
    assert Settings(min_new_tokens=0, no_repeat_ngram_size=0).split()[1] == {}


def test_what_the_model_decides_holds_unless_it_is_set():
    usual = {"min_new_tokens": 5, "no_repeat_ngram_size": 3}
    assert Settings().complete(usual) == Settings(min_new_tokens=5, no_repeat_ngram_size=3)
    assert Settings(min_new_tokens=0, no_repeat_ngram_size=2).complete(usual).no_repeat_ngram_size == 2
    assert Settings(min_new_tokens=0).complete(usual).min_new_tokens == 0
    assert Settings(4).complete(usual).min_new_tokens == 4, "a short answer is as long as it may be"
    assert Settings().complete({}) == Settings(min_new_tokens=0, no_repeat_ngram_size=0)
    given = {"usual_settings": {"no_repeat_ngram_size": 1}, "eos": NEVER}
    found = generate(*model_and_params("encoder_decoder"), prompts(), LENGTHS, Settings(20), **given)
    assert all(len(set(row.tolist())) == 20 for row in found.tokens[:, 0])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (dict(min_new_tokens=-1), "min_new_tokens=-1"),
        (dict(min_new_tokens=65), "min_new_tokens=65 is above max_new_tokens=64"),
        (dict(no_repeat_ngram_size=1.0), "no_repeat_ngram_size=1.0"),
        (dict(no_repeat_ngram_size=1025), "at most 1,024"),
    ],
)
def test_constraints_that_cannot_hold_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Settings(**fields)


def test_only_ids_that_end_an_answer_are_too_few():
    only_stops = {"eos": (7, 9), "allowed": np.isin(np.arange(128), [7, 9])}
    settings = Settings(6, min_new_tokens=2)
    with pytest.raises(UserError, match="every id is suppressed"):
        generate(*model_and_params("decoder"), prompts(), LENGTHS, settings, **only_stops)
    free = dataclasses.replace(settings, min_new_tokens=None)
    assert generate(*model_and_params("decoder"), prompts(), LENGTHS, free, **only_stops).lengths.max() == 1

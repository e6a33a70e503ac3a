"""Beam search equals that of transformers: stored vectors, a direct comparison, and the rules in plain Python."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.decoding.beams import top_k_by_blocks
from t5lite.decoding.generate import generate
from t5lite.decoding.settings import Settings
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from tests.decoding import beam_reference
from tests.decoding.models import CONFIGS, LENGTHS, log_probs, model_and_params, prompts
from tests.model.t5_reference import to_ours

VECTORS = np.load(pathlib.Path(__file__).with_name("beam_vectors.npz"))
STEPS = 5
# A few ids, with EOS among them, so that answers end at different lengths.
ALLOWED, EOS = [3, 7, 20, 41, 60, 77, 90, 111], 20


def search_by_the_rules(next_log_probs, beams, length_penalty, early_stopping, stops=(EOS,)):
    """Return [(score, tokens)], the best first; see `t5lite.decoding.beams`."""
    running, hypotheses = [(0.0, [])], []
    for length in range(1, STEPS + 1):
        candidates = []
        for total, tokens in running:
            log_probs_V = next_log_probs(tokens)
            candidates += [(total + log_probs_V[token], [*tokens, token]) for token in ALLOWED]
        candidates = sorted(candidates, key=lambda each: -each[0])[: (1 + len(stops)) * beams]
        ends = [tokens[-1] in stops or length == STEPS for _, tokens in candidates]
        ended = [each for each, end in zip(candidates[:beams], ends[:beams], strict=True) if end]
        hypotheses += [(total / length**length_penalty, tokens) for total, tokens in ended]
        hypotheses = sorted(hypotheses, key=lambda each: -each[0])[:beams]
        running = [each for each, end in zip(candidates, ends, strict=True) if not end][:beams]
        if length == STEPS or (len(hypotheses) == beams and early_stopping is True):
            break
        reach = STEPS if early_stopping == "never" and length_penalty > 0 else length
        if len(hypotheses) == beams and running[0][0] / reach**length_penalty <= hypotheses[-1][0]:
            break
    return hypotheses


ONE, MANY = (EOS,), (EOS, 3, 7, 41, 60, 77)
KINDS = [("encoder_decoder", 1.0, False), ("encoder_decoder", 1.5, "never"), ("encoder_decoder", 0.0, True),
         ("decoder", 1.0, True), ("decoder", -1.0, "never"), ("t5_decoder", 0.7, False)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "length_penalty", "early_stopping", "stops"),
    [
        # Alternately with one and with many stops.
        pytest.param(
            *kind,
            stops,
            marks=[pytest.mark.slow] * ((index % 2 == 0) == (stops == MANY)),
            id="-".join(map(str, (*kind, "one stop" if stops == ONE else "many stops"))),
        )
        for index, kind in enumerate(KINDS)
        for stops in (ONE, MANY)
    ],
)
def test_beams_follow_the_rules(name, length_penalty, early_stopping, stops):
    beams = 3
    settings = Settings(STEPS, num_beams=beams, num_return=beams, length_penalty=length_penalty,
                        early_stopping=early_stopping)  # fmt: skip
    found = generate(*model_and_params(name), prompts(), LENGTHS, settings, eos=stops,
                     allowed=np.isin(np.arange(128), ALLOWED))  # fmt: skip
    for row in range(3):
        expected = search_by_the_rules(
            lambda tokens, row=row: log_probs(name, row, tokens)[-1], beams, length_penalty, early_stopping, stops
        )
        for answer, (score, tokens) in enumerate(expected):
            assert found.tokens[row, answer, : found.lengths[row, answer]].tolist() == tokens
            np.testing.assert_allclose(found.scores[row, answer], score, rtol=1e-4)


def ours(case, eos):
    model = Transformer(beam_reference.CONFIG)
    params = jax.tree.map(jnp.asarray, to_ours(beam_reference.weights(), beam_reference.CONFIG))
    settings = Settings(beam_reference.NEW_TOKENS, num_return=case["num_beams"], **case)
    return jax.device_get(
        generate(model, params, beam_reference.inputs(), beam_reference.LENGTHS, settings, eos=int(eos))
    )


def assert_same(found, tokens, scores):
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-4)
    counted = np.arange(beam_reference.NEW_TOKENS) < found.lengths[..., None]
    np.testing.assert_array_equal(np.where(counted, tokens, 0), found.tokens)


@pytest.mark.parametrize("index", range(len(beam_reference.CASES)))
def test_beams_equal_the_vectors_of_transformers(index):
    found = ours(beam_reference.CASES[index], VECTORS["eos"])
    assert_same(found, VECTORS[f"tokens_{index}"], VECTORS[f"scores_{index}"])


def test_beams_equal_transformers_side_by_side():
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from tests.model.make_vectors import reference_model

    model, eos = reference_model(beam_reference.CONFIG, beam_reference.weights()), int(VECTORS["eos"])
    for case in beam_reference.CASES:
        assert_same(ours(case, eos), *beam_reference.ask(model, case, eos))


def test_the_search_with_one_beam_is_greedy():
    """Run `beams.search` with one beam. `generate` does not use it for one beam."""
    from t5lite.decoding import generate as module

    model, params = model_and_params("decoder")
    settings = Settings(STEPS, early_stopping=True)
    greedy = generate(model, params, prompts(), LENGTHS, settings, eos=EOS)
    request = module.streams.Request(jnp.ones((1, 128), bool), {})
    state = module._begin(model, params, jnp.asarray(prompts(), jnp.int32), jnp.asarray(LENGTHS, jnp.int32), room=STEPS,
                          settings=settings, prefix_attention=False, start=0)  # fmt: skip
    state = state.replace(search=module.beams.begin_search(state.answers))
    weights = module.step_weights(model, params)

    @jax.jit
    def step(state):
        logits, state = module.streams.read(model, params, weights, settings, state)
        return module.beams.search(settings, request, (EOS,), logits, state)

    for _ in range(STEPS):
        state = step(state)
    found = state.search.hypotheses
    np.testing.assert_array_equal(found.lengths_BxR, greedy.lengths)
    np.testing.assert_array_equal(found.tokens_BxRxM, greedy.tokens)
    np.testing.assert_allclose(found.logprobs_BxRxM, greedy.logprobs, rtol=1e-5)


@pytest.mark.parametrize("size", [2048, 1600, 1537, 130, 127])
@pytest.mark.parametrize("kind", ["distinct", "ties", "few", "none"])
def test_the_best_of_many_are_found_by_blocks(size, kind):
    x = jax.random.normal(jax.random.key(0), (3, size))
    x = jnp.round(x) if kind == "ties" else x
    forbidden = {"few": jnp.arange(size) % 700 != 5, "none": jnp.ones(size, bool)}.get(kind, jnp.zeros(size, bool))
    x = jnp.where(forbidden, -jnp.inf, x)
    for k in (1, 6, 12):
        for found, expected in zip(top_k_by_blocks(x, k), jax.lax.top_k(x, k), strict=True):
            np.testing.assert_array_equal(found, expected)


ANY_SIZE = 37  # an odd size of the vocabulary


@functools.cache
def model_of_any_size():
    config = dataclasses.replace(CONFIGS["decoder"], vocab_size=ANY_SIZE)
    model, ids = Transformer(config), jnp.zeros((1, 4), jnp.int32)
    params = model.init(jax.random.key(0), Batch(targets=ids, weights=ids, decoder_inputs=ids))["params"]
    return model, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), params)


@pytest.mark.parametrize("beams", [2, 3, 7, 40, 100])
@pytest.mark.parametrize("allowed", [3, ANY_SIZE])
def test_any_number_of_beams_over_any_vocabulary(beams, allowed):
    """There can be more beams than allowed ids. Then the search returns every possible answer once."""
    model, params = model_of_any_size()
    steps = 3
    settings = Settings(steps, num_beams=beams, num_return=beams)
    given = np.isin(np.arange(ANY_SIZE), np.arange(5, 5 + allowed) % ANY_SIZE)
    eos = 5
    found = generate(model, params, np.array([[3, 9]]), np.array([2]), settings, eos=eos, allowed=given)
    answers = [tuple(row[:length].tolist()) for row, length in zip(found.tokens[0], found.lengths[0], strict=True)]
    answers = [answer for answer in answers if answer]
    possible = sum((allowed - 1) ** n for n in range(steps)) + (allowed - 1) ** steps
    assert len(set(answers)) == len(answers) == min(beams, possible)
    assert given[np.concatenate(answers)].all() and np.isfinite(found.logprobs).all()
    scores = np.asarray(found.scores[0, : len(answers)])
    assert (np.diff(scores) <= 0).all() and scores[-1] > -1e3

"""Generation with a cache equals generation without a cache. A row's answer does not depend on other rows or pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5lite.decoding.generate import Generation, generate, pad_rows
from t5lite.decoding.settings import Settings
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.system.errors import UserError
from tests.decoding.models import LENGTHS, NEVER, SMALL, STEPS, log_probs, model_and_params, prompts

GREEDY = Settings(max_new_tokens=STEPS)
SAMPLED = Settings(max_new_tokens=STEPS, temperature=0.7, num_return=2)
BEAMS = Settings(max_new_tokens=STEPS, num_beams=3, num_return=3)
KEYS = jax.random.split(jax.random.key(5), 3)


def run(name, settings=GREEDY, rows=slice(None), **options):
    """Generate answers to `rows`. Return them as NumPy arrays."""
    options = {"eos": NEVER, "keys": KEYS[rows], **options}
    return jax.device_get(generate(*model_and_params(name), prompts()[rows], LENGTHS[rows], settings, **options))


def tokens_of(generated, row, answer=0):
    return generated.tokens[row, answer, : generated.lengths[row, answer]].tolist()


@pytest.mark.parametrize(
    ("name", "prefix_attention", "start"),
    [("encoder_decoder", False, [0]), ("encoder_decoder", False, [9]), ("decoder", False, [0]), ("decoder", False, []),
     ("t5_decoder", True, [0]), ("t5_decoder", True, [])],
)  # fmt: skip
def test_greedy_with_cache_equals_the_whole_model(name, prefix_attention, start):
    generated = run(name, prefix_attention=prefix_attention, start=(start or [0])[0], prepend_start=bool(start))
    for row in range(3):
        tokens = tokens_of(generated, row)
        expected = log_probs(name, row, tokens, prefix_attention, start)[:STEPS]
        assert tokens == expected.argmax(axis=1).tolist()
        np.testing.assert_allclose(generated.logprobs[row, 0], expected.max(axis=1), atol=2e-5)
        np.testing.assert_allclose(generated.scores[row, 0], expected.max(axis=1).sum(), atol=1e-4)
    assert (
        len(set(generated.tokens.ravel().tolist())) > 3
    )  # Answers have several different tokens, so errors are visible.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("encoder_decoder", BEAMS),
        ("decoder", SAMPLED),
        ("t5_decoder", GREEDY),
        pytest.param("t5_decoder", BEAMS, marks=pytest.mark.slow),
    ],
)
def test_a_row_is_what_it_is_alone_and_in_any_bucket(name, settings):
    together = run(name, settings, prefix_attention=True)
    model, params = model_and_params(name)
    for prompt in (prompts()[1:2, : LENGTHS[1]], np.pad(prompts()[1:2], ((0, 0), (0, 9)))):
        alone = generate(model, params, prompt, LENGTHS[1:2], settings, keys=KEYS[1:2], prefix_attention=True,
                         eos=NEVER)  # fmt: skip
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
        np.testing.assert_allclose(alone.scores[0], together.scores[1], rtol=1e-4)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_in_pieces_it_is_the_same_bit_for_bit(settings):
    model, params = model_and_params("decoder")
    options = dict(keys=KEYS, eos=int(run("decoder").tokens[1, 0, 3]))
    generation = Generation(model, params, prompts(), LENGTHS, settings, **options)
    pieces = list(generation.pieces(every=4))
    assert [piece.lengths.max() for piece in pieces] == [4, 6]
    for each, whole in zip(generation.result(), run("decoder", settings, **options), strict=True):
        np.testing.assert_array_equal(each, whole)


@pytest.mark.parametrize(
    ("name", "settings"), [("encoder_decoder", BEAMS), ("decoder", SAMPLED), ("t5_decoder", GREEDY)]
)
def test_a_cache_that_grows_changes_nothing(monkeypatch, name, settings):
    whole = run(name, settings)
    monkeypatch.setattr("t5lite.decoding.generate.FIRST_SLOTS", 2 * settings.streams)
    generation = Generation(*model_and_params(name), prompts(), LENGTHS, settings, keys=KEYS, eos=NEVER)
    small = generation._state.cache.slots
    generation.advance(2)
    assert generation._state.cache.slots == small  # The cache has slots for two steps.
    generation.advance()
    assert generation._state.cache.slots == small + 4 * settings.streams
    grown = jax.device_get(generation.result())
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_allclose(grown.logprobs, whole.logprobs, atol=2e-5)


def test_answers_that_have_ended_make_no_room_for_more(monkeypatch):
    monkeypatch.setattr("t5lite.decoding.generate.FIRST_SLOTS", 2)
    model, params = model_and_params("decoder")
    first = int(run("decoder").tokens[0, 0, 0])
    generation = Generation(model, params, prompts()[:1], LENGTHS[:1], GREEDY, eos=first)
    small = generation._state.cache.slots
    generation.advance()
    assert generation._state.cache.slots == small and generation.result().lengths.tolist() == [[1]]


def test_rows_end_at_eos_each_on_its_own():
    endless = run("encoder_decoder")
    eos = int(endless.tokens[0, 0, 2])
    ended = run("encoder_decoder", eos=eos)
    for row in range(3):
        before = tokens_of(endless, row)
        end = before.index(eos) + 1 if eos in before else STEPS
        assert tokens_of(ended, row) == before[:end]
        assert (ended.tokens[row, 0, end:] == 0).all() and (ended.logprobs[row, 0, end:] == 0).all()
    assert ended.lengths[0, 0] <= 3 and ended.scores[0, 0] > endless.scores[0, 0]


def test_a_stopped_row_goes_no_further_and_the_others_are_what_they_were():
    settings = Settings(max_new_tokens=STEPS, temperature=0.7)
    model, params = model_and_params("decoder")
    seen = []

    def stopped(row, tokens):
        seen.append((row, len(tokens)))
        return row == 1

    generation = Generation(model, params, prompts(), LENGTHS, settings, keys=KEYS, eos=NEVER)
    for _ in generation.pieces(every=2, stopped=stopped):
        pass
    result, whole = jax.device_get(generation.result()), run("decoder", settings)
    assert result.lengths[:, 0].tolist() == [6, 2, 6]
    assert seen == [(0, 2), (1, 2), (2, 2), (0, 4), (2, 4), (0, 6), (2, 6)]
    for row, length in enumerate(result.lengths[:, 0]):
        np.testing.assert_array_equal(result.tokens[row, 0, :length], whole.tokens[row, 0, :length])


def test_only_allowed_ids_are_generated():
    allowed = np.isin(np.arange(50), [3, 7, 12, 13, 49])
    settings = Settings(max_new_tokens=40, temperature=3.0)
    assert set(run("decoder", settings, allowed=allowed).tokens.ravel().tolist()) <= set(np.flatnonzero(allowed))
    beams = run("decoder", BEAMS, allowed=allowed)
    assert (beams.lengths == STEPS).all() and set(beams.tokens.ravel().tolist()) <= set(np.flatnonzero(allowed))


@pytest.mark.parametrize("settings", [pytest.param(SAMPLED, marks=pytest.mark.slow), BEAMS], ids=["sampled", "beams"])
def test_a_forced_prefix_begins_the_answer_and_is_scored(settings):
    prefixes = [[11, 12], [], [13]]
    generated = run("t5_decoder", settings, prefixes=prefixes)
    free = run("t5_decoder", settings)
    for row, prefix in enumerate(prefixes):
        for answer in range(settings.num_return):
            tokens = tokens_of(generated, row, answer)
            assert tokens[: len(prefix)] == prefix
            own = log_probs("t5_decoder", row, tokens)[np.arange(len(tokens)), tokens]
            np.testing.assert_allclose(generated.logprobs[row, answer, : len(tokens)], own, atol=5e-5)
    np.testing.assert_array_equal(generated.tokens[1], free.tokens[1])


def test_samples_of_a_row_differ_and_the_likeliest_comes_first():
    generated = run("decoder", dataclasses.replace(SAMPLED, num_return=4, temperature=1.5))
    for row in range(3):
        assert len({tuple(tokens_of(generated, row, i)) for i in range(4)}) == 4
        assert (np.diff(generated.scores[row]) <= 0).all()
        np.testing.assert_allclose(generated.logprobs[row].sum(-1), generated.scores[row], rtol=1e-5)


def test_a_repeated_id_is_penalised_whether_read_or_generated():
    penalty = 1.4
    generated = run("decoder", dataclasses.replace(GREEDY, repetition_penalty=penalty))
    assert (generated.tokens != run("decoder").tokens).any()
    for row in range(3):
        tokens = tokens_of(generated, row)
        # The penalty depends on the sign of the logits, so log-probabilities are not enough here.
        read = [0, *prompts()[row, : LENGTHS[row]]]
        all_logits = np.array(uncached_logits(np.array([*read, *tokens] + [0] * (16 - len(read) - len(tokens)))))
        for step, token in enumerate(tokens):
            logits = all_logits[len(read) + step - 1]
            known = sorted({*read, *tokens[:step]})
            logits[known] = np.where(logits[known] > 0, logits[known] / penalty, logits[known] * penalty)
            assert token == logits.argmax()


@jax.jit
def uncached_logits(tokens_T):
    model, params = model_and_params("decoder")
    ids = tokens_T[None]
    hidden = model.apply({"params": params}, Batch(targets=ids, weights=ids, decoder_inputs=ids), method="hidden")
    return model.apply({"params": params}, hidden[0], method=Transformer.logits)


@pytest.mark.parametrize("settings", [pytest.param(SAMPLED, marks=pytest.mark.slow), BEAMS], ids=["sampled", "beams"])
def test_sharded_it_is_what_it_is_on_one_device(settings):
    model, params = model_and_params("encoder_decoder")
    four = [0, 1, 2, 1]
    inputs, lengths, keys = prompts()[four], LENGTHS[four], KEYS[jnp.asarray(four)]
    alone = jax.device_get(generate(model, params, inputs, lengths, settings, keys=keys, eos=NEVER))
    mesh = jax.make_mesh((4, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        spread = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        split = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(None,) * (x.ndim - 1), "tensor")))
        sharded = generate(model, jax.tree.map(split, params), spread(inputs), spread(lengths), settings, keys=keys,
                           eos=NEVER)  # fmt: skip
    np.testing.assert_array_equal(sharded.tokens, alone.tokens)
    np.testing.assert_allclose(sharded.scores, alone.scores, rtol=1e-4)


def test_buckets_are_powers_of_two():
    inputs, lengths = pad_rows([[1, 2, 3], [4], [5] * 17])
    assert inputs.shape == (4, 32) and lengths.tolist() == [3, 1, 17, 3]
    assert inputs[3].tolist() == inputs[0].tolist() == [1, 2, 3] + [0] * 29
    assert pad_rows([[1]])[0].shape == (1, 16)


@pytest.mark.parametrize(
    ("fields", "match"),
    [(dict(temperature=-1.0), "temperature=-1.0"), (dict(max_new_tokens=0), "max_new_tokens=0"),
     (dict(num_beams=2, temperature=1.0), "num_beams=2"), (dict(num_beams=2, num_return=3), "num_return=3"),
     (dict(num_return=2), "num_return=2"), (dict(min_p=1.5), "min_p=1.5"), (dict(top_p=0.0), "top_p=0.0"),
     (dict(repetition_penalty=0.0), "repetition_penalty"), (dict(early_stopping="soon"), "early_stopping='soon'"),
     (dict(top_k=1.5), "top_k=1.5")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Settings(**fields)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="suppressed"):
        run("decoder", allowed=np.zeros(5, bool))
    with pytest.raises(UserError, match="longer than max_new_tokens=6"):
        run("decoder", prefixes=[[5] * 7, [], []])
    with pytest.raises(UserError, match="2 prefixes for 3 rows"):
        run("decoder", prefixes=[[5], []])
    with pytest.raises(UserError, match="a prompt is empty"):
        generate(*model_and_params("decoder"), prompts(), np.array([7, 0, 5]), GREEDY, prepend_start=False)
    with pytest.raises(UserError, match="num_beams=3"):
        next(Generation(*model_and_params("decoder"), prompts(), LENGTHS, BEAMS).pieces())
    encoder = Transformer(dataclasses.replace(SMALL, num_decoder_layers=0))
    with pytest.raises(UserError, match="an encoder, which cannot generate"):
        generate(encoder, {}, prompts(), LENGTHS, GREEDY)


def test_another_temperature_needs_no_other_program():
    one, numbers = dataclasses.replace(SAMPLED, top_p=0.9).split()
    other, _ = dataclasses.replace(SAMPLED, temperature=1.5, top_p=0.8).split()
    assert one == other and numbers == {"temperature": 0.7, "top_p": 0.9}
    assert GREEDY.split() == (GREEDY, {})

"""Generation with a cache is generation without, a row is what it is alone, and sampling draws what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5lite.decoding.generate import generate
from t5lite.decoding.sampling import FORBIDDEN, keep_top_k, keep_top_p, next_tokens
from t5lite.errors import UserError
from t5lite.model.config import ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch

SMALL = ModelConfig(2, 2, 128, d_model=32, d_ff=48, num_heads=4, head_dim=8, relative_buckets=8,
                    relative_max_distance=16, scan_layers=True)  # fmt: skip
CONFIGS = {
    "encoder_decoder": SMALL,
    "decoder": dataclasses.replace(SMALL, num_encoder_layers=0, positions="rotary", activation="swiglu"),
    "t5_decoder": dataclasses.replace(SMALL, num_encoder_layers=0, scan_layers=False),
}
LENGTHS = np.array([7, 3, 5])
STEPS = 6
NEVER = 127  # An id that stands in for EOS where no row is to end.


@functools.cache
def model_and_params(name):
    """Weights far from their initialisation, so that attention and positions decide what comes next."""
    config = CONFIGS[name]
    model = Transformer(config)
    ids = jnp.zeros((1, 4), jnp.int32)
    batch = Batch(targets=ids, weights=ids, inputs=ids if config.num_encoder_layers else None, decoder_inputs=ids)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(structure, noisy)


@functools.cache
def prompts():
    inputs = np.array(jax.random.randint(jax.random.key(2), (3, 7), 3, 128))
    return np.where(np.arange(7) < LENGTHS[:, None], inputs, 0)


def greedy_by_hand(name, row, prefix_attention):
    """Argmax of the whole model, applied again for every token: tokens and the sum of their log-probabilities."""
    model, params = model_and_params(name)
    prompt = prompts()[row, : LENGTHS[row]]
    tokens, total = [], 0.0
    for _ in range(STEPS):
        if model.config.num_encoder_layers:
            before, first = [0, *tokens], 0
            inputs = jnp.asarray(prompt)[None]
        else:
            before, first = [0, *prompt, *tokens], len(prompt)
            inputs = None
        # Padded to one length, so that one program serves all steps: what follows is never seen.
        decoder_inputs = jnp.asarray([before + [0] * (14 - len(before))], jnp.int32)
        prefix = (jnp.arange(14) <= first)[None] if prefix_attention else None
        batch = Batch(targets=decoder_inputs, weights=decoder_inputs, inputs=inputs, decoder_inputs=decoder_inputs,
                      prefix_mask=prefix)  # fmt: skip
        logits = np.array(full_logits(model, params, batch)[0, len(before) - 1])
        logits[0] = -np.inf
        tokens.append(int(logits.argmax()))
        total += logits.max() - np.logaddexp.reduce(logits)
    return tokens, total


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, batch):
    return model.apply({"params": params}, batch)


@pytest.mark.parametrize(
    ("name", "prefix_attention"), [("encoder_decoder", False), ("decoder", False), ("t5_decoder", True)]
)
def test_greedy_with_cache_equals_the_whole_model(name, prefix_attention):
    model, params = model_and_params(name)
    tokens, logprobs = generate(
        model, params, prompts(), LENGTHS, max_new_tokens=STEPS, prefix_attention=prefix_attention, eos=NEVER
    )  # fmt: skip
    for row in range(3):
        expected, total = greedy_by_hand(name, row, prefix_attention)
        assert tokens[row].tolist() == expected
        np.testing.assert_allclose(logprobs[row], total, rtol=1e-4)
    assert (
        len(set(np.asarray(tokens).ravel().tolist())) > 3
    )  # The weights are such that there is something to get wrong.


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_is_what_it_is_alone_and_unpadded(name, sampled):
    model, params = model_and_params(name)
    keys = jax.random.split(jax.random.key(5), 3)
    options = dict(max_new_tokens=STEPS, temperature=0.7 if sampled else 0.0, prefix_attention=True, eos=NEVER)
    tokens, logprobs = generate(model, params, prompts(), LENGTHS, **options, keys=keys)
    for row in (1, 2):
        alone, logprob = generate(
            model, params, prompts()[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1], **options,
            keys=keys[row : row + 1],
        )  # fmt: skip
        np.testing.assert_array_equal(alone[0], tokens[row])
        np.testing.assert_allclose(logprob[0], logprobs[row], rtol=1e-4)


def test_rows_end_at_eos_each_on_its_own():
    model, params = model_and_params("encoder_decoder")
    tokens, logprobs = generate(model, params, prompts(), LENGTHS, max_new_tokens=STEPS, eos=NEVER)
    eos = int(tokens[0, 2])
    ended, ended_logprobs = generate(model, params, prompts(), LENGTHS, max_new_tokens=STEPS, eos=eos)
    for row, before in zip(np.asarray(ended), np.asarray(tokens), strict=True):
        end = before.tolist().index(eos) + 1 if eos in before else STEPS
        np.testing.assert_array_equal(row[:end], before[:end])
        assert (row[end:] == 0).all()
    assert ended[0].tolist().count(0) >= STEPS - 3 and ended_logprobs[0] > logprobs[0]


def test_padding_suppressed_and_invalid_ids_never_appear():
    model, params = model_and_params("decoder")
    keys = jax.random.split(jax.random.key(0), 3)
    suppress = range(20, 40)
    tokens, _ = generate(model, params, prompts(), LENGTHS, max_new_tokens=60, num_valid_ids=50, suppress=suppress,
                         temperature=3.0, keys=keys, eos=NEVER)  # fmt: skip
    assert set(np.asarray(tokens).ravel().tolist()) <= set(range(1, 50)) - set(suppress)


def test_top_1_is_greedy():
    model, params = model_and_params("decoder")
    keys = jax.random.split(jax.random.key(0), 3)
    greedy = generate(model, params, prompts(), LENGTHS, max_new_tokens=STEPS, eos=NEVER)
    for options in (dict(top_k=1), dict(top_p=1e-6)):
        drawn = generate(model, params, prompts(), LENGTHS, max_new_tokens=STEPS, eos=NEVER, temperature=1.5, keys=keys,
                         **options)  # fmt: skip
        np.testing.assert_array_equal(drawn[0], greedy[0])
        np.testing.assert_allclose(drawn[1], greedy[1], rtol=1e-5)


PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), PROBABILITIES),
        (dict(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (dict(top_k=3), np.array([0.4, 0.3, 0.15, 0, 0]) / 0.85),
        (dict(top_p=0.6), np.array([0.4, 0.3, 0, 0, 0]) / 0.7),
        (dict(top_k=2, top_p=0.5), np.array([1.0, 0, 0, 0, 0])),
    ],
)
def test_samples_follow_the_distribution(options, expected):
    draws = 4000
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (draws, 5))
    tokens = next_tokens(logits, jax.random.split(jax.random.key(0), draws), **options)
    counts = np.bincount(tokens, minlength=5)
    assert (counts[expected == 0] == 0).all()
    if (expected > 0).sum() > 1:
        kept = expected > 0
        assert stats.chisquare(counts[kept], draws * expected[kept]).pvalue > 0.01


def test_top_k_and_top_p_keep_the_likeliest():
    logits = jnp.log(jnp.asarray(PROBABILITIES))[None, ::-1]
    kept = lambda filtered: (np.asarray(filtered)[0] > FORBIDDEN).astype(int).tolist()
    assert kept(keep_top_k(logits, 2)) == [0, 0, 0, 1, 1]
    assert kept(keep_top_k(logits, 100)) == [1] * 5
    assert kept(keep_top_p(logits, 0.8)) == [0, 0, 1, 1, 1]
    assert kept(keep_top_p(logits, 0.01)) == [0, 0, 0, 0, 1]


def test_mistakes_are_named():
    model, params = model_and_params("decoder")
    with pytest.raises(UserError, match="temperature=-1"):
        generate(model, params, prompts(), LENGTHS, max_new_tokens=1, temperature=-1.0)
    with pytest.raises(UserError, match="suppressed"):
        generate(model, params, prompts(), LENGTHS, max_new_tokens=1, num_valid_ids=1)
    encoder = Transformer(dataclasses.replace(SMALL, num_decoder_layers=0))
    with pytest.raises(UserError, match="encoder alone"):
        generate(encoder, {}, prompts(), LENGTHS, max_new_tokens=1)

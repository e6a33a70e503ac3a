"""Options that no released family has follow their papers, and generation works with each of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.attention.bias import alibi_slopes
from t5lite.model.config import POSITIONS, ModelConfig
from t5lite.model.positions import sinusoids
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.system.errors import UserError
from tests.model import numpy_reference
from tests.model.drawn import drawn_params

PLAIN = ModelConfig(0, 2, 128, d_model=24, d_ff=20, num_heads=6, head_dim=10, positions="rotary", activation="relu",
                    tie_embeddings=False)  # fmt: skip
OPTIONS = {
    "plain": {},
    "ALiBi": {"positions": "alibi"},
    "sinusoidal": {"positions": "sinusoidal"},
    "learned": {"positions": "learned", "max_positions": 12, "position_offset": 3},
    "grouped queries": {"num_kv_heads": 2},
    "one head of keys": {"num_kv_heads": 1, "positions": "alibi"},
    "soft cap": {"logits_soft_cap": 2.0},
    "post-norm": {"norm_position": "post"},
    "query-key norm": {"qk_norm": True},
    "query-key norm, post-norm": {"qk_norm": True, "norm_position": "post", "norm": "layer"},
    "layer norm without biases": {"norm": "layer"},
    "layer norm with biases": {"norm": "layer", "biases": "all"},
    "biases of queries, keys, values": {"biases": "qkv"},
}
# By hand: for 6 heads, the slopes of 4 heads, then every other slope of 8 heads.
SLOPES = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    3: [2**-4, 2**-8, 2**-2],
    4: [2**-2, 2**-4, 2**-6, 2**-8],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    8: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8],
}


def config_of(name):
    return dataclasses.replace(PLAIN, **OPTIONS[name])


def batch_of(config, tokens, inputs=None):
    tokens = jnp.asarray(tokens)[None]
    inputs = jnp.asarray(inputs)[None] if config.num_encoder_layers else None
    return Batch(targets=tokens, weights=jnp.ones(tokens.shape), decoder_inputs=tokens, inputs=inputs)


@functools.cache
def params_of(config):
    """Return parameters far from the initialisation, so that norms, biases and positions change the result."""
    return drawn_params(config, spread=1.5)


TOKENS = np.random.default_rng(0).integers(3, 128, 12)
INPUTS = np.random.default_rng(1).integers(3, 128, 9)


@pytest.mark.parametrize("attention", ["einsum", pytest.param("mapped", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_formulas(name, attention):
    config = dataclasses.replace(config_of(name), attention=attention)
    params = params_of(config_of(name))
    slopes = SLOPES[6] if config.positions == "alibi" else None
    expected = numpy_reference.logits(config, jax.tree.map(lambda x: np.asarray(x, np.float64), params), TOKENS, slopes)
    ours = jax.jit(Transformer(config).apply)({"params": params}, batch_of(config, TOKENS))[0]
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_every_option_makes_a_difference():
    """If two options had the same result, the test could not tell them apart."""
    found = [Transformer(config_of(name)).apply({"params": params_of(config_of(name))}, batch_of(PLAIN, TOKENS))
             for name in OPTIONS]  # fmt: skip
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-2 for other in found[:i])


@pytest.mark.parametrize("heads", SLOPES)
def test_alibi_slopes_are_those_of_the_paper(heads):
    np.testing.assert_array_equal(alibi_slopes(heads), np.float32(SLOPES[heads]))


def test_sinusoids_are_those_of_the_paper_far_out_too():
    expected = numpy_reference.sinusoids(600, 16)
    np.testing.assert_allclose(sinusoids(jnp.arange(600), 16), expected, atol=1e-4)


def test_a_soft_cap_bounds_logits():
    config = config_of("soft cap")
    params = jax.tree.map(lambda x: 100 * x, params_of(config))
    capped = Transformer(config).apply({"params": params}, batch_of(config, TOKENS))
    free = Transformer(PLAIN).apply({"params": params}, batch_of(config, TOKENS))
    assert np.abs(capped).max() <= 2 < np.abs(free).max()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_more_tokens_than_learned_positions_are_refused(side):
    config = config_of("learned")
    config = dataclasses.replace(config, num_encoder_layers=2, num_decoder_layers=0) if side == "encoder" else config
    ids = jnp.asarray([[*TOKENS, 5]])
    batch = Batch(targets=ids, weights=ids, inputs=ids, decoder_inputs=ids)
    with pytest.raises(UserError, match=rf"the {side} would read 13 tokens, .* for 12: model\.max_positions"):
        jax.eval_shape(Transformer(config).init, jax.random.key(0), batch)


# With a cache

KINDS = {
    **{kind: {"positions": kind, "max_positions": 12 if kind == "learned" else None} for kind in POSITIONS},
    "learned with an offset": {"positions": "learned", "max_positions": 12, "position_offset": 2},
    "grouped queries": {"num_kv_heads": 2},
    "one head of keys": {"num_kv_heads": 1, "positions": "relative_bias"},
    "query-key norm, post-norm": {"qk_norm": True, "norm_position": "post"},
    "gated": {"activation": "swiglu", "tie_embeddings": True, "logits_soft_cap": 2.0},
    "biases": {"biases": "all", "norm": "layer", "logits_bias": True},
    "biases of queries, keys, values": {"biases": "qkv", "num_kv_heads": 3},
    "linear scaling": {"rotary_scaling": ("linear", 3.0)},
    "Llama 3's scaling": {"rotary_scaling": ("llama3", 8.0, 1.0, 4.0, 16)},
}


# Cross-attention has no positions, so options of positions are tested only on a decoder.
WITH_ENCODER = ("grouped queries", "biases")


@pytest.mark.parametrize(
    ("kind", "encoder_layers"),
    [
        pytest.param(kind, layers, marks=[pytest.mark.slow] * (layers > 0 and kind not in WITH_ENCODER))
        for kind in KINDS
        for layers in (0, 2)
    ],
)
def test_a_token_at_a_time_gives_the_logits_of_the_whole(kind, encoder_layers):
    """The tokens follow a prompt of several tokens. Slots of the cache are not equal to positions. The prompt is read
    with the plain parameters, and the next tokens with `step_weights`.
    """
    text = TOKENS[:7]
    config = dataclasses.replace(PLAIN, num_encoder_layers=encoder_layers, relative_buckets=8, relative_max_distance=16,
                                 embedding_norm=True, **KINDS[kind])  # fmt: skip
    model, params = Transformer(config), params_of(config)
    whole = model.apply({"params": params}, batch_of(config, text, INPUTS))[0]
    method = functools.partial(model.apply, {"params": params})
    memory = method(jnp.asarray(INPUTS)[None], method=Transformer.encode) if encoder_layers else None
    prompt, gap = 4, 3  # slots 4 … 6 are padding, as if another row had a longer prompt
    slots = jnp.asarray([*range(prompt), *[0] * gap, *range(prompt, len(text))], jnp.int32)[None]
    cache = method(1, slots, memory, method=Transformer.start_cache)
    real = jnp.asarray([True] * prompt + [False] * gap + [True] * (len(text) - prompt))
    weights = method(method=Transformer.step_weights)
    steps = [
        (0, text[:prompt], (None, None)),
        *((gap + i, text[i : i + 1], weights) for i in range(prompt, len(text))),
    ]
    logits = []
    for slot, tokens, (layers, vocabulary) in steps:
        token_slots = slot + jnp.arange(len(tokens))
        visible = (jnp.arange(slots.shape[1])[None] <= token_slots[:, None]) & real
        hidden, cache = method(jnp.asarray(tokens)[None], cache, slot, visible[None], layers, method=Transformer.extend)
        logits.append(method(hidden[0], vocabulary, method=Transformer.logits))
    np.testing.assert_allclose(np.concatenate(logits), whole, atol=2e-5 * np.abs(whole).max())


def test_weights_for_steps_are_in_the_compute_dtype_and_side_by_side_unless_heads_are_split():
    config = dataclasses.replace(PLAIN, num_encoder_layers=1, activation="swiglu", dtype="bfloat16")
    method = functools.partial(
        Transformer(config).apply, {"params": params_of(config)}, method=Transformer.step_weights
    )
    layers, vocabulary = jax.eval_shape(method)
    attention, mlp = layers[1]["self_attention"], layers[1]["mlp"]
    assert set(attention) == {"norm", "query_key_value", "output"} and set(mlp) == {"norm", "gate_up", "down"}
    assert set(layers[1]["cross_attention"]) == {"norm", "query", "output"}  # The cache has keys and values.
    joined = attention["query_key_value"]["kernel"]
    assert joined.shape == (24, 180) and joined.dtype == vocabulary.dtype == jnp.bfloat16
    assert attention["norm"]["scale"].dtype == jnp.float32
    with jax.set_mesh(jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))):
        layers, _ = jax.eval_shape(lambda: method())
    assert {"query", "key", "value"} <= set(layers[1]["self_attention"]) and {"gate", "up"} <= set(layers[1]["mlp"])

"""Analytic counts agree with released models, with the real number of parameters, and with XLA's count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from t5lite.model.config import ModelConfig
from t5lite.model.flops import forward_flops, peak_flops, step_flops
from t5lite.model.transformer import Transformer, num_parameters
from t5lite.objectives.batch import Batch
from tests.heads import heads as made

TINY = ModelConfig(2, 3, 256, d_model=64, d_ff=128, num_heads=4, head_dim=16, attention="einsum", tie_embeddings=False)
MODELS = {
    "encoder_decoder": TINY,
    "tied": dataclasses.replace(TINY, tie_embeddings=True, activation="relu"),
    "decoder": dataclasses.replace(TINY, num_encoder_layers=0, positions="rotary", activation="swiglu"),
    "encoder": dataclasses.replace(TINY, num_decoder_layers=0),
}
MODELS |= {
    "next_sentence": dataclasses.replace(
        MODELS["encoder"], heads=made(next_sentence=True), token_types=2, mlm_transform=True
    ),
    "classifier": dataclasses.replace(MODELS["encoder"], heads=made(vocabulary=False, classifier=7)),
    "tagger": dataclasses.replace(MODELS["encoder"], heads=made(vocabulary=False, tagger=9), tie_embeddings=True),
}


@pytest.mark.parametrize(
    ("layers", "d_model", "d_ff", "heads", "published"),
    [
        (8, 512, 1024, 6, 76_961_152),  # t5-v1_1-small
        (12, 768, 2048, 12, 247_577_856),  # t5-v1_1-base
        (24, 1024, 2816, 16, 783_150_080),  # t5-v1_1-large
    ],
)
def test_parameters_of_released_models(layers, d_model, d_ff, heads, published):
    config = ModelConfig(
        layers, layers, 32128, d_model=d_model, d_ff=d_ff, num_heads=heads, head_dim=64, tie_embeddings=False
    )
    assert num_parameters(config) == published


def batch_for(config, batch=2, length=96, width=48):
    ids = lambda columns: jnp.zeros((batch, columns), jnp.int32)
    side = ids(width if config.num_decoder_layers else length)
    return Batch(
        inputs=ids(length) if config.num_encoder_layers else None,
        decoder_inputs=side if config.num_decoder_layers else None,
        targets=side,
        weights=jnp.ones(side.shape),
    )


@pytest.mark.parametrize("name", MODELS)
def test_counts_equal_the_model(name):
    """XLA also counts additions and exponentials. At these widths they add about 10 % to the products."""
    config, batch = MODELS[name], batch_for(MODELS[name])
    model = Transformer(config)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    assert num_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(params))

    def measured(function):
        return jax.jit(function).lower(params, batch).compile().cost_analysis()["flops"]

    lengths = dict(batch=2, encoder_length=96, decoder_length=48)

    def outputs(p, b):
        return [*model.apply({"params": p}, b, method="outputs").values()]

    forward = measured(outputs)
    step = measured(jax.grad(lambda p, b: sum(logits.sum() for logits in outputs(p, b))))
    assert 1.0 <= forward / forward_flops(config, **lengths) < 1.2
    assert 0.95 <= step / step_flops(config, **lengths) < 1.2


def test_peaks_by_device_kind():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA L4") == 121e12 and peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("cpu") is None and peak_flops("NVIDIA H1000") is None

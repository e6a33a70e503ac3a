"""Count the activations of a model that dropout changes in training, by their kind."""

import collections
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5lite.model.attention import einsum
from t5lite.model.config import ModelConfig
from t5lite.model.presets import FAMILIES
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import VOCABULARY_ONLY, Heads

# All sizes differ, so that a shape identifies an activation.
BATCH, LENGTH, TARGETS, D_MODEL, D_FF, HEADS, LAYERS = 3, 10, 6, 16, 24, 2, 2
NAMES = {
    (BATCH, LENGTH, D_MODEL): "stream",
    (BATCH, TARGETS, D_MODEL): "decoder stream",
    (BATCH, LENGTH, D_FF): "hidden",
    (BATCH, TARGETS, D_FF): "decoder hidden",
    (BATCH, HEADS, LENGTH, LENGTH): "weights",
    (BATCH, HEADS, TARGETS, TARGETS): "decoder weights",
    (BATCH, HEADS, TARGETS, LENGTH): "cross weights",
    (BATCH, D_MODEL): "pooled",
}


def small_model(family: str, heads: Heads = VOCABULARY_ONLY) -> ModelConfig:
    """Return a small model of a family of presets.py, with dropout."""
    fields = {**FAMILIES[family], "vocab_size": 128}
    architecture = fields.pop("architecture")
    sizes = dict(
        d_model=D_MODEL, d_ff=D_FF, num_heads=HEADS, head_dim=D_MODEL // HEADS, dropout=0.1, attention="einsum"
    )
    layers = {"num_encoder_layers": LAYERS * (architecture != "decoder"),
              "num_decoder_layers": LAYERS * (architecture != "encoder")}  # fmt: skip
    if not heads.vocabulary:
        fields |= {"mlm_transform": False, "logits_bias": False}
    return ModelConfig(**fields, **sizes, **layers, heads=heads)


def count_dropped(config: ModelConfig, monkeypatch, deterministic: bool = False) -> dict[str, int]:
    """Return {kind of activation: number of dropouts} in one forward pass of the model."""
    counts = collections.Counter()
    on_encoder = config.architecture == "encoder"
    side = LENGTH if on_encoder or config.architecture == "decoder" else TARGETS
    ids = jnp.ones((BATCH, side), jnp.int32)
    batch = Batch(targets=ids, weights=ids,
                  inputs=jnp.ones((BATCH, LENGTH), jnp.int32) if config.num_encoder_layers else None,
                  decoder_inputs=ids if config.num_decoder_layers else None)  # fmt: skip

    def keep_weights(key, rows, heads, queries, keys, rate):
        counts[jnp.broadcast_shapes(rows.shape, heads.shape, queries.shape, keys.shape)] += 1
        return jnp.ones((), bool)

    def intercept(function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.module.rate and not kwargs["deterministic"]:
            counts[args[0].shape] += 1
        return function(*args, **kwargs)

    model = Transformer(config)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    monkeypatch.setattr(einsum, "keep_weights", keep_weights)
    with nn.intercept_methods(intercept):
        outputs = functools.partial(model.apply, deterministic=deterministic, method="outputs")
        jax.eval_shape(lambda params, key: outputs({"params": params}, batch, rngs={"dropout": key}), params,
                       jax.random.key(0))  # fmt: skip
    return {NAMES[shape]: count for shape, count in counts.items()}

"""Small models with large weights, prompts of different lengths, and the model without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.model.config import ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from tests.model.drawn import drawn_params

SMALL = ModelConfig(2, 2, 128, d_model=32, d_ff=48, num_heads=4, head_dim=8, relative_buckets=8,
                    relative_max_distance=16, scan_layers=True, tie_embeddings=False)  # fmt: skip
CONFIGS = {
    "encoder_decoder": SMALL,
    "decoder": dataclasses.replace(SMALL, num_encoder_layers=0, positions="rotary", activation="swiglu"),
    "t5_decoder": dataclasses.replace(SMALL, num_encoder_layers=0, scan_layers=False),
}
LENGTHS = np.array([7, 3, 5])
STEPS = 6
NEVER = 127  # An id that replaces EOS if no row should end.
READ = 16  # The padded length that the model without a cache reads. All lengths share one program.


@functools.cache
def model_and_params(name):
    """Return a model with weights far from the initialisation: attention and positions then decide the next token."""
    config = CONFIGS[name]
    model = Transformer(config)
    return model, drawn_params(config)


@functools.cache
def prompts():
    inputs = np.array(jax.random.randint(jax.random.key(2), (3, 7), 3, 128))
    return np.where(np.arange(7) < LENGTHS[:, None], inputs, 0)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(model, params, batch):
    return jax.nn.log_softmax(model.apply({"params": params}, batch))


def log_probs(name, row, tokens, prefix_attention=False, start=(0,)):
    """Return float32 [n + 1, V], without a cache: for each of the n tokens after the prompt, and for the next token."""
    model, params = model_and_params(name)
    prompt = prompts()[row, : LENGTHS[row]]
    if model.config.num_encoder_layers:
        before, inputs = [*start], jnp.asarray(prompts()[row : row + 1])
        segments = jnp.asarray(np.arange(7)[None] < LENGTHS[row], jnp.int32)
    else:
        before, inputs, segments = [*start, *prompt], None, None
    read = np.zeros((1, READ), np.int32)
    read[0, : len(before) + len(tokens)] = [*before, *tokens]
    prefix = (jnp.arange(READ) < len(before))[None] if prefix_attention else None
    batch = Batch(targets=read, weights=read, inputs=inputs, inputs_segment_ids=segments, decoder_inputs=read,
                  prefix_mask=prefix)  # fmt: skip
    return np.asarray(_log_probs(model, params, batch)[0, len(before) - 1 : len(before) + len(tokens)])

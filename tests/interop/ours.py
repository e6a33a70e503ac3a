"""What our model computes on a batch of the references, from a folder of released weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from t5lite.interop.released import Released, open_released
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch


def params_of(released: Released) -> dict:
    return unflatten_dict({path: released.read(path) for path in released.rows}, sep="/")


def batch_of(released: Released, batch: dict[str, np.ndarray]) -> Batch:
    """The references' batch as ours."""
    ids, mask, types, decoder_ids, labels = (
        jnp.asarray(batch[name], jnp.int32) for name in ("ids", "mask", "token_types", "decoder_ids", "labels")
    )
    architecture = released.model.architecture
    if architecture == "encoder":
        return Batch(inputs=ids, inputs_segment_ids=mask, token_types=types, targets=ids, weights=jnp.ones(ids.shape))
    if architecture == "decoder":
        return Batch(decoder_inputs=decoder_ids, targets=labels, weights=jnp.ones(labels.shape))
    return Batch(inputs=ids, inputs_segment_ids=mask, decoder_inputs=decoder_ids, targets=labels,
                 weights=jnp.ones(labels.shape))  # fmt: skip


def outputs(folder: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, the logits of the whole example, and the mean loss of the labels, as far as the model has them."""
    released = open_released(folder)
    made = batch_of(released, batch)
    out = jax.jit(Transformer(released.model).apply, static_argnames="method")(
        {"params": params_of(released)}, made, method="outputs"
    )
    found = {"logits": out.tokens, "labels": out.labels}
    if released.model.num_decoder_layers:
        log_probs = jax.nn.log_softmax(out.tokens)
        found["loss"] = -jnp.take_along_axis(log_probs, made.targets[..., None], axis=-1).mean()
    return {name: np.asarray(value) for name, value in found.items() if value is not None}

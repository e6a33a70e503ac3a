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
    """The references' batch as ours. labels: -100 is no target. decoder_mask: where a decoder's rows are real."""
    ids, mask, types, decoder_ids, labels = (
        jnp.asarray(batch[name], jnp.int32) for name in ("ids", "mask", "token_types", "decoder_ids", "labels")
    )
    architecture = released.model.architecture
    if architecture == "encoder":
        return Batch(inputs=ids, inputs_segment_ids=mask, token_types=types, targets=ids, weights=jnp.ones(ids.shape))
    targets, weights = jnp.maximum(labels, 0), (labels >= 0).astype(jnp.float32)
    if architecture == "decoder":
        real = jnp.asarray(batch["decoder_mask"], jnp.int32) if "decoder_mask" in batch else None
        return Batch(decoder_inputs=decoder_ids, targets=targets, weights=weights, targets_segment_ids=real)
    return Batch(inputs=ids, inputs_segment_ids=mask, decoder_inputs=decoder_ids, targets=targets, weights=weights)


def outputs(folder: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, the logits of the whole example, and the mean loss of the labels, as far as the model has them."""
    released = open_released(folder)
    return outputs_of(Transformer(released.model), params_of(released), batch_of(released, batch))


def outputs_of(model: Transformer, params: dict, batch: Batch) -> dict[str, np.ndarray]:
    """Of any model and a batch of ours."""
    out = jax.jit(model.apply, static_argnames="method")({"params": params}, batch, method="outputs")
    of_examples = {head.name for head in model.config.heads.others if head.each == "example"}
    found = {"labels" if name in of_examples else "logits": value for name, value in out.items()}
    if model.config.num_decoder_layers:
        log_probs = jax.nn.log_softmax(found["logits"])
        of_targets = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        found["loss"] = -(of_targets * batch.weights).sum() / batch.weights.sum()
    return {name: np.asarray(value) for name, value in found.items()}

"""Compute the outputs of t5lite's model on a batch of the reference, from a folder of released weights."""

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
    """Return the batch of the reference as a Batch.

    labels: -100 is no target. decoder_mask: 0 for padding in a decoder's rows.
    """
    ids, mask, types, decoder_ids, labels = (
        jnp.asarray(batch[name], jnp.int32) for name in ("ids", "mask", "token_types", "decoder_ids", "labels")
    )
    architecture = released.model.architecture
    if architecture == "encoder":
        return Batch(inputs=ids, inputs_segment_ids=mask, token_types=types, targets=ids, weights=jnp.ones(ids.shape))
    targets, weights = jnp.maximum(labels, 0), (labels >= 0).astype(jnp.float32)
    if architecture == "decoder":
        segments = jnp.asarray(batch["decoder_mask"], jnp.int32) if "decoder_mask" in batch else None
        return Batch(decoder_inputs=decoder_ids, targets=targets, weights=weights, targets_segment_ids=segments)
    return Batch(inputs=ids, inputs_segment_ids=mask, decoder_inputs=decoder_ids, targets=targets, weights=weights)


def outputs(folder: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the logits, the logits of whole examples, and the mean loss of the labels, if the model has them."""
    released = open_released(folder)
    return outputs_of(Transformer(released.model), params_of(released), batch_of(released, batch))


def outputs_of(model: Transformer, params: dict, batch: Batch) -> dict[str, np.ndarray]:
    """Return the same as `outputs`, for a model and a Batch."""
    out = jax.jit(model.apply, static_argnames="method")({"params": params}, batch, method="outputs")
    of_examples = {head.name for head in model.config.heads.others if head.each == "example"}
    results = {"labels" if name in of_examples else "logits": value for name, value in out.items()}
    if model.config.num_decoder_layers:
        log_probs = jax.nn.log_softmax(results["logits"])
        of_targets = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        results["loss"] = -(of_targets * batch.weights).sum() / batch.weights.sum()
    return {name: np.asarray(value) for name, value in results.items()}

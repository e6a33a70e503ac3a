"""Cross entropy as sums: what accumulates over microbatches, hosts and validation batches, divided by global weights.

    sums = loss_sums(outputs, batch, ...)      {"objective", "nll", "weight"} of the targets, and the same with "label_"
                                               in front of the whole examples' labels
    loss, weight = joint(sums, "nll", weights_of(whole_batch))
    loss / weight                              nats: of targets and labels together, each by its own weight

The weights of a batch are known before any of its microbatches, so that `loss` and its gradient add up over them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t5lite.model.transformer import Outputs
from t5lite.objectives.batch import Batch

Array = jax.Array
Sums = dict[str, Array]


def _at_targets(values_BxTxV: Array, targets_BxT: Array) -> Array:
    """[B, T]. By comparison and sum rather than by a gather: its gradient is no scatter, and V may be sharded."""
    is_target = jnp.arange(values_BxTxV.shape[-1]) == targets_BxT[..., None]
    return jnp.sum(jnp.where(is_target, values_BxTxV, 0.0), axis=-1)


def _nll(logits_BxTxV: Array, targets_BxT: Array) -> tuple[Array, Array]:
    """(negative log-likelihood of the targets, log of the softmax's normaliser), each [B, T]."""
    log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    return log_z_BxT - _at_targets(logits_BxTxV, targets_BxT), log_z_BxT


def loss_sums(outputs: Outputs, batch: Batch, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
    """Sums over the batch for each of the model's outputs: of the targets, of the labels, or of both."""
    sums = {}
    if outputs.tokens is not None:
        sums |= token_sums(outputs.tokens, batch, label_smoothing, z_loss)
    if outputs.labels is not None:
        of_labels = Batch(targets=batch.labels, weights=label_weights(batch))
        of_labels = token_sums(outputs.labels, of_labels, label_smoothing, z_loss)
        sums |= {f"label_{name}": value for name, value in of_labels.items()}
    return sums


def finite_rows(outputs: Outputs, batch: Batch) -> Array:
    """Bool [B]: whether the negative log-likelihood of each row's targets, and of its label, is finite."""
    nll = jnp.zeros(len(batch.targets if outputs.tokens is not None else batch.labels))
    if outputs.tokens is not None:
        nll += jnp.sum(_nll(outputs.tokens, batch.targets)[0] * batch.weights, axis=1)
    if outputs.labels is not None:
        nll += _nll(outputs.labels, batch.labels)[0] * label_weights(batch)
    return jnp.isfinite(nll)


def label_weights(batch: Batch) -> Array:
    """Float32 [B]: 1 where the example has a label."""
    return (batch.labels >= 0).astype(jnp.float32)


def weights_of(batch: Batch) -> Sums:
    """What the sums of a whole batch are divided by."""
    weights = {"weight": jnp.sum(batch.weights)}
    return weights if batch.labels is None else weights | {"label_weight": jnp.sum(label_weights(batch))}


def joint(sums: Mapping[str, Array], name: str, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """(loss, weight) of `name`, "nll" or "objective": the sum of targets or labels, what there is; where there are
    both, they are brought to one weight, so that loss / weight is the sum of the two means.
    """
    first, *others = (of for of in ("", "label_") if of + name in sums)
    weight, *their_weights = (
        jnp.where(weights[f"{of}weight"] > 0, weights[f"{of}weight"], 1.0) for of in (first, *others)
    )
    scaled = (sums[of + name] * (weight / theirs) for of, theirs in zip(others, their_weights, strict=True))
    return sum(scaled, sums[first + name]), weight


def token_sums(logits_BxTxV: Array, batch: Batch, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
    """Sums over the batch, each target times its weight: {"objective", "nll", "weight"}, float32 scalars.

    nll: negative log-likelihood. objective: what is minimised: the same, with `label_smoothing` of the target's
    probability spread evenly over all V ids, plus z_loss · log²Z (Z the softmax's normaliser; Chowdhery et al. 2022,
    PaLM, section 5). weight: of the targets.
    """
    nll_BxT, log_z_BxT = _nll(logits_BxTxV, batch.targets)
    objective_BxT = nll_BxT
    if label_smoothing:
        even_BxT = log_z_BxT - jnp.mean(logits_BxTxV, axis=-1)
        objective_BxT = (1 - label_smoothing) * nll_BxT + label_smoothing * even_BxT
    if z_loss:
        objective_BxT = objective_BxT + z_loss * jnp.square(log_z_BxT)
    return {
        "objective": jnp.sum(objective_BxT * batch.weights),
        "nll": jnp.sum(nll_BxT * batch.weights),
        "weight": jnp.sum(batch.weights),
    }


def token_counts(batch: Batch) -> Sums:
    """{"tokens", "places"}: tokens that are not padding, on both sides, and all places of the batch's arrays."""
    sides = [(batch.inputs, batch.inputs_segment_ids), (batch.decoder_inputs, batch.targets_segment_ids)]
    places = sum(tokens.size for tokens, _ in sides if tokens is not None)
    tokens = sum(
        jnp.sum(segments > 0, dtype=jnp.float32) if segments is not None else jnp.float32(tokens.size)
        for tokens, segments in sides
        if tokens is not None
    )
    return {"tokens": tokens, "places": jnp.float32(places)}

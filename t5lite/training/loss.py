"""Cross entropy as sums: what accumulates over microbatches, hosts and validation batches, divided once at the end.

sums = token_sums(logits, batch, ...)      {"objective", "nll", "weight"}, float32 scalars
loss = sums["nll"] / sums["weight"]        nats a target token
"""

import jax
import jax.numpy as jnp

from t5lite.objectives.batch import Batch

Array = jax.Array
Sums = dict[str, Array]


def _at_targets(values_BxTxV: Array, targets_BxT: Array) -> Array:
    """[B, T]. By comparison and sum rather than by a gather: its gradient is no scatter, and V may be sharded."""
    is_target = jnp.arange(values_BxTxV.shape[-1]) == targets_BxT[..., None]
    return jnp.sum(jnp.where(is_target, values_BxTxV, 0.0), axis=-1)


def token_sums(logits_BxTxV: Array, batch: Batch, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
    """Sums over the batch, each target times its weight.

    nll: negative log-likelihood. objective: what is minimised: the same, with `label_smoothing` of the target's
    probability spread evenly over all V ids, plus z_loss · log²Z (Z the softmax's normaliser; Chowdhery et al. 2022,
    PaLM, section 5). weight: of the targets.
    """
    log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    nll_BxT = log_z_BxT - _at_targets(logits_BxTxV, batch.targets)
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

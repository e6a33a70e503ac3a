"""The loss of a batch: the sums of all heads, divided by the weights of the whole batch.

    sums = loss_sums(outputs, batch)                       the sums of each head, see tasks/table.py
    loss, weight = sum_heads(sums, "nll", sum_weights(whole_batch, heads))
    loss / weight                                          in nats: the sum of the mean losses of all heads

The weights of a batch are known before any microbatch is computed. So `loss` and its gradient can be summed over
microbatches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.config import require
from t5lite.model.config import ModelConfig
from t5lite.objectives.batch import Batch
from t5lite.tasks.cross_entropy import Sums
from t5lite.tasks.table import TASKS, list_heads, sum_key

Array = jax.Array


def check_loss(fields: Mapping[str, Any], model: ModelConfig) -> None:
    """Raise UserError for a field of `config.loss` that has no meaning for the model's heads.

    `Experiment.choose_class_weights` checks the fields about classes, because it knows the labels.

    Args:
        fields: a config's `loss`.
        model: its heads say which losses there are.
    """
    tasks = [TASKS[head] for head in list_heads(model.heads)]
    kinds = " and ".join(task.name for task in tasks)
    for name in ("label_smoothing", "z_loss"):
        is_used = any(name in task.loss_fields for task in tasks)
        no_use = f"is {fields[name]}, but answers of the kind {kinds} do not use it; set it to 0"
        require(not fields[name] or is_used, f"loss.{name}", no_use)
    if fields["r_drop"]:
        no_divergence = f"answers of the kind {kinds} have no divergence; set it to 0"
        require(all(task.divergence is not None for task in tasks), "loss.r_drop", no_divergence)
        drops_head = any(head.dropout for head in model.heads.others)
        has_dropout = any(place != "head" or drops_head for place in model.dropout_by_place)
        no_dropout = "both passes are equal without dropout; set config.model.dropout above 0, or this field to 0"
        require(has_dropout, "loss.r_drop", no_dropout)


def find_finite_rows(outputs: Mapping[str, Array], batch: Batch) -> Array:
    """Return bool [B]: whether the negative log-likelihood of each row (the sum over all heads) is finite."""
    return jnp.isfinite(sum(TASKS[head].nll(logits, batch) for head, logits in outputs.items()))


def sum_weights(batch: Batch, heads: Sequence[str]) -> Sums:
    """Return {key: divisor} for the sums of a whole batch: the sum of the weights of each head."""
    return {sum_key(head, "weight"): jnp.sum(TASKS[head].weights(batch)) for head in heads}


def sum_heads(sums: Mapping[str, Array], name: str, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return (loss, weight): the sum of `name`, "nll" or "objective", over all heads, and its divisor.

    Sums of further heads are scaled to the weight of the first head. So loss / weight is the sum of the heads' means.
    """
    first, *others = sorted(key.removesuffix("weight") for key in weights)  # the prefix of the vocabulary head is ""
    weight, *other_weights = (
        jnp.where(weights[f"{head}weight"] > 0, weights[f"{head}weight"], 1.0) for head in (first, *others)
    )
    scaled = (sums[head + name] * (weight / other) for head, other in zip(others, other_weights, strict=True))
    return sum(scaled, sums[first + name]), weight


def count_tokens(batch: Batch) -> Sums:
    """Return {"tokens": number of tokens without padding, "places": number with padding}, in inputs and targets."""
    sides = [(batch.inputs, batch.inputs_segment_ids), (batch.decoder_inputs, batch.targets_segment_ids)]
    places = sum(tokens.size for tokens, _ in sides if tokens is not None)
    tokens = sum(
        jnp.sum(segments > 0, dtype=jnp.float32) if segments is not None else jnp.float32(tokens.size)
        for tokens, segments in sides
        if tokens is not None
    )
    return {"tokens": tokens, "places": jnp.float32(places)}

"""The loss of a batch: the sums of all heads, divided by the weights of the whole batch.

    sums = loss_sums(outputs, batch)                       the sums of each head, see tasks/table.py
    loss, weight = sum_heads(sums, "nll", sum_weights(whole_batch, heads))
    loss / weight                                          in nats: the sum of the mean losses of all heads

The weights of a batch are known before any microbatch is computed. So `loss` and its gradient can be summed over
microbatches.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from t5lite.objectives.batch import Batch
from t5lite.tasks.cross_entropy import Sums
from t5lite.tasks.table import TASKS, sum_key

Array = jax.Array


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

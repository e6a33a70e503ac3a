"""The labels task: the answer to a whole text is a set of labels, which may be empty (multi-label classification).

A true answer is int32 [C], 1 for each label of the text and 0 for the others; -1 where there is none. Each label has a
probability of its own, by the logistic function. The model chooses the labels with a probability of at least 0.5. The
loss of a text is the sum over its labels of the binary cross entropy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.tasks.cross_entropy import LossSettings, Sums
from t5lite.tasks.task import Reading, Task

Array = jax.Array
HEAD = "labeller"
SEPARATOR = ", "  # between the labels of an answer that is shown as text


def _weights(batch: Batch) -> Array:
    return (batch.answers[HEAD][..., 0] >= 0).astype(jnp.float32)


def _binary_nll(logits: Array, batch: Batch, smoothing: float = 0.0) -> Array:
    """Return float32 [B, C] or [B, P, C]: the binary cross entropy of each label; 0 where there is no answer."""
    targets = (jnp.maximum(batch.answers[HEAD], 0)).astype(jnp.float32) * (1 - smoothing) + smoothing / 2
    losses = jax.nn.softplus(logits) - logits * targets
    return losses * _weights(batch)[..., None]


def _loss(logits: Array, batch: Batch, settings: LossSettings) -> Sums:
    losses = _binary_nll(logits, batch, settings.label_smoothing)
    if settings.class_weights is not None:
        losses = losses * jnp.asarray(settings.class_weights, jnp.float32)
    nll = jnp.sum(_binary_nll(logits, batch))
    return {"objective": jnp.sum(losses), "nll": nll, "weight": jnp.sum(_weights(batch))}


def _divergence(logits: Array, others: Array, batch: Batch, settings: LossSettings) -> Array:
    """Return the sum over all labels: whether a text has a label is a Bernoulli distribution."""
    divergences = (jax.nn.sigmoid(logits) - jax.nn.sigmoid(others)) * (logits - others)
    if settings.class_weights is not None:
        divergences = divergences * jnp.asarray(settings.class_weights, jnp.float32)
    return jnp.sum(divergences * _weights(batch)[..., None])


def row_sums(logits: Array, batch: Batch) -> Sums:
    """Return {"label_counts" [B, C, 3], "equal_sets" [B], "weight" [B]}, all 0 for rows without an answer.

    label_counts: for each label, whether the text has it, whether it got it, and whether both.
    equal_sets: whether the text got exactly its labels.
    """
    weights = _weights(batch)
    true, chosen = batch.answers[HEAD] > 0, logits >= 0
    counts = jnp.stack([true, chosen, true & chosen], axis=-1).astype(jnp.float32)
    equal = jnp.all(true == chosen, axis=1).astype(jnp.float32)
    return {"label_counts": counts * weights[:, None, None], "equal_sets": equal * weights, "weight": weights}


def _predictions(logits: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
    """Return {"label_counts" [C, 3], "equal_sets"}: the sums of `row_sums` over the rows."""
    del labels, rows
    sums = row_sums(logits, batch)
    return {name: jnp.sum(sums[name], axis=0) for name in ("label_counts", "equal_sets")}


def _name_answers(answers: np.ndarray, true_answers: np.ndarray, reading: Reading) -> list[str]:
    if np.any(true_answers < 0):
        return []
    return [name for name, chosen in zip(reading.labels, answers.tolist(), strict=True) if chosen]


LABELS = Task(
    name="labels",
    head=HEAD,
    part="head for several labels",
    metrics=("positive_f1", "micro_f1", "label_macro_f1", "equal_sets", "majority_micro_f1"),
    loss_name="labels_loss",
    each="example",
    answer_shape=lambda size: (size,),
    data="label_sets",
    weights=_weights,
    loss=_loss,
    loss_fields=("label_smoothing",),
    nll=lambda logits, batch: jnp.sum(_binary_nll(logits, batch).reshape(len(logits), -1), axis=1),
    divergence=_divergence,
    predictions=_predictions,
    row_sums=row_sums,
    choose=lambda logits: (logits >= 0).astype(jnp.int32),
    probabilities=jax.nn.sigmoid,
    logprobs=lambda logits: jax.nn.log_sigmoid(jnp.abs(logits)),
    name_answers=_name_answers,
    read_out=lambda names, words: SEPARATOR.join(names),
    has_labels=True,
    released={"bert": ("ForSequenceClassification", "classifier")},
)

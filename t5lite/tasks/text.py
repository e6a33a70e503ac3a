"""The text task: the answers are tokens of the vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import VOCABULARY, Objective, Row, make_batch
from t5lite.system.vocabulary import TokenTable
from t5lite.tasks.cross_entropy import LossSettings, Sums, cross_entropy_sums, divergence, nll_and_log_z
from t5lite.tasks.task import Reading, Task

Array = jax.Array
TEXT_METRICS = (
    "exact_match",
    "squad_exact_match",
    "token_f1",
    *("rouge1", "rouge2", "rougeL", "rougeLsum"),
    *("bleu", "chrf"),
    "answers_with_sentinels",
)


def _loss(logits: Array, batch: Batch, settings: LossSettings) -> Sums:
    return cross_entropy_sums(logits, batch.targets, batch.weights, settings.label_smoothing, settings.z_loss)


def _nll(logits: Array, batch: Batch) -> Array:
    return jnp.sum(nll_and_log_z(logits, batch.targets)[0] * batch.weights, axis=1)


def _predictions(logits: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
    """Return {"correct"}: the sum of the weights of the targets that are the likeliest token."""
    del labels, rows
    return {"correct": jnp.sum((jnp.argmax(logits, axis=-1) == batch.targets) * batch.weights)}


def byte_sums(objective: Objective, keys: Array, rows: Row, weights: Array, table: TokenTable) -> Sums:
    """Return {"bytes"}: the bytes of the targets' text, each target times its weight.

    The tokenizer inserts a space before each document. This space is not counted. The first token of each document
    gets its id plus the size of the table (`len(table.num_bytes)`). So it can be recognised among the targets.

    Args:
        rows: windows with "begins", which is 1 where a document begins. `objective` makes the targets from the windows.
        weights: float32 [B, T], the weights of the targets.
    """
    marked = {**rows, "tokens": rows["tokens"] + rows["begins"] * len(table.num_bytes)}
    targets = make_batch(objective, keys, marked, table).targets
    num_bytes = jnp.concatenate([jnp.asarray(table.num_bytes), jnp.asarray(table.num_bytes_first)])
    return {"bytes": jnp.sum(num_bytes[targets] * weights)}


def _name_answers(answers: np.ndarray, true_answers: np.ndarray, reading: Reading) -> list[str]:
    return [reading.decode([token]) for token in answers[true_answers >= 0].tolist()]


TEXT = Task(
    name="text",
    head=VOCABULARY,
    part="head for tokens",
    metrics=("perplexity", "token_accuracy", "bits_per_byte"),
    text_metrics=TEXT_METRICS,
    loss_name="mlm_loss",
    each="token",
    weights=lambda batch: batch.weights,
    loss=_loss,
    nll=_nll,
    divergence=lambda logits, others, batch, settings: jnp.sum(divergence(logits, others) * batch.weights),
    predictions=_predictions,
    name_answers=_name_answers,
)

"""The number task: the answer to a whole text is a number, such as a degree of similarity (regression).

The model learns standardised numbers: (number - mean) / standard deviation of the training numbers. A true answer is a
standardised float32, and NaN where there is none. The loss is half the squared error. This is the negative
log-likelihood of a normal distribution with standard deviation 1, without its constant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.system.errors import UserError
from t5lite.tasks.cross_entropy import LossSettings, Sums
from t5lite.tasks.task import Reading, Task

Array = jax.Array
HEAD = "regressor"


def _weights(batch: Batch) -> Array:
    return jnp.isfinite(batch.answers[HEAD]).astype(jnp.float32)


def _nll(outputs: Array, batch: Batch) -> Array:
    """Return float32 [B] or [B, P]: half the squared error of each number."""
    errors = outputs[..., 0] - jnp.nan_to_num(batch.answers[HEAD])
    return 0.5 * jnp.square(errors) * _weights(batch)


def _loss(outputs: Array, batch: Batch, settings: LossSettings) -> Sums:
    del settings  # see `loss_fields`
    total = jnp.sum(_nll(outputs, batch))
    return {"objective": total, "nll": total, "weight": jnp.sum(_weights(batch))}


def _divergence(outputs: Array, others: Array, batch: Batch, settings: LossSettings) -> Array:
    """Return the sum of squared differences. It is the divergence of two normal distributions with deviation 1."""
    del settings
    return jnp.sum(jnp.square(outputs[..., 0] - others[..., 0]) * _weights(batch))


def _predictions(outputs: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
    """Return {}: the metrics are computed from the texts of the numbers."""
    del outputs, batch, labels, rows
    return {}


def _name_answers(answers: np.ndarray, true_answers: np.ndarray, reading: Reading) -> list[str]:
    """Return the number in its own units, with seven digits: the precision of float32."""
    if np.isnan(true_answers):
        return []
    mean, deviation = reading.scale or (0.0, 1.0)
    return [f"{float(answers) * deviation + mean:.7g}"]


def rescale(head: Mapping[str, Array], scale: tuple[float, float]) -> dict[str, Array]:
    """Return the parameters of a head whose outputs are numbers in their own units.

    Args:
        head: {"kernel", "bias"}, for standardised outputs.
        scale: (mean, standard deviation) of the numbers.
    """
    if "bias" not in head:
        raise UserError("the head for numbers has no bias for the mean of the numbers (model.biases), so it has no "
                        "released form; train it with biases=all")  # fmt: skip
    mean, deviation = scale
    return {"kernel": head["kernel"] * deviation, "bias": head["bias"] * deviation + mean}


NUMBER = Task(
    name="number",
    head=HEAD,
    part="regressor",
    metrics=(),
    text_metrics=("pearson", "spearman", "rmse", "mean_rmse"),
    loss_name="number_loss",
    each="example",
    outputs=1,
    answer_dtype="float32",
    data="numbers",
    weights=_weights,
    loss=_loss,
    loss_fields=(),
    nll=lambda outputs, batch: jnp.sum(_nll(outputs, batch).reshape(len(outputs), -1), axis=1),
    divergence=_divergence,
    predictions=_predictions,
    choose=lambda outputs: outputs[..., 0],
    name_answers=_name_answers,
    released={"bert": ("ForSequenceClassification", "classifier")},
)

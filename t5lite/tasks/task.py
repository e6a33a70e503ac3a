"""A task: a kind of answer, with its loss, sums, metrics and texts.

A model answers with its vocabulary, with other heads (`objectives.objective.Head`), or with both. Each head has one
Task. Other packages do not handle the kinds of answers one by one: they use `table.TASKS[name of the head]`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.objectives.catalogue import ARCHITECTURES
from t5lite.objectives.objective import Head
from t5lite.tasks.cross_entropy import LossSettings, Sums, cross_entropy_sums, divergence, nll_and_log_z

Array = jax.Array
CALIBRATION_BINS = 15
CutTags = Sequence[tuple[int, np.ndarray]]


class Reading(NamedTuple):
    """What is needed to write answers as text.

    labels: the run's labels. scale: (mean, standard deviation) of the run's numbers; None: it has none.
    decode: turns tokens into text.
    """

    labels: Sequence[str] = ()
    scale: tuple[float, float] | None = None
    decode: Callable[[Sequence[int]], str] = str


@dataclasses.dataclass(frozen=True)
class Task:
    """The properties of the answers of one head.

    name: the name of the kind of answer, for people.
    head: the name of the head's parameters and of its answers in a Batch.
    part: the name of the head in messages.
    metrics: names of the metrics that are computed from its sums; see metrics.py.
    text_metrics: names of the metrics that compare the answers with the targets as texts. For the vocabulary, the
        answers are generated.
    loss_name: the name of the metric for its loss, if the model has several heads.
    each: "token": an output for each token; "example": an output for the whole example.
    outputs: the number of outputs of the head. None: one for each label.
    answer_shape: (number of outputs) -> the shape of an example's true answer, see `objectives.objective.Head`.
    answer_dtype: the dtype of true answers.
    architectures: the architectures that can answer so.
    data: the kind of data with such answers, see data/kinds.py.
    weights: (batch) -> float32, the weight of each answer.
    loss: (logits, batch, settings) -> {"objective", "nll", "weight"}.
    loss_fields: which of the fields label_smoothing and z_loss of `config.loss` the loss uses.
    nll: (logits, batch) -> float32 [B], the negative log-likelihood of each row.
    divergence: (logits, other logits, batch, settings) -> float32 scalar: the sum over the answers of the symmetric
        divergence KL(p || q) + KL(q || p) of the two answers, with the weights of the objective. None: no R-Drop.
    predictions: (logits, batch, labels, rows) -> the sums of the likeliest answers. labels: the names of the classes.
        rows: the rows that the host read.
    row_sums: (logits, batch) -> the sums of each row: those of `predictions` before they are added, and "weight". Only
        for answers whose metrics need the answers of each row for an interval. None: there are none.
    sum_missed: (tags that were cut off each text, labels) -> the sums of the answers that were cut off.
    choose: (logits) -> the likeliest answers, in the form of true answers.
    probabilities: (logits of whole examples) -> the probability of each label; None: there are no such probabilities.
    logprobs: (logits) -> the log-probability of each chosen label.
    name_answers: (answers, true answers, reading) -> a text for each answer of an example, where there is a true one.
    locate_answer: (true answers, tokens of the row without padding, number of tokens in front of the row's text, EOS)
        -> the places of the tokens that are the answer, a range, which is empty if the row has no answer. None: answers
        are no tokens of the row.
    read_out: (names of the chosen answers, the words that they belong to) -> the answer's text.
    has_labels: whether the classes are the run's labels. Then the head fits only runs with the same labels.
    names: the names of the classes, if they are not the run's labels.
    dropout: whether there is dropout before the head.
    released: {family: (kind of the class in transformers, for example "ForMaskedLM"; the name of the head's tensors)}.
    """

    name: str
    head: str
    part: str
    metrics: tuple[str, ...]
    loss_name: str
    each: str
    weights: Callable[[Batch], Array]
    loss: Callable[[Array, Batch, LossSettings], Sums]
    nll: Callable[[Array, Batch], Array]
    predictions: Callable[[Array, Batch, Sequence[str], Mapping[str, Any]], Sums]
    name_answers: Callable[[np.ndarray, np.ndarray, Reading], list[str]]
    divergence: Callable[[Array, Array, Batch, LossSettings], Array] | None = None
    loss_fields: tuple[str, ...] = ("label_smoothing", "z_loss")
    row_sums: Callable[[Array, Batch], Sums] | None = None
    sum_missed: Callable[[CutTags, Sequence[str]], dict[str, np.ndarray]] = lambda cut, labels: {}
    choose: Callable[[Array], Array] = lambda logits: jnp.argmax(logits, axis=-1)
    probabilities: Callable[[Array], Array] | None = None
    logprobs: Callable[[Array], Array] = lambda logits: jnp.max(jax.nn.log_softmax(logits), axis=-1)
    locate_answer: Callable[[np.ndarray, Sequence[int], int, int], range] | None = None
    read_out: Callable[[Sequence[str], Sequence[str]], str] = lambda names, words: " ".join(names)
    text_metrics: tuple[str, ...] = ()
    outputs: int | None = None
    answer_shape: Callable[[int], tuple[int, ...] | None] = lambda size: None
    answer_dtype: str = "int32"
    architectures: tuple[str, ...] = ARCHITECTURES
    data: str = "pairs"
    has_labels: bool = False
    names: tuple[str, ...] = ()
    dropout: bool = True
    released: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def make_head(self, num_labels: int = 0) -> Head:
        """Return the head. num_labels: the number of the run's labels."""
        size = self.outputs or num_labels
        return Head(self.head, size, self.each, self.dropout, self.answer_shape(size), self.answer_dtype)


def make_class_task(head: str, **fields: Any) -> Task:
    """Return the Task of a head that chooses one of several classes, by cross entropy.

    Answers are int32, [B], [B, P] or [B, L]: numbers of classes; -1 means no answer.
    """

    def split_answers(batch: Batch) -> tuple[Array, Array]:
        """Return (classes, weights): class 0 and weight 0 where there is no answer."""
        answers = batch.answers[head]
        return jnp.maximum(answers, 0), (answers >= 0).astype(jnp.float32)

    def weigh(batch: Batch, settings: LossSettings) -> Array:
        """Return the weights of the answers in the objective: those of their classes too."""
        classes, weights = split_answers(batch)
        if settings.class_weights is None or not fields.get("has_labels"):
            return weights
        return weights * jnp.asarray(settings.class_weights, jnp.float32)[classes]

    def loss(logits: Array, batch: Batch, settings: LossSettings) -> Sums:
        classes, weights = split_answers(batch)
        of_objective = (settings.label_smoothing, settings.z_loss)
        sums = cross_entropy_sums(logits, classes, weights, *of_objective)
        weighted = cross_entropy_sums(logits, classes, weigh(batch, settings), *of_objective)
        return sums | {"objective": weighted["objective"]}

    def nll(logits: Array, batch: Batch) -> Array:
        targets, weights = split_answers(batch)
        losses = nll_and_log_z(logits, targets)[0] * weights
        return jnp.sum(losses.reshape(len(losses), -1), axis=1)

    def predictions(logits: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
        del labels, rows
        classes, answered = split_answers(batch)
        sums = {"confusion": confusion(logits, classes, answered)}
        return sums if logits.ndim > 2 else sums | calibration_sums(logits, classes, answered)

    def name_answers(answers: np.ndarray, true_answers: np.ndarray, reading: Reading) -> list[str]:
        selected = np.atleast_1d(answers)[np.atleast_1d(true_answers) >= 0]
        names = fields.get("names") or reading.labels
        return [names[answer] for answer in selected.tolist()]

    defaults = {
        "loss": loss,
        "nll": nll,
        "divergence": lambda logits, others, batch, settings: jnp.sum(
            divergence(logits, others) * weigh(batch, settings)
        ),
        "predictions": predictions,
        "weights": lambda batch: split_answers(batch)[1],
        "name_answers": name_answers,
    }
    return Task(head=head, **defaults | fields)


def confusion(logits: Array, gold: Array, weights: Array) -> Array:
    """Return float32 [C, C]: the sum of weights for each pair (true class, likeliest class).

    Args:
        logits: float32 [..., C].
        gold: int32 [...], weights: float32 [...].
    """
    classes, chosen = logits.shape[-1], jnp.argmax(logits, axis=-1)
    pairs = jnp.where(weights > 0, gold * classes + chosen, classes * classes)
    return jnp.zeros(classes * classes).at[pairs].add(weights, mode="drop").reshape(classes, classes)


def calibration_sums(logits: Array, gold: Array, weights: Array) -> Sums:
    """Return {"calibration" [CALIBRATION_BINS, 3], "brier"}: see `metrics.calibration_error` and `metrics.brier`.

    Args:
        logits: float32 [B, C].
        gold: int32 [B], weights: float32 [B].
    """
    probabilities = jax.nn.softmax(logits)
    highest, is_correct = jnp.max(probabilities, axis=-1), jnp.argmax(logits, axis=-1) == gold
    # The bins are (0, 1/15], (1/15, 2/15], …
    bins = jnp.clip(jnp.ceil(highest * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    facts = jnp.stack([jnp.ones_like(highest), highest, is_correct.astype(jnp.float32)], axis=1) * weights[:, None]
    distances = jnp.sum(jnp.square(probabilities - jax.nn.one_hot(gold, logits.shape[-1])), axis=-1)
    calibration = jnp.zeros((CALIBRATION_BINS, 3)).at[bins].add(facts)
    return {"calibration": calibration, "brier": jnp.sum(distances * weights)}

"""All tasks by the name of their head, and functions that use them to make objectives, losses and sums."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.objectives import catalogue
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Fields, Head, Heads, Objective
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.cross_entropy import LossSettings, Sums
from t5lite.tasks.label import LABEL
from t5lite.tasks.next_sentence import NEXT_SENTENCE
from t5lite.tasks.tags import TAGS
from t5lite.tasks.task import Task
from t5lite.tasks.text import TEXT

TASKS: dict[str, Task] = {task.head: task for task in (TEXT, LABEL, TAGS, NEXT_SENTENCE)}
LIKELIHOOD = LossSettings()
# {objective.name: the task of its answers on an encoder, if the data has labels}
ENCODER_TASKS = {"supervised": LABEL, "tagging": TAGS}


def make_answer_head(fields: Fields, architecture: str, labels: Sequence[str] | None) -> Head | None:
    """Return the head for the answers that rows contain; None if the targets are text.

    Args:
        fields: a config's `objective`.
        labels: the data's labels; None or () if they are not known. For tags, they may be unknown.
    """
    task = ENCODER_TASKS.get(fields["name"]) if architecture == "encoder" else None
    is_open = task is None or (task.each == "example" and not labels)
    return None if is_open else task.make_head(len(labels or ()))


def make_objective(
    fields: Fields, architecture: str, vocabulary: Vocabulary, labels: Sequence[str] | None = None
) -> Objective:
    """Return the objective of a config, with the head for the rows' answers. See `catalogue.make_objective`."""
    return catalogue.make_objective(
        fields, architecture, vocabulary, labels, make_answer_head(fields, architecture, labels)
    )


def make_evaluation_objective(
    fields: Fields, architecture: str, vocabulary: Vocabulary, labels: Sequence[str] | None = None
) -> Objective:
    """Return the objective for evaluation, with the fields of `catalogue.make_evaluation_fields`."""
    return make_objective(catalogue.make_evaluation_fields(fields), architecture, vocabulary, labels)


def list_heads(heads: Heads) -> tuple[str, ...]:
    """Return the names of all heads, the vocabulary first."""
    return (*([TEXT.head] if heads.vocabulary else []), *(head.name for head in heads.others))


def sum_key(head: str, name: str) -> str:
    """Return the name of a head's sum among the sums of all heads.

    Sums of the vocabulary keep their names ("nll"). Other sums have the head in front ("classifier/nll").
    """
    return name if head == TEXT.head else f"{head}/{name}"


def loss_sums(outputs: Mapping[str, jax.Array], batch: Batch, settings: LossSettings = LIKELIHOOD) -> Sums:
    """Return {"objective", "nll", "weight"} of each head, with keys from `sum_key`. outputs: {head: logits}."""
    return {
        sum_key(head, name): value
        for head, logits in outputs.items()
        for name, value in TASKS[head].loss(logits, batch, settings).items()
    }


def prediction_sums(
    outputs: Mapping[str, jax.Array], batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]
) -> Sums:
    """Return the sums of the likeliest answers of each head, with keys from `sum_key`.

    Args:
        labels: the names of the classes.
        rows: the rows that the host read.
    """
    return {
        sum_key(head, name): value
        for head, logits in outputs.items()
        for name, value in TASKS[head].predictions(logits, batch, labels, rows).items()
    }


def name_answers(
    head: str, answers: Any, true_answers: Any, labels: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> list[str]:
    """Return the texts of the `answers`, at the positions where `true_answers` has an answer.

    Args:
        answers, true_answers: int [] or [L], NumPy: numbers of classes, or tokens of the vocabulary; -1: no answer.
        labels: the run's labels.
        decode: turns tokens into text.
    """
    selected = np.atleast_1d(answers)[np.atleast_1d(true_answers) >= 0]
    names = TASKS[head].names or labels
    return [decode([answer]) if head == TEXT.head else names[answer] for answer in selected.tolist()]

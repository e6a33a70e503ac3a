"""All tasks by the name of their head, and functions that use them to make objectives, losses and sums."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5lite.objectives import catalogue
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Fields, Head, Heads, Objective
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.cross_entropy import LossSettings, Sums
from t5lite.tasks.label import LABEL
from t5lite.tasks.labels import LABELS
from t5lite.tasks.next_sentence import NEXT_SENTENCE
from t5lite.tasks.number import NUMBER
from t5lite.tasks.number_text import NUMBER_TEXT
from t5lite.tasks.span import SPAN
from t5lite.tasks.tags import TAGS
from t5lite.tasks.task import Task
from t5lite.tasks.text import TEXT

ANSWERS: dict[str, Task] = {
    task.name: task for task in (TEXT, LABEL, LABELS, NUMBER, NUMBER_TEXT, TAGS, SPAN)
}  # of objective.answer
# NUMBER_TEXT has the head of TEXT, and differs only in its data and its metrics of texts.
TASKS: dict[str, Task] = {task.head: task for task in (*ANSWERS.values(), TEXT, NEXT_SENTENCE)}
LIKELIHOOD = LossSettings()


def find_task(fields: Fields, architecture: str) -> Task:
    """Return the task of the answers that the data of a config brings. For windows of text and chat, it is TEXT.

    If `objective.answer` is unset, it is a label on an encoder, and text on other models. fields: a config's
    `objective`. Raises UserError for an unknown answer, and for an answer of an objective that reads windows of text.
    """
    name, answer = fields["name"], fields["answer"]
    if catalogue.find_kind(fields).data != "pairs":
        if answer is not None:
            raise UserError(f"config.objective.answer={answer}: {name} has no answers; unset it, or set "
                            "config.objective.name=supervised")  # fmt: skip
        return TEXT
    if answer is not None and answer not in ANSWERS:
        raise UserError(f"config.objective.answer: unknown answer {answer!r}; {nearest(answer, ANSWERS)}")
    if name == "tagging":
        if answer not in (None, TAGS.name):
            raise UserError(f"config.objective.answer={answer}: tagging answers with tags; unset it, or set "
                            "config.objective.name=supervised")  # fmt: skip
        return TAGS
    task = ANSWERS[answer] if answer is not None else LABEL if architecture == "encoder" else TEXT
    if architecture not in task.architectures:
        raise UserError(f"config.objective.answer={answer}: needs config.model.architecture "
                        f"{' or '.join(task.architectures)}; on other models set config.objective.answer=text, with a "
                        "template of the columns")  # fmt: skip
    return task


def find_data(fields: Fields, architecture: str) -> str:
    """Return the kind of data that an objective reads, a key of `data.kinds.KINDS`. fields: a config's `objective`."""
    data = catalogue.find_kind(fields).data
    return find_task(fields, architecture).data if data == "pairs" else data


def make_answer_head(fields: Fields, architecture: str, labels: Sequence[str] | None) -> Head | None:
    """Return the head for the answers that rows contain; None if the targets are text.

    Args:
        fields: a config's `objective`.
        labels: the data's labels; None or () if they are not known. Only an encoder's label needs them.
    """
    task = find_task(fields, architecture)
    is_open = task.head == TEXT.head or (task is LABEL and fields["answer"] is None and not labels)
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


def two_pass_sums(
    outputs: Mapping[str, jax.Array], others: Mapping[str, jax.Array], batch: Batch, settings: LossSettings
) -> Sums:
    """Return the sums of `loss_sums` for two passes over a batch that differ only in their dropout (R-Drop).

    The objective is half of the loss of Liang et al. (2021, "R-Drop", section 2.1), so that its first part has the size
    of the loss of one pass. α is `settings.r_drop` and means the same; p and q are the two distributions of an answer:

        paper   -log p(y) - log q(y)       + α · ½ (KL(p || q) + KL(q || p))
        here    ½ (-log p(y) - log q(y))   + α · ¼ (KL(p || q) + KL(q || p))

    The authors' code for sequences has the paper's loss. The example in their README halves only the first part, so
    half of the paper's α gives the same loss there.

    "nll" is the mean of both passes. Each divergence has the weight of its answer in the objective.

    Args:
        outputs, others: {head: logits}.
    """
    sums = jax.tree.map(lambda *pair: sum(pair) / 2, *(loss_sums(each, batch, settings) for each in (outputs, others)))
    for head, logits in outputs.items():
        extra = TASKS[head].divergence(logits, others[head], batch=batch, settings=settings)
        sums[sum_key(head, "objective")] += settings.r_drop / 4 * extra
    return sums


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

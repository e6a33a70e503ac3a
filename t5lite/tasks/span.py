"""The span task: the answer to a question is a part of a context (extractive question answering).

A row holds the question and a window of the context. A true answer is int32 [2]: the places of the answer's first and
last token in the row. Both are the place of "no answer" if the window does not contain the answer: the first token on
an encoder ([CLS], as in BERT), and the end of the question on other models. -1 means that the row does not count. The
head gives each token two numbers, as start and as end. The loss is the cross entropy of both places among all tokens
of the row (Devlin et al. 2019, section 4.2). `objectives/pairs.py` makes the rows, `run/spans.py` reads the answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.tasks.cross_entropy import LossSettings, Sums, cross_entropy_sums, divergence, nll_and_log_z
from t5lite.tasks.task import Reading, Task

Array = jax.Array
HEAD = "span"
EXCLUDED = -1e9  # the logit of padding


def _weights(batch: Batch) -> Array:
    return (batch.answers[HEAD][:, 0] >= 0).astype(jnp.float32)


def mask_padding(logits: Array, segment_ids: Array | None) -> Array:
    """Return logits [B, 2, L] of starts and ends, for logits [B, L, 2] of the head. Padding has a very low logit."""
    logits = jnp.swapaxes(logits, 1, 2)
    return logits if segment_ids is None else jnp.where(segment_ids[:, None] > 0, logits, EXCLUDED)


def _split(logits: Array, batch: Batch) -> tuple[Array, Array]:
    """Return (logits [B, 2, L], places [B, 2]), with place 0 where there is no answer."""
    return mask_padding(logits, batch.inputs_segment_ids), jnp.maximum(batch.answers[HEAD], 0)


def _loss(logits: Array, batch: Batch, settings: LossSettings) -> Sums:
    logits, places = _split(logits, batch)
    weights = _weights(batch)
    both = jnp.broadcast_to(weights[:, None], places.shape)
    sums = cross_entropy_sums(logits, places, both, settings.label_smoothing, settings.z_loss)
    return sums | {"weight": jnp.sum(weights)}


def _nll(logits: Array, batch: Batch) -> Array:
    return jnp.sum(nll_and_log_z(*_split(logits, batch))[0], axis=1) * _weights(batch)


def _divergence(logits: Array, others: Array, batch: Batch, settings: LossSettings) -> Array:
    del settings
    pair = (_split(each, batch)[0] for each in (logits, others))
    return jnp.sum(divergence(*pair) * _weights(batch)[:, None])


def _predictions(logits: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
    """Return {}: a question may have several windows, so the metrics are computed from the answers as texts."""
    del logits, batch, labels, rows
    return {}


def _name_answers(answers: np.ndarray, true_answers: np.ndarray, reading: Reading) -> list[str]:
    """Return the places. They mean nothing without the text: `run/spans.py` reads the text."""
    del reading
    return [f"tokens {answers[0]} to {answers[1]}"] if true_answers[0] >= 0 else []


def locate_answer(places: np.ndarray, tokens: Sequence[int], front: int, eos: int) -> range:
    """Return the places of the answer's tokens in a row; range(0): the row has none. See `Task.locate_answer`."""
    first, last = map(int, places)
    nowhere = 0 if front else list(tokens).index(eos)
    return range(0) if first < 0 or first == nowhere else range(first, last + 1)


def choose_places(logits: Array) -> Array:
    """Return int32 [B, 2]: the likeliest start and end, each on its own. logits: [B, L, 2]."""
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


SPAN = Task(
    name="span",
    head=HEAD,
    part="head for spans",
    metrics=(),
    text_metrics=("exact_match", "squad_exact_match", "token_f1", "no_answer_exact_match"),
    loss_name="span_loss",
    each="token",
    outputs=2,
    answer_shape=lambda size: (size,),
    architectures=("encoder_decoder", "encoder"),  # a decoder does not know the tokens after a place
    data="questions",
    weights=_weights,
    loss=_loss,
    nll=_nll,
    divergence=_divergence,
    predictions=_predictions,
    choose=choose_places,
    name_answers=_name_answers,
    locate_answer=locate_answer,
    released={"bert": ("ForQuestionAnswering", "qa_outputs")},
)

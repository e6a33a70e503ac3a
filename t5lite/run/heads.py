"""Answer with a head of the model: the label of a text, its labels, a number, or the tag of each word."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.data.build import encode_words
from t5lite.decoding.generate import pad_rows
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import Objective, example_keys, make_batch
from t5lite.run.answering import Answerer, Options, PreparedRequest, refuse_choices
from t5lite.run.choices import rank_choices
from t5lite.run.requests import Request, shorten
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import TokenTable
from t5lite.tasks.label import LABEL
from t5lite.tasks.table import TASKS
from t5lite.training.step import validation_key
from t5lite.training.trainer import bind_mesh


class HeadAnswerer(Answerer):
    """A model of any architecture that answers with a head."""

    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """Return a text as tokens, with EOS, and the places of the words' first pieces if each word has an answer.

        A text with one answer is cut to the length that the network reads, as in evaluation. Raises UserError for a
        text that is too long if each of its words has an answer, and for a choice that is no label.
        """
        choices = self._prepare_choices(request, options)
        text, window, eos = request.input, self.objective.window, self.tokenizer.vocabulary.eos
        front = self.objective.front_length
        if self.objective.answer_head.has_answer_for_each_token():
            words = encode_words(self.tokenizer, [text.split()])[0]
            pieces = np.concatenate([np.zeros(0, np.int32), *words])
            if len(pieces) + 1 > window:
                raise UserError(f"the text has {len(pieces) + 1 + front} tokens, but the network reads "
                                f"{window + front}: {shorten(text)}")  # fmt: skip
            begins = np.cumsum([0, *map(len, words)])[:-1].astype(np.int64)
            return PreparedRequest(request, np.append(pieces, eos).astype(np.int32), asked_positions=begins)
        pieces = self.tokenizer.encode(text, True)
        cut = None
        if len(pieces) + 1 > window:
            cut = {"tokens": len(pieces) + 1 + front, "read": window + front}
        ids = np.append(pieces[: window - 1], eos).astype(np.int32)
        return PreparedRequest(request, ids, asked_positions=np.zeros(0, np.int64), cut=cut, choices=choices)

    def _prepare_choices(self, request: Request, options: Options) -> dict[str, list[int]]:
        """Return {label: [its number]}. Raises UserError for a choice that the model has no label for."""
        choices, names = request.choices or options.choices, self.reading.labels
        if self.objective.answer_head.name != LABEL.head:
            refuse_choices(request, options)
        for choice in choices:
            if choice not in names:
                raise UserError(f"{shorten(choice)!r} is not a label of this model; {nearest(choice, names)}")
        return {choice: [names.index(choice)] for choice in choices}

    def _choose_label(self, choices: Mapping[str, Sequence[int]], logits_C: np.ndarray) -> dict:
        """Return the likeliest of `choices`. The log-probabilities come from the softmax over all labels."""
        logprobs_C = np.asarray(jax.nn.log_softmax(logits_C))
        return rank_choices(choices, np.array([logprobs_C[label] for (label,) in choices.values()]), "sum")

    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`."""
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=self.objective.window)
        head = self.objective.answer_head
        shape = inputs.shape if head.has_answer_for_each_token() else (len(inputs), *(head.answer_shape or ()))
        true = np.zeros(shape, head.answer_dtype)  # any answer: it marks the places where the head is read
        if head.has_answer_for_each_token():
            true[:] = -1
            for row, each in enumerate(ready):
                true[row, each.asked_positions] = 0
        outputs, true = compute_outputs(self, inputs, lengths, true)
        task = TASKS[head.name]
        chosen = np.asarray(task.choose(outputs))
        answers = []
        for row, each in enumerate(ready):
            if each.choices:
                answers.append(each.complete_answer(self._choose_label(each.choices, outputs[row])))
                continue
            names = task.name_answers(chosen[row], true[row], self.reading)
            answer = {"output": task.read_out(names, each.request.input.split())}
            answers.append(each.complete_answer(answer | self._describe(outputs[row], chosen[row], true[row])))
        return answers

    def _describe(self, outputs: np.ndarray, chosen: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        """Return the numbers of the chosen labels, their log-probabilities, and the probability of each label.

        Answers that are no labels have none of these.
        """
        head, task = self.objective.answer_head, TASKS[self.objective.answer_head.name]
        if not task.has_labels:
            return {}
        if head.has_answer_for_each_token():
            outputs, chosen = outputs[true >= 0], chosen[true >= 0]
        labels = np.flatnonzero(chosen) if head.answer_shape else np.atleast_1d(chosen)
        logprobs = np.asarray(task.logprobs(outputs)).reshape(-1)
        described = {
            "tokens": labels.tolist(),
            "token_logprobs": (logprobs[labels] if head.answer_shape else logprobs).tolist(),
            "logprob": float(logprobs.sum()),
        }
        if task.probabilities is not None:
            probabilities = map(float, np.asarray(task.probabilities(outputs)))
            described["scores"] = dict(zip(self.reading.labels, probabilities, strict=True))
        return described


def compute_outputs(
    answerer: Answerer, inputs: np.ndarray, lengths: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (the outputs of the head, the true answers in the places where the head is read).

    Args:
        inputs: int32 [B, L], rows as in the data. lengths: int32 [B].
        true: the answers of the rows. Any values do: they only mark places.
    """
    real = (np.arange(inputs.shape[1]) < lengths[:, None]).astype(np.int32)
    rows = {"inputs": inputs, "inputs_segment_ids": real, "answers": true}
    apply = compile_head(answerer.model, answerer.objective, answerer.tokenizer.vocabulary.table)
    return jax.device_get(bind_mesh(answerer.mesh, apply)(answerer.params, rows))


@functools.lru_cache(4)
def compile_head(model: Transformer, objective: Objective, table: TokenTable) -> Callable[[Any, Any], Any]:
    """Return the function (params, rows) -> (outputs of the head, true answers in the batch)."""

    @jax.jit
    def apply(params: Any, rows: Any) -> tuple[jax.Array, jax.Array]:
        keys = example_keys(validation_key(), jnp.int32(0), len(rows["inputs"]))
        batch = make_batch(objective, keys, rows, table)
        outputs = model.apply({"params": params}, batch, method="outputs")
        return outputs[objective.answer_head.name], batch.answers[objective.answer_head.name]

    return apply

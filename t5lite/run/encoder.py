"""Answer with an encoder: the likeliest piece for each [MASK], the label of a text, or the tag of each word."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.data.build import encode_words
from t5lite.decoding.generate import pad_rows
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import VOCABULARY
from t5lite.run.answering import Answerer, Options, PreparedRequest
from t5lite.run.choices import rank_choices
from t5lite.run.requests import Request, shorten
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import CLS, MASK, SEP
from t5lite.tasks.label import LABEL
from t5lite.tasks.table import TASKS
from t5lite.training.trainer import bind_mesh


class EncoderAnswerer(Answerer):
    """An encoder that answers with the text and each [MASK] filled in, with a label, or with a tag for each word."""

    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`."""
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=self.objective.inputs_length)
        asked_positions, _ = pad_rows([each.asked_positions for each in ready], minimum=1)
        outputs = self._compute_logits(inputs, lengths, asked_positions)
        answers = []
        for row, each in enumerate(ready):
            logits = outputs[row, : len(each.asked_positions)] if outputs.ndim == 3 else outputs[row, None]
            if each.choices:
                answer = self._choose_label(each.choices, logits[0])
            else:
                answer = self._read_answer(each.request.input, each.ids, each.asked_positions, logits)
            answers.append(each.complete_answer(answer))
        return answers

    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """Return a text as tokens, and the positions to answer.

        The positions are each [MASK], or the first piece of each word. A label for the whole text needs no position.

        A text that gets a label is cut to the length that the network reads, as in evaluation. Raises UserError for any
        other text that is too long, and for a text without [MASK] if the objective fills in [MASK].
        """
        text, cut = request.input, None
        vocabulary, head, length = self.tokenizer.vocabulary, self.objective.answer_head, self.objective.inputs_length
        by_word = [self.tokenizer.encode(text, True)]
        if head is not None and head.each == "token":
            by_word = encode_words(self.tokenizer, [text.split()])[0]
        pieces = np.concatenate([np.zeros(0, np.int32), *by_word])
        gets_label = head is not None and head.each == "example"
        choices = self._prepare_choices(request.choices or options.choices)
        if gets_label and len(pieces) > length - 2:
            cut = {"tokens": len(pieces) + 2, "read": length}
            pieces = pieces[: length - 2]
        ids = np.concatenate([[vocabulary.specials[CLS]], pieces, [vocabulary.specials[SEP]]]).astype(np.int32)
        if len(ids) > length:
            raise UserError(f"the text has {len(ids)} tokens, but the network reads {length}: {shorten(text)}")
        if gets_label:
            return PreparedRequest(request, ids, asked_positions=np.zeros(0, int), cut=cut, choices=choices)
        if head is not None:
            return PreparedRequest(request, ids, asked_positions=np.cumsum([1, *map(len, by_word)])[:-1])
        asked_positions = np.flatnonzero(ids == vocabulary.specials[MASK])
        if len(asked_positions) == 0:
            raise UserError(f"a masked language model fills in {MASK}, but the text has no {MASK}: {shorten(text)}")
        return PreparedRequest(request, ids, asked_positions=asked_positions)

    def _prepare_choices(self, choices: Sequence[str]) -> dict[str, list[int]]:
        """Return {label: [its number]}. Raises UserError for a choice that the model has no label for."""
        head, names = self.objective.answer_head, self.objective.labels
        if choices and (head is None or head.name != LABEL.head):
            raise UserError(
                "an encoder chooses among answers only if its answers are labels of texts; leave choices out"
            )
        for choice in choices:
            if choice not in names:
                raise UserError(f"{shorten(choice)!r} is not a label of this model; {nearest(choice, names)}")
        return {choice: [names.index(choice)] for choice in choices}

    def _choose_label(self, choices: Mapping[str, Sequence[int]], logits_C: np.ndarray) -> dict:
        """Return the likeliest of `choices`. The log-probabilities come from the softmax over all labels."""
        logprobs_C = np.asarray(jax.nn.log_softmax(logits_C))
        chosen = np.array([logprobs_C[label] for (label,) in choices.values()])
        return rank_choices(choices, chosen, "sum")

    def _read_answer(self, text: str, ids: np.ndarray, asked_positions: np.ndarray, logits_NxC: np.ndarray) -> dict:
        """Return the likeliest answer.

        [MASK] is filled only with ordinary pieces. But the log-probabilities come from the softmax over all ids.

        logits_NxC: for each asked position, or for the whole text (N = 1).
        """
        vocabulary, names = self.tokenizer.vocabulary, self.objective.labels
        if self.objective.heads.vocabulary:
            allowed = ~vocabulary.table.is_special[: vocabulary.pieces]
            chosen = np.where(allowed, logits_NxC[:, : vocabulary.pieces], -np.inf).argmax(axis=-1)
            filled = ids.copy()
            filled[asked_positions] = chosen
            output, tokens = self.tokenizer.decode(filled[1:-1]), filled[1:-1]
        else:
            chosen = tokens = logits_NxC.argmax(axis=-1)
            output = TASKS[self.objective.answer_head.name].read_out([names[index] for index in chosen], text.split())
        logprobs = np.asarray(jax.nn.log_softmax(logits_NxC))[np.arange(len(chosen)), chosen]
        # tokens: the ids of the filled text, or the numbers of the labels. token_logprobs: one for each of N choices.
        answer = {"output": output, "tokens": list(map(int, tokens))}
        return {**answer, "token_logprobs": logprobs.tolist(), "logprob": float(logprobs.sum())}

    @functools.cached_property
    def _compute_logits(self) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """The function (inputs [B, L], lengths [B], asked_positions [B, P]) -> logits.

        The logits are [B, P, C], or [B, C] for whole texts.
        """
        head = self.objective.answer_head

        @jax.jit
        def apply(params: Any, inputs: jax.Array, lengths: jax.Array, asked_positions: jax.Array) -> jax.Array:
            real = (jnp.arange(inputs.shape[1]) < lengths[:, None]).astype(jnp.int32)
            # A Batch needs targets and weights, but the outputs do not depend on them.
            batch = Batch(targets=inputs, weights=real, inputs=inputs, inputs_segment_ids=real,
                          predicted=asked_positions if head is None else None)  # fmt: skip
            outputs = self.model.apply({"params": params}, batch, method="outputs")
            logits = outputs[VOCABULARY if head is None else head.name]
            if head is not None and head.each == "token":
                logits = jnp.take_along_axis(logits, asked_positions[..., None], axis=1)
            return logits

        placed = bind_mesh(self.mesh, apply)
        return lambda *arrays: jax.device_get(placed(self.params, *arrays))

"""Fill in each [MASK] of a text with an encoder."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.generate import pad_rows
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import VOCABULARY
from t5lite.run.answering import Answerer, Options, PreparedRequest, refuse_choices
from t5lite.run.requests import Request, shorten
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, MASK, SEP
from t5lite.training.trainer import bind_mesh


class EncoderAnswerer(Answerer):
    """An encoder that answers with the text and each [MASK] filled in."""

    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`."""
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=self.objective.inputs_length)
        asked_positions, _ = pad_rows([each.asked_positions for each in ready], minimum=1)
        outputs = self._compute_logits(inputs, lengths, asked_positions)
        answers = []
        for row, each in enumerate(ready):
            logits = outputs[row, : len(each.asked_positions)]
            answers.append(each.complete_answer(self._read_answer(each.ids, each.asked_positions, logits)))
        return answers

    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """Return a text as tokens, and the positions of each [MASK].

        Raises UserError for a text that is too long, for a text without [MASK], and for choices.
        """
        refuse_choices(request, options)
        text, vocabulary, length = request.input, self.tokenizer.vocabulary, self.objective.inputs_length
        pieces = self.tokenizer.encode(text, True)
        ids = np.concatenate([[vocabulary.specials[CLS]], pieces, [vocabulary.specials[SEP]]]).astype(np.int32)
        if len(ids) > length:
            raise UserError(f"the text has {len(ids)} tokens, but the network reads {length}: {shorten(text)}")
        asked_positions = np.flatnonzero(ids == vocabulary.specials[MASK])
        if len(asked_positions) == 0:
            raise UserError(f"a masked language model fills in {MASK}, but the text has no {MASK}: {shorten(text)}")
        return PreparedRequest(request, ids, asked_positions=asked_positions)

    def _read_answer(self, ids: np.ndarray, asked_positions: np.ndarray, logits_NxV: np.ndarray) -> dict:
        """Return the likeliest answer.

        [MASK] is filled only with ordinary pieces. But the log-probabilities come from the softmax over all ids.

        logits_NxV: for each asked position.
        """
        vocabulary = self.tokenizer.vocabulary
        allowed = ~vocabulary.table.is_special[: vocabulary.pieces]
        chosen = np.where(allowed, logits_NxV[:, : vocabulary.pieces], -np.inf).argmax(axis=-1)
        filled = ids.copy()
        filled[asked_positions] = chosen
        logprobs = np.asarray(jax.nn.log_softmax(logits_NxV))[np.arange(len(chosen)), chosen]
        # tokens: the ids of the filled text. token_logprobs: one for each [MASK].
        answer = {"output": self.tokenizer.decode(filled[1:-1]), "tokens": list(map(int, filled[1:-1]))}
        return {**answer, "token_logprobs": logprobs.tolist(), "logprob": float(logprobs.sum())}

    @functools.cached_property
    def _compute_logits(self) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """The function (inputs [B, L], lengths [B], asked_positions [B, P]) -> logits [B, P, V]."""

        @jax.jit
        def apply(params: Any, inputs: jax.Array, lengths: jax.Array, asked_positions: jax.Array) -> jax.Array:
            real = (jnp.arange(inputs.shape[1]) < lengths[:, None]).astype(jnp.int32)
            # A Batch needs targets and weights, but the outputs do not depend on them.
            batch = Batch(targets=inputs, weights=real, inputs=inputs, inputs_segment_ids=real,
                          predicted=asked_positions)  # fmt: skip
            return self.model.apply({"params": params}, batch, method="outputs")[VOCABULARY]

        placed = bind_mesh(self.mesh, apply)
        return lambda *arrays: jax.device_get(placed(self.params, *arrays))

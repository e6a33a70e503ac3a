"""Answers of an encoder: the likeliest piece in place of each [MASK], the label of a text, the tag of each word."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.answers import Generator, Request, shortened
from t5lite.data.build import pieces_of_words
from t5lite.errors import UserError
from t5lite.objectives.batch import Batch
from t5lite.training import hosts
from t5lite.vocabulary import CLS, MASK, SEP


class Reader:
    """An encoder, ready to answer. generator: what holds its parameters."""

    def __init__(self, generator: Generator):
        self.tokenizer, self.objective = generator.tokenizer, generator.objective
        self._model, self._params = generator.model, generator.params

    def answers(self, requests: Sequence[Request]) -> Iterator[dict]:
        """{"input", "output", "tokens", "token_logprobs", "logprob"} of each request, in their order.

        Several hosts take texts in turn, and host 0 yields the answers of all.
        """
        for first in range(0, len(requests), hosts.count()):
            mine = requests[first + hosts.index() :][:1]
            for each in hosts.to_primary([{**request.fields, **self._understood(request.input)} for request in mine]):
                yield from each

    def _understood(self, text: str) -> dict:
        """What the encoder makes of a text. Raises UserError for one that it cannot take."""
        vocabulary, heads, length = self.tokenizer.vocabulary, self.objective.heads, self.objective.inputs_length
        words = text.split()
        by_word = pieces_of_words(self.tokenizer, [words])[0] if heads.tagger else [self.tokenizer.encode(text, True)]
        pieces = np.concatenate([np.zeros(0, np.int32), *by_word])
        pieces = pieces[: length - 2] if heads.classifier else pieces  # as in evaluation
        ids = np.concatenate([[vocabulary.specials[CLS]], pieces, [vocabulary.specials[SEP]]]).astype(np.int32)
        if len(ids) > length:
            raise UserError(f"the text has {len(ids)} tokens, the network reads {length}: {shortened(text)}")
        outputs = self._outputs(np.pad(ids, (0, length - len(ids))), np.arange(length) < len(ids))
        if heads.vocabulary:
            places = np.flatnonzero(ids == vocabulary.specials[MASK])
            if len(places) == 0:
                raise UserError(f"a masked language model fills in {MASK}, and the text has none: {shortened(text)}")
            allowed = ~vocabulary.table.is_special[: vocabulary.pieces]
            scores = np.where(allowed, outputs.tokens[places, : vocabulary.pieces], -np.inf)
            ids[places] = scores.argmax(axis=-1)
            return _answer(text, self.tokenizer.decode(ids[1:-1]), ids[1:-1], outputs.tokens[places], ids[places])
        names = self.objective.labels
        if heads.classifier:
            best = outputs.labels.argmax()
            return _answer(text, names[best], [best], outputs.labels[None], [best])
        places = np.cumsum([1, *map(len, by_word)])[:-1]
        tags = outputs.tokens[places].argmax(axis=-1)
        said = " ".join(f"{word}/{names[tag]}" for word, tag in zip(words, tags, strict=True))
        return _answer(text, said, tags, outputs.tokens[places], tags)

    @functools.cached_property
    def _outputs(self) -> Any:
        """(inputs [L], which of them are no padding) -> Outputs of one example, as NumPy arrays."""

        @jax.jit
        def apply(params: Any, inputs: jax.Array, real: jax.Array) -> Any:
            batch = Batch(inputs[None], real[None], inputs=inputs[None], inputs_segment_ids=real[None].astype(np.int32))
            return jax.tree.map(lambda x: x[0], self._model.apply({"params": params}, batch, method="outputs"))

        return lambda *arrays: jax.device_get(apply(self._params, *arrays))


def _answer(text: str, output: str, tokens: Any, logits: np.ndarray, chosen: Any) -> dict:
    """The answer, with the log-probability of each of `chosen` [n] under `logits` [n, C]."""
    logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), chosen]
    answer = {"input": text, "output": output, "tokens": list(map(int, tokens))}
    return {**answer, "token_logprobs": logprobs.tolist(), "logprob": float(logprobs.sum())}

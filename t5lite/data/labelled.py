"""Rows of texts with known answers, one text to a row: a label of each, or a tag of each word.

    LabelledTexts     {"inputs": [n, L], "inputs_segment_ids": [n, L], "labels": [n]}
    TaggedSentences   {"inputs": [n, L], "inputs_segment_ids": [n, L], "tags": [n, L]}

Inputs end in EOS, also where they were cut. Labels and tags are places in `Dataset.labels`; a piece without a tag of
its own has -1, and so has a text whose label is unknown. All arrays are int32.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.data.build import first_tag
from t5lite.data.rows import Rows, clipped
from t5lite.data.store import TokenStore
from t5lite.data.text_tokenizer import TextTokenizer


def label_ids(tokenizer: TextTokenizer, labels: Sequence[str]) -> dict[bytes, int]:
    """The place of each label, by the bytes of its tokens as a store has them."""
    eos = tokenizer.vocabulary.eos
    documents = [np.append(tokens, eos).astype(np.int32) for tokens in tokenizer.encode_many(labels)]
    return {document.tobytes(): place for place, document in enumerate(documents)}


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The pairs `order` of a store, their inputs cut to `length` tokens."""

    store: TokenStore
    order: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.order)

    def _inputs(self, indices: np.ndarray) -> Rows:
        inputs = np.zeros((len(indices), self.length), np.int32)
        segments = np.zeros_like(inputs)
        for row, pair in enumerate(self.order[indices]):
            tokens = clipped(self.store.document(2 * int(pair)), self.length)
            inputs[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
        return {"inputs": inputs, "inputs_segment_ids": segments}


@dataclasses.dataclass(frozen=True)
class LabelledTexts(_Texts):
    """`ids` are those of `label_ids`."""

    ids: Mapping[bytes, int]

    def fetch(self, indices: np.ndarray) -> Rows:
        documents = [self.store.document(2 * int(pair) + 1) for pair in self.order[indices]]
        labels = [self.ids.get(document.astype(np.int32).tobytes(), -1) for document in documents]
        return self._inputs(indices) | {"labels": np.array(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class TaggedSentences(_Texts):
    """`labels` are the tags in the order in which rows number them."""

    labels: tuple[str, ...]

    def __post_init__(self):
        numbers = [self.labels.index(tag) for tag in self.store.card["tags"]]
        object.__setattr__(self, "_numbers", np.array([-1] * first_tag(self.store.eos) + numbers, np.int32))

    def fetch(self, indices: np.ndarray) -> Rows:
        tags = np.full((len(indices), self.length), -1, np.int32)
        for row, pair in enumerate(self.order[indices]):
            document = clipped(self.store.document(2 * int(pair) + 1), self.length)
            tags[row, : len(document)] = self._numbers[document]
        return self._inputs(indices) | {"tags": tags}

"""Rows of one text each with known answers: one label for the text, or one tag for each word.

    LabelledTexts     {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n]}
    TaggedSentences   {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n, L]}

Inputs end in EOS, also if they were cut. An answer is an index into `Dataset.labels`. It is -1 for a piece without a
tag of its own, and for a text with an unknown label. If tags are evaluated, "next_answers" [n] holds the tag of the
first word that was cut off, -1 if no word was. All arrays are int32.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.data.build import first_tag
from t5lite.data.cut import Cut, count_cut
from t5lite.data.rows import Rows, clip
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError


def check_labels(tokenizer: TextTokenizer, labels: Sequence[str], targets_length: int | None, front: int = 0) -> None:
    """Raise UserError for labels that have the same tokens, either whole or as far as a row holds them.

    Args:
        targets_length: most tokens of a label, with EOS and `front` tokens before it; None: labels are not cut.
    """
    seen: dict[bytes, tuple[str, np.ndarray]] = {}
    room = None if targets_length is None else max(targets_length - front - 1, 0)
    for label, tokens in zip(labels, tokenizer.encode_many(list(labels)), strict=True):
        other, before = seen.setdefault(tokens[:room].tobytes(), (label, tokens))
        if other == label:
            continue
        if np.array_equal(tokens, before):
            raise UserError(
                f"the labels {other!r} and {label!r} are the same tokens to this tokenizer; rename one of them, or set "
                "config.data.labels=False if targets are free text"
            )
        least = min(len(tokens), len(before))
        differ = np.flatnonzero(tokens[:least] != before[:least])
        needed = front + 2 + (int(differ[0]) if len(differ) else least)
        raise UserError(
            f"config.objective.targets_length: the labels {other!r} and {label!r} are alike when cut to "
            f"{targets_length} tokens; raise it to {needed} at least, or set config.data.labels=False to evaluate "
            "without accuracy"
        )


def label_ids(tokenizer: TextTokenizer, labels: Sequence[str]) -> dict[bytes, int]:
    """Return {a label's tokens, as bytes of int32 with EOS: the label's index}."""
    eos = tokenizer.vocabulary.eos
    documents = [np.append(tokens, eos).astype(np.int32) for tokens in tokenizer.encode_many(labels)]
    return {document.tobytes(): place for place, document in enumerate(documents)}


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The pairs `order` of a store. Their inputs are cut to `length` tokens."""

    store: TokenStore
    order: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.order)

    def cut(self) -> Cut:
        """Count what is cut of all inputs. The lengths include the [CLS] that will stand in front of each."""
        return count_cut(self.store.pair_lengths()[self.order] + 1, (self.length + 1, None))

    def _inputs(self, indices: np.ndarray) -> Rows:
        inputs = np.zeros((len(indices), self.length), np.int32)
        segments = np.zeros_like(inputs)
        for row, pair in enumerate(self.order[indices]):
            tokens = clip(self.store.document(2 * int(pair)), self.length)
            inputs[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
        return {"inputs": inputs, "inputs_segment_ids": segments}


@dataclasses.dataclass(frozen=True)
class LabelledTexts(_Texts):
    """Texts with one label each. ids: from `label_ids`."""

    ids: Mapping[bytes, int]

    def fetch(self, indices: np.ndarray) -> Rows:
        documents = [self.store.document(2 * int(pair) + 1) for pair in self.order[indices]]
        labels = [self.ids.get(document.astype(np.int32).tobytes(), -1) for document in documents]
        return self._inputs(indices) | {"answers": np.array(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class TaggedSentences(_Texts):
    """Sentences with a tag for each word.

    labels: all tags; the number of a tag in rows is its index here. continued: also give "next_answers".
    """

    labels: tuple[str, ...]
    continued: bool = False

    def __post_init__(self):
        numbers = [self.labels.index(tag) for tag in self.store.card["tags"]]
        object.__setattr__(self, "_numbers", np.array([-1] * first_tag(self.store.eos) + numbers, np.int32))

    def fetch(self, indices: np.ndarray) -> Rows:
        tags = np.full((len(indices), self.length), -1, np.int32)
        for row, pair in enumerate(self.order[indices]):
            document = clip(self.store.document(2 * int(pair) + 1), self.length)
            tags[row, : len(document)] = self._numbers[document]
        rows = self._inputs(indices) | {"answers": tags}
        if self.continued:
            rows["next_answers"] = np.array(
                [after[0] if len(after) else -1 for _, after in self.cut_tags(indices)], np.int32
            )
        return rows

    def cut_tags(self, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return for each row the tag of its last word (-1: it has none), and the tags of the words cut off."""
        tags_of_rows = []
        for pair in self.order[indices]:
            tags = self._numbers[self.store.document(2 * int(pair) + 1)]
            kept, after = (tags, tags[:0]) if len(tags) <= self.length else np.split(tags, [self.length - 1])
            kept, after = kept[kept >= 0], after[after >= 0]
            tags_of_rows.append((int(kept[-1]) if len(kept) else -1, after))
        return tags_of_rows

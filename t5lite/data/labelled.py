"""Rows that hold one text and its known answers.

    LabelledTexts     {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n]}
    LabelSets         {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n, C]}
    NumberedTexts     {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n]}
    TaggedSentences   {"inputs": [n, L], "inputs_segment_ids": [n, L], "answers": [n, L]}
    PackedTexts       several texts in a row, and "answers" [n, P] or [n, P, C]

Inputs end in EOS, also if they were cut. The arrays are int32, except for the answers of NumberedTexts, which are
standardised float32.

The answer of a text, or of the first piece of a word, is an index into `Dataset.labels`. It is -1 for a piece without a
tag of its own, and for a text with an unknown label. In LabelSets, column k is 1 if the text has label k, else 0. If
tags are evaluated, "next_answers" [n] holds the tag of the first word that was cut off, or -1 if no word was cut off.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5lite.data.answered import Scale, read_number
from t5lite.data.build import first_tag
from t5lite.data.cut import Cut, count_cut
from t5lite.data.packing import PackingPlan, pack
from t5lite.data.rows import Rows, RowSource, clip
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError


def check_labels(tokenizer: TextTokenizer, labels: Sequence[str], targets_length: int | None, front: int = 0) -> None:
    """Raise UserError for two labels with equal tokens, or with equal tokens after the cut to `targets_length`.

    Args:
        targets_length: the largest number of tokens in a row: `front` tokens, the label, EOS. None: labels are not cut.
    """
    seen: dict[bytes, tuple[str, np.ndarray]] = {}
    room = None if targets_length is None else max(targets_length - front - 1, 0)
    for label, tokens in zip(labels, tokenizer.encode_many(list(labels)), strict=True):
        first_label, first_tokens = seen.setdefault(tokens[:room].tobytes(), (label, tokens))
        if first_label == label:
            continue
        if np.array_equal(tokens, first_tokens):
            raise UserError(
                f"the labels {first_label!r} and {label!r} have equal tokens in this tokenizer; rename one of them, or "
                "set config.data.labels=False if targets are free text"
            )
        shared_length = min(len(tokens), len(first_tokens))
        differ = np.flatnonzero(tokens[:shared_length] != first_tokens[:shared_length])
        needed = front + 2 + (int(differ[0]) if len(differ) else shared_length)
        raise UserError(
            f"config.objective.targets_length: the labels {first_label!r} and {label!r} are equal after the cut "
            f"to {targets_length} tokens; raise targets_length to at least {needed}, or set config.data.labels=False "
            "to evaluate without accuracy"
        )


def label_ids(tokenizer: TextTokenizer, labels: Sequence[str]) -> dict[bytes, int]:
    """Return {tokens of a label: index of the label}. The tokens are int32 with EOS, as bytes."""
    eos = tokenizer.vocabulary.eos
    documents = [np.append(tokens, eos).astype(np.int32) for tokens in tokenizer.encode_many(labels)]
    return {document.tobytes(): place for place, document in enumerate(documents)}


class Facts(NamedTuple):
    """Facts about the answers of a run.

    labels: all labels or tags, in the order of their indices. ids: from `label_ids`. scale: of numbers.
    for_evaluation: whether the rows are evaluated.
    """

    labels: tuple[str, ...] = ()
    ids: Mapping[bytes, int] = {}
    scale: Scale | None = None
    for_evaluation: bool = False


@dataclasses.dataclass(frozen=True)
class _Texts(RowSource):
    """Some texts of a store, with their answers.

    order: their indices in the store. length: inputs are cut to this many tokens. front: the number of tokens that the
    objective puts before the inputs. facts: what is known about the answers.
    """

    store: TokenStore
    order: np.ndarray
    length: int
    front: int
    facts: Facts

    def __len__(self) -> int:
        return len(self.order)

    def count_cut(self) -> Cut:
        """Count the inputs that are cut, and their lost tokens. Lengths include the tokens in front of each input."""
        return count_cut(self.store.pair_lengths()[self.order] + self.front, (self.length + self.front, None))

    def _fetch_inputs(self, indices: np.ndarray) -> Rows:
        inputs = np.zeros((len(indices), self.length), np.int32)
        segments = np.zeros_like(inputs)
        for row, pair in enumerate(self.order[indices]):
            tokens = clip(self.store.document(2 * int(pair)), self.length)
            inputs[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
        return {"inputs": inputs, "inputs_segment_ids": segments}


@dataclasses.dataclass(frozen=True)
class LabelledTexts(_Texts):
    """Texts with one label each."""

    def fetch(self, indices: np.ndarray) -> Rows:
        documents = [self.store.document(2 * int(pair) + 1) for pair in self.order[indices]]
        labels = [self.facts.ids.get(document.astype(np.int32).tobytes(), -1) for document in documents]
        return self._fetch_inputs(indices) | {"answers": np.array(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class NumberedTexts(_Texts):
    """Texts with one number each."""

    def fetch(self, indices: np.ndarray) -> Rows:
        numbers = np.array([read_number(self.store, int(pair)) for pair in self.order[indices]])
        answers = (numbers - self.facts.scale.mean) / self.facts.scale.deviation
        return self._fetch_inputs(indices) | {"answers": answers.astype(np.float32)}


def _number_labels(store: TokenStore, labels: Sequence[str]) -> np.ndarray:
    """Return the index in `labels` for each id in the answers of a store; -1 for ids that are no label."""
    indices = [labels.index(label) for label in store.card["tags"]]
    return np.array([-1] * first_tag(store.eos) + indices, np.int32)


@dataclasses.dataclass(frozen=True)
class LabelSets(_Texts):
    """Texts with a set of labels each."""

    def __post_init__(self):
        object.__setattr__(self, "_label_of_id", _number_labels(self.store, self.facts.labels))

    def fetch(self, indices: np.ndarray) -> Rows:
        return self._fetch_inputs(indices) | {"answers": self.fetch_answers(indices)}

    def fetch_answers(self, indices: np.ndarray) -> np.ndarray:
        """Return int32 [n, C]: 1 where a text has a label."""
        answers = np.zeros((len(indices), len(self.facts.labels)), np.int32)
        for row, pair in enumerate(self.order[indices]):
            answers[row, self._label_of_id[self.store.document(2 * int(pair) + 1)[:-1]]] = 1
        return answers


@dataclasses.dataclass(frozen=True)
class PackedTexts(RowSource):
    """Rows of several texts with one answer each.

    texts: the source of the texts, one in a row. plan: which of its rows share a row. The plan's `targets_length` is P,
    the largest number of texts. front: the ids before each text.
    """

    texts: LabelledTexts | LabelSets | NumberedTexts
    plan: PackingPlan
    front: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.plan)

    def fetch(self, indices: np.ndarray) -> Rows:
        packed = [self.plan.pairs(int(index)) for index in indices]
        texts = self.texts.fetch(np.concatenate(packed)) if packed else self.texts.fetch(np.zeros(0, np.int64))
        inputs = np.zeros((len(packed), self.plan.inputs_length), np.int32)
        segments, answers = np.zeros_like(inputs), texts["answers"]
        missing = -1 if answers.dtype == np.int32 else np.nan
        shape = (len(packed), self.plan.targets_length, *answers.shape[1:])
        rows = {"inputs": inputs, "inputs_segment_ids": segments, "answers": np.full(shape, missing, answers.dtype)}
        number = 0
        for row, places in enumerate(packed):
            start = 0
            rows["answers"][row, : len(places)] = answers[number : number + len(places)]
            for segment in range(1, len(places) + 1):
                tokens = texts["inputs"][number][texts["inputs_segment_ids"][number] > 0]
                first, stop = start + len(self.front), start + len(self.front) + len(tokens)
                inputs[row, start:first], inputs[row, first:stop] = self.front, tokens
                segments[row, start:stop] = segment
                start, number = stop, number + 1
        return rows


def pack_texts(texts: LabelledTexts | LabelSets | NumberedTexts, front: tuple[int, ...], limit: int, seed: int
               ) -> PackedTexts:  # fmt: skip
    """Return rows of up to `limit` of the texts, with `front` before each text. seed: fixes the order of packing."""
    lengths = np.minimum(texts.store.pair_lengths()[texts.order, 0], texts.length) + len(front)
    sizes = np.stack([lengths, np.ones_like(lengths)], axis=1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    return PackedTexts(texts, pack(sizes, order, texts.length + len(front), limit), front)


@dataclasses.dataclass(frozen=True)
class TaggedSentences(_Texts):
    """Sentences with a tag for each word. Rows hold a tag as its index in `labels`."""

    def __post_init__(self):
        object.__setattr__(self, "_label_of_id", _number_labels(self.store, self.facts.labels))

    def fetch(self, indices: np.ndarray) -> Rows:
        tags = np.full((len(indices), self.length), -1, np.int32)
        for row, pair in enumerate(self.order[indices]):
            document = clip(self.store.document(2 * int(pair) + 1), self.length)
            tags[row, : len(document)] = self._label_of_id[document]
        rows = self._fetch_inputs(indices) | {"answers": tags}
        if self.facts.for_evaluation:
            rows["next_answers"] = np.array(
                [after[0] if len(after) else -1 for _, after in self.find_cut_tags(indices)], np.int32
            )
        return rows

    def find_cut_tags(self, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return for each row the tag of its last word (-1: no word), and the tags of the words that are cut off."""
        tags_of_rows = []
        for pair in self.order[indices]:
            tags = self._label_of_id[self.store.document(2 * int(pair) + 1)]
            kept, after = (tags, tags[:0]) if len(tags) <= self.length else np.split(tags, [self.length - 1])
            kept, after = kept[kept >= 0], after[after >= 0]
            tags_of_rows.append((int(kept[-1]) if len(kept) else -1, after))
        return tags_of_rows

"""Questions whose answers are parts of a context: read them, store them, and cut long contexts into windows.

    read_questions(source)     Question("Who sat?", "The cat sat.", ("The cat",), (0,), "squad.jsonl, line 1")

In the store, each question has four documents: the tokens of the question, the tokens of the context, the first and the
last token of the first answer (-1, -1: the question has no answer), and {"context", "answers"} as JSON. The last two
documents are bytes, see `answered.encode_bytes`.

A row holds the question and a window of the context, each closed by EOS. Windows of one context overlap:

    inputs               Who sat ? EOS The cat sat . EOS 0 0
    inputs_segment_ids   1   1   1 1   1   1   1   1 1   0 0
    answers              4 5                               the places of the answer; -2 -2 if it is not in the window
"""

import dataclasses
import json
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.answered import decode_bytes, encode_bytes
from t5lite.data.build import Advance, Part, encode_words, group_in_blocks, write_stores
from t5lite.data.columns import Record
from t5lite.data.cut import Cut, count_cut
from t5lite.data.files import MAX_SENTENCE_LENGTH
from t5lite.data.labelled import Facts
from t5lite.data.readers import check_column
from t5lite.data.rows import Rows, RowSource, clip, space_evenly
from t5lite.data.sources import Source
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError

QUESTION, CONTEXT, PLACES, TEXTS = range(4)
DOCUMENTS = 4  # for each question
NOT_HERE = -2  # the answer of a row whose window does not contain the answer
OVERLAP = 3  # windows of a context share a third of the row, as BERT's windows of 384 tokens share 128


class Question(NamedTuple):
    """A question with its context, the texts of its answers, and the characters of the context where they start.

    place: the file and line, for errors.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    place: str


def read_questions(source: Source) -> Iterator[Question]:
    """Yield the questions of a source, with columns in the format of SQuAD. Without an answer, `answers` is ().

    The column of answers is {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}. Raises
    UserError for a column of another form, and for an answer that does not stand where answer_start says.
    """
    columns = source.columns
    if columns.pair_templates:
        raise UserError("config.data.train.template: questions with spans have no template; leave it unset")
    for record in source.records([columns.question, columns.context, columns.answers]):
        question, context = record.read(columns.question), record.read(columns.context)
        if len(context) + len(question) > MAX_SENTENCE_LENGTH:
            raise UserError(f"{record.place}: question and context have over {MAX_SENTENCE_LENGTH:,} characters; split "
                            "the context")  # fmt: skip
        answers = _read_answers(record, columns.answers)
        for text, start in answers:
            if not text or context[start : start + len(text)] != text or start < 0:
                raise UserError(
                    f"{record.place}: answer_start={start} points to {context[max(start, 0) :][: len(text) or 10]!r}, "
                    f"but the answer is {text[:60]!r}; correct answer_start: it counts characters of the context from 0"
                )
        texts, starts = zip(*answers, strict=True) if answers else ((), ())
        yield Question(question, context, texts, starts, record.place)


def _read_answers(record: Record, name: str) -> list[tuple[str, int]]:
    check_column(name, record.row, record.place)
    value = record.row[name]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        items = [
            {"text": text, "answer_start": start}
            for text, start in zip(value["text"], value.get("answer_start") or (), strict=False)
        ]
        if len(items) < len(value["text"]) or len(value.get("answer_start") or ()) > len(items):
            raise UserError(f"{record.place}: column {name!r} has {len(value['text'])} texts and "
                            f"{len(value.get('answer_start') or ())} answer_start; give as many of each")  # fmt: skip
    else:
        items = value if isinstance(value, list) else [value]
    answers = []
    for item in items:
        text, start = (item.get(key) if isinstance(item, dict) else None for key in ("text", "answer_start"))
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise UserError(
                f"{record.place}: column {name!r} must be {{'text': [...], 'answer_start': [...]}}, with texts and "
                f"whole numbers; it is {str(value)[:60]}"
            )
        answers.append((text, start))
    return answers


def encode_context(tokenizer: TextTokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids int32 [n], characters int64 [n, 2]): for each token, where it starts and ends in the text.

    If the tokenizer cannot tell this for its tokens, the words are encoded one by one, and each token gets the
    characters of its word.
    """
    ids = tokenizer.encode(text)
    characters = tokenizer.locate(text, ids)
    if characters is not None:
        return ids, characters
    words = [match.span() for match in re.finditer(r"\S+", text)]
    pieces = encode_words(tokenizer, [[text[start:stop] for start, stop in words]])[0]
    repeated = np.repeat(np.array(words, np.int64).reshape(-1, 2), [len(ids) for ids in pieces], axis=0)
    return np.concatenate([np.zeros(0, np.int32), *pieces]), repeated


def _find_tokens(characters: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Return the first and the last token that share a character with [start, stop); (-1, -1) if none does."""
    first, last = characters.T
    touching = np.flatnonzero((first < stop) & ((last > start) | ((first == last) & (first >= start))))
    return (int(touching[0]), int(touching[-1])) if len(touching) else (-1, -1)


def build_questions(
    folder: Path, questions: Iterable[Question], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout of questions."""
    eos = tokenizer.vocabulary.eos

    def encode_blocks() -> Iterator[list[Part]]:
        for block in group_in_blocks(questions, lambda each: len(each.context) + len(each.question) + 64):
            parts = []
            for each in block:
                ids, characters = encode_context(tokenizer, each.context)
                places = (-1, -1)
                if each.answers:
                    places = _find_tokens(characters, each.starts[0], each.starts[0] + len(each.answers[0]))
                    if places[0] < 0:
                        raise UserError(f"{each.place}: the tokenizer has no token for the answer "
                                        f"{each.answers[0][:60]!r}; choose another answer or tokenizer")  # fmt: skip
                texts = json.dumps({"context": each.context, "answers": each.answers}).encode()
                parts += [
                    Part(tokenizer.encode(each.question), len(each.question.encode()), True),
                    Part(ids, len(each.context.encode()), True),
                    Part(encode_bytes(struct.pack("<qq", *places), eos), None, True),
                    Part(encode_bytes(texts, eos), None, True),
                ]
            yield parts
            advance(sum(part.num_bytes or 0 for part in parts))

    write_stores(folder, encode_blocks(), tokenizer, hold_out, DOCUMENTS, lambda name: {"labels": None})


def most_asked(length: int) -> int:
    """Return the largest number of tokens of a question in a row of `length` tokens: half of the row, with EOS."""
    return max(length // 2 - 1, 1)


def cut_windows(asked: int, context: int, length: int) -> list[tuple[int, int]]:
    """Return the first and the last + 1 token of each window of a context.

    Args:
        asked, context: the number of tokens of the question and of the context. length: the tokens of a row.
    """
    room = length - asked - 2
    step = max(room - length // OVERLAP, 1)
    return [(start, min(start + room, context)) for start in range(0, max(context - room, 0) + step, step)]


class Texts(NamedTuple):
    """The texts of a question: its context and its answers (none if there is no answer in the context)."""

    context: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class QuestionWindows(RowSource):
    """Rows of a question with a window of its context. The fields are those of `labelled.LabelledTexts`.

    A question that fills more than half of a row is cut. `windows` [n, 4]: the question in the store, the length of the
    question in the row, and the first and the last + 1 token of the context.
    """

    store: TokenStore
    order: np.ndarray
    length: int
    front: int
    facts: Facts

    def __post_init__(self):
        lengths = self._count_tokens()
        windows = []
        for question, (asked, context) in zip(self.order.tolist(), lengths.tolist(), strict=True):
            asked = min(asked, most_asked(self.length))
            windows += [(question, asked, *window) for window in cut_windows(asked, context, self.length)]
        object.__setattr__(self, "windows", np.array(windows, np.int64).reshape(-1, 4))

    def _count_tokens(self) -> np.ndarray:
        """Return int64 [n, 2]: tokens of each question and of its context, without EOS."""
        lengths = np.diff(np.asarray(self.store.ends), prepend=0).reshape(-1, DOCUMENTS)
        return lengths[self.order][:, [QUESTION, CONTEXT]] - 1

    def __len__(self) -> int:
        return len(self.windows)

    def count_cut(self) -> Cut:
        """Count the questions that are cut, and their lost tokens. Contexts are not cut, but read in windows."""
        return count_cut(self._count_tokens(), (most_asked(self.length), None))

    def choose(self, count: int) -> np.ndarray:
        """Return the indices of all windows of evenly spaced questions: as many questions as have `count` windows."""
        if count >= len(self):
            return np.arange(len(self))
        questions = space_evenly(len(self.order), max(round(count * len(self.order) / len(self)), 1))
        return np.flatnonzero(np.isin(self.windows[:, 0], self.order[questions]))

    def read_texts(self, question: int) -> Texts:
        """Return the texts of a question in the store."""
        document = self.store.document(DOCUMENTS * question + TEXTS)
        texts = json.loads(decode_bytes(document, self.store.eos))
        return Texts(texts["context"], tuple(texts["answers"]))

    def read_question(self, question: int) -> np.ndarray:
        """Return the tokens of a question in the store, without EOS."""
        return self.store.document(DOCUMENTS * question + QUESTION)[:-1]

    def fetch(self, indices: np.ndarray) -> Rows:
        eos = self.store.eos
        rows: dict[str, Any] = {
            "inputs": np.zeros((len(indices), self.length), np.int32),
            "inputs_segment_ids": np.zeros((len(indices), self.length), np.int32),
            "answers": np.full((len(indices), 2), NOT_HERE, np.int32),
        }
        for row, (question, asked, start, stop) in enumerate(self.windows[indices].tolist()):
            first = DOCUMENTS * question
            words = clip(self.store.document(first + QUESTION), asked + 1)
            context = self.store.document(first + CONTEXT)[start:stop]
            tokens = np.concatenate([words, context, [eos]])
            rows["inputs"][row, : len(tokens)], rows["inputs_segment_ids"][row, : len(tokens)] = tokens, 1
            places = np.array(struct.unpack("<qq", decode_bytes(self.store.document(first + PLACES), eos)))
            if start <= places[0] and places[1] < stop and places[0] >= 0:
                rows["answers"][row] = places - start + len(words)
        if self.facts.for_evaluation:
            rows["windows"] = np.asarray(indices, np.int32)
        return rows

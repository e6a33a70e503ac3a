"""The kinds of data: how the rows of a source are read, and how they are stored.

text          documents                       pairs        inputs and targets, both texts
tags          words with a tag each           numbers      texts with a number
number_texts  texts with a number as text
label_sets    texts with a set of labels      questions    questions, and their answers in a context
chat          conversations
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from t5lite.data.answered import build_label_sets, build_numbers, read_label_sets, read_number_texts, read_numbers
from t5lite.data.build import build_pairs, build_tagged, build_text
from t5lite.data.labelled import LabelledTexts, LabelSets, NumberedTexts, TaggedSentences
from t5lite.data.questions import DOCUMENTS, QuestionWindows, build_questions, read_questions
from t5lite.data.rows import RowSource
from t5lite.data.sources import Source


class DataKind(NamedTuple):
    """A kind of data.

    read: (source) -> its items.
    build: (folder, items, tokenizer, whether to hold out, advance) writes the two stores of the items.
    list_texts: (item) -> the texts on which a tokenizer is trained.
    make_rows: (store, order, length, front, facts) -> the rows for a model that answers with a head, see labelled.py.
    documents: the number of documents in the store for each item.
    has_labels: whether the answers are always labels of a closed set.
    """

    read: Callable[[Source], Iterable[Any]]
    build: Callable[..., None] | None
    list_texts: Callable[[Any], Iterable[str]]
    make_rows: Callable[..., RowSource] | None
    documents: int = 2
    has_labels: bool = False


KINDS = {
    "text": DataKind(
        lambda source: source.fragments(), build_text, lambda fragment: [fragment.text], None, documents=1
    ),
    "pairs": DataKind(lambda source: source.pairs(), build_pairs, lambda pair: pair, LabelledTexts),
    "tags": DataKind(
        lambda source: source.tagged_sentences(),
        build_tagged,
        lambda sentence: [" ".join(sentence.words)],
        TaggedSentences,
        has_labels=True,
    ),
    "number_texts": DataKind(read_number_texts, build_pairs, lambda pair: pair, None),
    "numbers": DataKind(read_numbers, build_numbers, lambda item: [item.inputs], NumberedTexts),
    "chat": DataKind(  # data/chat/ stores conversations
        lambda source: source.conversations(), None, lambda each: [turn["content"] for turn in each.messages], None
    ),
    "questions": DataKind(
        read_questions,
        build_questions,
        lambda item: [item.question, item.context],
        QuestionWindows,
        documents=DOCUMENTS,
    ),
    "label_sets": DataKind(read_label_sets, build_label_sets, lambda item: [item.inputs], LabelSets, has_labels=True),
}


def iterate_texts(sources: Iterable[Source], kind: str, advance: Callable[[int], None]) -> Iterator[str]:
    """Yield the texts of `sources` on which a tokenizer is trained."""
    for source in sources:
        for item in KINDS[kind].read(source):
            for text in KINDS[kind].list_texts(item):
                advance(len(text))
                yield text

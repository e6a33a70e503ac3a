"""Read documents and pairs from files: .txt, .jsonl, .csv and .tsv, all of them also as .gz; .parquet and .arrow.

Files are read in parts, so that memory never holds a whole file. Bytes are decoded as UTF-8. Newlines stay as they
are. A byte-order mark at the start of a file is dropped.

A .txt file is one document. In the other formats each row is one document. A document arrives in fragments of about 1
MiB. A fragment ends before a single space between two other characters, so that no word is split. The joined
fragments are the document:

    Fragment("Call me Ishmael. Some years", ends_document=False), Fragment(" ago—never mind…", ends_document=True)
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.data import readers
from t5lite.data.chat.messages import Conversation, read_conversation
from t5lite.data.columns import Columns, Record
from t5lite.data.delimited import AUTO, DELIMITERS, check_quoting
from t5lite.data.readers import ColumnTypes, estimate_size, explain_read_errors, find_format, read_blocks, read_rows
from t5lite.system.errors import UserError

MAX_FRAGMENT_LENGTH = 2 << 20  # characters; a longer text without a single space is cut anywhere
MAX_SENTENCE_LENGTH = 1 << 20  # characters of a sentence with tags
CELLS_VERSION = 2  # of the rules that split lines of .csv and .tsv into cells; raise it when the rules change


class Fragment(NamedTuple):
    """A piece of a document, and whether the document ends with it."""

    text: str
    ends_document: bool


class TaggedSentence(NamedTuple):
    """A sentence: its words, a tag for each word, and the place (file and line), for errors."""

    words: list[str]
    tags: list[str]
    place: str


@dataclass(frozen=True)
class FileSource:
    """Files that match a glob, read in the order of their paths. quoting: see delimited.py."""

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    quoting: str = AUTO

    def __post_init__(self):
        check_quoting(self.quoting)

    def fragments(self) -> Iterator[Fragment]:
        """Yield the text of the documents. Leave out empty documents. Raises UserError for any fault of a file."""
        types = ColumnTypes()
        for path in self.paths:
            if find_format(path) == ".txt":
                yield from _split_fragments(read_blocks(path))
                continue
            for place, row in read_rows(path, self.columns.list_text_columns(), self.quoting):
                if text := self.columns.make_text(lambda name: types.read_text(row, name, place)):  # noqa: B023
                    yield from split_text(text)

    def pairs(self) -> Iterator[tuple[str, ...]]:
        """Yield (inputs, targets) for each row, and more references if targets are a list.

        Raises UserError for any fault of a file.
        """
        for record in self.records(self.columns.list_pair_columns()):
            yield self.columns.make_pair(record.index, record.read, record.read_list)

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """Yield the columns `names` of each row. Raises UserError for any fault of a file."""
        types, index = ColumnTypes(), 0
        for path in self.paths:
            if find_format(path) == ".txt":
                raise UserError(f"{path} has no columns; give pairs in .jsonl, .csv, .tsv, .parquet or .arrow files")
            for place, row in read_rows(path, names, self.quoting):
                read = functools.partial(types.read_text, row, place=place)
                yield Record(index, place, row, read, functools.partial(_read_list, types, row, place))
                index += 1

    def tagged_sentences(self) -> Iterator[TaggedSentence]:
        """Yield words and tags for each row. Raises UserError for any fault of a file, and for templates."""
        if self.columns.pair_templates:
            raise UserError("config.data.train.template: words with tags have no template; leave it unset")
        names, types = [self.columns.inputs, self.columns.targets], ColumnTypes()
        for path in self.paths:
            if find_format(path) not in (".jsonl", ".parquet", ".arrow"):
                raise UserError(f"{path} has no lists; give words and their tags in .jsonl, .parquet or .arrow files")
            for place, row in read_rows(path, names):
                words, tags = (types.read_texts(row, name, place) for name in names)
                if len(words) != len(tags):
                    raise UserError(f"{place}: {len(words)} words but {len(tags)} tags; give each word one tag")
                if sum(map(len, words)) + len(words) > MAX_SENTENCE_LENGTH:
                    raise UserError(
                        f"{place}: the words have over {MAX_SENTENCE_LENGTH:,} characters; make each sentence a row"
                    )
                yield TaggedSentence(words, tags, place)

    def conversations(self) -> Iterator[Conversation]:
        """Yield the conversation of each row. Raises UserError for any fault of a file."""
        for path in self.paths:
            if find_format(path) == ".txt":
                raise UserError(
                    f"{path} has no conversations; give a .jsonl with messages, or with prompt and completion; for "
                    "plain text, set config.objective.name=causal_lm"
                )
            for place, row in read_rows(path, ["prompt", "completion"]):
                yield read_conversation(row, place)

    def fingerprint(self) -> dict[str, Any]:
        """Return facts that identify the contents.

        The facts are the name, size and modification time of each file, the columns, and how cells are read. The folder
        is not among them.
        """
        facts = []
        for path in self.paths:
            with explain_read_errors(path):
                status = path.stat()
                facts.append([path.name, status.st_size, status.st_mtime_ns])
        has_cells = any(find_format(path) in DELIMITERS for path in self.paths)
        cells = {"cells": CELLS_VERSION, "quoting": self.quoting} if has_cells else {}
        return {"files": facts, "columns": self.columns.facts(), **cells}

    def num_bytes(self) -> int:
        """Estimate the bytes of UTF-8 in all fragments: the sizes of the files, after unpacking if known."""
        return sum(map(estimate_size, self.paths))


def _read_list(types: ColumnTypes, row: dict[str, Any], place: str, name: str) -> list[str] | None:
    return types.read_texts(row, name, place) if isinstance(row.get(name), list) else None


def split_text(text: str) -> Iterator[Fragment]:
    """Yield the fragments of a document that is one string. For an empty document, yield one empty fragment."""
    block = readers.BLOCK
    if len(text) <= block:
        yield Fragment(text, True)
    else:
        yield from _split_fragments(text[start : start + block] for start in range(0, len(text), block))


def _split_fragments(blocks: Iterable[str]) -> Iterator[Fragment]:
    """Yield the fragments of a document that arrives in `blocks`. For an empty document, yield nothing."""
    pending = ""  # text that is read and not yet yielded
    searched = 0  # `pending` has no place for a cut before this index
    for text in blocks:
        pending += text
        match = _TO_LAST_LONE_SPACE.match(pending, max(searched - 2, 0))
        if match or len(pending) > MAX_FRAGMENT_LENGTH:
            end = match.end() if match else len(pending) - 1
            yield Fragment(pending[:end], False)
            pending, searched = pending[end:], 0
        else:
            searched = len(pending)
    if pending:
        yield Fragment(pending, True)


_TO_LAST_LONE_SPACE = re.compile(r"(?s).*\S(?= \S)")

"""Read documents and pairs from files: .txt, .jsonl, .csv and .tsv, each also with .gz, and .parquet.

Everything streams: no file is held in memory as a whole. Bytes are decoded as UTF-8. Newlines stay as they are. A
byte-order mark at the start of a file is dropped.

A .txt file is one document. In the other formats each row is one document. A document arrives in fragments of about 1
MiB. A fragment ends before a single space between two other characters, so that no word is split. The fragments,
joined, are the document:

    Fragment("Call me Ishmael. Some years", ends_document=False), Fragment(" ago—never mind…", ends_document=True)
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.config import base_config
from t5lite.data import readers
from t5lite.data.delimited import AUTO, DELIMITERS, check_quoting
from t5lite.data.readers import ColumnTypes, decoded_blocks, format_of, place_of, readable, rows_of, size_of
from t5lite.system.errors import UserError

USUAL_COLUMNS = base_config().data.train.columns

LONGEST_FRAGMENT = 2 << 20  # characters; a longer text without a single space is cut anywhere
LONGEST_SENTENCE = 1 << 20  # characters of a sentence whose words have tags
CELLS = 2  # version of how lines of .csv and .tsv become cells; raise it when that changes


class Fragment(NamedTuple):
    """A piece of a document, and whether the document ends with it."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text, or the inputs and targets of pairs."""

    text: str = USUAL_COLUMNS.text
    inputs: str = USUAL_COLUMNS.inputs
    targets: str = USUAL_COLUMNS.targets


class Tagged(NamedTuple):
    """A sentence: its words, a tag for each word, and the file and line for errors."""

    words: list[str]
    tags: list[str]
    place: str


@dataclass(frozen=True)
class FileSource:
    """Files that a glob matched, read in the order of their paths. quoting: of .csv and .tsv, see delimited.py."""

    paths: tuple[Path, ...]
    columns: Columns = Columns()
    quoting: str = AUTO

    def __post_init__(self):
        check_quoting(self.quoting)

    def fragments(self) -> Iterator[Fragment]:
        """Yield the text of the documents, without empty ones. Raises UserError for any fault of a file."""
        types = ColumnTypes()
        for path in self.paths:
            if format_of(path) == ".txt":
                yield from _cut(decoded_blocks(path))
                continue
            for (text,) in self._values(path, [self.columns.text], types):
                if text:
                    yield from fragments_of(text)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (inputs, targets) of each row. Raises UserError for any fault of a file."""
        types = ColumnTypes()
        for path in self.paths:
            if format_of(path) == ".txt":
                raise UserError(f"{path} has no columns: pairs need .jsonl, .csv, .tsv or .parquet files")
            yield from map(tuple, self._values(path, [self.columns.inputs, self.columns.targets], types))

    def tagged(self) -> Iterator[Tagged]:
        """Yield the words and the tags of each row. Raises UserError for any fault of a file."""
        names, types = [self.columns.inputs, self.columns.targets], ColumnTypes()
        for path in self.paths:
            if format_of(path) not in (".jsonl", ".parquet"):
                raise UserError(f"{path} has no lists: words and their tags need .jsonl or .parquet files")
            for number, row in rows_of(path, names):
                place = place_of(path, number)
                words, tags = (types.texts(row, name, place) for name in names)
                if len(words) != len(tags):
                    raise UserError(f"{place}: {len(words)} words but {len(tags)} tags; give each word one tag")
                if sum(map(len, words)) + len(words) > LONGEST_SENTENCE:
                    raise UserError(f"{place}: the words are over {LONGEST_SENTENCE:,} characters; a row is a sentence")
                yield Tagged(words, tags, place)

    def _values(self, path: Path, names: list[str], types: ColumnTypes) -> Iterator[list[str]]:
        for number, row in rows_of(path, names, self.quoting):
            values = [row.get(name) for name in names]
            # Fast path: most rows hold only strings, in columns already known to hold text.
            if not (types.are_text(names) and all(type(value) is str for value in values)):
                values = [types.text(row, name, place_of(path, number)) for name in names]
            yield values

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the contents.

        This is the name, size and modification time of each file, the columns, and how cells are read. The folder does
        not count.
        """
        facts = []
        for path in self.paths:
            with readable(path):
                status = path.stat()
                facts.append([path.name, status.st_size, status.st_mtime_ns])
        has_cells = any(format_of(path) in DELIMITERS for path in self.paths)
        cells = {"cells": CELLS, "quoting": self.quoting} if has_cells else {}
        return {"files": facts, "columns": asdict(self.columns), **cells}

    def num_bytes(self) -> int:
        """Estimate the bytes of UTF-8 in all fragments: the sizes of the files, unpacked if known."""
        return sum(map(size_of, self.paths))


def fragments_of(text: str) -> Iterator[Fragment]:
    """Yield the fragments of a document that is one string. An empty document gives one empty fragment."""
    block = readers.BLOCK
    if len(text) <= block:
        yield Fragment(text, True)
    else:
        yield from _cut(text[start : start + block] for start in range(0, len(text), block))


def _cut(blocks: Iterable[str]) -> Iterator[Fragment]:
    """Yield the fragments of a document that arrives in `blocks`. An empty document gives no fragment."""
    held = ""  # read, not yet yielded
    searched = 0  # there is no place to cut before this index of `held`
    for text in blocks:
        held += text
        cut = _last_lone_space(held, max(searched - 2, 0))
        if cut is None and len(held) > LONGEST_FRAGMENT:
            cut = len(held) - 1
        if cut is None:
            searched = len(held)
            continue
        yield Fragment(held[:cut], False)
        held, searched = held[cut:], 0
    if held:
        yield Fragment(held, True)


_LONE_SPACE = re.compile(r"(?s).*\S(?= \S)")


def _last_lone_space(text: str, start: int) -> int | None:
    """Return the index of the last single space between two non-space characters, at `start` or later, or None."""
    match = _LONE_SPACE.match(text, start)
    return match.end() if match else None

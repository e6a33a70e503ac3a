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
from t5lite.data.readers import ColumnTypes, estimate_size, find_format, read_blocks, read_rows, readable
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
            if find_format(path) == ".txt":
                yield from _cut(read_blocks(path))
                continue
            for place, row in read_rows(path, [self.columns.text], self.quoting):
                if text := types.text(row, self.columns.text, place):
                    yield from fragments_of(text)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (inputs, targets) of each row. Raises UserError for any fault of a file."""
        names, types = [self.columns.inputs, self.columns.targets], ColumnTypes()
        for path in self.paths:
            if find_format(path) == ".txt":
                raise UserError(f"{path} has no columns: pairs need .jsonl, .csv, .tsv or .parquet files")
            for place, row in read_rows(path, names, self.quoting):
                yield tuple(types.text(row, name, place) for name in names)

    def tagged(self) -> Iterator[Tagged]:
        """Yield the words and the tags of each row. Raises UserError for any fault of a file."""
        names, types = [self.columns.inputs, self.columns.targets], ColumnTypes()
        for path in self.paths:
            if find_format(path) not in (".jsonl", ".parquet"):
                raise UserError(f"{path} has no lists: words and their tags need .jsonl or .parquet files")
            for place, row in read_rows(path, names):
                words, tags = (types.texts(row, name, place) for name in names)
                if len(words) != len(tags):
                    raise UserError(f"{place}: {len(words)} words but {len(tags)} tags; give each word one tag")
                if sum(map(len, words)) + len(words) > LONGEST_SENTENCE:
                    raise UserError(f"{place}: the words are over {LONGEST_SENTENCE:,} characters; a row is a sentence")
                yield Tagged(words, tags, place)

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
        has_cells = any(find_format(path) in DELIMITERS for path in self.paths)
        cells = {"cells": CELLS, "quoting": self.quoting} if has_cells else {}
        return {"files": facts, "columns": asdict(self.columns), **cells}

    def num_bytes(self) -> int:
        """Estimate the bytes of UTF-8 in all fragments: the sizes of the files, unpacked if known."""
        return sum(map(estimate_size, self.paths))


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
        last = _TO_LAST_LONE_SPACE.match(held, max(searched - 2, 0))
        if last or len(held) > LONGEST_FRAGMENT:
            cut = last.end() if last else len(held) - 1
            yield Fragment(held[:cut], False)
            held, searched = held[cut:], 0
        else:
            searched = len(held)
    if held:
        yield Fragment(held, True)


_TO_LAST_LONE_SPACE = re.compile(r"(?s).*\S(?= \S)")

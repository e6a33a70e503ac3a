"""Documents and pairs out of files: .txt, .jsonl, .csv and .tsv, each also with .gz, and .parquet.

Everything streams: no file is held in memory, whatever its size, and none is decompressed beyond what is read next.
Bytes are decoded as UTF-8 with newlines left as they are; a byte-order mark at the start of a file is dropped.

A .txt file is one document, which arrives in fragments of about 1 MiB, cut only before a single space between two
other characters, so that no word is split and the fragments together are the file:

    Fragment("Call me Ishmael. Some years", ends_document=False), Fragment(" ago—never mind…", ends_document=True)

In the other formats a row is one document, which is one fragment.
"""

import codecs
import contextlib
import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from t5lite.errors import UserError

BLOCK = 1 << 20  # bytes read at a time from a .txt file
LONGEST_FRAGMENT = 8 << 20  # characters; cut anywhere where no space is found in so many
LONGEST_LINE = 256 << 20  # bytes
ROWS_A_BATCH = 256  # of .parquet


class Fragment(NamedTuple):
    """A piece of a document, and whether the document ends with it."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold the text, or the pairs' inputs and targets."""

    text: str = "text"
    inputs: str = "inputs"
    targets: str = "targets"


Row = tuple[int, dict[str, Any]]  # its line or row number, and its columns


class Tagged(NamedTuple):
    """A sentence as words with a tag each, and its file and line, for errors."""

    words: list[str]
    tags: list[str]
    place: str


@dataclass(frozen=True)
class FileSource:
    """Files that were found by a glob, read in the order of their paths."""

    paths: tuple[Path, ...]
    columns: Columns = Columns()

    def fragments(self) -> Iterator[Fragment]:
        """The documents' text. Rows with an empty text are no documents. Raises UserError as a file calls for it."""
        for path in self.paths:
            if _format(path) == ".txt":
                yield from _txt_fragments(path)
                continue
            for (text,) in self._values(path, [self.columns.text]):
                if text:
                    yield Fragment(text, True)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(inputs, targets) of each row. Raises UserError as a file calls for it."""
        for path in self.paths:
            if _format(path) == ".txt":
                raise UserError(f"{path} has no columns: pairs need .jsonl, .csv, .tsv or .parquet files")
            yield from map(tuple, self._values(path, [self.columns.inputs, self.columns.targets]))

    def tagged(self) -> Iterator[Tagged]:
        """The words of each row and as many tags. Raises UserError as a file calls for it."""
        names = [self.columns.inputs, self.columns.targets]
        for path in self.paths:
            if _format(path) not in (".jsonl", ".parquet"):
                raise UserError(f"{path} has no lists: words and their tags need .jsonl or .parquet files")
            for number, row in _READERS[_format(path)](path, names):
                place = _place(path, number)
                words, tags = (_as_list(row, name, place) for name in names)
                if len(words) != len(tags):
                    raise UserError(f"{place}: {len(words)} words but {len(tags)} tags; give each word one tag")
                yield Tagged(words, tags, place)

    def _values(self, path: Path, names: list[str]) -> Iterator[list[str]]:
        for number, row in _READERS[_format(path)](path, names):
            values = [row.get(name) for name in names]
            if not all(type(value) is str for value in values):  # rare, so that messages are not built in vain
                values = [as_text(row, name, _place(path, number)) for name in names]
            yield values

    def fingerprint(self) -> dict[str, Any]:
        """Name, size and time of change of each file, wherever the folder stands, and the columns."""
        facts = []
        for path in self.paths:
            with _readable(path):
                status = path.stat()
                facts.append([path.name, status.st_size, status.st_mtime_ns])
        return {"files": facts, "columns": asdict(self.columns)}

    def num_bytes(self) -> int:
        """About how many bytes of UTF-8 the fragments add up to: sizes of files, unpacked where that is known."""
        return sum(map(_size, self.paths))


def find_files(patterns: str) -> tuple[Path, ...]:
    """The files that comma-separated globs match, sorted: "data/*.txt,more/**/*.jsonl.gz".

    Raises UserError for a pattern without a match and for a file of an unknown suffix.
    """
    found: set[str] = set()
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        expanded = str(Path(pattern).expanduser())
        names = [expanded] if Path(expanded).is_file() else glob.glob(expanded, recursive=True)
        names = [name for name in names if Path(name).is_file()]
        if not names:
            raise UserError(f"no file matches {pattern!r}: {_nearest_folder(expanded)}; mend the pattern in the source")
        found.update(names)
    if not found:
        raise UserError("a files: source needs a pattern, such as files:data/*.txt")
    paths = tuple(map(Path, sorted(found)))
    for path in paths:
        _format(path)
    return paths


def _nearest_folder(pattern: str) -> str:
    """Which folder on the way to the pattern exists, in words."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)) or not fixed.exists():
        if fixed == fixed.parent:
            break
        fixed = fixed.parent
    if fixed.is_dir():
        return f"the folder {fixed.absolute()} exists, nothing in it matches"
    return f"{fixed.absolute()} is not a folder"


def _place(path: Path, number: int) -> str:
    return f"{path}, {'row' if _format(path) == '.parquet' else 'line'} {number}"


def _format(path: Path) -> str:
    """ ".jsonl" of a.jsonl and a.jsonl.gz."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".txt", *_READERS) or (suffix == ".parquet" and name.endswith(".gz")):
        known = ".txt, .jsonl, .csv, .tsv (each also with .gz) and .parquet"
        raise UserError(f"cannot read {path}: its suffix is not one of {known}; narrow the pattern or convert the file")
    return suffix


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file itself into a UserError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the file and its permissions") from error


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(path), BLOCK)
    return open(path, "rb", BLOCK)


def _size(path: Path) -> int:
    """Bytes of the file; of a .gz file about its unpacked bytes, which its last four state modulo 2**32."""
    with _readable(path):
        size = path.stat().st_size
        if not path.name.lower().endswith(".gz") or size < 18:
            return size
        with open(path, "rb") as file:
            file.seek(-4, io.SEEK_END)
            return max(size, int.from_bytes(file.read(4), "little"))


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is not UTF-8 at byte {offset}; convert it, for example with iconv -t UTF-8")


def _txt_fragments(path: Path) -> Iterator[Fragment]:
    held = ""  # decoded, not yet handed on
    searched = 0  # no place to cut ends before this index of held
    for text in _decoded_blocks(path):
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


def _decoded_blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks, characters whole."""
    undecoded, offset = b"", 0
    with _readable(path), _open(path) as file:
        while True:
            block = file.read(BLOCK)
            data = undecoded + block
            if offset == 0 and data.startswith(codecs.BOM_UTF8):
                data, offset = data[3:], 3
            try:
                text, used = codecs.utf_8_decode(data, "strict", not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from None
            undecoded, offset = data[used:], offset + used
            yield text
            if not block:
                return


_LONE_SPACE = re.compile(r"(?s).*\S(?= \S)")


def _last_lone_space(text: str, start: int) -> int | None:
    """The index of the last single space between two characters other than whitespace, or None."""
    match = _LONE_SPACE.match(text, start)
    return match.end() if match else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its line end) of each line of a file."""
    offset = 0
    with _readable(path), _open(path) as file:
        for number in range(1, 1 << 62):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                limit = f"{LONGEST_LINE >> 20} MiB"
                raise UserError(f"{path}, line {number} is longer than {limit}; split the document or use .txt")
            skipped = 3 if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            try:
                text = line[skipped:].decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + skipped + error.start) from None
            offset += len(line)
            yield number, text


def _jsonl_rows(path: Path, names: list[str]) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise UserError(f"{path}, line {number} is nested too deeply; a line holds one flat JSON object") from None
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); a line holds one JSON object") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is not a JSON object; write lines such as {{"{names[0]}": "…"}}')
        if "\\ud" in line or "\\uD" in line:
            row = {key: _without_lone_surrogates(value) for key, value in row.items()}
        yield number, row


def _without_lone_surrogates(value: Any) -> Any:
    """JSON may escape half a surrogate pair, which no UTF-8 can hold."""
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def _csv_rows(path: Path, names: list[str], delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = row
                continue
            if len(row) != len(header):
                place = f"{path}, line {reader.line_num}"
                raise UserError(f"{place} has {len(row)} fields, the header {len(header)}; quote or mend the line")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; mend the quotes or write .jsonl") from error


def _tsv_rows(path: Path, names: list[str]) -> Iterator[Row]:
    return _csv_rows(path, names, "\t")


def _parquet_rows(path: Path, names: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with _readable(path), parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            for name in names:
                _check_column(name, present, str(path))
            number = 0
            for batch in file.iter_batches(ROWS_A_BATCH, columns=sorted(set(names))):
                values = [batch.column(name).to_pylist() for name in names]
                for row in zip(*values, strict=True):
                    number += 1
                    yield number, dict(zip(names, row, strict=True))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is a damaged .parquet file ({error}); write it again") from error


_READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}


def _check_column(name: str, present: Iterable[str], place: str) -> None:
    if name not in present:
        raise UserError(
            f"{place} has no column {name!r}, only {', '.join(map(repr, present)) or 'none'}; name it in data's columns"
        )


def _as_list(row: dict[str, Any], name: str, place: str) -> list[str]:
    """Column `name` of a row as a list of texts. Raises UserError for anything else, an empty list included."""
    _check_column(name, row, place)
    value = row[name]
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else "null" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{place}: column {name!r} is {kind}; give it a list of words, or of as many tags")
    return [as_text({name: item}, name, place) for item in value]


def as_text(row: dict[str, Any], name: str, place: str) -> str:
    """Column `name` of a row as text: numbers and booleans as Python prints them, bytes as UTF-8.

    Raises UserError, beginning with `place`, for a missing, empty (null) or composite value.
    """
    _check_column(name, row, place)
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: column {name!r} is not UTF-8 at its byte {error.start}; convert it") from None
    if isinstance(value, bool | int | float):
        return str(value)
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{place}: column {name!r} is {kind}; give it a text or a number")

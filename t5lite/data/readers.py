"""Read files in bounded memory: bytes to text, and text to rows.

    read_lines(path)              (1, 'one\\n'), (2, 'two\\n')      of a .txt, .jsonl, .csv or .tsv, also with .gz
    read_rows(path, names)        ("a.csv, line 2", {"text": "one", …})

A file is decompressed only as far as it is read. Nothing in a file is executed. A line or row that is too long for
memory is refused, by file and line: see `LONGEST_LINE`. Every fault of a file is a UserError.
"""

import codecs
import contextlib
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.data.delimited import AUTO, CSV, DELIMITERS, FIELD, MARK, split_records
from t5lite.system.errors import UserError
from t5lite.system.files import open_regular_file

BLOCK = 1 << 20  # bytes read at a time
LONGEST_LINE = 64 << 20  # characters of a line, or of a row of .csv; as objects a hostile line takes 25 times as much
ROWS_A_BATCH = 256  # of .parquet; fewer if rows are long

Row = tuple[str, dict[str, Any]]  # file and line, for errors; {column: value}


def find_format(path: Path) -> str:
    """Return the suffix without .gz: ".jsonl" for a.jsonl and a.jsonl.gz. Raises UserError for an unknown suffix."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".txt", *READERS, *DELIMITERS) or (suffix == ".parquet" and name.endswith(".gz")):
        known = ".txt, .jsonl, .csv, .tsv (each also with .gz) and .parquet"
        raise UserError(f"cannot read {path}: its suffix is not one of {known}; narrow the pattern or convert the file")
    return suffix


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error in opening or reading the file into a UserError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        if error.errno is None:  # raised by a library about the file's contents
            raise UserError(f"{path} is damaged ({error}); write it again") from error
        raise UserError(f"cannot read {path}: {error.strerror}; check the file and its permissions") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open the file's bytes. They are unpacked if the name ends in .gz."""
    with readable(path), open(path, "rb", BLOCK, opener=open_regular_file) as file:
        if not path.name.lower().endswith(".gz"):
            yield file
            return
        with io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK) as unpacked:
            yield unpacked


def estimate_size(path: Path) -> int:
    """Return the bytes of the file. For .gz: about the unpacked bytes, which its last four bytes give modulo 2**32."""
    with readable(path):
        size = path.stat().st_size
        if not path.name.lower().endswith(".gz") or size < 18:
            return size
        with open(path, "rb") as file:
            file.seek(-4, io.SEEK_END)
            return max(size, int.from_bytes(file.read(4), "little"))


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open the file's text. Line ends stay as they are. A byte-order mark at the start is dropped."""
    with _open(path) as file:
        try:
            yield io.TextIOWrapper(file, "utf-8-sig", newline="\n")
        except UnicodeDecodeError:
            offset = _offset_of_fault(path)
            raise UserError(
                f"{path} is not UTF-8 at byte {offset}; convert it, for example with iconv -t UTF-8"
            ) from None


def _offset_of_fault(path: Path) -> int:
    """Return the offset of the first byte that is not UTF-8; the file's end if another process mended it meanwhile."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _open(path) as file:
        while True:
            block, undecoded = file.read(BLOCK), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return offset - undecoded + error.start
            if not block:
                return offset
            offset += len(block)


def read_blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks."""
    with _open_text(path) as text:
        yield from iter(lambda: text.read(BLOCK), "")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its line end) for each line of a file."""
    with _open_text(path) as text:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE + 1), ""), start=1):
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path}, line {number} is longer than {LONGEST_LINE:,} characters; split the document or use .txt"
                )
            yield number, line


def _jsonl_rows(path: Path, names: list[str]) -> Iterator[Row]:
    for number, line in read_lines(path):
        if not line.isspace():
            place = f"{path}, line {number}"
            yield place, json_row(line, names, place)


def json_row(line: str, names: list[str], place: str) -> dict[str, Any]:
    """Return the JSON object in a line of a .jsonl file. Raises UserError, with `place`, for anything else.

    names: the columns that will be read. Lone surrogates are replaced in these only.
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise UserError(f"{place} is nested too deeply; a line holds one flat JSON object") from None
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error}); a line holds one JSON object") from None
    if not isinstance(row, dict):
        raise UserError(f'{place} is not a JSON object; write lines such as {{"{names[0]}": "…"}}')
    if "\\ud" in line or "\\uD" in line:
        row |= {name: _without_lone_surrogates(row[name]) for name in names if name in row}
    return row


def _without_lone_surrogates(value: Any) -> Any:
    """Replace lone surrogates in a text, or in the texts of a list. JSON may escape them, UTF-8 cannot hold them."""
    if isinstance(value, list):
        return [_without_lone_surrogates(item) if isinstance(item, str) else item for item in value]
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def _delimited_rows(path: Path, names: list[str], suffix: str, quoting: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in split_records(read_lines(path), path, suffix, quoting, LONGEST_LINE):
        if header is None:
            header = cells
            _check_columns(names, header, f"{path}, line {number}")
        elif len(cells) != len(header):
            is_cut_anywhere = MARK in "".join(cells) and suffix == ".tsv" and quoting == AUTO
            cure = f"mend the line, or set {FIELD}={CSV}" if is_cut_anywhere else "mend the line"
            raise UserError(f"{path}, line {number} has {len(cells)} fields, the header {len(header)}; {cure}")
        else:
            yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path, names: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer Arrow reads in blocks. Without one it holds a column of a whole row group.
        with _open(path) as raw, parquet.ParquetFile(raw, buffer_size=BLOCK) as file:
            _check_columns(names, file.schema_arrow.names, str(path))
            for name in names:
                _check_type(file.schema_arrow.field(name).type, f"{path}: column {name!r}")
            number = 0
            for group in range(file.num_row_groups):
                rows = _rows_at_a_time(file.metadata.row_group(group))
                for batch in file.iter_batches(rows, row_groups=[group], columns=sorted(set(names))):
                    columns = [batch.column(name) for name in names]
                    for place in range(len(batch)):
                        number += 1
                        # Convert one value at a time. A dictionary-encoded column of long texts is small until all are
                        # Python objects.
                        row = {name: column[place].as_py() for name, column in zip(names, columns, strict=True)}
                        yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is a damaged .parquet file ({error}); write it again") from error


def _rows_at_a_time(group: Any) -> int:
    """Return how many rows take about 8 MiB, by the sizes that the file states. Pages are always unpacked whole.

    The sizes by column are not read: if that part of the file is damaged, pyarrow ends the process.
    """
    a_row = group.total_byte_size / max(group.num_rows, 1)
    return int(min(max(8 * BLOCK / max(a_row, 1), 1), ROWS_A_BATCH))


def _check_type(kind: Any, place: str) -> None:
    """Raise UserError unless a column holds texts, numbers or lists of these. Python cannot hold every date, say."""
    from pyarrow import types

    of = kind
    while types.is_dictionary(of) or types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        of = of.value_type
    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
             types.is_integer, types.is_floating, types.is_boolean, types.is_null)  # fmt: skip
    if not any(is_kind(of) for is_kind in known):
        raise UserError(f"{place} is of type {kind}; cast it to string")


READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def read_rows(path: Path, names: list[str], quoting: str = AUTO) -> Iterator[Row]:
    """Yield the rows of a file, with at least the columns `names`. quoting: of .csv and .tsv, see delimited.py."""
    suffix = find_format(path)
    return _delimited_rows(path, names, suffix, quoting) if suffix in DELIMITERS else READERS[suffix](path, names)


def _check_columns(names: Iterable[str], present: list[str], place: str) -> None:
    for name in names:
        check_column(name, present, place)
        if present.count(name) > 1:
            raise UserError(f"{place} has {present.count(name)} columns {name!r}; give each a name of its own")


def check_column(name: str, present: Iterable[str], place: str) -> None:
    """Raise UserError for a column that is not present. The error names the columns that are."""
    if name not in present:
        raise UserError(
            f"{place} has no column {name!r}, only {', '.join(map(repr, present)) or 'none'}; name it in data's columns"
        )


def as_text(row: dict[str, Any], name: str, place: str) -> str:
    """Return column `name` of a row as text: numbers by `format_number`, booleans as in Python, bytes as UTF-8.

    Raises UserError, beginning with `place`, for a value that is missing, null, not finite or composite.
    """
    check_column(name, row, place)
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: column {name!r} is not UTF-8 at its byte {error.start}; convert it") from None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return format_number(value)
    kind = "null" if value is None else str(value) if isinstance(value, float) else f"a {type(value).__name__}"
    raise UserError(f"{place}: column {name!r} is {kind}; give it a text or a number")


def format_number(value: int | float) -> str:
    """Return a number as text. A float without a fraction is written as an integer: tables with gaps hold 1 as 1.0."""
    is_integer = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if is_integer else value)


class ColumnTypes:
    """Read columns as text. Refuse a column that mixes texts, numbers and booleans: 1, "1" and true are three values.

    All files of a source share one object.
    """

    def __init__(self):
        self._first: dict[str, tuple[str, str]] = {}  # column: its type in words, and the place of its first value

    def text(self, row: dict[str, Any], name: str, place: str) -> str:
        """Return the value as `as_text` does.

        Raises UserError, with both places, if earlier values had another type.
        """
        text, value = as_text(row, name, place), row[name]
        kind = (
            "true or false" if isinstance(value, bool) else "a text" if isinstance(value, str | bytes) else "a number"
        )
        first, where = self._first.setdefault(name, (kind, place))
        if kind != first:
            raise UserError(f"{place}: column {name!r} is {kind}, but {first} at {where}; write all values alike")
        return text

    def texts(self, row: dict[str, Any], name: str, place: str) -> list[str]:
        """Return the items of a column of lists as texts. Raises UserError for anything else, and for an empty list."""
        check_column(name, row, place)
        value = row[name]
        if not isinstance(value, list) or not value:
            kind = "an empty list" if value == [] else "null" if value is None else f"a {type(value).__name__}"
            raise UserError(f"{place}: column {name!r} is {kind}; give it a list of words, or of as many tags")
        return [self.text({name: item}, name, place) for item in value]

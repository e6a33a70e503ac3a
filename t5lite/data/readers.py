"""Read files in bounded memory: bytes to text, and text to rows.

    read_lines(path)              (1, 'one\\n'), (2, 'two\\n')      for .txt, .jsonl, .csv or .tsv, also with .gz
    read_rows(path, names)        ("a.csv, line 2", {"text": "one", …})

A file is decompressed only as far as it is read. Nothing in a file is executed. A line or row that is too long for
memory is an error (see `MAX_LINE_LENGTH`). Every fault of a file is a UserError. The error names the file, and the
line, row or byte where it is known.
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

from t5lite.data import arrow
from t5lite.data.delimited import AUTO, CSV, DELIMITERS, FIELD, MARK, split_records
from t5lite.system.errors import UserError
from t5lite.system.files import open_regular_file

BLOCK = 1 << 20  # bytes read at a time
# The largest number of characters of a line, or of a row of .csv. A line that is made to do harm can take 25 bytes of
# memory for each character.
MAX_LINE_LENGTH = 64 << 20
ROWS_PER_BATCH = 256  # rows of .parquet read at a time; fewer if rows are long

Row = tuple[str, dict[str, Any]]  # file and line, for errors; {column: value}


def find_format(path: Path) -> str:
    """Return the suffix without .gz: ".jsonl" for a.jsonl and a.jsonl.gz. Raises UserError for an unknown suffix."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".txt", *READERS, *DELIMITERS) or (suffix in (".parquet", ".arrow") and name.endswith(".gz")):
        known = ".txt, .jsonl, .csv, .tsv (each also with .gz), .parquet and .arrow"
        raise UserError(f"cannot read {path}: its suffix is not one of {known}; narrow the pattern or convert the file")
    return suffix


@contextlib.contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn errors of opening, unpacking or reading the file into a UserError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        if error.errno is None:  # an error of a library about the file's contents
            raise UserError(f"{path} is damaged ({error}); write it again") from error
        raise UserError(f"cannot read {path}: {error.strerror}; check the file and its permissions") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open the file's bytes. Unpack them if the name ends in .gz."""
    with explain_read_errors(path), open(path, "rb", BLOCK, opener=open_regular_file) as file:
        if not path.name.lower().endswith(".gz"):
            yield file
            return
        with io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK) as unpacked:
            yield unpacked


def estimate_size(path: Path) -> int:
    """Return the size of the file in bytes; for .gz, an estimate of the unpacked size.

    The last four bytes of a .gz file hold the unpacked size modulo 2**32. The estimate is this number, or the size of
    the file itself if that is larger.
    """
    with explain_read_errors(path):
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
            offset = _find_fault(path)
            raise UserError(
                f"{path} is not UTF-8 at byte {offset}; convert it, for example with iconv -t UTF-8"
            ) from None


def _find_fault(path: Path) -> int:
    """Return the offset of the first byte that is not UTF-8, or the file's size if the file is UTF-8 by now."""
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
        for number, line in enumerate(iter(lambda: text.readline(MAX_LINE_LENGTH + 1), ""), start=1):
            if len(line) > MAX_LINE_LENGTH:
                raise UserError(
                    f"{path}, line {number} is longer than {MAX_LINE_LENGTH:,} characters; split the document or use "
                    ".txt"
                )
            yield number, line


def _read_jsonl(path: Path, names: list[str]) -> Iterator[Row]:
    for number, line in read_lines(path):
        if not line.isspace():
            place = f"{path}, line {number}"
            yield place, parse_json_row(line, names, place)


def parse_json_row(line: str, names: list[str], place: str) -> dict[str, Any]:
    """Return the JSON object in a line of a .jsonl file. Raises UserError, which names `place`, for anything else.

    names: the columns that will be read. Lone surrogates are replaced in these columns only.
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
        row |= {name: _replace_lone_surrogates(row[name]) for name in names if name in row}
    return row


def _replace_lone_surrogates(value: Any) -> Any:
    """Replace lone surrogates in a text, or in the texts of a list. JSON can hold them, UTF-8 cannot."""
    if isinstance(value, list):
        return [_replace_lone_surrogates(item) if isinstance(item, str) else item for item in value]
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def _read_delimited(path: Path, names: list[str], suffix: str, quoting: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in split_records(read_lines(path), path, suffix, quoting, MAX_LINE_LENGTH):
        if header is None:
            header = cells
            _check_columns(names, header, f"{path}, line {number}")
        elif len(cells) != len(header):
            may_need_quoting = MARK in "".join(cells) and suffix == ".tsv" and quoting == AUTO
            advice = f"correct the line, or set {FIELD}={CSV}" if may_need_quoting else "correct the line"
            raise UserError(
                f"{path}, line {number} has {len(cells)} fields, but the header has {len(header)}; {advice}"
            )
        else:
            yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


def _read_parquet(path: Path, names: list[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer, Arrow reads in blocks. Without a buffer, Arrow holds a column of a whole row group.
        with _open(path) as raw, parquet.ParquetFile(raw, buffer_size=BLOCK) as file:
            _check_columns(names, file.schema_arrow.names, str(path))
            for name in names:
                _check_type(file.schema_arrow.field(name).type, f"{path}: column {name!r}")
            number = 0
            for group in range(file.num_row_groups):
                rows = _count_rows_per_batch(file.metadata.row_group(group))
                for batch in file.iter_batches(rows, row_groups=[group], columns=sorted(set(names))):
                    columns = [batch.column(name) for name in names]
                    for place in range(len(batch)):
                        number += 1
                        # Convert one value at a time. A dictionary-encoded column of long texts is small, but all its
                        # values as Python objects are not.
                        row = {name: column[place].as_py() for name, column in zip(names, columns, strict=True)}
                        yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is a damaged .parquet file ({error}); write it again") from error


def _read_arrow(path: Path, names: list[str]) -> Iterator[Row]:
    import pyarrow

    try:
        with _open(path) as file:
            schema = arrow.read_schema(file)
            _check_columns(names, schema.names, str(path))
            for name in names:
                _check_type(schema.field(name).type, f"{path}: column {name!r}")
            for number, row in enumerate(arrow.read_values(file, names, path), start=1):
                yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, MemoryError) as error:  # a damaged length can be any number
        detail = f" ({error})" if str(error) else ""
        raise UserError(f"{path} is a damaged .arrow file{detail}; write it again") from error


def _count_rows_per_batch(group: Any) -> int:
    """Return how many rows take about 8 MiB, by the sizes that the file states.

    The sizes of single columns are not read: if that part of the file is damaged, pyarrow ends the process.
    """
    row_size = group.total_byte_size / max(group.num_rows, 1)
    return int(min(max(8 * BLOCK / max(row_size, 1), 1), ROWS_PER_BATCH))


def _check_type(kind: Any, place: str) -> None:
    """Raise UserError unless a column holds texts, bytes, numbers, booleans or nulls, or lists of such values.

    Dates are refused, because Python cannot hold every date.
    """
    from pyarrow import types

    inner = kind
    has_items = (types.is_dictionary, types.is_list, types.is_large_list, types.is_fixed_size_list)
    while any(check(inner) for check in has_items):
        inner = inner.value_type
    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary,
             types.is_integer, types.is_floating, types.is_boolean, types.is_null)  # fmt: skip
    if not any(check(inner) for check in known):
        raise UserError(f"{place} is of type {kind}; cast it to string")


READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def read_rows(path: Path, names: list[str], quoting: str = AUTO) -> Iterator[Row]:
    """Yield the rows of a .jsonl, .csv, .tsv, .parquet or .arrow file. quoting: see delimited.py.

    Raises UserError if a file lacks a column in `names`. But a row of .jsonl may lack columns; then `read_text` raises
    the error.
    """
    suffix = find_format(path)
    return _read_delimited(path, names, suffix, quoting) if suffix in DELIMITERS else READERS[suffix](path, names)


def _check_columns(names: Iterable[str], present: list[str], place: str) -> None:
    for name in names:
        check_column(name, present, place)
        if present.count(name) > 1:
            raise UserError(f"{place} has {present.count(name)} columns {name!r}; give each column another name")


def check_column(name: str, present: Iterable[str], place: str) -> None:
    """Raise UserError for a column that is not present. The error names the columns that are present."""
    if name not in present:
        raise UserError(
            f"{place} has no column {name!r}, only {', '.join(map(repr, present)) or 'none'}; set "
            "config.data.train.columns (or the columns of data.validation) to the right name"
        )


def read_text(row: dict[str, Any], name: str, place: str) -> str:
    """Return column `name` of a row as text: numbers by `format_number`, booleans as in Python, bytes as UTF-8.

    Raises UserError, which begins with `place`, for a value that is missing, null, not finite or composite, and for
    bytes that are not UTF-8.
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
    """Return a number as text. A float below 2**53 without a fraction is written as an integer.

    Tables with missing values often hold integers as floats: 1 as 1.0.
    """
    is_integer = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if is_integer else value)


class ColumnTypes:
    """Read columns as text. Refuse a column that mixes texts, numbers and booleans: 1, "1" and true are three values.

    All files of a source share one ColumnTypes.
    """

    def __init__(self):
        self._first: dict[str, tuple[str, str]] = {}  # {column: (its type in words, the place of its first value)}

    def read_text(self, row: dict[str, Any], name: str, place: str) -> str:
        """Return the value as the function `read_text` does.

        Raises UserError if earlier values had another type. The error names both places.
        """
        text, value = read_text(row, name, place), row[name]
        kind = (
            "true or false" if isinstance(value, bool) else "a text" if isinstance(value, str | bytes) else "a number"
        )
        first, where = self._first.setdefault(name, (kind, place))
        if kind != first:
            raise UserError(f"{place}: column {name!r} is {kind}, but {first} at {where}; give all values one type")
        return text

    def read_texts(self, row: dict[str, Any], name: str, place: str) -> list[str]:
        """Return the items of a column of lists as texts. Raises UserError for anything else, and for an empty list."""
        check_column(name, row, place)
        value = row[name]
        if not isinstance(value, list) or not value:
            kind = "an empty list" if value == [] else "null" if value is None else f"a {type(value).__name__}"
            raise UserError(f"{place}: column {name!r} is {kind}; give it a list of texts")
        return [self.read_text({name: item}, name, place) for item in value]

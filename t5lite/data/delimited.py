"""Split the lines of .csv and .tsv files into records. A record is a list of cells. There are three ways of quoting:

    auto    .csv: a cell in quotation marks may hold commas and line breaks; a mark inside it is doubled (RFC 4180)
            .tsv: every tab and line end separates; any mark is text, but if a cell stands between two marks and all
                  marks inside are doubled, the outer marks are removed and the inner ones are halved
    csv     RFC 4180, for .tsv too
    none    every mark is text, in .csv too

A mark that opens a cell and closes at a wrong place would swallow records. If the place is certainly wrong, a UserError
names the line where the cell opens. But a cell may hold line breaks, so a stray mark may join several rows into
one that looks right. A warning names the first such row of a file.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from t5lite.system.errors import UserError, nearest
from t5lite.system.progress import warn

AUTO, CSV, NONE = QUOTINGS = "auto", "csv", "none"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MARK, FIELD = '"', "config.data.train.quoting"
SUSPICIOUS_LINES = 2  # a record of this many lines, each of which looks like a row, causes a warning

Line = tuple[int, str]
Record = tuple[int, list[str]]  # the number of the record's first line, and its cells


def check_quoting(quoting: str) -> None:
    """Raise UserError for a `quoting` that is not one of QUOTINGS."""
    if quoting not in QUOTINGS:
        raise UserError(f"{FIELD}: unknown value {quoting!r}; {nearest(quoting, QUOTINGS)}")


def split_records(lines: Iterable[Line], path: Path, suffix: str, quoting: str, max_length: int) -> Iterator[Record]:
    """Yield the records of a file. Blank lines give no record.

    Args:
        lines: (number from 1, text with its line end).
        path: the file's path, for errors.
        suffix: ".csv" or ".tsv".
        max_length: at most this many characters in a record.

    Raises:
        UserError: with file and line, for quotes that do not close, a record that is too long, and a carriage return
            inside a line.
    """
    delimiter = DELIMITERS[suffix]
    if quoting == CSV or (quoting == AUTO and suffix == ".csv"):
        yield from _split_by_rfc(lines, path, delimiter, max_length)
        return
    for number, line in lines:
        body = line.removesuffix("\n").removesuffix("\r")
        if body:
            yield number, [_read_cell(cell, quoting == AUTO, path, number) for cell in body.split(delimiter)]


def _read_cell(cell: str, removes_marks: bool, path: Path, number: int) -> str:
    """Return the text of a cell in a line that was split at delimiters. removes_marks: remove marks around the cell."""
    inside = cell[1:-1]
    if removes_marks and len(cell) > 1 and cell[0] == cell[-1] == MARK and MARK not in inside.replace(2 * MARK, ""):
        return inside.replace(2 * MARK, MARK)
    if "\r" in cell:
        raise _make_carriage_return_error(path, number)
    return cell


def _make_carriage_return_error(path: Path, number: int) -> UserError:
    return UserError(f"{path}, line {number} has a carriage return inside; convert its line ends")


def _split_by_rfc(lines: Iterable[Line], path: Path, delimiter: str, max_length: int) -> Iterator[Record]:
    csv.field_size_limit(max_length)
    record: list[Line] = []  # the lines of the current record so far
    warned = False

    def feed() -> Iterator[str]:
        length = 0
        for number, line in lines:
            length = len(line) + (length if record else 0)
            record.append((number, line))
            if length > max_length and len(record) > 1:
                raise UserError(
                    f"the row that begins at {path}, line {record[0][0]} is longer than {max_length:,} characters; "
                    f"split the document or use .txt, or close the quotation mark of line {_find_opening_line(record)}"
                )
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        record.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _explain(str(error), path, record) from error
        if cells is None:
            return
        if not cells:
            continue
        number = record[0][0]
        looks_like_rows = {line.count(delimiter) for _, line in record} == {len(cells) - 1} and len(cells) > 1
        if not warned and len(record) >= SUSPICIOUS_LINES and looks_like_rows:
            warned = True
            warn(
                f"{path}, line {number}: one row takes {len(record)} lines, and each of them looks like a row; if the "
                f"quotation mark in line {number} is text, double it or set {FIELD}={NONE}"
            )
        yield number, cells


def _explain(error: str, path: Path, record: list[Line]) -> UserError:
    """Return an error for the lines of a record that the csv module refused."""
    if "new-line character" in error:
        return _make_carriage_return_error(path, record[0][0])
    fault = "never closes" if "end of data" in error else f"closes in the middle of a cell, in line {record[-1][0]}"
    way_out = f"put the cell between marks and double each mark that is text, or set {FIELD}={NONE}"
    return UserError(f"{path}, line {_find_opening_line(record)}: a quotation mark opens a cell and {fault}; {way_out}")


def _find_opening_line(record: list[Line]) -> int:
    """Return the number of the line where the last cell opens.

    All marks in later lines are doubled, except in the last line.
    """
    first, *others = record[:-1] or record
    return next((number for number, line in reversed(others) if MARK in line.replace(2 * MARK, "")), first[0])

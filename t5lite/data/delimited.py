"""Split the lines of .csv and .tsv files into records. A record is a list of cells. There are three ways of quoting:

    auto    .csv: a cell in quotation marks may hold commas and line breaks; a mark inside it stands twice (RFC 4180)
            .tsv: every tab and line end separates; a cell between two marks, with marks inside doubled, loses the
                  outer marks and half of the inner ones; any other mark is text
    csv     RFC 4180, for .tsv too
    none    every mark is text, in .csv too

A mark that opens a cell and closes at a wrong place would swallow records. If this is certain, a UserError names the
line where the cell opens. But a cell may hold line breaks, so rows that a stray mark has joined may look right: a
warning names the first such place of a file.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from t5lite.system.errors import UserError, nearest
from t5lite.system.progress import warn

AUTO, CSV, NONE = QUOTINGS = "auto", "csv", "none"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MARK, FIELD = '"', "config.data.train.quoting"
SUSPICIOUS_LINES = 2  # lines of a record, each with as many delimiters as the record's cells need

Line = tuple[int, str]
Record = tuple[int, list[str]]  # the number of its first line, and its cells


def check_quoting(quoting: str) -> None:
    """Raise UserError for a `quoting` that is not one of QUOTINGS."""
    if quoting not in QUOTINGS:
        raise UserError(f"{FIELD}: no such way, {quoting!r}; {nearest(quoting, QUOTINGS)}")


def split_records(lines: Iterable[Line], path: Path, suffix: str, quoting: str, longest: int) -> Iterator[Record]:
    """Yield the records of a file. Blank lines give no record.

    Args:
        lines: (number from 1, text with its line end).
        path: of the file, for errors.
        suffix: ".csv" or ".tsv".
        longest: characters that a record may have.

    Raises:
        UserError: with file and line, for quotes that do not close, a record that is too long, and a carriage return
            inside a line.
    """
    delimiter = DELIMITERS[suffix]
    if quoting == CSV or (quoting == AUTO and suffix == ".csv"):
        yield from _records_by_rfc(lines, path, delimiter, longest)
        return
    for number, line in lines:
        body = line.removesuffix("\n").removesuffix("\r")
        if body:
            yield number, [_cell(cell, quoting == AUTO, path, number) for cell in body.split(delimiter)]


def _cell(cell: str, unquotes: bool, path: Path, number: int) -> str:
    """Return the text of one cell of a line that was split at its delimiters. unquotes: remove marks around it."""
    inside = cell[1:-1]
    if unquotes and len(cell) > 1 and cell[0] == cell[-1] == MARK and MARK not in inside.replace(2 * MARK, ""):
        return inside.replace(2 * MARK, MARK)
    if "\r" in cell:
        raise _carriage_return(path, number)
    return cell


def _carriage_return(path: Path, number: int) -> UserError:
    return UserError(f"{path}, line {number} has a carriage return inside; convert its line ends")


def _records_by_rfc(lines: Iterable[Line], path: Path, delimiter: str, longest: int) -> Iterator[Record]:
    csv.field_size_limit(longest)
    record: list[Line] = []  # the lines of the current record so far
    warned = False

    def feed() -> Iterator[str]:
        held = 0
        for number, line in lines:
            held = len(line) + (held if record else 0)
            record.append((number, line))
            if held > longest and len(record) > 1:
                raise UserError(
                    f"the row that begins at {path}, line {record[0][0]} is longer than {longest:,} characters; "
                    f"split the document or use .txt, or close the quotation mark of line {_opening_line(record)}"
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
        return _carriage_return(path, record[0][0])
    how = "never closes" if "end of data" in error else f"closes in the middle of a cell, in line {record[-1][0]}"
    way_out = f"write a mark that is text twice, in a cell between marks, or set {FIELD}={NONE}"
    return UserError(f"{path}, line {_opening_line(record)}: a quotation mark opens a cell and {how}; {way_out}")


def _opening_line(record: list[Line]) -> int:
    """Return the number of the line where the last cell opens.

    Lines after it, but for the last, have only doubled marks.
    """
    first, *others = record[:-1] or record
    return next((number for number, line in reversed(others) if MARK in line.replace(2 * MARK, "")), first[0])

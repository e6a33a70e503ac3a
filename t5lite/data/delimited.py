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
import dataclasses
import sys
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


@dataclasses.dataclass
class _Record:
    """Facts about the lines of one record so far. The lines are not kept: there can be millions.

    first, last: the numbers of its first and its last line. count: its lines. length: its characters.
    opening: the number of the line where the last cell opens, if the last line closes it. All marks in later lines are
        doubled.
    fewest, most: delimiters in a line.
    """

    first: int = 0
    last: int = 0
    count: int = 0
    length: int = 0
    opening: int = 0
    fewest: int = sys.maxsize
    most: int = 0
    _last_has_mark: bool = False

    def add(self, number: int, line: str, delimiter: str) -> None:
        if self.count == 0:
            self.first = self.opening = number
        elif self.count > 1 and self._last_has_mark:
            self.opening = self.last
        self._last_has_mark = MARK in line and MARK in line.replace(2 * MARK, "")
        self.last, self.count, self.length = number, self.count + 1, self.length + len(line)
        delimiters = line.count(delimiter)
        self.fewest, self.most = min(self.fewest, delimiters), max(self.most, delimiters)


def _split_by_rfc(lines: Iterable[Line], path: Path, delimiter: str, max_length: int) -> Iterator[Record]:
    csv.field_size_limit(max_length)
    record, warned = _Record(), False

    def feed() -> Iterator[str]:
        for number, line in lines:
            record.add(number, line, delimiter)
            if record.length > max_length and record.count > 1:
                raise UserError(
                    f"the row that begins at {path}, line {record.first} is longer than {max_length:,} characters; "
                    f"split the document or use .txt, or close the quotation mark of line {record.opening}"
                )
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        record = _Record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _explain(str(error), path, record) from error
        if cells is None:
            return
        if not cells:
            continue
        looks_like_rows = record.fewest == record.most == len(cells) - 1 > 0
        if not warned and record.count >= SUSPICIOUS_LINES and looks_like_rows:
            warned = True
            warn(
                f"{path}, line {record.first}: one row takes {record.count} lines, and each of them looks like a row; "
                f"if the quotation mark in line {record.first} is text, double it or set {FIELD}={NONE}"
            )
        yield record.first, cells


def _explain(error: str, path: Path, record: _Record) -> UserError:
    """Return an error for the lines of a record that the csv module refused."""
    if "new-line character" in error:
        return _make_carriage_return_error(path, record.first)
    fault = "never closes" if "end of data" in error else f"closes in the middle of a cell, in line {record.last}"
    way_out = f"put the cell between marks and double each mark that is text, or set {FIELD}={NONE}"
    return UserError(f"{path}, line {record.opening}: a quotation mark opens a cell and {fault}; {way_out}")

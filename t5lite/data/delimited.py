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


def records(lines: Iterable[Line], path: Path, suffix: str, quoting: str, longest: int) -> Iterator[Record]:
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
    delimiter, lines = DELIMITERS[suffix], iter(lines)
    by_rfc = quoting == CSV or (quoting == AUTO and suffix == ".csv")
    reader = _Rfc(path, delimiter, lines, longest)
    for number, line in lines:
        body = _without_end(line)
        if not body:
            continue
        if MARK not in body:
            _refuse_returns(body, path, number)
            yield number, body.split(delimiter)
        elif by_rfc:
            yield number, reader.record(number, line)
        else:
            yield number, [_cell(cell, quoting == AUTO, path, number) for cell in body.split(delimiter)]


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _cell(cell: str, unquotes: bool, path: Path, number: int) -> str:
    """Return the text of one cell of a line that was split at its delimiters. unquotes: remove marks around it."""
    inside = cell[1:-1]
    if unquotes and len(cell) > 1 and cell[0] == cell[-1] == MARK and MARK not in inside.replace(2 * MARK, ""):
        return inside.replace(2 * MARK, MARK)
    _refuse_returns(cell, path, number)
    return cell


def _refuse_returns(text: str, path: Path, number: int) -> None:
    if "\r" in text:
        raise UserError(f"{path}, line {number} has a carriage return inside; convert its line ends")


class _Rfc:
    """Read records with quotation marks, by RFC 4180. If a record takes more lines, they come from `lines`."""

    def __init__(self, path: Path, delimiter: str, lines: Iterator[Line], longest: int):
        self.path, self.delimiter, self.lines, self.longest = path, delimiter, lines, longest
        self.warned = False
        csv.field_size_limit(longest)

    def record(self, number: int, line: str) -> list[str]:
        """Return the cells of the record that begins with `line`."""
        taken = [line]
        try:
            cells = next(csv.reader(self._pieces(number, taken), delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise self._explained(str(error), number, taken) from error
        if not self.warned and len(taken) >= SUSPICIOUS_LINES:
            counts = {each.count(self.delimiter) for each in taken}
            if counts == {len(cells) - 1} and len(cells) > 1:
                self.warned = True
                warn(
                    f"{self.path}, line {number}: one row takes {len(taken)} lines, and each of them looks like a row; "
                    f"if the quotation mark in line {number} is text, double it or set {FIELD}={NONE}"
                )
        return cells

    def _pieces(self, number: int, taken: list[str]) -> Iterator[str]:
        yield taken[0]
        held = len(taken[0])
        for _, line in self.lines:
            taken.append(line)
            held += len(line)
            if held > self.longest:
                opened = self._opened(number, taken)
                raise UserError(
                    f"the row that begins at {self.path}, line {number} is longer than {self.longest / 2**20:g} MiB; "
                    f"split the document or use .txt, or close the quotation mark of line {opened}"
                )
            yield line

    def _explained(self, error: str, number: int, taken: list[str]) -> UserError:
        if "new-line character" in error:
            return UserError(f"{self.path}, line {number} has a carriage return inside; convert its line ends")
        opened, last = self._opened(number, taken), number + len(taken) - 1
        how = "never closes" if "end of data" in error else f"closes in the middle of a cell, in line {last}"
        way_out = f"write a mark that is text twice, in a cell between marks, or set {FIELD}={NONE}"
        return UserError(f"{self.path}, line {opened}: a quotation mark opens a cell and {how}; {way_out}")

    @staticmethod
    def _opened(number: int, taken: list[str]) -> int:
        """Return the number of the line where the last cell opens.

        Lines after it, but for the last, have only doubled marks.
        """
        before = taken[:-1] or taken
        return number + max(i for i, line in enumerate(before) if i == 0 or MARK in line.replace(2 * MARK, ""))

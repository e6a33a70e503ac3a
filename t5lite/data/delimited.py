"""Lines of .csv and .tsv files to records, each a list of cells.

    auto    .csv: a cell in quotation marks may hold commas and line breaks; a mark inside it stands twice (RFC 4180)
            .tsv: tabs and line ends always separate; a cell between two marks, with marks inside doubled, is unquoted;
                  any other mark is text
    csv     RFC 4180, for .tsv too
    none    every mark is text, in .csv too

A mark that opens a cell and closes somewhere else would swallow records. Where that shows it is refused, by the line
where the cell opens. A cell may hold line breaks, so rows that a stray mark has joined may look right: a warning
names the first such place of a file.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from t5lite.system.errors import UserError, nearest
from t5lite.system.progress import warn

AUTO, CSV, NONE = QUOTINGS = "auto", "csv", "none"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MARK, FIELD = '"', "config.data.train.quoting"
SUSPICIOUS_LINES = 2  # of one record, each with as many delimiters as the header

Line = tuple[int, str]
Record = tuple[int, list[str]]  # the line where it begins, and its cells


def check_quoting(quoting: str) -> None:
    """Refuse what is not one of QUOTINGS."""
    if quoting not in QUOTINGS:
        raise UserError(f"{FIELD}: no such way, {quoting!r}; {nearest(quoting, QUOTINGS)}")


def records(lines: Iterable[Line], path: Path, suffix: str, quoting: str, longest: int) -> Iterator[Record]:
    """The records of a file with `suffix`. Blank lines are none.

    lines: (number from 1, text with its line end). longest: characters that a record may have.
    Raises UserError, with file and line, for quotes that do not close and for a carriage return inside a line.
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
    """The text of one cell of a line that was cut at its delimiters."""
    inside = cell[1:-1]
    if unquotes and len(cell) > 1 and cell[0] == cell[-1] == MARK and MARK not in inside.replace(2 * MARK, ""):
        return inside.replace(2 * MARK, MARK)
    _refuse_returns(cell, path, number)
    return cell


def _refuse_returns(text: str, path: Path, number: int) -> None:
    if "\r" in text:
        raise UserError(f"{path}, line {number} has a carriage return inside; convert its line ends")


class _Rfc:
    """Records with quotation marks, by RFC 4180: one may go on over several lines, which it takes from `lines`."""

    def __init__(self, path: Path, delimiter: str, lines: Iterator[Line], longest: int):
        self.path, self.delimiter, self.lines, self.longest = path, delimiter, lines, longest
        self.warned = False
        csv.field_size_limit(longest)

    def record(self, number: int, line: str) -> list[str]:
        """The cells of the record that begins with `line`."""
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
        """The line where the last cell opens: after it there are no marks but doubled ones."""
        before = taken[:-1] or taken
        return number + max(i for i, line in enumerate(before) if i == 0 or MARK in line.replace(2 * MARK, ""))

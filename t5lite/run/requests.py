"""Read the texts that `generate` answers, from a file or standard input.

Each line is a text, or a JSON object in a .jsonl. A byte-order mark is dropped, blank lines are skipped, and numbers
are read as texts, as in training files. A line that cannot be read becomes a request with a `fault`. The answer to this
request is an error, and the other requests are answered.
"""

import dataclasses
import gzip
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t5lite.data.readers import explain_read_errors, parse_json_row, read_text
from t5lite.system.errors import UserError
from t5lite.system.progress import say

BOM = b"\xef\xbb\xbf"
MAX_SHOWN = 5  # the note about blank lines lists at most this many line numbers


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to answer.

    prefix: the text with which the answer must begin.
    target: the text to score instead of generating.
    fields: the fields of the request's JSON line, which are copied to the answer.
    place: file and line of the request, for errors.
    fault: why the request cannot be answered, if that is already known.
    """

    input: str
    prefix: str = ""
    target: str | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    place: str = ""
    fault: str | None = None


def shorten(text: str) -> str:
    """Return at most 60 characters of a text, for an error."""
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_requests(source: Path | None, is_json: bool, columns: Mapping[str, str], scores: bool) -> list[Request]:
    """Return the requests in a file, or on standard input (None), in the order of the lines.

    Raises UserError for a file that cannot be read at all.

    Args:
        is_json: whether each line is a JSON object.
        columns: the names of an object's fields, for "inputs", "targets" and "text".
        scores: whether to read the target in an object.
    """
    name = "standard input" if source is None else str(source)
    requests, blank = [], []
    for number, line in enumerate(_read_lines(source), 1):
        place = f"{name}, line {number}"
        try:
            text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            requests.append(Request("", place=place, fault=f"is not UTF-8 at byte {error.start}; convert it"))
            continue
        if not text or text.isspace():
            blank.append(number)
        elif is_json:
            requests.append(_make_request(text, place, columns, scores))
        else:
            requests.append(Request(text, place=place))
    if blank and not is_json:
        shown = ", ".join(map(str, blank[:MAX_SHOWN])) + (", …" if len(blank) > MAX_SHOWN else "")
        say(f"note: {name}: blank lines are skipped and have no answer: {len(blank)} ({shown})")
    return requests


def _read_lines(source: Path | None) -> Iterator[bytes]:
    """Yield the lines of a file, which may be a pipe, or of standard input."""
    if source is None:
        yield from sys.stdin.buffer
        return
    with explain_read_errors(source), (gzip.open if source.suffix == ".gz" else open)(source, "rb") as file:
        yield from file


def _make_request(line: str, place: str, columns: Mapping[str, str], scores: bool) -> Request:
    inputs, targets = columns["inputs"], columns["targets"]
    try:
        row = parse_json_row(line, [inputs, columns["text"], targets, "prefix"], place)
        name = inputs if inputs in row else columns["text"]
        if name not in row:
            raise UserError(f"{place} has no {inputs} or {columns['text']}; give the text to answer there")
        text = read_text(row, name, place)
        prefix = read_text(row, "prefix", place) if row.get("prefix") is not None else ""
        target = read_text(row, targets, place) if scores and row.get(targets) is not None else None
    except UserError as error:
        return Request("", place=place, fault=str(error).removeprefix(place).lstrip(": "))
    fields = {key: value for key, value in row.items() if key not in {name, targets, "prefix", "input", "target"}}
    return Request(text, prefix, target, fields, place)

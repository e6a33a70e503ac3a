"""Read the texts that `generate` answers, from a file or standard input.

Each line is a text, or a JSON object in a .jsonl. A byte-order mark is dropped, blank lines are skipped, and numbers
are read as texts, as in training files. A line that cannot be read becomes a request with a `fault`. The answer to this
request is an error, and the other requests are answered.
"""

import dataclasses
import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.data.chat.messages import ASSISTANT, CONVERSATION_COLUMNS, Message, read_messages
from t5lite.data.columns import Columns, ReadColumn, fill_template, list_names
from t5lite.data.readers import explain_read_errors, parse_json_row, read_text
from t5lite.system.errors import UserError
from t5lite.system.progress import say

BOM = b"\xef\xbb\xbf"
CHOICES = "choices"  # the field of a JSON line with the answers to choose from
MAX_SHOWN = 5  # the note about blank lines lists at most this many line numbers


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to answer.

    prefix: the text with which the answer must begin.
    target: the text to score instead of generating.
    choices: the answers to choose from. (): the options decide.
    fields: the fields of the request's JSON line, which are copied to the answer.
    place: file and line of the request, for errors.
    fault: why the request cannot be answered, if that is already known.
    messages: the conversation that asks for an answer, with `input` as its last message; (): `input` alone.
    """

    input: str
    prefix: str = ""
    target: str | None = None
    choices: Sequence[str] = ()
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    place: str = ""
    fault: str | None = None
    messages: Sequence[Message] = ()


def shorten(text: str) -> str:
    """Return at most 60 characters of a text, for an error."""
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_requests(
    source: Path | None, is_json: bool, columns: Columns, scores: bool, is_chat: bool = False
) -> list[Request]:
    """Return the requests in a file, or on standard input (None), in the order of the lines.

    Raises UserError for a file that cannot be read at all.

    Args:
        is_json: whether each line is a JSON object.
        columns: the columns and templates of the run, which name the fields of an object.
        scores: whether to read the target in an object.
        is_chat: whether an object may hold a conversation: messages, or prompt and completion.
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
            requests.append(_make_request(text, place, columns, scores, is_chat))
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


def _make_request(line: str, place: str, columns: Columns, scores: bool, is_chat: bool) -> Request:
    inputs, targets = columns.inputs, columns.targets
    try:
        names = [inputs, columns.text, targets, "prefix", CHOICES, *columns.list_pair_columns()]
        row = parse_json_row(line, names, place)
        if is_chat and any(row.get(name) is not None for name in CONVERSATION_COLUMNS):
            return _make_chat_request(row, place, scores)
        read = lambda name: read_text(row, name, place)
        text, used = _read_side(row, read, columns, 0, (inputs, columns.text, columns.question))
        if text is None:
            raise UserError(f"{place} has no {inputs} or {columns.text}; give the text to answer there")
        prefix = read("prefix") if row.get("prefix") is not None else ""
        target, used_by_target = _read_side(row, read, columns, 1, (targets,)) if scores else (None, {targets})
        choices = _read_row_choices(row, place, scores)
    except UserError as error:
        return Request("", place=place, fault=str(error).removeprefix(place).lstrip(": "))
    dropped = {*used, *used_by_target, "prefix", "input", "target", *(() if scores else (CHOICES,))}
    fields = {key: value for key, value in row.items() if key not in dropped}
    return Request(text, prefix, target, choices, fields, place)


def _read_row_choices(row: Mapping[str, Any], place: str, scores: bool) -> tuple[str, ...]:
    return () if scores or row.get(CHOICES) is None else read_choices(row[CHOICES], f"{place}: {CHOICES!r}")


def read_choices(texts: Any, place: str) -> tuple[str, ...]:
    """Return the answers to choose from. Numbers are read as texts.

    Raises UserError, which begins with `place`, for anything but a list of different texts that are not empty.
    """
    if not isinstance(texts, list | tuple) or not texts:
        kind = "empty" if texts in ([], ()) else f"a {type(texts).__name__}"
        raise UserError(f"{place} is {kind}; give a list of answers to choose from")
    choices: dict[str, None] = {}
    for text in texts:
        choice = read_text({CHOICES: text}, CHOICES, place)
        if not choice or choice in choices:
            problem = f"has the answer {shorten(choice)!r} twice" if choice else "has an empty answer"
            raise UserError(f"{place} {problem}; leave it out")
        choices[choice] = None
    return tuple(choices)


def read_choices_file(path: Path) -> tuple[str, ...]:
    """Return the answers in a file with an answer on each line. Blank lines are left out."""
    choices = []
    for number, line in enumerate(_read_lines(path), 1):
        try:
            text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number} is not UTF-8 at byte {error.start}; convert it") from None
        choices += [text] if text.strip() else []
    return read_choices(choices, str(path))


def _make_chat_request(row: Mapping[str, Any], place: str, scores: bool) -> Request:
    """Return the request of a conversation. If the assistant has the last word, that is the target."""
    messages = list(read_messages(row, place).messages)
    target = messages.pop()["content"] if messages[-1]["role"] == ASSISTANT else None
    if not messages:
        raise UserError(f"{place} holds nothing to answer; give a message of the user")
    prefix = read_text(row, "prefix", place) if row.get("prefix") is not None else ""
    dropped = ("prefix", "input", "target", CHOICES)
    return Request(
        messages[-1]["content"],
        prefix,
        target if scores else None,
        _read_row_choices(row, place, scores),
        {name: value for name, value in row.items() if name not in dropped},
        place,
        messages=messages,
    )


def _read_side(
    row: Mapping[str, Any], read: ReadColumn, columns: Columns, side: int, usual: Sequence[str]
) -> tuple[str | None, set[str]]:
    """Return (the inputs or the target of a row, the names of the columns read). None: the row has none.

    If the row has all columns of the run's first template, the template makes the text. Else it is a `usual` column.

    Args:
        side: 0: the inputs, 1: the target.
        usual: names of columns, the first one that is present counts.
    """
    template = columns.pair_templates[0][side] if columns.pair_templates else None
    if template is not None and all(row.get(name) is not None for name in list_names(template)):
        return fill_template(template, read), set(list_names(template))
    name = next((name for name in usual if row.get(name) is not None or (name in row and side == 0)), None)
    return (None, set(usual)) if name is None else (read(name), {name})

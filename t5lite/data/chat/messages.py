"""Read conversations from the rows of a source, and refuse rows that are not conversations.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"prompt": "Hi", "completion": "Hello!"}
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello!"}]}

The three rows are the same conversation. With `messages`, all that the assistant says is trained. With `prompt`, only
what it says in the completion. Other columns of a row are left alone, but those that would change the conversation
(`tools`, …) are refused, like unknown fields of a message. null stands for a missing value.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.system.errors import UserError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT, USER = "assistant", "user"
FIELDS = ("role", "content")
CONVERSATION_COLUMNS = ("messages", "prompt", "completion")
REFUSED_COLUMNS = ("tools", "documents", "chat_template", "chat_template_kwargs", "images", "videos", "audios")
Message = Mapping[str, str]


class Conversation(NamedTuple):
    """The messages of a conversation. What the assistant says from message `first` on is trained.

    place: the file and line, for errors.
    """

    messages: Sequence[Message]
    first: int = 0
    place: str = ""

    @property
    def answers(self) -> list[int]:
        """The indices of all messages of the assistant."""
        return [number for number, message in enumerate(self.messages) if message["role"] == ASSISTANT]


def read_conversation(row: Mapping[str, Any], place: str) -> Conversation:
    """Return the conversation of a row. Raises UserError, which begins with `place`, for anything else."""
    conversation = read_messages(row, place)
    if not any(number >= conversation.first for number in conversation.answers):
        raise UserError(f"{place}: the assistant says nothing, so there is nothing to learn; add its message")
    return conversation


def read_messages(row: Mapping[str, Any], place: str) -> Conversation:
    """Return the conversation of a row, in which the assistant may say nothing yet."""
    for name in REFUSED_COLUMNS:
        if row.get(name):
            raise UserError(f"{place} has {name}, which chat data cannot have here; remove it, or write it as messages")
    messages, prompt, completion = (row.get(name) for name in CONVERSATION_COLUMNS)
    if messages is not None:
        if prompt is not None or completion is not None:
            raise UserError(f"{place} has messages and prompt or completion; keep one form")
        return Conversation(_read_list(messages, f"{place}: messages"), 0, place)
    if prompt is None:
        raise UserError(f"{place} has no messages, and no prompt; it has {_list_names(row)}")
    before = _read_side(prompt, USER, f"{place}: prompt")
    after = [] if completion is None else _read_side(completion, ASSISTANT, f"{place}: completion")
    return Conversation([*before, *after], len(before), place)


def _read_side(value: Any, role: str, place: str) -> list[Message]:
    """Return the messages of a prompt or a completion. A text is one message, of `role`."""
    return [{"role": role, "content": _clean(value)}] if isinstance(value, str) else _read_list(value, place)


def _read_list(value: Any, place: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(f'{place} is {_name_type(value)}; give a list of {{"role": "…", "content": "…"}}')
    if not value:
        raise UserError(f"{place} is an empty list; give it messages, or remove the row")
    return [_read_message(message, f"{place}, message {number}") for number, message in enumerate(value, 1)]


def _read_message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise UserError(f'{place} is {_name_type(message)}; give {{"role": "…", "content": "…"}}')
    for name in FIELDS:
        value = message.get(name)
        if value is None:
            raise UserError(f"{place} has no {name}; it has {_list_names(message)}")
        if not isinstance(value, str):
            raise UserError(f"{place}: {name} is {_name_type(value)}; give a text")
    more = [name for name, value in message.items() if name not in FIELDS and value is not None]
    if more:
        raise UserError(f"{place} has the field {more[0]!r}, which is not supported; remove it, or write it as content")
    if message["role"] not in ROLES:
        raise UserError(f"{place}: unknown role {message['role']!r}; {nearest(message['role'], ROLES)}")
    return {"role": message["role"], "content": _clean(message["content"])}


def _clean(text: str) -> str:
    """Replace lone surrogates. JSON can hold them, UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _name_type(value: Any) -> str:
    names = {"list": "a list", "dict": "an object", "str": "a text", "bool": "true or false", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


def _list_names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields)) or "nothing"

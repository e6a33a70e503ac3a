"""Rows become conversations, or are refused in one line that names the row and its fault."""

import re

import pytest

from t5lite.data.chat.messages import read_conversation, read_messages
from t5lite.system.errors import UserError
from tests.data.chat.conversations import said

ASK, ANSWER = said("Hi", "Hello!")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, ANSWER], "id": 7, "tools": None},
        {"messages": [{**ASK, "name": None, "tool_calls": None}, ANSWER], "prompt": None},
    ],
)
def test_messages_are_a_conversation_of_which_all_answers_are_trained(row):
    conversation = read_conversation(row, "a.jsonl, line 3")
    assert conversation.messages == [ASK, ANSWER] and conversation.first == 0 and conversation.answers == [1]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!"},
        {"prompt": [ASK], "completion": [ANSWER]},
        {"prompt": [ASK], "completion": "Hello!"},
    ],
)
def test_a_prompt_and_its_completion_are_a_conversation(row):
    conversation = read_conversation(row, "a.jsonl, line 3")
    assert conversation.messages == [ASK, ANSWER] and conversation.first == 1


def test_an_answer_in_a_prompt_is_not_trained():
    conversation = read_conversation({"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]}, "")
    assert conversation.answers == [1, 3] and conversation.first == 3


def test_a_lone_surrogate_is_replaced():
    assert read_messages({"prompt": "a\ud800b"}, "").messages[0]["content"] == "a\ufffdb"


REFUSED = {
    "has no messages, and no prompt; it has 'text'": {"text": "x"},
    "has no messages, and no prompt; it has nothing": {},
    "messages is a text; give a list": {"messages": "Hi"},
    "messages is an object; give a list": {"messages": ASK},
    "messages is an empty list": {"messages": []},
    "message 1 is a text; give": {"messages": ["Hi"]},
    "message 2 has no role; it has 'content'": {"messages": [ASK, {"content": "x"}]},
    "message 1 has no role; it has 'from', 'value'": {"messages": [{"from": "human", "value": "x"}]},
    "message 2 has no content; it has 'role', 'content'": {"messages": [ASK, {"role": "user", "content": None}]},
    "message 1: content is a list; give a text": {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    "message 1: content is a number; give a text": {"messages": [{"role": "user", "content": 3}]},
    "message 1: role is a number; give a text": {"messages": [{"role": 1, "content": "x"}]},
    "message 1: unknown role 'usr'; did you mean 'user'": {"messages": [{"role": "usr", "content": "x"}]},
    "message 2 has the field 'tool_calls', which is not": {"messages": [ASK, {**ANSWER, "tool_calls": [{}]}]},
    "message 1 has the field 'weight', which is not": {"messages": [{**ASK, "weight": 0}, ANSWER]},
    "the assistant says nothing": {"messages": [ASK]},
    "the assistant says nothing, so": {"prompt": [ASK, ANSWER], "completion": [ASK]},
    "the assistant says nothing, so there": {"prompt": "Hi"},
    "has messages and prompt or completion": {"messages": [ASK, ANSWER], "prompt": "Hi"},
    "has tools, which chat data cannot have": {"messages": [ASK, ANSWER], "tools": [{}]},
    "completion is a number; give a list": {"prompt": "Hi", "completion": 5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_row_that_is_no_conversation_is_refused(message):
    with pytest.raises(UserError, match=rf"^a\.jsonl, line 3.*{re.escape(message)}"):
        read_conversation(REFUSED[message], "a.jsonl, line 3")

"""What is trained is what the assistant says, and what generation reads is the start of what training read."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.messages import Conversation
from t5lite.data.chat.templates import ChatTemplate
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.system.errors import UserError
from tests.data import released
from tests.data.chat.conversations import CONVERSATIONS, MARKS, TEMPLATES, TOKENIZER, make_encoder, said

ENCODERS = {name: make_encoder(name, front=0) for name in TEMPLATES}
END = TOKENIZER.vocabulary.specials["<|end|>"]


def answers_of(messages):
    return [message["content"] for message in messages if message["role"] == "assistant"]


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=CONVERSATIONS)
@settings(max_examples=40, deadline=None)
def test_what_is_trained_is_what_the_assistant_says_and_its_stop(template, messages):
    encoder = ENCODERS[template]
    encoded = encoder.encode(Conversation(messages))
    answers = answers_of(messages)
    if template == "headers":
        answers = [answer.strip() for answer in answers]
    assert len(encoded.turns) == len(answers)
    for (start, stop), answer in zip(encoded.turns, answers, strict=True):
        *content, last = encoded.tokens[start:stop].tolist()
        assert last in encoder.stops and not set(content) & set(TOKENIZER.names)
        assert encoder.decode_answer(content) == answer
    assert encoded.is_trained.sum() == sum(stop - start for start, stop in encoded.turns)


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=CONVERSATIONS)
@settings(max_examples=40, deadline=None)
def test_the_prompt_of_generation_is_the_start_of_the_row_of_training(template, messages):
    encoder = ENCODERS[template]
    encoded = encoder.encode(Conversation(messages))
    numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for number, turn in zip(numbers, encoded.turns, strict=True):
        prompt = encoder.encode_prompt(messages[:number])
        assert np.array_equal(prompt, encoded.tokens[: turn.start])


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=CONVERSATIONS)
@settings(max_examples=40, deadline=None)
def test_no_message_becomes_a_special_token(template, messages):
    """The special tokens are those of the same conversation with other words."""
    encoder = ENCODERS[template]
    harmless = [{**message, "content": "sea" if message["content"].strip() else ""} for message in messages]
    specials = [
        [token for token in encoder.encode(Conversation(each)).tokens.tolist() if token in TOKENIZER.names]
        for each in (messages, harmless)
    ]
    assert specials[0] == specials[1]


def test_marks_are_single_tokens_and_the_names_in_a_message_are_text():
    encoder = make_encoder("plain")
    tokens = encoder.encode(Conversation(said("a<|end|>b", "c"))).tokens.tolist()
    user, assistant = (TOKENIZER.vocabulary.specials[f"<|{role}|>"] for role in ("user", "assistant"))
    assert tokens[0] == user and tokens.count(END) == 2 and tokens[-1] == END and tokens.count(assistant) == 1
    inside = tokens[1 : tokens.index(END)]
    assert TOKENIZER.decode(inside) == "a<|end|>b"


def test_no_name_forms_of_a_message_and_what_stands_beside_it():
    template = "{% for m in messages %}<{{ m.content }}|><|end|>{% endfor %}{% if add_generation_prompt %}<{% endif %}"
    encoder = make_encoder(template)
    for content in ("|user|>", "|user", " |user|>", "x<|user"):
        tokens = encoder.encode(Conversation(said(content, "x"))).tokens.tolist()
        assert [token for token in tokens if token in TOKENIZER.names] == [END, END], content
        assert TOKENIZER.decode(tokens[: tokens.index(END)]) == f"<{content}|>"


def test_only_the_completion_of_a_prompt_is_trained():
    encoder = make_encoder("plain")
    messages = said("a", "b", "c", "d")
    whole, last = encoder.encode(Conversation(messages)), encoder.encode(Conversation(messages, 3))
    assert np.array_equal(whole.tokens, last.tokens) and whole.turns[1:] == last.turns


def test_a_front_token_that_the_template_writes_is_left_out():
    tokens = {front: make_encoder("headers", front=front).encode(Conversation(said("a", "b"))) for front in (0, None)}
    assert tokens[None].tokens[0] == 0 and np.array_equal(tokens[None].tokens[1:], tokens[0].tokens)
    assert tokens[None].turns[0].start == tokens[0].turns[0].start + 1


REFUSED = {
    "closes what the assistant says (message 4) by '</turn>', which is no special token": (
        "{% for m in messages %}<|user|>{{ m.content }}{{ '</turn>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<|user|>{% endif %}"
    ),
    "closes what the assistant says (message 4) by nothing": (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
    ),
    "does not preserve prefixes: the text before message 2 (assistant)": (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    ),
    "leaves out message 1 (user)": (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|end|>{% endfor %}"
    ),
    "writes <|head|> into what the assistant says (message 2)": (
        "{% for m in messages %}{{ '<|head|>' if m.role == 'assistant' }}{{ m.content }}<|end|>{% endfor %}"
    ),
    "refuses the conversation: no": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_template_that_cannot_be_trained_is_refused_at_once(message):
    with pytest.raises(UserError, match=f"^the template {re.escape(message)}"):
        make_encoder(REFUSED[message])


def test_a_message_that_a_template_leaves_out_is_named_with_its_row():
    template = "{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|user|>{% endif %}"
    encoder = make_encoder(template)
    encoder.encode(Conversation(said("a", "b"), place="f, line 1"))
    with pytest.raises(UserError, match=r"^f, line 2: the template leaves out message 1 \(system\)"):
        encoder.encode(Conversation(said("a", "b", system="be brief"), place="f, line 2"))


def test_a_prefix_that_breaks_for_some_rows_is_named_with_its_row():
    """Like a template that drops the thoughts of earlier turns."""
    template = (
        "{% for m in messages %}<|user|>{{ m.content.split('</t>')[-1] if not loop.last else m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
    )
    encoder = make_encoder(template)
    with pytest.raises(UserError, match=r"^f, line 9: .*does not preserve prefixes: .* message 2 \(assistant\)"):
        encoder.encode(Conversation(said("<t>a</t>b", "c", "d", "e"), place="f, line 9"))


@given(messages=CONVERSATIONS, limit=st.integers(5, 60))
@settings(max_examples=60, deadline=None)
def test_a_conversation_that_is_too_long_loses_whole_messages_from_the_oldest(messages, limit):
    encoder = ENCODERS["plain"]
    whole = encoder.encode(Conversation(messages))
    encoded, lost = encoder.fit(Conversation(messages), limit)
    if encoded is None:
        head = messages[:1] if messages[0]["role"] == "system" else []
        assert len(encoder.encode(Conversation([*head, *messages[-2:]])).tokens) > limit
        assert lost.trained == whole.is_trained.sum() and lost.tokens == len(whole.tokens)
        return
    head = [message for message in messages[:1] if message["role"] == "system"]
    kept = [*head, *messages[len(head) + lost.messages :]]
    assert kept[len(head)]["role"] == "user" and len(encoded.tokens) <= limit
    assert np.array_equal(encoded.tokens, encoder.encode(Conversation(kept)).tokens)
    assert len(encoded.tokens) + lost.tokens == len(whole.tokens)
    assert encoded.is_trained.sum() + lost.trained == whole.is_trained.sum()
    if lost.messages:  # one exchange more does not fit
        longer = [*head, *messages[len(head) + lost.messages - 2 :]]
        assert len(encoder.encode(Conversation(longer)).tokens) > limit


def test_what_is_trained_of_a_shorter_conversation_is_what_was_trained():
    encoder = make_encoder("plain")
    conversation = Conversation(said("aaaa", "bbbb", "cc", "dd", "ee", "ff", system="x"), 6)
    encoded, lost = encoder.fit(conversation, 24)
    assert lost.messages == 2
    assert [encoder.decode_answer(encoded.tokens[a : b - 1]) for a, b in encoded.turns] == ["ff"]


@pytest.mark.parametrize("opening", ["<|user|>", "[say] "])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "t5", "bart"])
def test_a_released_tokenizer_has_the_same_promises(family, opening, tmp_path):
    """The second opening ends in a space, which these tokenizers would join with the word after it."""
    folder = getattr(released, family)(tmp_path)
    tokenizer = load_tokenizer(f"hf:{folder}", 0, MARKS)
    template = (
        f"{{{{ bos_token }}}}{{% for m in messages %}}{opening}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endfor %}}"
    )
    template += f"{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    encoder = ChatEncoder(tokenizer, ChatTemplate(template, "the template"), tokenizer.vocabulary.start)
    messages = said("oil seed", "the rain", " tea <|user|>", "in a net", "x", " or")
    encoded = encoder.encode(Conversation(messages))
    assert encoder.stops == (tokenizer.vocabulary.eos,)
    for number, (start, stop) in zip((1, 3, 5), encoded.turns, strict=True):
        assert np.array_equal(encoder.encode_prompt(messages[:number]), encoded.tokens[:start])
        answer = encoder.decode_answer(encoded.tokens[start : stop - 1].tolist())
        assert answer == messages[number]["content"]
    user = tokenizer.vocabulary.specials["<|user|>"]
    assert (encoded.tokens == user).sum() == (6 if opening == "<|user|>" else 0)

"""Turn conversations into tokens, and know which of them are trained.

    encoder = ChatEncoder(tokenizer, template, front=None)
    encoded = encoder.encode(conversation)

    text      <|user|> H i <|end|> <|assistant|> H e y <|end|>
    tokens    900      40 7 903    901           40 9   903
    turns                                        (5,     8)       Turn(start=5, stop=8)

A turn is what the assistant says, with the token that closes it, the stop. The template itself seldom says where turns
are. So they are found in rendered texts: the text of the messages before a turn, with the generation prompt, is the
start of the whole text, and ends where the turn begins. The turn ends with the first special token after its content.

Text is cut before it is encoded: at each special token, and where a turn begins and ends. Each part is encoded by
itself. So the tokens before a turn are those of the same text alone: what `encode_prompt` gives to generation is a
prefix of the row of training. A tokenizer that read the whole text at once could join the last character of the
generation prompt with the first one of the answer, and generation would begin with a token that training never saw.

Special tokens come from the template alone. If a message holds the name of one, the name is text (see guards.py).
"""

import bisect
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from t5lite.data.chat.guards import Guards, NameFinder
from t5lite.data.chat.messages import ASSISTANT, USER, Conversation, Message
from t5lite.data.chat.renderer import Rendered, Renderer
from t5lite.data.chat.templates import ChatTemplate
from t5lite.data.tokenizers.released import ReleasedTokenizer
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError

SYSTEM_ROLES = ("system", "developer")
# A conversation from which the stops are read: two turns, because a template may close the last turn differently.
PROBE = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}] * 2


class Turn(NamedTuple):
    """Tokens [start, stop) of what the assistant says. The last one is the stop."""

    start: int
    stop: int


class Encoded(NamedTuple):
    """A conversation as tokens, int32 [n], with the trained turns."""

    tokens: np.ndarray
    turns: tuple[Turn, ...]

    @property
    def is_trained(self) -> np.ndarray:
        """bool [n]: whether the loss counts a token."""
        is_trained = np.zeros(len(self.tokens), bool)
        for start, stop in self.turns:
            is_trained[start:stop] = True
        return is_trained


class Lost(NamedTuple):
    """What a conversation loses because it is too long: messages, tokens, and how many of the tokens are trained."""

    messages: int
    tokens: int
    trained: int


NOTHING = Lost(0, 0, 0)


class _Span(NamedTuple):
    """Characters [start, stop) of a turn in a rendered text."""

    start: int
    stop: int


class ChatEncoder:
    """A tokenizer and a template.

    Args:
        front: the id that stands in front of every row. If the template writes this token first, it is left out here.

    stops: the ids that close a turn. writes_front: whether the template writes the token `front` first.

    Raises UserError for a template that is not valid, that does not preserve prefixes, or that closes a turn with
    something else than a special token of the tokenizer.
    """

    def __init__(self, tokenizer: TextTokenizer, template: ChatTemplate, front: int | None):
        self.tokenizer, self.template, self.front = tokenizer, template, front
        self._ids = {name: token for token, name in tokenizer.names.items() if name}
        self._never_written = sorted(tokenizer.names.keys() - {tokenizer.vocabulary.unknown})
        self._finder = NameFinder(self._ids)
        self._renderer = Renderer(template.text, template.where, _name_variables(tokenizer))
        self.stops: tuple[int, ...] = ()
        encoded = self.encode(Conversation(PROBE))
        self.stops = tuple(dict.fromkeys(int(encoded.tokens[turn.stop - 1]) for turn in encoded.turns))
        text = self._renderer.render(PROBE, [], asks=False).text
        self.writes_front = front is not None and text.startswith(tokenizer.names[front])
        after_special = all(token in tokenizer.names for token in self.encode_prompt(PROBE[:1])[-1:].tolist())
        self._continues = not (after_special and tokenizer.begins_after_specials)
        self._added = " " if self._decode_after_stop(self.encode_answer("b").tolist()).startswith(" ") else ""

    def encode(self, conversation: Conversation) -> Encoded:
        """Return the tokens and the trained turns of a conversation. Raises UserError, which names its place."""
        try:
            tokens, turns = self._encode(conversation.messages, asks=False)
        except UserError as error:
            raise UserError(f"{conversation.place}: {error}" if conversation.place else str(error)) from None
        trained = [turn for number, turn in turns.items() if number >= conversation.first]
        return Encoded(tokens, tuple(trained))

    def fit(self, conversation: Conversation, limit: int) -> tuple[Encoded | None, Lost]:
        """Return a conversation of at most `limit` tokens, without its oldest messages if need be, and what is lost.

        Messages of the system at the start stay. What follows them begins with a message of the user. None: not even
        the last such part with a trained turn has `limit` tokens or fewer.
        """
        whole = self.encode(conversation)
        if len(whole.tokens) <= limit:
            return whole, NOTHING
        total = int(whole.is_trained.sum())
        kept = _find_shorter(conversation, lambda shorter: len(self.encode(shorter).tokens) <= limit)
        if kept is None:
            return None, Lost(len(conversation.messages), len(whole.tokens), total)
        encoded = self.encode(kept)
        lost = len(conversation.messages) - len(kept.messages), len(whole.tokens) - len(encoded.tokens)
        return encoded, Lost(*lost, total - int(encoded.is_trained.sum()))

    def fit_prompt(self, messages: Sequence[Message], limit: int) -> tuple[np.ndarray, Lost]:
        """Return the tokens of `encode_prompt`, without the oldest messages if there are more than `limit`.

        The result has more than `limit` tokens if the last part alone has more.
        """
        whole = self.encode_prompt(messages)
        if len(whole) <= limit:
            return whole, NOTHING
        asked = Conversation(messages, len(messages))
        kept = _find_shorter(asked, lambda shorter: len(self.encode_prompt(shorter.messages)) <= limit)
        kept = kept or _list_shorter(asked)[-1]
        tokens = self.encode_prompt(kept.messages)
        return tokens, Lost(len(messages) - len(kept.messages), len(whole) - len(tokens), 0)

    def encode_prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the tokens after which the model answers, int32 [n]: the messages, and the generation prompt."""
        return self._encode(messages, asks=True)[0]

    def encode_answer(self, text: str) -> np.ndarray:
        """Return the tokens of an answer without a stop, int32 [n], as in a turn."""
        return self.tokenizer.encode_many([text], [self._continues])[0]

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens of an answer, without its stop."""
        return self._decode_after_stop(tokens).removeprefix(self._added)

    def make_release_template(self, last: int | None) -> str:
        """Return the template for transformers, which adds no token to a rendered conversation.

        The result writes the token in front itself, and `last` at the end of a prompt. last: the id, or None.
        """
        text, names = self.template.text, self.tokenizer.names
        if self.front is not None and not self.writes_front:
            text = f"{{{{ {json.dumps(names[self.front])} }}}}{text}"
        if last is None:
            return text
        end = f"{{% if add_generation_prompt %}}{{{{ {json.dumps(names[last])} }}}}{{% endif %}}"
        return text.removesuffix("\n") + end  # Jinja drops one line break at the end of a template

    def _decode_after_stop(self, tokens: Sequence[int]) -> str:
        # An answer follows a special token. At the start of a text, decoding would drop a space that belongs to it.
        # Some tokenizers put a space in front of a text also there: `_added`.
        parts = self.tokenizer.decode_parts([self.stops[0], *tokens], with_eos=True)
        return "".join(text for text, _ in parts[1:])

    def _encode(self, messages: Sequence[Message], asks: bool) -> tuple[np.ndarray, dict[int, Turn]]:
        """Return the tokens, and {index of a message: its turn}."""
        guards = self._finder.choose_guards(messages, self.template.text)
        guarded = [{**each, "content": self._finder.guard(each["content"], guards)} for each in messages]
        numbers = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
        rendered = self._renderer.render(guarded, numbers, asks)
        name = self._finder.make_pattern(guards)
        spans = self._find_turns(rendered, guarded, numbers, name)
        borders = sorted({0, len(rendered.text), *(place for span in spans for place in span)})
        tokens, places = self._encode_parts(rendered.text, borders, name, guards)
        removed = int(len(tokens) > 0 and tokens[0] == self.front)
        turns = {
            number: Turn(places[span.start] - removed, places[span.stop] - removed)
            for number, span in zip(numbers, spans, strict=True)
        }
        self._check_turns(tokens[removed:], turns)
        return tokens[removed:], turns

    def _find_turns(
        self, rendered: Rendered, messages: Sequence[Message], numbers: Sequence[int], name: re.Pattern
    ) -> list[_Span]:
        """Return the turns of the assistant's messages `numbers`, in order."""
        text, starts = rendered.text, dict(zip(numbers, rendered.starts, strict=True))
        spans, place = [], 0
        for number, message in enumerate(messages):
            place = max(place, starts.get(number, 0))
            end = min((start for later, start in starts.items() if later > number), default=len(text))
            content = message["content"].strip()
            found = text.find(content, place, end)
            if found < 0:
                self._check_is_shown(messages, number)
            else:
                place = found + len(content)
            if number in starts:
                close = name.search(text, place, end)
                if close is None:
                    self._refuse_end(number, text[place:end])
                place = close.end()
                spans.append(_Span(starts[number], place))
        return spans

    def _check_is_shown(self, messages: Sequence[Message], number: int) -> None:
        """Raise UserError if the text is the same without the content of message `number`."""
        changed = [dict(message) for message in messages]
        changed[number]["content"] += " x"
        if self._renderer.render(changed, [], asks=False).text == self._renderer.render(messages, [], asks=False).text:
            raise UserError(
                f"{self.template.where} leaves out message {number + 1} ({messages[number]['role']}); remove the "
                "message, or choose another template"
            )

    def _refuse_end(self, number: int, rest: str) -> None:
        what = f"by {rest[:40]!r}, which is no special token of the tokenizer" if rest.strip() else "by nothing"
        raise UserError(
            f"{self.template.where} closes what the assistant says (message {number + 1}) {what}: the model would "
            "never learn to stop; close it with a mark of config.tokenizer.specials, or with eos_token"
        )

    def _encode_parts(
        self, text: str, borders: Sequence[int], name: re.Pattern, guards: Guards
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Return the tokens of a text, and {border: number of tokens before it}. borders: places where it is cut."""
        pieces: list[str | int] = []  # texts and ids
        counts = []  # for each border, the number of pieces before it
        for start, stop in zip([0, *borders], borders, strict=False):
            for match in name.finditer(text, start, stop):
                pieces += [text[start : match.start()], self._ids[match[0]]]
                start = match.end()
            pieces.append(text[start:stop])
            counts.append(len(pieces))
        pieces = [guards.remove(piece) if isinstance(piece, str) else piece for piece in pieces]
        texts, continues, before = [], [], None  # before: the piece before, without empty pieces
        for piece in pieces:
            if isinstance(piece, str) and piece:
                begins = before is None or (isinstance(before, int) and self.tokenizer.begins_after_specials)
                texts.append(piece)
                continues.append(not begins)
            before = before if piece == "" else piece
        encoded = iter(self.tokenizer.encode_many(texts, continues))
        ids = [
            np.array([piece], np.int32) if isinstance(piece, int) else next(encoded) if piece else np.zeros(0, np.int32)
            for piece in pieces
        ]
        ends = np.cumsum([0, *map(len, ids)])
        places = {border: int(ends[count]) for border, count in zip(borders, counts, strict=True)}
        return np.concatenate(ids).astype(np.int32), places

    def _check_turns(self, tokens: np.ndarray, turns: dict[int, Turn]) -> None:
        """Raise UserError for a special token in a turn that generation cannot write."""
        for number, turn in turns.items():
            content, stop = tokens[turn.start : turn.stop - 1], int(tokens[turn.stop - 1])
            if self.stops and stop not in self.stops:
                raise UserError(
                    f"{self.template.where} closes message {number + 1} with {self.tokenizer.names[stop]}, but others "
                    f"with {self.tokenizer.names[self.stops[0]]}; close all turns of the assistant in one way"
                )
            if len(specials := content[np.isin(content, self._never_written)]):
                raise UserError(
                    f"{self.template.where} writes {self.tokenizer.names[int(specials[0])]} into what the assistant "
                    f"says (message {number + 1}), which generation could not write; write it in the generation prompt"
                )


def _list_shorter(conversation: Conversation) -> list[Conversation]:
    """Return the conversation itself and its parts without the oldest messages, the longest first.

    Each part has the first messages of the system, and begins, after them, with a message of the user. Each has a
    trained turn, or, if there is none, the last message of the user.
    """
    messages, answers = conversation.messages, [n for n in conversation.answers if n >= conversation.first]
    head = next((n for n, message in enumerate(messages) if message["role"] not in SYSTEM_ROLES), len(messages))
    last = max(answers, default=len(messages) - 1)
    begins = [n for n in range(head + 1, last + 1) if messages[n]["role"] == USER and messages[n - 1]["role"] != USER]
    shorter = [
        Conversation(
            [*messages[:head], *messages[begin:]], max(conversation.first - begin, 0) + head, conversation.place
        )
        for begin in begins
    ]
    return [conversation, *shorter]


def _find_shorter(conversation: Conversation, fits: Callable[[Conversation], bool]) -> Conversation | None:
    """Return the longest part of `_list_shorter` that fits; None if none does. Fewer messages have fewer tokens."""
    parts = _list_shorter(conversation)
    first = bisect.bisect_left(parts, True, lo=1, key=fits)
    return parts[first] if first < len(parts) else None


def _name_variables(tokenizer: TextTokenizer) -> dict[str, str]:
    """Return the variables of a template that name tokens. A role without a token has no variable."""
    vocabulary = tokenizer.vocabulary
    if isinstance(tokenizer, ReleasedTokenizer):
        roles = dataclasses.asdict(tokenizer.roles)
        ids = {role: roles[role] for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")}
    else:
        ids = {"bos": vocabulary.start, "eos": vocabulary.eos, "unk": vocabulary.unknown}
    return {f"{role}_token": tokenizer.names[token] for role, token in ids.items() if token in tokenizer.names}

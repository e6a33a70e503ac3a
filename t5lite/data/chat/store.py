"""Token stores of conversations, and the rows that come from them.

    decoder            document 2i: the tokens of conversation i; document 2i + 1: for each token, whether it is trained
    encoder-decoder    pairs, one for each trained turn: document 2i: the history; document 2i + 1: what the assistant
                       says, closed by EOS in place of the template's mark

A conversation that is too long loses its oldest messages here, before it is stored, because the template has to write
what is left anew. The card says what each has lost. A decoder's conversation is left out if not even its last exchange
fits. EOS may stand inside a document; the store keeps it under another id (`inner_eos` in the card).
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.build import first_tag
from t5lite.data.chat.encoder import NOTHING, ChatEncoder, Encoded, Lost
from t5lite.data.chat.messages import Conversation
from t5lite.data.cut import Cut, count_cut
from t5lite.data.packing import PackingPlan, pack, plan_one_per_row
from t5lite.data.rows import PackedPairs, Rows, RowSource
from t5lite.data.store import StoreWriter, TokenStore

WRITE_TOKENS = 1 << 20  # tokens that are written at a time


class ChatLayout(NamedTuple):
    """How conversations become rows.

    as_pairs: whether each trained turn is a pair, for an encoder-decoder.
    length: the largest number of tokens of a conversation, or of a pair's history with EOS and the token in front.
    """

    as_pairs: bool
    length: int


def build_chat(
    folder: Path,
    conversations: Iterable[Conversation],
    encoder: ChatEncoder,
    layout: ChatLayout,
    hold_out_every: int,
    advance: Callable[[int], None],
) -> None:
    """Write the stores `folder`/train and `folder`/heldout.

    hold_out_every: every such conversation goes to heldout; 0: none does.
    """
    stores = {name: _Store(folder / name, encoder) for name in ("train", "heldout")}
    for number, conversation in enumerate(conversations):
        is_held = hold_out_every > 0 and number % hold_out_every == hold_out_every - 1
        size = sum(len(message["content"].encode()) for message in conversation.messages)
        store = stores["heldout" if is_held else "train"]
        (store.add_pairs if layout.as_pairs else store.add_conversation)(conversation, layout.length, size)
        advance(size)
    for store in stores.values():
        store.close()


class _Store:
    """Write documents to a store, many at a time."""

    def __init__(self, folder: Path, encoder: ChatEncoder):
        vocabulary = encoder.tokenizer.vocabulary
        self._encoder, self._eos = encoder, vocabulary.eos
        self._inner_eos = max(vocabulary.rows, first_tag(vocabulary.eos) + 2)
        self._writer = StoreWriter(folder, self._inner_eos + 1, self._eos)
        self._documents: list[np.ndarray] = []
        self._conversations, self._pairs, self._bytes = 0, 0, 0
        self._cut: list[tuple[int, ...]] = []  # (pair, *Lost)
        self._left_out: list[int] = []  # the tokens of each conversation that is left out

    def add_conversation(self, conversation: Conversation, length: int, size: int) -> None:
        """Add a conversation of at most `length` tokens. size: the bytes of its messages."""
        encoded, lost = self._encoder.fit(conversation, length)
        if encoded is None:
            self._left_out.append(lost.tokens)
        else:
            self._add(encoded.tokens, first_tag(self._eos) + encoded.is_trained.astype(np.int32), lost)
            self._bytes += size
        self._conversations += 1

    def add_pairs(self, conversation: Conversation, length: int, size: int) -> None:
        """Add a pair for each trained turn, with a history of at most `length` tokens, unless its end has more."""
        encoded: Encoded = self._encoder.encode(conversation)
        answers = [number for number in conversation.answers if number >= conversation.first]
        room = length - 1 - (self._encoder.front is not None)  # EOS closes the history
        for number, turn in zip(answers, encoded.turns, strict=True):
            history, lost = encoded.tokens[: turn.start], NOTHING
            if len(history) > room:
                history, lost = self._encoder.fit_prompt(conversation.messages[:number], room)
            self._add(history, encoded.tokens[turn.start : turn.stop - 1], lost)
        self._bytes += size
        self._conversations += 1

    def _add(self, first: np.ndarray, second: np.ndarray, lost: Lost) -> None:
        if lost.tokens:
            self._cut.append((self._pairs, *lost))
        self._pairs += 1
        self._documents += [first, second]
        if sum(map(len, self._documents[-2:])) > WRITE_TOKENS or len(self._documents) > 2000:
            self._write()

    def _write(self) -> None:
        if self._documents:
            inner = [np.where(tokens == self._eos, self._inner_eos, tokens) for tokens in self._documents]
            closed = [np.append(tokens, self._eos).astype(np.int32) for tokens in inner]
            self._writer.append(np.concatenate(closed), np.cumsum([len(tokens) for tokens in closed]))
            self._documents = []

    def close(self) -> None:
        self._write()
        card: dict[str, Any] = {"bytes_of_text": self._bytes, "tokenizer_sha256": self._encoder.tokenizer.sha256}
        card |= {"conversations": self._conversations, "inner_eos": self._inner_eos, "labels": None}
        card |= {"cut": self._cut, "left_out": self._left_out}
        self._writer.close(card)


def _count_lost(store: TokenStore, order: np.ndarray, lengths: np.ndarray) -> Cut:
    """Return the counts of messages that the conversations or histories `order` have lost. lengths: their tokens."""
    is_chosen = np.zeros(len(store.ends) // 2, bool)
    is_chosen[order] = True
    before = np.zeros(len(is_chosen), np.int64)
    before[order] = lengths
    cut = [Lost(*lost) for pair, *lost in store.card["cut"] if is_chosen[pair]]
    longest = [int(before[pair] + lost[1]) for pair, *lost in store.card["cut"] if is_chosen[pair]]
    left_out = store.card["left_out"]
    return {
        "histories": len(cut),
        "messages": sum(lost.messages for lost in cut),
        "history_tokens": sum(lost.tokens for lost in cut),
        "left_out": len(left_out),
        "longest_history": max([*longest, *left_out], default=0),
    }


def _add_lost(cut: Cut, lost: Cut) -> Cut:
    """Return the counts of cut texts with those of lost messages."""
    longest = lost["longest_history"]
    return {
        **cut,
        "inputs": cut["inputs"] + lost["histories"],
        "tokens": cut["tokens"] + lost["history_tokens"],
        "longest": max(cut["longest"], longest),
        "longest_inputs": max(cut["longest_inputs"], longest),
        **lost,
    }


@dataclasses.dataclass(frozen=True)
class Conversations(RowSource):
    """Rows of conversations for a decoder. `plan` says which conversations share a row.

    fetch: {"targets": [n, L], "targets_segment_ids": [n, L], "trained": [n, L], 1 where the loss counts a token}
    """

    store: TokenStore
    plan: PackingPlan

    def __len__(self) -> int:
        return len(self.plan)

    def _lengths(self) -> np.ndarray:
        return self.store.pair_lengths()[self.plan.order, 0] - 1  # EOS closes the document, not the conversation

    def count_cut(self) -> Cut:
        """Count the conversations that have lost messages, and those that are left out."""
        lengths = self._lengths()
        both = np.stack([lengths, np.zeros_like(lengths)], axis=1)
        return _add_lost(count_cut(both, (None, None)), _count_lost(self.store, self.plan.order, lengths))

    def count_lost_target_tokens(self, indices: np.ndarray) -> int:
        """Count the trained tokens that the conversations at `indices` have lost. Each row must hold one of them."""
        chosen = set(self.plan.order[indices].tolist())
        return sum(trained for pair, _, _, trained in self.store.card["cut"] if pair in chosen)

    def fetch(self, indices: np.ndarray) -> Rows:
        shape = (len(indices), self.plan.inputs_length)
        rows = {name: np.zeros(shape, np.int32) for name in ("targets", "targets_segment_ids", "trained")}
        not_trained = first_tag(self.store.eos)
        for row, index in enumerate(indices):
            start = 0
            for segment, number in enumerate(self.plan.pairs(int(index)), start=1):
                tokens, trained = (self.store.document(2 * int(number) + side)[:-1] for side in (0, 1))
                place = slice(start, start + len(tokens))
                rows["targets"][row, place], rows["targets_segment_ids"][row, place] = tokens, segment
                rows["trained"][row, place] = trained.astype(np.int32) - not_trained
                start += len(tokens)
        return rows


@dataclasses.dataclass(frozen=True)
class ChatPairs(PackedPairs):
    """Rows of (history, answer) pairs for an encoder-decoder."""

    def count_cut(self) -> Cut:
        """Count also the histories that have lost messages."""
        lengths = self._pair_lengths(self.plan.order)[:, 0]
        return _add_lost(super().count_cut(), _count_lost(self.store, self.plan.order, lengths))


def plan_conversations(store: TokenStore, length: int, packed: bool, limit: int | None, seed: int) -> PackingPlan:
    """Decide which conversations of `store` share a row of `length` tokens.

    Args:
        limit: keep at most this many conversations; None: all.
        seed: fixes the random order of conversations that are packed or limited.
    """
    count = store.num_documents // 2
    chosen = np.random.default_rng(seed).permutation(count)[:limit] if packed or limit else np.arange(count)
    if not packed:
        return plan_one_per_row(chosen, length, 0)
    tokens = store.pair_lengths()[:, 0] - 1
    return pack(np.stack([tokens, np.zeros_like(tokens)], axis=1), chosen, length, 0)

"""Build token stores: documents stream in, are encoded a few megabytes at a time, and go to the shards of a store.

If a source has no validation split, every 20th document (or pair) goes to a second store, beside the first:

    stores/<fingerprint>/train/…      stores/<fingerprint>/heldout/…
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from t5lite.data.files import Tagged, fragments_of
from t5lite.data.store import StoreWriter
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError

HELDOUT_EVERY = 20
MOST_LABELS, LONGEST_LABEL = 1000, 1000  # labels in a closed set; characters of a label
ENCODE_CHARACTERS = 4 * 2**20  # characters of text encoded at a time
Item = TypeVar("Item")
Piece = tuple[str, bool]  # a text, and whether the document ends after it
Advance = Callable[[int], None]  # called with the number of bytes of text just done


class Part(NamedTuple):
    """Tokens of one document: all of them, or the next ones. EOS is added when they are written.

    num_bytes: bytes of the document's whole text, where the document ends; None: the document is no text.
    """

    tokens: np.ndarray
    num_bytes: int | None
    ends_document: bool


def first_tag(eos: int) -> int:
    """Return the lowest id of a tag in a store. The ids below are for EOS and for pieces without a tag."""
    return max(eos, 1) + 1


def build_text(
    folder: Path, pieces: Iterable[Piece], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout. The second stays empty unless `hold_out`."""
    _build(folder, encode_pieces(pieces, tokenizer, advance), tokenizer, hold_out, 1, lambda: {})


def build_pairs(
    folder: Path, pairs: Iterable[tuple[str, str]], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the same two stores for supervised pairs.

    "labels" in both cards counts the distinct targets of the whole source: {target: count}. It is None if there are
    more than 1,000 distinct targets, or if a target has more than 1,000 characters.
    """
    labels: Counter[str] | None = Counter()

    def pieces() -> Iterator[Piece]:
        nonlocal labels
        for inputs, targets in pairs:
            if labels is not None:
                labels[targets] += 1
                if len(labels) > MOST_LABELS or len(targets) > LONGEST_LABEL:
                    labels = None
            yield from fragments_of(inputs)
            yield from fragments_of(targets)

    def card() -> dict[str, Any]:
        return {"labels": None if labels is None else dict(sorted(labels.items()))}

    _build(folder, encode_pieces(pieces(), tokenizer, advance, keep_empty=True), tokenizer, hold_out, 2, card)


def build_tagged(
    folder: Path, sentences: Iterable[Tagged], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the same two stores for sentences whose words have tags.

    Document 2i holds the pieces of sentence i. Document 2i + 1 holds one id for each piece. The first piece of a word
    has the id first_tag(eos) + k, where k is the index of the word's tag in "tags" of the card. Every other piece has 0
    (1 if 0 is EOS). EOS closes both documents.

    In both cards "labels" counts the tags of the whole source, and "places" says where each tag first occurs. Raises
    UserError for more than 1,000 tags, and for a tag of more than 1,000 characters.
    """
    eos = tokenizer.vocabulary.eos
    untagged = int(eos == 0)
    labels: Counter[str] = Counter()
    places: dict[str, str] = {}  # tag: where it first occurs; ordered by id

    def numbered(sentence: Tagged) -> list[int]:
        for tag in sentence.tags:
            places.setdefault(tag, sentence.place)
        if len(places) > MOST_LABELS:
            raise UserError(f"{sentence.place}: this is tag number {len(places):,}; tags are a closed set")
        if (longest := max(map(len, sentence.tags))) > LONGEST_LABEL:
            raise UserError(f"{sentence.place}: a tag has {longest:,} characters; tags are short names")
        labels.update(sentence.tags)
        index = {tag: number for number, tag in enumerate(places)}
        return [first_tag(eos) + index[tag] for tag in sentence.tags]

    def blocks() -> Iterator[list[Part]]:
        for block in _blocks(sentences, lambda sentence: 64 * len(sentence.words)):
            parts = []
            for sentence, pieces in zip(block, encode_words(tokenizer, [each.words for each in block]), strict=True):
                each = zip(numbered(sentence), pieces, strict=True)
                tags = [np.where(np.arange(len(of_word)) == 0, tag, untagged) for tag, of_word in each]
                num_bytes = len(" ".join(sentence.words).encode())
                parts += [Part(np.concatenate(pieces), num_bytes, True), Part(np.concatenate(tags), None, True)]
            yield parts
            advance(sum(part.num_bytes or 0 for part in parts))

    def card() -> dict[str, Any]:
        return {"labels": dict(sorted(labels.items())), "tags": list(places), "places": places}

    _build(folder, blocks(), tokenizer, hold_out, 2, card)


def encode_words(tokenizer: TextTokenizer, sentences: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    """Return the ids of each word of each sentence. All words but the first are encoded with a space before them.

    A word without a piece of its own gets one id: the unknown token, or a space's piece if there is no unknown token.
    """
    words = [word if i == 0 else f" {word}" for sentence in sentences for i, word in enumerate(sentence)]
    continues = [i > 0 for sentence in sentences for i in range(len(sentence))]
    ids = iter(tokenizer.encode_many(words, continues))
    unknown = tokenizer.vocabulary.unknown
    nothing = tokenizer.encode_many([" "], [True])[0][:1] if unknown is None else np.array([unknown], np.int32)
    return [[of_word if len(of_word := next(ids)) else nothing for _ in sentence] for sentence in sentences]


def _build(
    folder: Path,
    blocks: Iterable[list[Part]],
    tokenizer: TextTokenizer,
    hold_out: bool,
    unit: int,
    card: Callable[[], dict[str, Any]],
) -> None:
    """Write `blocks` to the two stores. EOS closes each document.

    "bytes_of_text" in a card counts the bytes of the text. "bytes_in_tokens" counts the bytes that the vocabulary's
    table gives for the tokens. The two are equal unless the tokenizer loses something.

    Args:
        unit: number of documents that stay together; a pair has two.
        card: returns more fields of both cards; called after the last block.
    """
    stores = {name: _Store(folder / name, tokenizer) for name in ("train", "heldout")}
    documents, begins = 0, True  # documents so far; whether the next token begins one
    for block in blocks:
        for part in block:
            is_held = hold_out and documents // unit % HELDOUT_EVERY == HELDOUT_EVERY - 1
            stores["heldout" if is_held else "train"].add(part, begins)
            begins = part.ends_document or (begins and not len(part.tokens))
            documents += part.ends_document
        for store in stores.values():
            store.write()
    for store in stores.values():
        store.close(card())


class _Store:
    """A store to which parts are written, a block at a time. It counts their text."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer):
        vocabulary = tokenizer.vocabulary
        rows = max(vocabulary.rows, first_tag(vocabulary.eos) + MOST_LABELS)  # all ids in the store are below
        self._writer = StoreWriter(folder, rows, vocabulary.eos)
        self._eos, self._table = np.array([vocabulary.eos], np.int32), vocabulary.table
        self._facts = {"bytes_of_text": 0, "bytes_in_tokens": 0, "tokenizer_sha256": tokenizer.sha256}
        self._clear()

    def _clear(self) -> None:
        nothing = np.zeros(0, np.int32)
        self._tokens, self._is_end = [nothing], [False]
        self._text, self._first = [nothing], [nothing]  # tokens of texts, and the first token of each text

    def add(self, part: Part, begins: bool) -> None:
        """Keep a part for `write`. begins: whether a document begins with it."""
        self._tokens += [part.tokens, self._eos] if part.ends_document else [part.tokens]
        self._is_end += [False, True] if part.ends_document else [False]
        if part.num_bytes is not None:
            self._text.append(part.tokens)
            self._first.append(part.tokens[: int(begins)])
            self._facts["bytes_of_text"] += part.num_bytes

    def write(self) -> None:
        """Write the parts that were added."""
        stops = np.cumsum([len(tokens) for tokens in self._tokens])
        self._writer.append(np.concatenate(self._tokens), stops[self._is_end])
        text, first = np.concatenate(self._text), np.concatenate(self._first)
        spaces = self._table.num_bytes[first] - self._table.num_bytes_first[first]  # put before texts by the tokenizer
        self._facts["bytes_in_tokens"] += int(self._table.num_bytes[text].sum() - spaces.sum())
        self._clear()

    def close(self, card: dict[str, Any]) -> None:
        self._writer.close({**self._facts, **card})


def encode_pieces(
    pieces: Iterable[Piece], tokenizer: TextTokenizer, advance: Advance, keep_empty: bool = False
) -> Iterator[list[Part]]:
    """Yield one block for every few megabytes of `pieces`. Leave out documents without a token unless `keep_empty`."""
    has_text = has_tokens = False  # of the current document, across blocks
    size = 0  # bytes of the current document so far
    for block in _blocks(pieces, lambda piece: len(piece[0]) + 64):
        continued = []
        for text, closed in block:
            continued.append(has_text)
            has_text = (has_text or text != "") and not closed
        parts, total = [], 0
        for (text, closed), ids in zip(
            block, tokenizer.encode_many([text for text, _ in block], continued), strict=True
        ):
            size, total = size + len(text.encode()), total + len(text.encode())
            has_tokens = has_tokens or len(ids) > 0 or keep_empty
            ends = closed and has_tokens
            parts.append(Part(ids, size if ends else 0, ends))
            size, has_tokens = (0, False) if closed else (size, has_tokens)
        yield parts
        advance(total)


def _blocks(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield `items` in lists of about ENCODE_CHARACTERS in all."""
    block: list[Item] = []
    size = 0
    for item in items:
        block.append(item)
        size += size_of(item)
        if size >= ENCODE_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block

"""Build token stores: documents stream in, are encoded a few megabytes at a time, and go to the shards of a store.

If a source has no validation split, every 20th document (or pair) goes to a second store beside the first store:

    stores/<fingerprint>/train/…      stores/<fingerprint>/heldout/…
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from t5lite.data.files import TaggedSentence, split_text
from t5lite.data.references import ReferencesWriter
from t5lite.data.store import StoreWriter
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.cache import atomic_folder, cache_dir, fingerprint
from t5lite.system.errors import UserError
from t5lite.system.progress import progress

HELDOUT_EVERY = 20
STORES = ("train", "heldout")
MAX_LABELS, MAX_LABEL_LENGTH = 1000, 1000  # labels in a closed set; characters of a label
ENCODE_CHARACTERS = 4 * 2**20  # characters of text encoded at a time
Item = TypeVar("Item")
Piece = tuple[str, bool]  # a text, and whether the document ends after it
Advance = Callable[[int], None]  # called with the number of bytes of text that were just encoded


def build_once(facts: dict[str, Any], num_bytes: int, build: Callable[[Path, Advance], None]) -> Path:
    """Return the folder of the stores with these facts. If the cache lacks the stores, `build` writes them.

    num_bytes: the expected bytes of text, for the progress bar.
    """
    folder = cache_dir() / "stores" / fingerprint(facts)
    if not folder.is_dir():
        with (
            atomic_folder(folder) as temporary,
            progress("encoding text", num_bytes, show_count=False) as advance,
        ):
            build(temporary, advance)
            (temporary / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder


class Part(NamedTuple):
    """Tokens of one document, or of a part of it. EOS is added later, when the tokens are written.

    num_bytes: bytes of the document's text, stated by its last part; 0 in other parts. None: the document is no text.
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
    """Write the stores `folder`/train and `folder`/heldout. Without `hold_out`, heldout stays empty."""
    write_stores(folder, encode_pieces(pieces, tokenizer, advance), tokenizer, hold_out, 1, lambda name: {})


def build_pairs(
    folder: Path, pairs: Iterable[tuple[str, ...]], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout for supervised pairs.

    "labels" in both cards counts the distinct targets of the whole source: {target: count}. It is None if there are
    more than 1,000 distinct targets, or if a target has more than 1,000 characters, or if a pair has several
    references.

    Args:
        pairs: (inputs, targets, and more references if there are any).
    """
    labels: Counter[str] | None = Counter()
    more = {name: ReferencesWriter(folder / name, tokenizer) for name in STORES}

    def iterate_pieces() -> Iterator[Piece]:
        nonlocal labels
        for index, (inputs, targets, *references) in enumerate(pairs):
            if labels is not None:
                labels[targets] += 1
                if len(labels) > MAX_LABELS or len(targets) > MAX_LABEL_LENGTH or references:
                    labels = None
            if references:
                name, number = locate_unit(index, hold_out)
                more[name].add(number, references)
            yield from split_text(inputs)
            yield from split_text(targets)

    def make_card(name: str) -> dict[str, Any]:
        return {"labels": None if labels is None else dict(sorted(labels.items())), **more[name].close()}

    blocks = encode_pieces(iterate_pieces(), tokenizer, advance, keep_empty=True)
    write_stores(folder, blocks, tokenizer, hold_out, 2, make_card)


def build_tagged(
    folder: Path, sentences: Iterable[TaggedSentence], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout for sentences with a tag for each word.

    Document 2i holds the pieces of sentence i. Document 2i + 1 holds one id for each piece. The first piece of a word
    has the id first_tag(eos) + k, where k is the index of the word's tag in "tags" of the card. Every other piece has 0
    (1 if 0 is EOS). EOS closes both documents.

    In both cards "labels" counts the tags of the whole source, and "places" says where each tag first occurs. Raises
    UserError for more than 1,000 tags, and for a tag of more than 1,000 characters.
    """
    eos = tokenizer.vocabulary.eos
    no_tag = int(eos == 0)  # the id for pieces without a tag
    labels: Counter[str] = Counter()
    places: dict[str, str] = {}  # {tag: the file and line where it first occurs}, in the order of ids

    def number_tags(sentence: TaggedSentence) -> list[int]:
        for tag in sentence.tags:
            places.setdefault(tag, sentence.place)
        if len(places) > MAX_LABELS:
            raise UserError(
                f"{sentence.place}: this is tag number {len(places):,}; use at most {MAX_LABELS:,} different tags"
            )
        if (longest := max(map(len, sentence.tags))) > MAX_LABEL_LENGTH:
            raise UserError(f"{sentence.place}: a tag has {longest:,} characters; use at most {MAX_LABEL_LENGTH:,}")
        labels.update(sentence.tags)
        index = {tag: number for number, tag in enumerate(places)}
        return [first_tag(eos) + index[tag] for tag in sentence.tags]

    def encode_blocks() -> Iterator[list[Part]]:
        for block in group_in_blocks(sentences, lambda sentence: 64 * len(sentence.words)):
            parts = []
            for sentence, pieces in zip(block, encode_words(tokenizer, [each.words for each in block]), strict=True):
                tagged_words = zip(number_tags(sentence), pieces, strict=True)
                tags = [np.where(np.arange(len(ids)) == 0, tag, no_tag) for tag, ids in tagged_words]
                num_bytes = len(" ".join(sentence.words).encode())
                parts += [Part(np.concatenate(pieces), num_bytes, True), Part(np.concatenate(tags), None, True)]
            yield parts
            advance(sum(part.num_bytes or 0 for part in parts))

    def make_card(name: str) -> dict[str, Any]:
        return {"labels": dict(sorted(labels.items())), "tags": list(places), "places": places}

    write_stores(folder, encode_blocks(), tokenizer, hold_out, 2, make_card)


def encode_words(tokenizer: TextTokenizer, sentences: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    """Return the ids of each word of each sentence. All words but the first are encoded with a space before them.

    A word without pieces gets one id: the unknown token, or the piece of a space if there is no unknown token.
    """
    words = [word if i == 0 else f" {word}" for sentence in sentences for i, word in enumerate(sentence)]
    continues = [i > 0 for sentence in sentences for i in range(len(sentence))]
    ids = iter(tokenizer.encode_many(words, continues))
    unknown = tokenizer.vocabulary.unknown
    placeholder = tokenizer.encode_many([" "], [True])[0][:1] if unknown is None else np.array([unknown], np.int32)
    return [[word_ids if len(word_ids := next(ids)) else placeholder for _ in sentence] for sentence in sentences]


def write_stores(
    folder: Path,
    blocks: Iterable[list[Part]],
    tokenizer: TextTokenizer,
    hold_out: bool,
    unit: int,
    make_card: Callable[[str], dict[str, Any]],
) -> None:
    """Write `blocks` to the two stores. EOS closes each document.

    "bytes_of_text" in a card counts the bytes of the text. "bytes_in_tokens" counts the bytes that the vocabulary's
    table gives for the tokens. The two numbers differ only if the tokenizer loses some of the text.

    Args:
        unit: number of documents that stay together; a pair has two.
        make_card: (name of a store) -> more fields for its card; called after the last block.
    """
    stores = {name: _Store(folder / name, tokenizer) for name in STORES}
    documents, begins = 0, True  # documents so far; whether the next token begins a document
    for block in blocks:
        for part in block:
            stores[locate_unit(documents // unit, hold_out)[0]].add(part, begins)
            begins = part.ends_document or (begins and not len(part.tokens))
            documents += part.ends_document
        for store in stores.values():
            store.write()
    for name, store in stores.items():
        store.close(make_card(name))


def locate_unit(index: int, hold_out: bool) -> tuple[str, int]:
    """Return (the store of a document or pair, its number there). index: its number in the source."""
    before, place = divmod(index, HELDOUT_EVERY)
    if not hold_out:
        return "train", index
    return ("heldout", before) if place == HELDOUT_EVERY - 1 else ("train", index - before)


class _Store:
    """Write parts to a store, a block at a time, and count the bytes of their text."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer):
        vocabulary = tokenizer.vocabulary
        rows = max(vocabulary.rows, first_tag(vocabulary.eos) + MAX_LABELS)  # all ids in the store are lower
        self._writer = StoreWriter(folder, rows, vocabulary.eos)
        self._eos, self._table = np.array([vocabulary.eos], np.int32), vocabulary.table
        self._facts = {"bytes_of_text": 0, "bytes_in_tokens": 0, "tokenizer_sha256": tokenizer.sha256}
        self._clear()

    def _clear(self) -> None:
        empty = np.zeros(0, np.int32)
        self._tokens, self._is_end = [empty], [False]
        self._text, self._first = [empty], [empty]  # tokens of texts, and the first token of each text

    def add(self, part: Part, begins: bool) -> None:
        """Keep a part for `write`. begins: whether a document begins with this part."""
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
        # The spaces that the tokenizer puts before texts are not bytes of the texts.
        spaces = self._table.num_bytes[first] - self._table.num_bytes_first[first]
        self._facts["bytes_in_tokens"] += int(self._table.num_bytes[text].sum() - spaces.sum())
        self._clear()

    def close(self, card: dict[str, Any]) -> None:
        self._writer.close({**self._facts, **card})


def encode_pieces(
    pieces: Iterable[Piece], tokenizer: TextTokenizer, advance: Advance, keep_empty: bool = False
) -> Iterator[list[Part]]:
    """Yield a block for every few megabytes of `pieces`. Without keep_empty, leave out documents without tokens."""
    has_text = has_tokens = False  # whether the current document has text and tokens so far, across blocks
    size = 0  # bytes of the current document so far
    for block in group_in_blocks(pieces, lambda piece: len(piece[0]) + 64):
        continues = []
        for text, closed in block:
            continues.append(has_text)
            has_text = (has_text or text != "") and not closed
        parts, total = [], 0
        for (text, closed), ids in zip(
            block, tokenizer.encode_many([text for text, _ in block], continues), strict=True
        ):
            num_bytes = len(text.encode())
            size, total = size + num_bytes, total + num_bytes
            has_tokens = has_tokens or len(ids) > 0 or keep_empty
            ends = closed and has_tokens
            parts.append(Part(ids, size if ends else 0, ends))
            size, has_tokens = (0, False) if closed else (size, has_tokens)
        yield parts
        advance(total)


def group_in_blocks(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
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

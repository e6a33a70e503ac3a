"""Build token stores: documents stream in, are encoded a few megabytes at a time, and go to the shards of a store.

If a source has no validation split, every 20th document (or pair) goes to a second store, beside the first:

    stores/<fingerprint>/train/…      stores/<fingerprint>/heldout/…
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.files import Tagged, fragments_of
from t5lite.data.store import StoreWriter
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError

HELDOUT_EVERY = 20
MOST_LABELS, LONGEST_LABEL = 1000, 1000  # labels in a closed set; characters of a label
ENCODE_CHARACTERS = 4 * 2**20  # characters of text encoded at a time
Piece = tuple[str, bool]  # a text, and whether the document ends after it
Advance = Callable[[int], None]  # called with the number of bytes of text just done


class Block(NamedTuple):
    """Tokens of documents, one document after the other.

    tokens: [n] ids. ends: [m], for each document that ends here, the position after its last token. sizes: [m], for
    each document that ends here, the bytes of its whole text.
    """

    tokens: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray


def first_tag(eos: int) -> int:
    """Return the lowest id of a tag in a store. The ids below are for EOS and for pieces without a tag."""
    return max(eos, 1) + 1


def build_text(
    folder: Path, pieces: Iterable[Piece], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout. The second stays empty unless `hold_out`."""
    _build(folder, encoded(pieces, tokenizer, advance), tokenizer, hold_out, 1, lambda: {})


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

    _build(folder, encoded(pieces(), tokenizer, advance, keep_empty=True), tokenizer, hold_out, 2, card)


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

    def blocks() -> Iterator[Block]:
        for block in _tagged_blocks(sentences):
            documents = []
            for sentence, pieces in zip(block, pieces_of_words(tokenizer, [each.words for each in block]), strict=True):
                each = zip(numbered(sentence), pieces, strict=True)
                tags = [np.where(np.arange(len(of_word)) == 0, tag, untagged) for tag, of_word in each]
                documents += [np.concatenate([*side, [eos]]) for side in (pieces, tags)]
            words = np.array([sum(len(word.encode()) for word in sentence.words) for sentence in block])
            sizes = np.zeros(len(documents), np.int64)
            sizes[::2] = words + [len(sentence.words) - 1 for sentence in block]  # plus the spaces between words
            yield Block(np.concatenate(documents), np.cumsum([len(document) for document in documents]), sizes)
            advance(int(words.sum()))

    def card() -> dict[str, Any]:
        return {"labels": dict(sorted(labels.items())), "tags": list(places), "places": places}

    _build(folder, blocks(), tokenizer, hold_out, 2, card, texts=1)


def pieces_of_words(tokenizer: TextTokenizer, sentences: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    """Return the ids of each word of each sentence. All words but the first are encoded with a space before them.

    A word without a piece of its own gets one id: the unknown token, or a space's piece if there is no unknown token.
    """
    words = [word if i == 0 else f" {word}" for sentence in sentences for i, word in enumerate(sentence)]
    continues = [i > 0 for sentence in sentences for i in range(len(sentence))]
    ids = iter(tokenizer.encode_many(words, continues))
    unknown = tokenizer.vocabulary.unknown
    nothing = tokenizer.encode_many([" "], [True])[0][:1] if unknown is None else np.array([unknown], np.int32)
    return [[of_word if len(of_word := next(ids)) else nothing for _ in sentence] for sentence in sentences]


def _tagged_blocks(sentences: Iterable[Tagged]) -> Iterator[list[Tagged]]:
    block: list[Tagged] = []
    words = 0
    for sentence in sentences:
        block.append(sentence)
        words += len(sentence.words)
        if words >= ENCODE_CHARACTERS // 64:
            yield block
            block, words = [], 0
    if block:
        yield block


def _build(
    folder: Path,
    blocks: Iterable[Block],
    tokenizer: TextTokenizer,
    hold_out: bool,
    unit: int,
    card: Callable[[], dict[str, Any]],
    texts: int | None = None,
) -> None:
    """Write `blocks` to the two stores.

    "bytes_of_text" in a card counts the bytes of the text. "bytes_in_tokens" counts the bytes that the vocabulary's
    table gives for the tokens. The two are equal unless the tokenizer loses something.

    Args:
        unit: number of documents that stay together; a pair has two.
        card: returns more fields of both cards; called after the last block.
        texts: how many documents of a unit, from the first, count as text; None: all.
    """
    vocabulary = tokenizer.vocabulary
    rows = max(vocabulary.rows, first_tag(vocabulary.eos) + MOST_LABELS)  # all ids in the stores are below
    writers = {name: StoreWriter(folder / name, rows, vocabulary.eos) for name in ("train", "heldout")}
    table, texts = vocabulary.table, unit if texts is None else texts
    bytes_of_text, bytes_in_tokens = dict.fromkeys(writers, 0), dict.fromkeys(writers, 0)
    documents, begins = 0, True  # documents so far; whether the next token begins one

    def is_held(document: np.ndarray) -> np.ndarray:
        return hold_out & (document // unit % HELDOUT_EVERY == HELDOUT_EVERY - 1)

    for tokens, ends, sizes in blocks:
        # The index of each token's document in the whole source. The last document may go on in the next block.
        document = documents + np.searchsorted(ends, np.arange(len(tokens)), side="right")
        closed = documents + np.arange(len(ends))
        documents += len(ends)
        is_end, is_first = np.zeros(len(tokens), bool), np.zeros(len(tokens), bool)
        is_end[ends - 1] = True
        if len(tokens):
            is_first[0], is_first[1:], begins = begins, is_end[:-1], bool(is_end[-1])
        counts = np.where(is_first, table.num_bytes_first[tokens], table.num_bytes[tokens])
        counts, sizes = (np.where(of % unit < texts, n, 0) for n, of in ((counts, document), (sizes, closed)))
        for name, mine, ended in zip(writers, *((~is_held(of), is_held(of)) for of in (document, closed)), strict=True):
            writers[name].append(tokens[mine], np.flatnonzero(is_end[mine]) + 1)
            bytes_of_text[name] += int(sizes[ended].sum())
            bytes_in_tokens[name] += int(counts[mine].sum())
    for name, writer in writers.items():
        counted = {"bytes_of_text": bytes_of_text[name], "bytes_in_tokens": bytes_in_tokens[name]}
        writer.close({**counted, "tokenizer_sha256": tokenizer.sha256, **card()})


def encoded(
    pieces: Iterable[Piece], tokenizer: TextTokenizer, advance: Advance, keep_empty: bool = False
) -> Iterator[Block]:
    """Yield one block for every few megabytes of `pieces`. EOS closes each document.

    Documents without a token are left out unless `keep_empty`.
    """
    open_document = begun = False  # of the current document, across blocks: has tokens, has text
    size = 0  # bytes of the current document so far
    eos = np.array([tokenizer.vocabulary.eos], np.int32)
    for block in _blocks(pieces):
        texts, closes = zip(*block, strict=True)
        continued = []
        for text, closed in block:
            continued.append(begun)
            begun = (begun or text != "") and not closed
        parts, ends, sizes, at = [], [], [], 0
        num_bytes = [len(text.encode()) for text in texts]
        encodings = tokenizer.encode_many(texts, continued)
        for ids, closed, added in zip(encodings, closes, num_bytes, strict=True):
            parts.append(ids)
            at += len(ids)
            size += added
            open_document = open_document or len(ids) > 0 or keep_empty
            if closed and open_document:
                parts.append(eos)
                at += 1
                ends.append(at)
                sizes.append(size)
            open_document, size = open_document and not closed, 0 if closed else size
        yield Block(np.concatenate(parts), np.asarray(ends, np.int64), np.asarray(sizes, np.int64))
        advance(sum(num_bytes))


def _blocks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    block: list[Piece] = []
    size = 0
    for piece in pieces:
        block.append(piece)
        size += len(piece[0]) + 64
        if size >= ENCODE_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block

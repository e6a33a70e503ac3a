"""The interface of every tokenizer, and what its kinds share: how the names of specials are read.

tokenizers/tokenizer.py    SentencePiece: trained here, or T5's
tokenizers/released.py     tokenizer.json: BART, BERT, GPT-2, Llama
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Rules, Vocabulary

COPY_ANEW = "copy the folder anew from where it came, or delete it if the cache has it"
MOST_SENTINELS = 100_000
Parts = list[tuple[str, bool]]


class TextTokenizer(Protocol):
    """Text to ids and back.

    begins_with_start: whether a decoder's prompt begins with `vocabulary.start`. Always true if t5lite trained the
    tokenizer; for a released model as its own tokenizer does. rules: the rules of generation in the files beside the
    tokenizer; None: there are none. Both are not part of the identity.
    """

    vocabulary: Vocabulary
    begins_with_start: bool
    rules: Rules | None

    @property
    def sha256(self) -> str:
        """Identity: equal if all ids mean the same."""

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids of `text`, int32 [n], without EOS. specials: names such as `<extra_id_0>` become their ids."""

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Return the ids of each text. continues: true for a text that continues the one before."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`. Sentinels and specials appear by name; EOS and padding are left out."""

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """Return the decoded text in parts, each with whether it stands for something other than text."""

    @property
    def names(self) -> dict[int, str]:
        """{id: name} of each sentinel and special."""

    @property
    def base(self) -> object:
        """The part that decides the ids below the added sentinels and specials.

        Tokenizers with equal bases have equal ids there.
        """

    def grown(self, sentinels: int, specials: Sequence[str]) -> "TextTokenizer":
        """Return the tokenizer with the `specials` that it lacks, and `sentinels` if it has none, above its ids.

        Existing ids stay. So a tokenizer with sentinels gets no more of them: the k-th sentinel is always `size - k`.
        """

    def save(self, folder: Path) -> None:
        """Write the files from which `load_tokenizer` opens it again."""


def check_above(sentinels: int, specials: Sequence[str]) -> None:
    """Raise UserError for sentinels or specials that cannot stand above the pieces.

    Each id takes a row of the embedding.
    """
    if not 0 <= sentinels <= MOST_SENTINELS:
        raise UserError(f"tokenizer.sentinels: must be from 0 to {MOST_SENTINELS:,}, is {sentinels}")
    names = [f"<extra_id_{k}>" for k in range(sentinels)] + list(specials)
    wrong = [name for name in specials if not isinstance(name, str) or not name or names.count(name) > 1]
    if wrong:
        raise UserError(f"tokenizer.specials: {wrong[0]!r} is no name of a special token, or that of two")


def extends(tokenizer: TextTokenizer, other: TextTokenizer) -> bool:
    """Return whether every id of `other` means the same in `tokenizer`, which may have more ids."""
    return tokenizer.base == other.base and other.names.items() <= tokenizer.names.items()


def growth(
    vocabulary: Vocabulary, above: Sequence[str], below: int, sentinels: int, specials: Sequence[str]
) -> tuple[int, list[str], int] | None:
    """Return what stands above the pieces when a tokenizer grows; None if it lacks nothing.

    Args:
        above: names of the specials above the pieces so far.
        below: how many of them stand below the sentinels so far.
        sentinels: how many are asked for.
        specials: the names that are asked for.

    Returns:
        The number of sentinels, the specials above the pieces, and how many of these stand below the sentinels.
    """
    new = [name for name in specials if name not in vocabulary.specials]
    if not new and (vocabulary.sentinels or not sentinels):
        return None
    below = below if vocabulary.sentinels else min(sentinels, 1) * len(above)
    return vocabulary.sentinels or sentinels, [*above, *new], below


def sentinels_on_top(rows: int, id_of: Callable[[str], int | None]) -> int:
    """Count the sentinels among a tokenizer's own `rows` ids.

    <extra_id_0> is the last id, <extra_id_1> the one before it, and so on.
    """
    count = 0
    while rows - 1 - count in (id_of(f"<extra_id_{count}>"), id_of(f"▁<extra_id_{count}>")):
        count += 1
    return count


def encode_with_names(text: str, ids_of_names: Mapping[str, int], tokenizer: TextTokenizer) -> np.ndarray:
    """Return the ids of `text`. A name in it becomes its id, and also stands for the space before it."""
    names = "|".join(map(re.escape, sorted(ids_of_names, key=len, reverse=True)))
    parts = re.split(f" ?({names})", text) if names else [text]
    ids = tokenizer.encode_many(parts[::2], [i > 0 for i in range(len(parts[::2]))])
    for i, name in enumerate(parts[1::2]):
        ids[i] = np.append(ids[i], np.int32(ids_of_names[name]))
    return np.concatenate(ids)


def cut_in_names(text: str, names: Collection[str]) -> list[str]:
    """Split `text` so that no part holds one of `names`: each name is cut after its first character."""
    found = re.finditer("|".join(map(re.escape, sorted(names, key=len, reverse=True))), text) if names else ()
    cuts = [match.start() + 1 for match in found]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def parts_of(
    tokens: Iterable[int],
    is_text: Callable[[int], bool],
    name_of: Callable[[int], str],
    decode: Callable[[list[int], bool], str],
) -> Parts:
    """Return the parts of a decoded text: runs of text, (text, False), and names of other ids, (name, True).

    Args:
        is_text: whether an id stands for text.
        name_of: the name of any other id.
        decode: gets a run of ids and whether something stands before it; returns the text.
    """
    parts: Parts = []
    for is_run, run in itertools.groupby(tokens, key=is_text):
        if is_run:
            parts.append((decode(list(run), bool(parts)), False))
        else:
            parts += [(name_of(token), True) for token in run]
    return parts

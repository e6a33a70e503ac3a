"""What every tokenizer does, whoever made it, and what the kinds of them share: how the names of specials are read.

data/tokenizer.py             SentencePiece: trained here, or T5's
data/released_tokenizer.py    tokenizer.json: BART, BERT, GPT-2, Llama
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

    begins_with_start: whether a decoder's prompt begins with `vocabulary.start`: always where t5lite trained it; of a
    released model whatever its own tokenizer does. rules: those of generation that the files beside it say; None: none
    do. Neither is part of the identity.
    """

    vocabulary: Vocabulary
    begins_with_start: bool
    rules: Rules | None

    @property
    def sha256(self) -> str:
        """Identity: equal where all ids mean the same."""

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Ids of `text`, int32 [n], without EOS; with `specials` names such as `<extra_id_0>` become their ids."""

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Ids of each text; where `continues` is true it goes on from the one before."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; sentinels and specials by name, EOS and padding not at all."""

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """The same in parts, each with whether it stands for something else than text."""

    @property
    def names(self) -> dict[int, str]:
        """The name of each sentinel and special."""

    @property
    def base(self) -> object:
        """What makes its ids below the sentinels and specials that a config asks for. Equal where they are the same."""

    def grown(self, sentinels: int, specials: Sequence[str]) -> "TextTokenizer":
        """The tokenizer with the `specials` that it lacks, and with `sentinels` where it has none, above all its ids.

        What it has keeps its ids. So a tokenizer with sentinels gets no more of them: the k-th is `size - k`.
        """

    def save(self, folder: Path) -> None:
        """Write the files of which `load_tokenizer` makes it again."""


def check_above(sentinels: int, specials: Sequence[str]) -> None:
    """Refuse what cannot stand above the pieces. Every id takes a row of the embedding."""
    if not 0 <= sentinels <= MOST_SENTINELS:
        raise UserError(f"tokenizer.sentinels: must be from 0 to {MOST_SENTINELS:,}, is {sentinels}")
    names = [f"<extra_id_{k}>" for k in range(sentinels)] + list(specials)
    wrong = [name for name in specials if not isinstance(name, str) or not name or names.count(name) > 1]
    if wrong:
        raise UserError(f"tokenizer.specials: {wrong[0]!r} is no name of a special token, or that of two")


def extends(tokenizer: TextTokenizer, other: TextTokenizer) -> bool:
    """Whether every id of `other` means the same in `tokenizer`, which may have more ids."""
    return tokenizer.base == other.base and other.names.items() <= tokenizer.names.items()


def growth(
    vocabulary: Vocabulary, above: Sequence[str], below: int, sentinels: int, specials: Sequence[str]
) -> tuple[int, list[str], int] | None:
    """(sentinels, specials above the pieces, how many of these stand below the sentinels) of a tokenizer that grows.

    None: it lacks nothing. above, below: what it has so far.
    """
    new = [name for name in specials if name not in vocabulary.specials]
    if not new and (vocabulary.sentinels or not sentinels):
        return None
    below = below if vocabulary.sentinels else min(sentinels, 1) * len(above)
    return vocabulary.sentinels or sentinels, [*above, *new], below


def sentinels_on_top(rows: int, id_of: Callable[[str], int | None]) -> int:
    """How many of a tokenizer's own `rows` ids are sentinels: <extra_id_0> the last one, <extra_id_1> before it, …"""
    count = 0
    while rows - 1 - count in (id_of(f"<extra_id_{count}>"), id_of(f"▁<extra_id_{count}>")):
        count += 1
    return count


def encode_with_names(text: str, ids_of_names: Mapping[str, int], tokenizer: TextTokenizer) -> np.ndarray:
    """Ids of `text` in which names stand for ids, and for the space before them too."""
    names = "|".join(map(re.escape, sorted(ids_of_names, key=len, reverse=True)))
    parts = re.split(f" ?({names})", text) if names else [text]
    ids = tokenizer.encode_many(parts[::2], [i > 0 for i in range(len(parts[::2]))])
    for i, name in enumerate(parts[1::2]):
        ids[i] = np.append(ids[i], np.int32(ids_of_names[name]))
    return np.concatenate(ids)


def cut_in_names(text: str, names: Collection[str]) -> list[str]:
    """`text` in parts of which none holds one of `names`: each is cut after its first character."""
    found = re.finditer("|".join(map(re.escape, sorted(names, key=len, reverse=True))), text) if names else ()
    cuts = [match.start() + 1 for match in found]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def parts_of(
    tokens: Iterable[int],
    is_text: Callable[[int], bool],
    name_of: Callable[[int], str],
    decode: Callable[[list[int], bool], str],
) -> Parts:
    """Runs of text, by decode(run, whether something stands before it), and between them the names of other ids."""
    parts: Parts = []
    for is_run, run in itertools.groupby(tokens, key=is_text):
        if is_run:
            parts.append((decode(list(run), bool(parts)), False))
        else:
            parts += [(name_of(token), True) for token in run]
    return parts

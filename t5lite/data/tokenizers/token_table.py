"""Facts about each token. The tokenizers find the facts, and `make_table` makes a `TokenTable` of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t5lite.system.vocabulary import TokenTable


class Piece(NamedTuple):
    """Facts about a token that stands for text; see TokenTable. has_space: the token's text begins with a space."""

    num_bytes: int
    has_space: bool
    starts_word: bool
    ends_sentence: bool


def make_table(pieces: Sequence[Piece | None], rows: int, adds_space: bool) -> TokenTable:
    """Return facts about `rows` ids as arrays. Ids whose piece is None are special. So are the ids after `pieces`.

    adds_space: the tokenizer puts a space in front of each text. That space is not counted as a byte of the text.
    """
    facts = [*pieces, *[None] * (rows - len(pieces))]
    columns = np.array([each or (0, 0, 0, 0) for each in facts], np.int32).reshape(rows, 4).T
    num_bytes, (has_space, starts_word, ends_sentence) = columns[0].copy(), columns[1:].astype(bool)
    is_special = np.array([each is None for each in facts], bool)
    return TokenTable(num_bytes, num_bytes - (has_space & adds_space), starts_word, ends_sentence, is_special)

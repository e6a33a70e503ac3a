"""A released tokenizer that has more ids than the weights have rows.

    fit_tokenizer(tokenizer, 400)       for a tokenizer of 401 ids: no text may need the last one

Some released tokenizers have a token that the model never had, such as BART's <mask>. Texts without that token are
encoded as before. A text that needs it raises a UserError that names the token.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from t5lite.data.tokenizers.text_tokenizer import Parts, TextTokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary


class FittedTokenizer:
    """A tokenizer that encodes texts only to ids below `rows`. Raises UserError for a text that needs another id."""

    def __init__(self, tokenizer: TextTokenizer, rows: int):
        self.whole, self._rows = tokenizer, rows
        self.vocabulary = _cut(tokenizer.vocabulary, rows)
        self.begins_with_start = tokenizer.begins_with_start
        self.rules = None if tokenizer.rules is None else tokenizer.rules.below(rows)

    @property
    def sha256(self) -> str:
        """Identity.

        It is not the identity of the whole tokenizer, because tokens stored with that one may have higher ids.
        """
        return hashlib.sha256(f"{self.whole.sha256} {self._rows}".encode()).hexdigest()

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        return self._checked(self.whole.encode(text, specials))

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        return [self._checked(ids) for ids in self.whole.encode_many(texts, continues)]

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        above = ids[ids >= self._rows]
        if len(above):
            raise UserError(
                f"a text needs {self.whole.decode(above[:1])!r} (id {above[0]}), but the weights have rows for "
                f"{self._rows} ids; leave it out, or start a run from the weights (init_from), which adds rows"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.whole.decode(ids)

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        return self.whole.decode_parts(ids, with_eos)

    def save(self, folder: Path) -> None:
        """Write the files of the whole tokenizer."""
        self.whole.save(folder)


def fit_tokenizer(tokenizer: TextTokenizer, rows: int | None) -> TextTokenizer:
    """Limit `tokenizer` to ids below `rows`.

    A text that needs a higher id raises UserError. rows: None means no limit.
    """
    if rows is None or tokenizer.vocabulary.rows <= rows:
        return tokenizer
    return FittedTokenizer(tokenizer, rows)


def _cut(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Return the vocabulary without the ids from `rows` on. Sentinels count from the last id, so all stay or none."""
    used = {"eos": vocabulary.eos, "start": vocabulary.start, "bos": vocabulary.bos, "unknown": vocabulary.unknown}
    for role, token in used.items():
        if token is not None and token >= rows:
            raise UserError(f"the tokenizer's {role} has id {token}, but the weights have rows for {rows} ids")
    fields = (field.name for field in dataclasses.fields(vocabulary.table))
    table = dataclasses.replace(vocabulary.table, **{name: getattr(vocabulary.table, name)[:rows] for name in fields})
    specials = {name: token for name, token in vocabulary.specials.items() if token < rows}
    kept = vocabulary.size <= rows
    pieces, sentinels = (vocabulary.pieces, vocabulary.sentinels) if kept else (min(vocabulary.pieces, rows), 0)
    return dataclasses.replace(vocabulary, pieces=pieces, sentinels=sentinels, specials=specials, table=table)

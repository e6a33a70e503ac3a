"""`TextTokenizer`: what every tokenizer can do. Its two kinds turn text into ids, and know what their own ids mean.

tokenizers/sentence_pieces.py    SentencePiece: trained here, or T5's
tokenizers/released.py           tokenizer.json: BART, BERT, GPT-2, Llama

Sentinels and specials that a tokenizer lacks are ids above its own. In a workdir:

    tokenizer/pieces.model       SentencePiece; a tokenizer.json for the other kind
    tokenizer/vocabulary.json    {"sentinels": 100, "specials": ["[MASK]"], "below": 0, "sha256": "…"}
                                 with "generation" if the files of a release give rules of generation
"""

import abc
import copy
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from t5lite.config import base_config
from t5lite.data.tokenizers.generation_config import rules_to_json
from t5lite.system.errors import UserError
from t5lite.system.files import write_atomically
from t5lite.system.vocabulary import Rules, TokenTable, Vocabulary

VOCABULARY_FILE = "vocabulary.json"
SENTINELS = base_config().tokenizer.sentinels  # unless a config says another number
MOST_SENTINELS = 100_000
Parts = list[tuple[str, bool]]


class TextTokenizer(abc.ABC):
    """Text to ids and back.

    A kind sets these attributes:

    FILE: name of the file with its pieces in a workdir.
    base: (content of that file, whatever else decides the ids below the added ones). Tokenizers with equal bases have
        equal ids there.
    own_sentinels: how many of its own ids are sentinels.
    sentinels, above: the number of sentinels, its own or added; names of the added specials.
    below: how many of the added specials, from the first, stand below the sentinels. The tokenizer had them before it
        got sentinels (`grown`), and their ids must not change.
    names: {id: name} of each token that is not text.
    readable: {name: id} of the names that `encode` reads.
    is_text: bool [n], whether an id stands for text.
    hidden, never_shown: ids that `decode` leaves out, and those that `decode_parts` leaves out in any case.
    begins_with_start: whether a decoder's prompt begins with `vocabulary.start`. Always true if t5lite trained the
        tokenizer; for a released model as its own tokenizer does. It is not part of the identity.
    rules: the rules of generation in the files beside the tokenizer; None: there are none. Not part of the identity.
    """

    FILE: ClassVar[str]
    base: tuple[bytes, Any]
    vocabulary: Vocabulary
    own_sentinels: int
    sentinels: int
    above: tuple[str, ...]
    below: int
    names: dict[int, str]
    readable: Mapping[str, int]
    is_text: np.ndarray
    hidden: Collection[int]
    never_shown: Collection[int] = ()
    begins_with_start: bool = True
    rules: Rules | None = None
    _most_rows: int | None = None

    @abc.abstractmethod
    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
        """See `encode_many`."""

    @abc.abstractmethod
    def _decode_run(self, ids: list[int], continues: bool) -> str:
        """Return the text of ids that all stand for text. continues: another token stands before them."""

    @abc.abstractmethod
    def _identity(self) -> Any:
        """Return the JSON value that, with the pieces, decides what the ids mean."""

    @abc.abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Return the fields of vocabulary.json that say what the constructor needs."""

    @abc.abstractmethod
    def _with_above(self, sentinels: int, specials: Sequence[str], below: int) -> Self:
        """Return a tokenizer of the same base."""

    @property
    def sha256(self) -> str:
        """Identity: equal if all ids mean the same."""
        identity = self._sha256_of_all()
        if self._most_rows is None:
            return identity
        # Another identity: tokens that were stored without the limit may have higher ids.
        return hashlib.sha256(f"{identity} {self._most_rows}".encode()).hexdigest()

    def _sha256_of_all(self) -> str:
        return hashlib.sha256(self.base[0] + json.dumps(self._identity()).encode()).hexdigest()

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids of `text`, int32 [n], without EOS.

        specials: names such as `<extra_id_0>` become their ids. A name also stands for the space before it, as in
        training: "The <extra_id_0> walked" and "The<extra_id_0> walked" have the same ids.
        """
        parts = re.split(f" ?({_any_of(self.readable)})", text) if specials and self.readable else [text]
        ids = self.encode_many(parts[::2], [i > 0 for i in range(len(parts[::2]))])
        for i, name in enumerate(parts[1::2]):
            ids[i] = np.append(ids[i], np.int32(self.readable[name]))
        return self._check_rows(np.concatenate(ids))

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Return the ids of each text, int32 [n]. Several threads compute them.

        continues: true for a text that continues the one before. If that one was cut before a single space, the ids are
        the same as if the two texts were one.
        """
        continues = [False] * len(texts) if continues is None else continues
        return [self._check_rows(ids) for ids in self._encode_texts(texts, continues)]

    def _check_rows(self, ids: np.ndarray) -> np.ndarray:
        above = ids[:0] if self._most_rows is None else ids[ids >= self._most_rows]
        if len(above):
            raise UserError(
                f"a text needs {self.decode(above[:1])!r} (id {above[0]}), but the weights have rows for "
                f"{self._most_rows} ids; leave it out, or start a run from the weights (init_from), which adds rows"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`.

        Sentinels and specials appear by name, unused rows as <id>. Padding, BOS and EOS are left out.
        """
        return "".join(text for text, _ in self.decode_parts(ids))

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """Return the decoded text in parts, each with whether it is the name of a token that is not text.

        with_eos: keep EOS.
        """
        left_out = self.never_shown if with_eos else self.hidden
        tokens = (token for token in map(int, ids) if token not in left_out)
        parts: Parts = []
        for is_run, run in itertools.groupby(tokens, key=lambda t: t < len(self.is_text) and bool(self.is_text[t])):
            if is_run:
                parts.append((self._decode_run(list(run), bool(parts)), False))
            else:
                parts += [(self.names.get(token, f"<{token}>"), True) for token in run]
        return parts

    def grown(self, sentinels: int, specials: Sequence[str]) -> Self:
        """Return the tokenizer with the `specials` that it lacks, and `sentinels` if it has none, above its ids.

        Existing ids stay. So a tokenizer with sentinels gets no more of them: the k-th sentinel is always `size - k`.
        """
        new = [name for name in specials if name not in self.vocabulary.specials]
        if not new and (self.sentinels or not sentinels):
            return self
        below = self.below if self.sentinels else min(sentinels, 1) * len(self.above)
        made = self._with_above(self.sentinels or sentinels, (*self.above, *new), below)
        made.begins_with_start, made.rules = self.begins_with_start, self.rules
        return made

    def limited_to(self, rows: int) -> Self:
        """Return the tokenizer for weights with `rows` rows: a text that needs a higher id raises UserError.

        Some released tokenizers have a token that the model never had, such as BART's <mask>. Texts without that token
        are encoded as before. `save` writes the tokenizer with all its ids.
        """
        if self.vocabulary.rows <= rows:
            return self
        limited = copy.copy(self)
        limited.vocabulary, limited._most_rows = _without_rows_above(self.vocabulary, rows), rows
        limited.rules = None if self.rules is None else self.rules.below(rows)
        return limited

    def save(self, folder: Path) -> None:
        """Write the files from which `load_tokenizer` opens it again."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / self.FILE, self.base[0])
        facts = {**self._facts(), "sha256": self._sha256_of_all()}
        facts |= {} if self.rules is None else {"generation": rules_to_json(self.rules)}
        write_atomically(folder / VOCABULARY_FILE, json.dumps(facts) + "\n")

    def _added(self) -> dict[str, Any]:
        """Return the fields of vocabulary.json that both kinds have."""
        below = {"below": self.below} if self.below else {}
        return {"sentinels": self.sentinels, "specials": list(self.above), **below}

    def _ids_above(self, own: int) -> dict[str, int]:
        """Return {name: id} of the added specials. own: number of the tokenizer's own ids."""
        first = own - self.own_sentinels
        return {
            name: first + place + (0 if place < self.below else self.sentinels) for place, name in enumerate(self.above)
        }


def extends(tokenizer: TextTokenizer, other: TextTokenizer) -> bool:
    """Return whether every id of `other` means the same in `tokenizer`, which may have more ids."""
    return tokenizer.base == other.base and other.names.items() <= tokenizer.names.items()


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


def count_own_sentinels(rows: int, id_of: Callable[[str], int | None]) -> int:
    """Count the sentinels among a tokenizer's own `rows` ids.

    <extra_id_0> is the last id, <extra_id_1> the one before it, and so on.
    """
    count = 0
    while rows - 1 - count in (id_of(f"<extra_id_{count}>"), id_of(f"▁<extra_id_{count}>")):
        count += 1
    return count


def name_sentinels(vocabulary: Vocabulary) -> dict[int, str]:
    """Return {id: name} of each sentinel."""
    return {vocabulary.size - 1 - k: f"<extra_id_{k}>" for k in range(vocabulary.sentinels)}


def cut_in_names(text: str, names: Collection[str]) -> list[str]:
    """Split `text` so that no part holds one of `names`: each name is cut after its first character."""
    cuts = [match.start() + 1 for match in re.finditer(_any_of(names), text)] if names else []
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _any_of(names: Iterable[str]) -> str:
    """Return a pattern for any of `names`, the longest first."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _without_rows_above(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Return the vocabulary without the ids from `rows` on. Sentinels count from the last id, so all stay or none."""
    used = {"eos": vocabulary.eos, "start": vocabulary.start, "bos": vocabulary.bos, "unknown": vocabulary.unknown}
    for role, token in used.items():
        if token is not None and token >= rows:
            raise UserError(f"the tokenizer's {role} has id {token}, but the weights have rows for {rows} ids")
    table = TokenTable(**{name: values[:rows] for name, values in vars(vocabulary.table).items()})
    specials = {name: token for name, token in vocabulary.specials.items() if token < rows}
    kept = vocabulary.size <= rows
    pieces, sentinels = (vocabulary.pieces, vocabulary.sentinels) if kept else (min(vocabulary.pieces, rows), 0)
    return dataclasses.replace(vocabulary, pieces=pieces, sentinels=sentinels, specials=specials, table=table)

"""`TextTokenizer`: the base class of the two kinds of tokenizers.

tokenizers/sentence_pieces.py    SentencePiece: trained by t5lite, or T5's
tokenizers/released.py           tokenizer.json: BART, BERT, GPT-2, Llama

A subclass turns text into ids and back, and knows the meaning of the ids in its file (its own ids). Sentinels and
specials that the file lacks get ids above the own ids. In a workdir:

    tokenizer/pieces.model       for SentencePiece; tokenizer.json for the other kind
    tokenizer/vocabulary.json    {"sentinels": 100, "specials": ["[MASK]"], "below": 0, "sha256": "…"}
                                 with "generation" if the files of a release have rules of generation
    tokenizer/chat_template.jinja    if the tokenizer has a chat template
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
from t5lite.data.tokenizers.release_files import CHAT_TEMPLATE_FILE
from t5lite.data.tokenizers.token_table import Piece, make_table
from t5lite.system.errors import UserError
from t5lite.system.files import write_atomically
from t5lite.system.vocabulary import Rules, TokenTable, Vocabulary

VOCABULARY_FILE = "vocabulary.json"
SENTINELS = base_config().tokenizer.sentinels  # unless a config sets another number
MAX_SENTINELS = 100_000
Parts = list[tuple[str, bool]]  # (text, whether it is the name of a token that is not text)


class TextTokenizer(abc.ABC):
    """A tokenizer: text to ids and back.

    FILE: the name of the file with the pieces in a workdir.
    base: (content of that file, everything else that decides the own ids). Tokenizers with equal bases have equal own
        ids.
    added_specials: the names of the specials above the own ids.
    specials_below: the number of added specials, from the first, whose ids are below the sentinels. The tokenizer had
        these specials before it got sentinels (`grow`), and their ids must not change.
    names: {id: name} of each token that is not text.
    ids_by_name: {name: id} of the names that `encode` reads.
    is_text: bool [n], whether an id stands for text.
    hidden_ids: the ids that `decode` leaves out.
    always_hidden_ids: the ids that `decode_parts` leaves out in any case.
    begins_with_start: whether a decoder's prompt begins with `vocabulary.start`. Always true if t5lite trained the
        tokenizer. For a released model: whether the released tokenizer begins a text so.
    rules: the rules of generation in the files beside the tokenizer; None: there are no rules.
    chat_template: the text of the template for conversations that comes with the tokenizer; None: there is none.
    begins_after_specials: whether a text after a special token is encoded like a text that begins, with a space in
        front. Only some released tokenizers do so.
    """

    FILE: ClassVar[str]
    base: tuple[bytes, Any]
    hidden_ids: Collection[int]
    always_hidden_ids: Collection[int] = ()
    begins_with_start: bool = True
    rules: Rules | None = None
    chat_template: str | None = None
    begins_after_specials: bool = False
    _max_rows: int | None = None

    def _set_vocabulary(
        self,
        pieces: Sequence[Piece | None],
        id_of: Callable[[str], int | None],
        own_specials: Mapping[str, int],
        added: tuple[int, Sequence[str], int],
        adds_space: bool,
        **roles: int | None,
    ) -> None:
        """Set the vocabulary and the names of its ids.

        Args:
            pieces: facts about the own ids.
            id_of: returns the own id of a name.
            own_specials: {name: own id}.
            added: (sentinels to add, unless the last own ids are sentinels; names of specials; `specials_below`).
            adds_space: the tokenizer puts a space in front of each text.
            roles: the vocabulary's eos, start, bos and unknown.
        """
        sentinels, specials, self.specials_below = added
        check_added(sentinels, specials)
        # <extra_id_0> is the last id, <extra_id_1> the one before it, and so on.
        self.own_sentinels, own = 0, len(pieces)
        while own - 1 in (id_of(f"{mark}<extra_id_{self.own_sentinels}>") for mark in ("", "▁")):
            self.own_sentinels, own = self.own_sentinels + 1, own - 1
        sentinels = self.own_sentinels or sentinels
        own_specials = {name: token for name, token in own_specials.items() if token < own}
        self.added_specials = tuple(name for name in specials if name not in own_specials)
        ids = {
            name: own + i + (0 if i < self.specials_below else sentinels) for i, name in enumerate(self.added_specials)
        }
        table = make_table(pieces[:own], own + sentinels + len(self.added_specials), adds_space)
        vocabulary = Vocabulary(own + self.specials_below, sentinels, own_specials | ids, table, **roles)
        self.vocabulary, self._sentinels = vocabulary, sentinels
        self.ids_by_name = vocabulary.specials | {f"<extra_id_{k}>": vocabulary.size - 1 - k for k in range(sentinels)}
        self.names = {token: name for name, token in self.ids_by_name.items()}
        self.is_text = ~table.is_special
        if vocabulary.unknown is not None:
            self.is_text[vocabulary.unknown] = True

    @abc.abstractmethod
    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
        """See `encode_many`."""

    @abc.abstractmethod
    def _decode_run(self, ids: list[int], continues: bool) -> str:
        """Return the text of ids that all stand for text. continues: another token stands before these ids."""

    @abc.abstractmethod
    def _rebuild_with(self, sentinels: int, specials: Sequence[str], specials_below: int) -> Self:
        """Return a tokenizer with the same base."""

    @abc.abstractmethod
    def _identity(self) -> Any:
        """Return the JSON value that, together with the pieces, decides the meaning of the ids."""

    @abc.abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Return the content of vocabulary.json."""

    @property
    def sha256(self) -> str:
        """The identity of the tokenizer. Two tokenizers have equal identities if all ids mean the same."""
        identity = self._sha256_of_all()
        if self._max_rows is None:
            return identity
        # The limit changes the identity, because tokens that were stored without the limit may have higher ids.
        return hashlib.sha256(f"{identity} {self._max_rows}".encode()).hexdigest()

    def _sha256_of_all(self) -> str:
        return hashlib.sha256(self.base[0] + json.dumps(self._identity()).encode()).hexdigest()

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids of `text`, int32 [n], without EOS.

        specials: names such as `<extra_id_0>` become their ids. The space before a name is dropped, as in training:
        "The <extra_id_0> walked" and "The<extra_id_0> walked" have the same ids.
        """
        parts = re.split(f" ?({_match_any(self.ids_by_name)})", text) if specials and self.ids_by_name else [text]
        ids = self.encode_many(parts[::2], [i > 0 for i in range(len(parts[::2]))])
        for i, name in enumerate(parts[1::2]):
            ids[i] = np.append(ids[i], np.int32(self.ids_by_name[name]))
        return self._check_rows(np.concatenate(ids))

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Return the ids of each text, int32 [n]. Several threads compute them.

        continues: true for a text that continues the text before. If the cut between the two was before a single space,
        the ids are the same as for one text.
        """
        continues = [False] * len(texts) if continues is None else continues
        return [self._check_rows(ids) for ids in self._encode_texts(texts, continues)]

    def _check_rows(self, ids: np.ndarray) -> np.ndarray:
        too_high = ids[:0] if self._max_rows is None else ids[ids >= self._max_rows]
        if len(too_high):
            raise UserError(
                f"a text needs {self.decode(too_high[:1])!r} (id {too_high[0]}), but the weights have rows for "
                f"{self._max_rows} ids; leave it out, or start a run from the weights (init_from), which adds rows"
            )
        return ids

    def locate(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        """Return int64 [n, 2]: where each of `ids` starts and ends in `text`, in characters; None if it is not known.

        ids: `encode(text)`. A token may cover the space before its word. If several tokens stand for the bytes of one
        character, each of them covers the character.
        """
        table, bytes_of_text = self.vocabulary.table, text.encode()
        num_bytes = table.num_bytes[ids].astype(np.int64)
        num_bytes[:1] = table.num_bytes_first[ids[:1]]
        if num_bytes.sum() != len(bytes_of_text) or self.decode(ids) != text:
            return None  # the tokenizer normalises texts
        stops = np.cumsum(num_bytes)
        # The number of the character that each byte belongs to; one more entry for the end of the text.
        begins_character = np.frombuffer(bytes_of_text, np.uint8) & 0xC0 != 0x80
        character_of_byte = np.cumsum(begins_character) - 1
        first = np.append(character_of_byte, len(text))[stops - num_bytes]
        last = np.append(character_of_byte, len(text))[np.maximum(stops - 1, 0)] + (num_bytes > 0)
        return np.stack([first, np.maximum(last, first)], axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`.

        Sentinels and specials appear by name, unused rows as <id>. Padding, BOS and EOS are left out.
        """
        return "".join(text for text, _ in self.decode_parts(ids))

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """Return the decoded text in parts: (text, whether the text is the name of a token that is not text).

        with_eos: keep EOS.
        """
        left_out = self.always_hidden_ids if with_eos else self.hidden_ids
        tokens = (token for token in map(int, ids) if token not in left_out)
        parts: Parts = []
        for is_run, run in itertools.groupby(tokens, key=lambda t: t < len(self.is_text) and bool(self.is_text[t])):
            if is_run:
                parts.append((self._decode_run(list(run), bool(parts)), False))
            else:
                parts += [(self.names.get(token, f"<{token}>"), True) for token in run]
        return parts

    def grow(self, sentinels: int, specials: Sequence[str]) -> Self:
        """Return the tokenizer with more ids: for the `specials` that it lacks, and for `sentinels` if it has none.

        Existing ids do not change. So a tokenizer with sentinels gets no more sentinels: the k-th is always `size - k`.
        """
        new = [name for name in specials if name not in self.vocabulary.specials]
        if not new and (self._sentinels or not sentinels):
            return self
        specials_below = self.specials_below if self._sentinels else min(sentinels, 1) * len(self.added_specials)
        grown = self._rebuild_with(self._sentinels or sentinels, (*self.added_specials, *new), specials_below)
        grown.begins_with_start, grown.rules = self.begins_with_start, self.rules
        grown.chat_template = self.chat_template
        return grown

    def limit_rows(self, rows: int) -> Self:
        """Return the tokenizer for weights with `rows` rows. A text that needs a higher id then raises UserError.

        Some released tokenizers have a token without a row in the model, such as BART's <mask>. Texts without that
        token are encoded as before. `save` writes the tokenizer with all its ids.
        """
        if self.vocabulary.rows <= rows:
            return self
        limited = copy.copy(self)
        limited.vocabulary, limited._max_rows = _drop_rows_above(self.vocabulary, rows), rows
        limited.rules = None if self.rules is None else self.rules.limit_to_rows(rows)
        return limited

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / self.FILE, self.base[0])
        facts = {**self._facts(), "sha256": self._sha256_of_all()}
        facts |= {} if self.rules is None else {"generation": rules_to_json(self.rules)}
        if self.chat_template is not None:
            write_atomically(folder / CHAT_TEMPLATE_FILE, self.chat_template)
        write_atomically(folder / VOCABULARY_FILE, json.dumps(facts) + "\n")

    def _added_fields(self) -> dict[str, Any]:
        """Return the fields of vocabulary.json that both kinds of tokenizers have."""
        below = {"below": self.specials_below} if self.specials_below else {}
        return {"sentinels": self._sentinels, "specials": list(self.added_specials), **below}


def extends(tokenizer: TextTokenizer, other: TextTokenizer) -> bool:
    """Return whether every id of `other` means the same in `tokenizer`, which may have more ids."""
    return tokenizer.base == other.base and other.names.items() <= tokenizer.names.items()


def check_added(sentinels: int, specials: Sequence[str]) -> None:
    """Raise UserError for sentinels or specials that cannot stand above the pieces.

    Each id takes a row of the embedding.
    """
    if not 0 <= sentinels <= MAX_SENTINELS:
        raise UserError(f"tokenizer.sentinels: must be from 0 to {MAX_SENTINELS:,}, but is {sentinels}")
    names = [f"<extra_id_{k}>" for k in range(sentinels)] + list(specials)
    wrong = [name for name in specials if not isinstance(name, str) or not name or names.count(name) > 1]
    if wrong:
        raise UserError(f"tokenizer.specials: {wrong[0]!r} is not a name, or is given twice; correct the list")


def cut_names(text: str, names: Collection[str]) -> list[str]:
    """Split `text` so that no part holds one of `names`: cut each name after its first character."""
    cuts = [match.start() + 1 for match in re.finditer(_match_any(names), text)] if names else []
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _match_any(names: Iterable[str]) -> str:
    """Return a pattern that matches any of `names`, and tries long names first."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _drop_rows_above(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Return the vocabulary without the ids from `rows` on. Sentinels count from the last id, so keep all or none."""
    used = {"eos": vocabulary.eos, "start": vocabulary.start, "bos": vocabulary.bos, "unknown": vocabulary.unknown}
    for role, token in used.items():
        if token is not None and token >= rows:
            raise UserError(f"the tokenizer's {role} has id {token}, but the weights have rows for {rows} ids")
    table = TokenTable(**{name: values[:rows] for name, values in vars(vocabulary.table).items()})
    specials = {name: token for name, token in vocabulary.specials.items() if token < rows}
    has_all_rows = vocabulary.size <= rows
    pieces, sentinels = (vocabulary.pieces, vocabulary.sentinels) if has_all_rows else (min(vocabulary.pieces, rows), 0)
    return dataclasses.replace(vocabulary, pieces=pieces, sentinels=sentinels, specials=specials, table=table)

"""SentencePiece tokenizers: text to ids and back. And `load_tokenizer`, which opens every kind of tokenizer.

The model file holds only the pieces. (The last pieces of mT5's are its sentinels.) Sentinels and specials are ids above
the pieces, kept in `vocabulary.json` beside the model:

    tokenizer/pieces.model      SentencePiece, pad 0, EOS 1, unknown 2
    tokenizer/vocabulary.json   {"sentinels": 100, "specials": ["[MASK]"], "below": 0, "sha256": "…"}
                                 with "start" and "generation" if the files of a release give them

The first `below` specials stand below the sentinels: the tokenizer had them before it got sentinels (`grown`), and
their ids must not change. The other specials stand above.

`tokenizers/training.py` trains a tokenizer.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.tokenizers.added_tokens import place_above, read_added
from t5lite.data.tokenizers.generation_config import read_rules, rules_from_json, rules_to_json, said_of_generation
from t5lite.data.tokenizers.released import SENTINELS, TOKENIZER_FILE, open_released, reopen_released
from t5lite.data.tokenizers.text_tokenizer import (
    COPY_ANEW,
    Parts,
    TextTokenizer,
    check_above,
    cut_in_names,
    encode_with_names,
    growth,
    parts_of,
    sentinels_on_top,
)
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape, read_bytes, read_json, write_atomically
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN, Rules, TokenTable, Vocabulary

SPACE = "▁"
MODEL_FILE, VOCABULARY_FILE = "pieces.model", "vocabulary.json"


class OtherIds(UserError):
    """A SentencePiece model cannot be used as T5's.

    Its pad, EOS and unknown ids are not T5's, or it cannot hold an added token.
    """


class Tokenizer:
    """A SentencePiece model with sentinels and specials above its pieces.

    sentinels: how many to add; ignored if the model's last pieces are sentinels already. start: a decoder's first
    input. below: how many of the specials, from the first, stand below the sentinels.
    """

    begins_with_start = True

    def __init__(
        self,
        model: bytes,
        sentinels: int = SENTINELS,
        specials: Sequence[str] = (),
        start: int = PAD,
        below: int = 0,
    ):
        self.model, self.below = model, below
        self.rules: Rules | None = None
        check_above(sentinels, specials)
        self._pieces = _processor(model)
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (PAD, EOS, UNKNOWN):
            raise OtherIds(
                f"the tokenizer's pad, EOS and unknown ids are {ids}; t5lite needs ({PAD}, {EOS}, {UNKNOWN})"
            )
        self._adds_space = self._pieces.encode("a", out_type=str)[0].startswith(SPACE)
        # SentencePiece puts a space before a text, but not after a line break. Tokenizers trained here have the line
        # break as a piece, others (T5's) do not.
        self._line_break = self._pieces.encode("\n")
        if self._pieces.decode(self._line_break) != "\n":
            self._line_break = []
        self._own_sentinels = sentinels_on_top(self._pieces.get_piece_size(), self._id_of)
        self.vocabulary = self._make_vocabulary(self._own_sentinels or sentinels, tuple(specials), start)
        above = range(self.vocabulary.sentinels)
        self._special_names = {self.vocabulary.size - 1 - k: f"<extra_id_{k}>" for k in above}
        self._special_names |= {token: name for name, token in self.vocabulary.specials.items()}
        self._special_ids = {name: token for token, name in self._special_names.items()}

    def _id_of(self, piece: str) -> int | None:
        found = self._pieces.piece_to_id(piece)
        return None if found == UNKNOWN else found

    def _make_vocabulary(self, sentinels: int, specials: tuple[str, ...], start: int) -> Vocabulary:
        model = self._pieces
        pieces = model.get_piece_size() - self._own_sentinels
        rows = pieces + sentinels + len(specials)
        num_bytes, has_space = np.zeros(rows, np.int32), np.zeros(rows, bool)
        starts_word, ends_sentence, is_special = np.zeros(rows, bool), np.zeros(rows, bool), np.ones(rows, bool)
        for token in range(pieces):
            if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
                continue
            piece = model.id_to_piece(token)
            is_special[token] = False
            num_bytes[token] = 1 if model.is_byte(token) else len(piece.replace(SPACE, " ").encode())
            has_space[token] = piece.startswith(SPACE)
            starts_word[token] = piece.startswith((SPACE, "\n"))
            ends_sentence[token] = piece.endswith((".", "?", "!"))
        ids = {name: pieces + i + (0 if i < self.below else sentinels) for i, name in enumerate(specials)}
        if not 0 <= start < rows:
            raise UserError(f"a decoder cannot start with {start}: the tokenizer has {rows:,} ids")
        num_bytes_first = num_bytes - (has_space & self._adds_space)
        table = TokenTable(num_bytes, num_bytes_first, starts_word, ends_sentence, is_special)
        return Vocabulary(pieces + self.below, sentinels, ids, table, start=start)

    @property
    def names(self) -> dict[int, str]:
        """{id: name} of each sentinel and special."""
        return self._special_names

    @property
    def own_sentinels(self) -> int:
        """Number of the model's own pieces that are sentinels."""
        return self._own_sentinels

    def pieces_and_scores(self) -> tuple[list[str], list[float]]:
        """Return every piece of the model by id, and the log-probability of each."""
        model, ids = self._pieces, range(self._pieces.get_piece_size())
        return [model.id_to_piece(token) for token in ids], [model.get_score(token) for token in ids]

    @property
    def sha256(self) -> str:
        """Identity of the tokenizer: the model, the sentinels, the specials, and `start` and `below` if not 0."""
        vocabulary = self.vocabulary
        start = [] if vocabulary.start == PAD else [vocabulary.start]
        below = [{"below": self.below}] if self.below else []
        above = json.dumps([vocabulary.sentinels, list(vocabulary.specials), *start, *below])
        return hashlib.sha256(self.model + above.encode()).hexdigest()

    @property
    def base(self) -> tuple[bytes, int]:
        """The model, which decides the ids of the pieces, and a decoder's start."""
        return self.model, self.vocabulary.start

    def grown(self, sentinels: int, specials: Sequence[str]) -> "Tokenizer":
        """See TextTokenizer.grown."""
        found = growth(self.vocabulary, list(self.vocabulary.specials), self.below, sentinels, specials)
        if found is None:
            return self
        made = Tokenizer(self.model, found[0], found[1], self.vocabulary.start, found[2])
        made.begins_with_start, made.rules = self.begins_with_start, self.rules
        return made

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids of `text`, int32 [n], without EOS.

        specials: names such as `<extra_id_0>` become their ids. A name also stands for the space before it, as in
        training: "The <extra_id_0> walked" and "The<extra_id_0> walked" have the same ids.
        """
        if not specials:
            return self.encode_many([text])[0]
        return encode_with_names(text, self._special_ids, self)

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Return the ids of each text, int32 [n]. Several threads compute them.

        continues: true for a text that continues the one before. If that one was cut before a single space, the ids are
        the same as if the two texts were one.
        """
        continues = [False] * len(texts) if continues is None else continues
        given, skip = list(texts), [0] * len(texts)
        for i in np.flatnonzero(continues):
            if self._line_break:
                given[i], skip[i] = "\n" + given[i], len(self._line_break)
            elif self._adds_space:
                given[i] = given[i].removeprefix(" ")
        ids = self._pieces.encode(given, num_threads=os.cpu_count() or 1)
        ids = [np.asarray(tokens[start:], np.int32) for tokens, start in zip(ids, skip, strict=True)]
        for i, text in enumerate(texts):
            if SPACE in text and self._line_break:
                ids[i] = self._encode_space_signs(text, continues[i])
            elif self._own_sentinels and (ids[i] >= self.vocabulary.pieces).any():
                ids[i] = self._encode_names_as_text(text, ids[i], continues[i])
        return ids

    def _encode_names_as_text(self, text: str, ids: np.ndarray, continues: bool) -> np.ndarray:
        # The model reads the name of one of its own sentinels as it reads any piece.
        parts = cut_in_names(text, [f"<extra_id_{k}>" for k in range(self._own_sentinels)])
        if len(parts) == 1:  # normalisation made the name
            return np.where(ids >= self.vocabulary.pieces, np.int32(UNKNOWN), ids)
        return np.concatenate(self.encode_many(parts, [continues, *[True] * (len(parts) - 1)]))

    def _encode_space_signs(self, text: str, continues: bool) -> np.ndarray:
        # SentencePiece cannot tell the character "▁" from a space. So its bytes are encoded.
        parts = text.split(SPACE)
        sign = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ids = self.encode_many(parts, [continues, *[True] * (len(parts) - 1)])
        return np.concatenate([ids[0], *(np.append(np.array(sign, np.int32), part) for part in ids[1:])])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`.

        Sentinels and specials appear by name, unused rows as <id>. Padding and EOS are left out.
        """
        return "".join(text for text, _ in self.decode_parts(ids))

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """Return the decoded text in parts, each with whether it is the name of a sentinel, special, unused row or EOS.

        with_eos: keep EOS.
        """
        tokens = [token for token in map(int, ids) if token != PAD and (with_eos or token != EOS)]
        names = {EOS: "</s>", **self._special_names}
        return parts_of(
            tokens,
            lambda token: EOS < token < self.vocabulary.pieces and token not in self._special_names,
            lambda token: names.get(token, f"<{token}>"),
            self._decode,
        )

    def _decode(self, ids: list[int], continues: bool) -> str:
        # SentencePiece drops the first space of a text, which it put there itself. If other tokens stand before, the
        # space belongs to the text: decode with an "a" before it.
        before = self._pieces.encode("a") if continues and ids else []
        return self._pieces.decode(before + ids)[len(self._pieces.decode(before)) :]

    def save(self, folder: Path) -> None:
        """Write the two files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MODEL_FILE, self.model)
        above = {
            "sentinels": self.vocabulary.sentinels,
            "specials": list(self.vocabulary.specials),
            **({"below": self.below} if self.below else {}),
            "sha256": self.sha256,
        }
        above |= {} if self.vocabulary.start == PAD else {"start": self.vocabulary.start}
        above |= {} if self.rules is None else {"generation": rules_to_json(self.rules)}
        write_atomically(folder / VOCABULARY_FILE, json.dumps(above) + "\n")


def _processor(model: bytes) -> Any:
    """Return a SentencePieceProcessor. Raises UserError for a model that cannot be read or cannot encode."""
    import sentencepiece  # here, because a benchmark has no text

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor.decode(processor.encode("a\n")[:1])
        for token in range(processor.get_piece_size()):
            processor.id_to_piece(token)
    except (RuntimeError, ValueError, IndexError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"not a readable SentencePiece model: {error}") from error
    return processor


def load_tokenizer(path: str, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer at `path`.

    path: a SentencePiece .model file, a run's workdir, or `hf:DIR` with the files of a release. For `hf:DIR` the rules
    of generation are those in its files now, whoever wrote them. sentinels, specials: added to the tokenizer. A
    workdir's tokenizer ignores them, because it has its own. A release keeps the sentinels that it has.
    """
    tokenizer = _load(path, sentinels, specials)
    if path.startswith("hf:"):
        tokenizer.rules = read_rules(Path(path.removeprefix("hf:")), tokenizer.vocabulary)
    return tokenizer


def _load(path: str, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    place = Path(path.removeprefix("hf:"))
    if not os.path.exists(place):  # Path.exists raises if a name is too long
        raise UserError(f"tokenizer.path: {place} does not exist")
    if not place.is_dir():
        return _open(place, sentinels, specials)
    folder = next((f for f in (place, place / "tokenizer") if (f / VOCABULARY_FILE).is_file()), None)
    if folder is None:
        return _open_release(place, sentinels, specials)
    if (folder / TOKENIZER_FILE).is_file():
        return reopen_released(folder / TOKENIZER_FILE, folder / VOCABULARY_FILE)
    return _reopen(folder)


def _open_release(place: Path, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer of T5 and its family from spiece.model, others from tokenizer.json."""
    has_json = (place / TOKENIZER_FILE).is_file()
    if (place / "spiece.model").is_file():
        try:
            return _open_spiece(place, sentinels, specials)
        except OtherIds:
            if not has_json:
                raise
    if not has_json:
        raise UserError(
            f"tokenizer.path: {place} holds neither tokenizer/{VOCABULARY_FILE} nor spiece.model nor {TOKENIZER_FILE}"
        )
    return open_released(place / TOKENIZER_FILE, sentinels, specials)


def _open_spiece(place: Path, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open T5's tokenizer with the tokens that the files beside it add. Raises OtherIds if it cannot hold them all."""
    file = place / "spiece.model"
    bare, spec = _open(file, 0, ()), read_json(place / TOKENIZER_FILE, COPY_ANEW) or {}
    added = read_added(place, spec)
    sentinels, above = place_above(added, bare.pieces_and_scores()[0], _extra_ids(place, sentinels))
    texts = [each.content for each in added if each.content in above and not each.special]
    if texts:
        raise OtherIds(
            f"{file}: the files beside it add {texts[0]!r}, which is text: only a tokenizer.json can hold it"
        )
    start = said_of_generation(place).get("decoder_start_token_id", PAD)
    if not has_shape(start, int):
        raise UserError(f"{place}: decoder_start_token_id should be an id, is {start!r:.60}")
    made = _open(file, sentinels, (*above, *(name for name in specials if name not in above)), start=start)
    made.rules = read_rules(place, made.vocabulary)
    return made


def _extra_ids(place: Path, otherwise: int) -> int:
    """Return how many sentinels T5's own code puts above the pieces; `otherwise` if no file says."""
    file = place / "tokenizer_config.json"
    config = read_json(file, COPY_ANEW, {"extra_ids": (int, None)}) or {}
    found = config.get("extra_ids")
    return otherwise if found is None else found


def _reopen(folder: Path) -> Tokenizer:
    """Open the tokenizer that `save` wrote. Files of older versions have no identity."""
    file = folder / VOCABULARY_FILE
    above = read_json(file, COPY_ANEW)
    sentinels, specials, sha256 = (above.get(name) for name in ("sentinels", "specials", "sha256"))
    start, below = above.get("start", PAD), above.get("below", 0)
    is_known = isinstance(specials, list) and isinstance(sha256, str | None)
    if not is_known or {type(sentinels), type(start), type(below)} != {int} or not 0 <= below <= len(specials):
        raise UserError(f"{file} is damaged (it should hold sentinels and specials); {COPY_ANEW}")
    made = _open(folder / MODEL_FILE, sentinels, specials, sha256, start, below)
    made.rules = rules_from_json(above.get("generation"), file, made.vocabulary.rows)
    return made


def _open(
    model: Path, sentinels: int, specials: Sequence[str], sha256: str | None = None, start: int = PAD, below: int = 0
) -> Tokenizer:
    try:
        tokenizer = Tokenizer(read_bytes(model), sentinels, specials, start, below)
    except OSError as error:
        raise UserError(f"cannot read the SentencePiece model {model}: {error.strerror}") from error
    except UserError as error:
        raise type(error)(f"{model}: {error}") from error
    if sha256 not in (None, tokenizer.sha256):
        raise UserError(f"{model} or {VOCABULARY_FILE} beside it is damaged (they are not what they were); {COPY_ANEW}")
    return tokenizer

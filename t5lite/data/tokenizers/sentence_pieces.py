"""SentencePiece tokenizers: trained here (tokenizers/training.py), or T5's and its family's.

The model file holds only the pieces: pad 0, EOS 1, unknown 2, and text. Sentinels and specials are ids above the
pieces. (The last pieces of mT5's are its sentinels.)
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data.tokenizers.text_tokenizer import (
    SENTINELS,
    TextTokenizer,
    cut_in_names,
)
from t5lite.data.tokenizers.token_table import Piece
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN

SPACE = "▁"
MODEL_FILE = "pieces.model"
OWN_NAMES = {PAD: "<pad>", EOS: "</s>", UNKNOWN: "<unk>"}


class OtherIds(UserError):
    """A SentencePiece model cannot be used as T5's.

    Its pad, EOS and unknown ids are not T5's, or it cannot hold an added token.
    """


class Tokenizer(TextTokenizer):
    """A SentencePiece model with sentinels and specials above its pieces.

    sentinels: how many to add; ignored if the model's last pieces are sentinels already. start: a decoder's first
    input. below: see TextTokenizer.
    """

    FILE = MODEL_FILE

    def __init__(
        self,
        model: bytes,
        sentinels: int = SENTINELS,
        specials: Sequence[str] = (),
        start: int = PAD,
        below: int = 0,
    ):
        self.model, self.base = model, (model, start)
        self._pieces = _open_model(model)
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (PAD, EOS, UNKNOWN):
            raise OtherIds(
                f"the tokenizer's pad, EOS and unknown ids are {ids}; t5lite needs ({PAD}, {EOS}, {UNKNOWN})"
            )
        self._adds_space = self._pieces.encode("a", out_type=str)[0].startswith(SPACE)
        own = range(self._pieces.get_piece_size())
        pieces = [self._describe(token) for token in own]
        self._set_vocabulary(pieces, self._id_of, {}, (sentinels, specials, below), self._adds_space, start=start)
        if not 0 <= start < self.vocabulary.rows:
            raise UserError(f"a decoder cannot start with {start}: the tokenizer has {self.vocabulary.rows:,} ids")
        without_text = {token for token in own if self._pieces.is_control(token) or self._pieces.is_unused(token)}
        self.hidden = {PAD, EOS} | (without_text - self.names.keys())
        self.never_shown = self.hidden - {EOS}
        self.names = OWN_NAMES | self.names
        # SentencePiece puts a space before a text, but not after a line break. Tokenizers trained here have the line
        # break as a piece, others (T5's) do not.
        self._line_break = self._pieces.encode("\n")
        if self._pieces.decode(self._line_break) != "\n":
            self._line_break = []

    def _id_of(self, piece: str) -> int | None:
        token = self._pieces.piece_to_id(piece)
        return None if token == UNKNOWN else token

    def _describe(self, token: int) -> Piece | None:
        model = self._pieces
        if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
            return None
        piece = model.id_to_piece(token)
        num_bytes = 1 if model.is_byte(token) else len(piece.replace(SPACE, " ").encode())
        starts_word = piece.startswith((SPACE, "\n"))
        return Piece(num_bytes, piece.startswith(SPACE), starts_word, piece.endswith((".", "?", "!")))

    def pieces_and_scores(self) -> tuple[list[str], list[float]]:
        """Return every piece of the model by id, and the log-probability of each."""
        model, ids = self._pieces, range(self._pieces.get_piece_size())
        return [model.id_to_piece(token) for token in ids], [model.get_score(token) for token in ids]

    def _identity(self) -> Any:
        added, start = self._added(), self.vocabulary.start
        below = [{"below": self.below}] if self.below else []
        return [added["sentinels"], added["specials"], *([] if start == PAD else [start]), *below]

    def _facts(self) -> dict[str, Any]:
        return self._added() | ({} if self.vocabulary.start == PAD else {"start": self.vocabulary.start})

    def _with_added(self, sentinels: int, specials: Sequence[str], below: int) -> "Tokenizer":
        return Tokenizer(self.model, sentinels, specials, self.vocabulary.start, below)

    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
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
            elif self.own_sentinels and not self.is_text[ids[i]].all():
                ids[i] = self._encode_names_as_text(text, ids[i], continues[i])
        return ids

    def _encode_names_as_text(self, text: str, ids: np.ndarray, continues: bool) -> np.ndarray:
        # The model reads the name of one of its own sentinels as it reads any piece.
        parts = cut_in_names(text, [f"<extra_id_{k}>" for k in range(self.own_sentinels)])
        if len(parts) == 1:  # normalisation made the name
            return np.where(self.is_text[ids], ids, np.int32(UNKNOWN))
        return np.concatenate(self._encode_texts(parts, [continues, *[True] * (len(parts) - 1)]))

    def _encode_space_signs(self, text: str, continues: bool) -> np.ndarray:
        # SentencePiece cannot tell the character "▁" from a space. So its bytes are encoded.
        parts = text.split(SPACE)
        sign = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ids = self._encode_texts(parts, [continues, *[True] * (len(parts) - 1)])
        return np.concatenate([ids[0], *(np.append(np.array(sign, np.int32), part) for part in ids[1:])])

    def _decode_run(self, ids: list[int], continues: bool) -> str:
        # SentencePiece drops the first space of a text, which it put there itself. If other tokens stand before, the
        # space belongs to the text: decode with an "a" before it.
        before = self._pieces.encode("a") if continues else []
        return self._pieces.decode(before + ids)[len(self._pieces.decode(before)) :]


def _open_model(model: bytes) -> Any:
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

"""SentencePiece tokenizers: trained by t5lite (tokenizers/training.py), or the tokenizers of T5 and its family.

The model file holds only the pieces: pad 0, EOS 1, unknown 2, and text. Sentinels and specials are ids above the
pieces. (In mT5's, the last pieces are the sentinels.)
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data.tokenizers.text_tokenizer import (
    SENTINELS,
    TextTokenizer,
    cut_names,
)
from t5lite.data.tokenizers.token_table import Piece
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN

SPACE = "▁"
MODEL_FILE = "pieces.model"
OWN_NAMES = {PAD: "<pad>", EOS: "</s>", UNKNOWN: "<unk>"}


class NotLikeT5(UserError):
    """A SentencePiece model cannot be used like T5's.

    Its pad, EOS and unknown ids are not T5's, or it cannot hold an added token.
    """


class Tokenizer(TextTokenizer):
    """A SentencePiece model with sentinels and specials above its pieces.

    sentinels: how many to add; ignored if the model's last pieces are sentinels already. start: a decoder's first
    input. specials_below: see TextTokenizer.
    """

    FILE = MODEL_FILE

    def __init__(
        self,
        model: bytes,
        sentinels: int = SENTINELS,
        specials: Sequence[str] = (),
        start: int = PAD,
        specials_below: int = 0,
    ):
        self.model, self.base = model, (model, start)
        self._pieces = _open_model(model)
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (PAD, EOS, UNKNOWN):
            raise NotLikeT5(
                f"the tokenizer's pad, EOS and unknown ids are {ids}; t5lite needs ({PAD}, {EOS}, {UNKNOWN})"
            )
        self._adds_space = self._pieces.encode("a", out_type=str)[0].startswith(SPACE)
        own_ids = range(self._pieces.get_piece_size())
        pieces = [self._describe(token) for token in own_ids]
        added = (sentinels, specials, specials_below)
        self._set_vocabulary(pieces, self._find_id, {}, added, self._adds_space, start=start)
        if not 0 <= start < self.vocabulary.rows:
            raise UserError(f"a decoder cannot start with id {start}: the tokenizer has {self.vocabulary.rows:,} ids")
        without_text = {token for token in own_ids if self._pieces.is_control(token) or self._pieces.is_unused(token)}
        self.hidden_ids = {PAD, EOS} | (without_text - self.names.keys())
        self.always_hidden_ids = self.hidden_ids - {EOS}
        self.names = OWN_NAMES | self.names
        # SentencePiece puts a space before a text, but not after a line break. Tokenizers trained by t5lite have
        # the line break as a piece. Others (T5's) do not.
        self._line_break = self._pieces.encode("\n")
        if self._pieces.decode(self._line_break) != "\n":
            self._line_break = []

    def _find_id(self, piece: str) -> int | None:
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
        """Return the pieces of the model in the order of their ids, and the log-probability of each piece."""
        model, ids = self._pieces, range(self._pieces.get_piece_size())
        return [model.id_to_piece(token) for token in ids], [model.get_score(token) for token in ids]

    def _identity(self) -> Any:
        added, start = self._added_fields(), self.vocabulary.start
        below = [{"below": self.specials_below}] if self.specials_below else []
        return [added["sentinels"], added["specials"], *([] if start == PAD else [start]), *below]

    def _facts(self) -> dict[str, Any]:
        return self._added_fields() | ({} if self.vocabulary.start == PAD else {"start": self.vocabulary.start})

    def _rebuild_with(self, sentinels: int, specials: Sequence[str], specials_below: int) -> "Tokenizer":
        return Tokenizer(self.model, sentinels, specials, self.vocabulary.start, specials_below)

    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
        changed_texts, skip = list(texts), [0] * len(texts)
        for i in np.flatnonzero(continues):
            if self._line_break:
                changed_texts[i], skip[i] = "\n" + changed_texts[i], len(self._line_break)
            elif self._adds_space:
                changed_texts[i] = changed_texts[i].removeprefix(" ")
        ids = self._pieces.encode(changed_texts, num_threads=os.cpu_count() or 1)
        ids = [np.asarray(tokens[start:], np.int32) for tokens, start in zip(ids, skip, strict=True)]
        for i, text in enumerate(texts):
            if SPACE in text and self._line_break:
                ids[i] = self._encode_space_signs(text, continues[i])
            elif self.own_sentinels and not self.is_text[ids[i]].all():
                ids[i] = self._encode_names_as_text(text, ids[i], continues[i])
        return ids

    def _encode_names_as_text(self, text: str, ids: np.ndarray, continues: bool) -> np.ndarray:
        # The model would read the name of one of its own sentinels as the sentinel.
        parts = cut_names(text, [f"<extra_id_{k}>" for k in range(self.own_sentinels)])
        if len(parts) == 1:  # the name appeared only by normalisation
            return np.where(self.is_text[ids], ids, np.int32(UNKNOWN))
        return np.concatenate(self._encode_texts(parts, [continues, *[True] * (len(parts) - 1)]))

    def _encode_space_signs(self, text: str, continues: bool) -> np.ndarray:
        # SentencePiece cannot tell the character "▁" from a space. So encode the bytes of "▁".
        parts = text.split(SPACE)
        sign = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ids = self._encode_texts(parts, [continues, *[True] * (len(parts) - 1)])
        return np.concatenate([ids[0], *(np.append(np.array(sign, np.int32), part) for part in ids[1:])])

    def _decode_run(self, ids: list[int], continues: bool) -> str:
        # SentencePiece puts a space in front of a text, and so drops the first space when it decodes. If other tokens
        # stand before, the space belongs to the text: decode with an "a" in front.
        before = self._pieces.encode("a") if continues else []
        return self._pieces.decode(before + ids)[len(self._pieces.decode(before)) :]


def _open_model(model: bytes) -> Any:
    """Return a SentencePieceProcessor. Raises UserError for a model that cannot be read or cannot encode."""
    import sentencepiece  # here, because benchmarks do not need it

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor.decode(processor.encode("a\n")[:1])
        for token in range(processor.get_piece_size()):
            processor.id_to_piece(token)
    except (RuntimeError, ValueError, IndexError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"not a readable SentencePiece model: {error}") from error
    return processor

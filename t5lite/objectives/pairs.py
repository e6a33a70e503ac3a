"""Objectives with known answers: pairs of texts, or texts with answers for a head of the model.

The frame of a text for a head, and the places where the head reads:

    encoder            [CLS] tokens [SEP]    for the text: [CLS]; for a word: its first piece
    encoder-decoder    tokens EOS            for the text: the decoder's output for its start token; for a word: the
                                             encoder's output for the word's first piece
    decoder            tokens EOS            for the text: where EOS is predicted; for a word: where the token after
                                             the word is predicted

If an encoder-decoder's vocabulary has BOS, BOS stands before the tokens.

With `texts_per_row` above 1, a row holds several texts for a head that answers for whole texts. Each text is a segment
with a frame of its own. An encoder-decoder's decoder then reads a start token for each text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5lite.objectives.batch import Example
from t5lite.objectives.objective import Fields, Heads, Kind, Objective, Row, choose_bos
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, SEP, TokenTable, Vocabulary

Array = jax.Array


GENERATED = (None, "text", "number_text")  # values of objective.answer for targets that are generated


def _leave_unpacked(fields: Fields) -> Fields:
    """Return the fields for evaluation: metrics count texts, so each row has one."""
    return {**fields, "texts_per_row": 1}


def _is_encoder(fields: Fields) -> bool:
    return fields["architecture"] == "encoder"


def _needs_head(fields: Fields) -> bool:
    return _is_encoder(fields) or fields["answer"] not in GENERATED


def check_lengths(fields: Fields, vocabulary: Vocabulary) -> int:
    """Check the lengths. Return 0: pairs have no window. Raises UserError for a length that is too small."""
    del vocabulary
    if fields["targets_length"] is None and not _needs_head(fields):
        raise UserError("config.objective.targets_length: is not set, but pairs need it; set it to a number of tokens")
    for name in ("inputs_length", "targets_length"):
        if fields[name] is not None and fields[name] < 2:
            raise UserError(f"config.objective.{name}: must be at least 2, is {fields[name]}")
    return 0


def build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    if fields["answer_head"] is not None:
        return _build_with_head(fields, vocabulary)
    if _is_encoder(fields):
        raise UserError(
            "config.model.architecture: free-text targets need a decoder, and an encoder has none; if the targets "
            "are a closed set of labels, set config.data.labels=True; if they are numbers, set "
            "config.objective.answer=number"
        )

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        segment_ids = row["targets_segment_ids"]
        weights = (segment_ids > 0).astype(jnp.float32)
        return Example(row["inputs"], row["targets"], weights, row["inputs_segment_ids"], segment_ids)

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="pairs",
        window=window,
        inputs_length=fields["inputs_length"],
        targets_length=fields["targets_length"],
        prefix_attention=bool(fields["prefix_attention"]),
    )


def _build_with_head(fields: Fields, vocabulary: Vocabulary) -> Objective:
    """Return the objective of a model that answers with a head. A row contains a text and its true answer."""
    head, architecture = fields["answer_head"], fields["architecture"]
    frame = _choose_frame(fields, vocabulary)
    length = fields["inputs_length"]
    if length < 2 + len(frame.front):
        raise UserError(f"config.objective.inputs_length: must be at least {2 + len(frame.front)}, is {length}")
    texts = fields["texts_per_row"]
    if texts > 1 and head.each == "token":
        raise UserError("config.objective.texts_per_row: words and spans have one text in a row; set it to 1")

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        tokens, segment_ids = frame.surround(row["inputs"], row["inputs_segment_ids"], vocabulary.eos)
        answers, is_closing = row["answers"], (row["inputs"] == vocabulary.eos) & (row["inputs_segment_ids"] > 0)
        token_types = None
        if head.has_answer_for_each_token():
            answers = _move_to_word_ends(answers, is_closing) if architecture == "decoder" else answers
            answers = jnp.concatenate([jnp.full(len(frame.front), -1, jnp.int32), answers])
        elif head.each == "token":  # places in a row of two parts, each closed by EOS
            answers, token_types = _place_in_frame(answers, is_closing, len(frame.front))
        answers = {head.name: answers}
        if architecture == "encoder":
            return Example(tokens, tokens, jnp.zeros(tokens.shape), segment_ids, token_types=token_types,
                           answers=answers)  # fmt: skip
        if architecture == "decoder":
            nothing = jnp.zeros(0, jnp.int32)
            return Example(nothing, tokens, jnp.zeros(tokens.shape), nothing, segment_ids, answers=answers)
        one_place = jnp.zeros(1, jnp.int32)
        return Example(tokens, one_place, jnp.zeros(1), segment_ids, one_place + 1, answers=answers)

    def make_packed(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        return _make_packed_example(row, frame, vocabulary.eos, head.name, architecture)

    return Objective(
        name=fields["name"],
        architecture=architecture,
        make=make if texts == 1 else make_packed,
        rows="answers",
        window=length - len(frame.front),
        inputs_length=0 if architecture == "decoder" else length,
        targets_length=texts if architecture == "encoder_decoder" else length,
        labels=fields["labels"] or (),
        heads=Heads(vocabulary=False, others=(head,)),
        max_texts=texts,
        front=frame.front,
    )


class _Frame(NamedTuple):
    """The ids around a text: `front` before its first token, and `end` in place of EOS."""

    front: tuple[int, ...]
    end: int

    def surround(self, tokens: Array, segment_ids: Array, eos: int) -> tuple[Array, Array]:
        """Return (inputs, segment ids), both [F + L], for `tokens` [L]. F is the length of `front`."""
        is_eos = (tokens == eos) & (segment_ids > 0)
        inputs = jnp.concatenate([jnp.array(self.front, jnp.int32), jnp.where(is_eos, self.end, tokens)])
        return inputs, jnp.concatenate([jnp.ones(len(self.front), jnp.int32), segment_ids])


def _choose_frame(fields: Fields, vocabulary: Vocabulary) -> _Frame:
    if _is_encoder(fields):
        return _Frame((vocabulary.specials[CLS],), vocabulary.specials[SEP])
    bos = choose_bos(fields, vocabulary)
    return _Frame(() if bos is None else (bos,), vocabulary.eos)


def _make_packed_example(row: Row, frame: _Frame, eos: int, head: str, architecture: str) -> Example:
    """Return the Example of a row with several texts, which holds `frame.front` before each text, and EOS after it.

    Args:
        row: "answers" has P answers, the first for the text in segment 1. Missing answers are at the end.
        head: the name of the head.
    """
    ids, answers = row["inputs_segment_ids"], {head: row["answers"]}
    length, num_texts = len(ids), len(row["answers"])
    tokens, weights = jnp.where((row["inputs"] == eos) & (ids > 0), frame.end, row["inputs"]), jnp.zeros(length)
    is_text_PxL = ids == jnp.arange(1, num_texts + 1)[:, None]
    if architecture == "encoder":
        first_P = jnp.argmax(is_text_PxL, axis=1).astype(jnp.int32)
        return Example(tokens, tokens, weights, ids, answers=answers, answer_places=first_P)
    if architecture == "decoder":
        nothing, last_P = jnp.zeros(0, jnp.int32), length - 1 - jnp.argmax(is_text_PxL[:, ::-1], axis=1)
        places = last_P.astype(jnp.int32)
        return Example(nothing, tokens, weights, nothing, ids, answers=answers, answer_places=places)
    places = jnp.arange(num_texts, dtype=jnp.int32)
    decoder_ids = jnp.where(is_text_PxL.any(axis=1), places + 1, 0)
    return Example(tokens, jnp.zeros_like(places), jnp.zeros(num_texts), ids, decoder_ids, answers=answers,
                   answer_places=places)  # fmt: skip


def _place_in_frame(places: Array, is_closing: Array, front: int) -> tuple[Array, Array]:
    """Return (places, token types [F + L]) in the frame of a row of two parts.

    Args:
        places: int32 [2], places in the row; -1: unknown. Below -1: no place. It becomes the place of "no answer": the
            first token in front of the row, or the end of the first part.
        is_closing: bool [L], where EOS closes a part.
        front: F, the number of tokens in front of the row.
    """
    end_of_first = jnp.argmax(is_closing).astype(jnp.int32)
    nowhere = 0 if front else end_of_first
    is_second = (jnp.arange(len(is_closing)) > end_of_first).astype(jnp.int32)
    types = jnp.concatenate([jnp.zeros(front, jnp.int32), is_second])
    return jnp.where(places < -1, nowhere, jnp.where(places < 0, -1, places + front)).astype(jnp.int32), types


def _move_to_word_ends(answers: Array, is_closing: Array) -> Array:
    """Move the answer of each word from its first piece to the place after its last piece.

    A decoder reads the last piece of the word there, and predicts the next word or EOS.

    Args:
        answers: int32 [L], -1 where no word begins.
        is_closing: bool [L], where EOS closes the sentence.
    """
    places = jnp.arange(len(answers), dtype=jnp.int32)
    begins = answers >= 0
    last_begin = jax.lax.cummax(jnp.where(begins, places, -1))
    word_before = jnp.concatenate([jnp.full(1, -1, jnp.int32), last_begin[:-1]])
    return jnp.where((begins | is_closing) & (word_before >= 0), answers[word_before], -1)


def add_cls_and_sep(tokens: Array, segment_ids: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Return (inputs, segment ids), both [L + 1]: [CLS], then `tokens` [L] with [SEP] in place of EOS."""
    frame = _Frame((vocabulary.specials[CLS],), vocabulary.specials[SEP])
    return frame.surround(tokens, segment_ids, vocabulary.eos)


KINDS = {
    "supervised": Kind(
        architectures=("encoder_decoder", "decoder", "encoder"),
        window=check_lengths,
        build=build,
        uses=lambda fields: ("answer", "texts_per_row") if _needs_head(fields) else
        ("answer", "targets_length", "pack", "prefix_attention"),
        specials=lambda fields: (CLS, SEP) if _is_encoder(fields) else (),
        evaluation_fields=_leave_unpacked,
        data="pairs",
    ),
    "tagging": Kind(  # the name in older configs for "supervised" with the answer "tags"
        architectures=("encoder",),
        window=check_lengths,
        build=build,
        uses=lambda fields: ("answer",),
        specials=lambda fields: (CLS, SEP),
        data="pairs",
    ),
}  # fmt: skip

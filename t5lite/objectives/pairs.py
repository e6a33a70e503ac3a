"""Objectives with known answers: pairs of texts; on an encoder, inputs with answers for a head.

On an encoder the inputs are [CLS] tokens [SEP]. `Example.answers` holds one answer for the whole text, or one at the
first piece of each word.
"""

import jax
import jax.numpy as jnp

from t5lite.objectives.batch import Example
from t5lite.objectives.objective import Fields, Heads, Kind, Objective, Row
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, SEP, TokenTable, Vocabulary

Array = jax.Array


def _is_encoder(fields: Fields) -> bool:
    return fields["architecture"] == "encoder"


def check_lengths(fields: Fields, vocabulary: Vocabulary) -> int:
    """Check the lengths. Return 0: pairs have no window. Raises UserError for a length that is too small."""
    del vocabulary
    if fields["targets_length"] is None and not _is_encoder(fields):
        raise UserError("config.objective.targets_length: is not set, but pairs need it; set it to a number of tokens")
    for name in ("inputs_length", "targets_length"):
        if fields[name] is not None and fields[name] < 2:
            raise UserError(f"config.objective.{name}: must be at least 2, is {fields[name]}")
    return 0


def build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    if _is_encoder(fields):
        return _build_with_head(fields, vocabulary)

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


def add_cls_and_sep(tokens: Array, segment_ids: Array, vocabulary: Vocabulary) -> tuple[Array, Array]:
    """Return (inputs, segment ids), both [L + 1]: [CLS], then `tokens` [L] with [SEP] in place of EOS."""
    cls = jnp.full(1, vocabulary.specials[CLS], jnp.int32)
    is_eos = (tokens == vocabulary.eos) & (segment_ids > 0)
    inputs = jnp.concatenate([cls, jnp.where(is_eos, vocabulary.specials[SEP], tokens)])
    return inputs, jnp.concatenate([jnp.ones(1, jnp.int32), segment_ids])


def _build_with_head(fields: Fields, vocabulary: Vocabulary) -> Objective:
    """Return the objective of an encoder. A row contains one answer to the whole text, or an answer to each token."""
    head, length = fields["answer"], fields["inputs_length"]
    if head is None:
        raise UserError(
            "config.model.architecture: free-text targets need a decoder, and an encoder has none; if the targets "
            "are a closed set of labels, set config.data.labels=True"
        )
    if length < 3:
        raise UserError(f"config.objective.inputs_length: must be at least 3, is {length}")

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        inputs, segment_ids = add_cls_and_sep(row["inputs"], row["inputs_segment_ids"], vocabulary)
        answers = row["answers"]
        if head.each == "token":
            answers = jnp.concatenate([jnp.full(1, -1, jnp.int32), answers])  # [CLS] has no answer
        return Example(inputs, inputs, jnp.zeros(inputs.shape), segment_ids, answers={head.name: answers})

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="answers",
        window=length - 1,
        inputs_length=length,
        targets_length=length,
        labels=fields["labels"] or (),
        heads=Heads(vocabulary=False, others=(head,)),
    )


KINDS = {
    "supervised": Kind(
        architectures=("encoder_decoder", "decoder", "encoder"),
        window=check_lengths,
        build=build,
        uses=lambda fields: () if _is_encoder(fields) else ("targets_length", "pack", "prefix_attention"),
        specials=lambda fields: (CLS, SEP) if _is_encoder(fields) else (),
        data="pairs",
    ),
    "tagging": Kind(
        architectures=("encoder",),
        window=check_lengths,
        build=build,
        uses=lambda fields: (),
        specials=lambda fields: (CLS, SEP),
        data="tags",
    ),
}

"""Conversations: the loss is on what the assistant says, with the token that closes it.

On a decoder a row holds whole conversations, packed, one in each segment. A conversation has one or more trained turns.
On an encoder-decoder each trained turn is a pair: the history is the inputs, and the turn the targets (see pairs.py).
"""

import jax
import jax.numpy as jnp

from t5lite.objectives import pairs
from t5lite.objectives.batch import Example
from t5lite.objectives.objective import Fields, Kind, Objective, Row
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import TokenTable, Vocabulary

Array = jax.Array


def _is_decoder(fields: Fields) -> bool:
    return fields["architecture"] == "decoder"


def _check_lengths(fields: Fields, vocabulary: Vocabulary) -> int:
    """Check the lengths. Return 0: conversations have no window. Raises UserError for a wrong length."""
    if not _is_decoder(fields):
        return pairs.check_lengths(fields, vocabulary)
    if fields["inputs_length"] < 2:
        raise UserError(f"config.objective.inputs_length: must be at least 2, is {fields['inputs_length']}")
    return 0


def _build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    if not _is_decoder(fields):
        return pairs.build(fields, vocabulary, window)

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        weights = row["trained"].astype(jnp.float32)
        return Example(jnp.zeros(0, jnp.int32), row["targets"], weights, None, row["targets_segment_ids"])

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="conversations",
        window=window,
        inputs_length=0,
        targets_length=fields["inputs_length"],
        closes_inputs=False,
    )


def ask_last_turns(examples: Example) -> Example:
    """Return examples with the last trained turn as targets, and all tokens before it as inputs. All have one segment.

    examples: of a decoder; the first axis is B.
    """
    tokens_BxL, is_trained_BxL = examples.targets, examples.weights > 0
    places_L = jnp.arange(tokens_BxL.shape[1])
    begins_BxL = is_trained_BxL & ~jnp.pad(is_trained_BxL, ((0, 0), (1, 0)))[:, :-1]
    start_Bx1 = jnp.max(jnp.where(begins_BxL, places_L, 0), axis=1, keepdims=True)
    stop_Bx1 = jnp.max(jnp.where(is_trained_BxL, places_L + 1, 0), axis=1, keepdims=True)
    in_inputs, in_targets = places_L < start_Bx1, places_L < stop_Bx1 - start_Bx1
    moved_BxL = jnp.take_along_axis(tokens_BxL, jnp.minimum(places_L + start_Bx1, len(places_L) - 1), axis=1)
    return Example(
        jnp.where(in_inputs, tokens_BxL, 0),
        jnp.where(in_targets, moved_BxL, 0),
        in_targets.astype(jnp.float32),
        in_inputs.astype(jnp.int32),
        in_targets.astype(jnp.int32),
    )


KINDS = {
    "chat": Kind(
        architectures=("encoder_decoder", "decoder"),
        window=_check_lengths,
        build=_build,
        uses=lambda fields: ("pack",) if _is_decoder(fields) else ("targets_length", "pack"),
        data="chat",
    )
}

"""Supervised pairs: the targets for the inputs, as they are."""

from typing import Any

import jax
import jax.numpy as jnp

from t5lite.errors import UserError
from t5lite.objectives.batch import Example
from t5lite.objectives.objective import Fields, Kind, Row
from t5lite.vocabulary import TokenTable, Vocabulary

Array = jax.Array


def _no_window(fields: Fields, vocabulary: Vocabulary) -> int:
    del vocabulary
    if fields["targets_length"] is None:
        raise UserError("config.objective.targets_length: supervised pairs need it; set it to a number of tokens")
    for name in ("inputs_length", "targets_length"):
        if fields[name] < 2:
            raise UserError(f"config.objective.{name}: must be at least 2, is {fields[name]}")
    return 0


def _supervised(fields: Fields, vocabulary: Vocabulary, architecture: str, window: int) -> dict[str, Any]:
    del vocabulary, architecture

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        segment_ids = row["targets_segment_ids"]
        weights = (segment_ids > 0).astype(jnp.float32)
        return Example(row["inputs"], row["targets"], weights, row["inputs_segment_ids"], segment_ids)

    return dict(
        make=make,
        rows="pairs",
        window=window,
        inputs_length=fields["inputs_length"],
        targets_length=fields["targets_length"],
        prefix_attention=bool(fields["prefix_attention"]),
    )


KINDS = {"supervised": Kind(("encoder_decoder", "decoder"), _no_window, _supervised)}

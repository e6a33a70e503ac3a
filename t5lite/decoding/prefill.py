"""Prepare the first step of generation: encode the inputs, or read a decoder's prompts in one pass.

A decoder reads the same layout as in training (see `objectives.batch`): the start id, if there is one, then the prompt.
Rows are padded at their end. Generation begins at a row's last token that is not padding. For an encoder-decoder, this
token is the start id. The slots of the prompt come first in the cache. Then each step has `streams` slots, one for each
beam or sample of a row. Step 0 reads the last token of the prompt again:

    prompts   0 5 6 7    slots   0 1 2 3 | step 0: 4 5 | step 1: 6 7 | …      row 0 reads 7 again
              0 8 . .                                                         row 1 reads 8 again

    positions of row 0           0 1 2 3 |         3 3 |         4 4 | …
                 row 1           0 1 2 3 |         1 1 |         2 2 | …

A row attends to its prompt without the last token. Step 0 writes that token again, in the slots of step 0, and the row
attends to this copy. So no row attends to padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.model.stack import Cache
from t5lite.model.transformer import Transformer

Array = jax.Array


class Prefilled(NamedTuple):
    """The state in which generation begins.

    tokens_B: the token that each row reads next. visible_BxS: the slots of the row's prompt.
    prompt_BxP, prompt_lengths_B: the tokens that the decoder has read, `tokens_B` included.
    """

    cache: Cache
    tokens_B: Array
    visible_BxS: Array
    prompt_BxP: Array
    prompt_lengths_B: Array

    @property
    def first_slot(self) -> int:
        """The first slot of step 0."""
        return 0 if self.cache.memory_segment_ids is not None else self.prompt_BxP.shape[1]


def front_token(model: Transformer, start: int, prepend_start: bool) -> int | None:
    """Return the id in front of the decoder's inputs, or None. An encoder-decoder always has `start` there."""
    return start if prepend_start or model.config.num_encoder_layers else None


def prefill(model: Transformer, params: Any, inputs_BxL: Array, lengths_B: Array, *, steps: int, streams: int = 1,
            room: int | None = None, prefix_attention: bool = False, start: int | None = 0) -> Prefilled:  # fmt: skip
    """Read the inputs: the encoder's, or a decoder's prompts.

    Args:
      inputs_BxL, lengths_B: int32, padded at their end.
      steps: the number of steps that follow.
      room: the number of steps for which the cache has slots before the cache must grow. None: all `steps`.
      start: the id in front of the decoder's input. None: no id; only a model without an encoder allows None.
    """
    batch, length = inputs_BxL.shape
    generated_slots = (steps if room is None else room) * streams
    step_of_slot = jnp.repeat(jnp.arange(steps), streams)
    if model.config.num_encoder_layers:
        segment_ids = (jnp.arange(length) < lengths_B[:, None]).astype(jnp.int32)
        memory = model.apply({"params": params}, inputs_BxL, segment_ids, method=Transformer.encode)
        cache = model.apply({"params": params}, batch, step_of_slot[None], memory, segment_ids, generated_slots,
                            method=Transformer.start_cache)  # fmt: skip
        first = jnp.full((batch, 1), start, jnp.int32)
        return Prefilled(
            cache, first[:, 0], jnp.zeros((batch, len(step_of_slot)), bool), first, jnp.ones(batch, jnp.int32)
        )
    if start is not None:
        inputs_BxL = jnp.concatenate([jnp.full((batch, 1), start, jnp.int32), inputs_BxL], axis=1)
        lengths_B = lengths_B + 1
    slots_P = jnp.arange(inputs_BxL.shape[1])
    last_Bx1 = lengths_B[:, None] - 1
    positions = jnp.concatenate([jnp.broadcast_to(slots_P, inputs_BxL.shape), last_Bx1 + step_of_slot], axis=1)
    cache = model.apply({"params": params}, batch, positions, slots=len(slots_P) + generated_slots,
                        method=Transformer.start_cache)  # fmt: skip
    visible_BxPxP = (slots_P <= slots_P[:, None])[None]
    if prefix_attention:
        prompt_BxP = slots_P <= last_Bx1
        visible_BxPxP = visible_BxPxP | (prompt_BxP[:, :, None] & prompt_BxP[:, None, :])
    _, cache = model.apply({"params": params}, inputs_BxL, cache, 0, visible_BxPxP, method=Transformer.extend)
    visible = jnp.arange(positions.shape[1]) < last_Bx1
    tokens_B = jnp.take_along_axis(inputs_BxL, last_Bx1, axis=1)[:, 0]
    return Prefilled(cache, tokens_B, visible, inputs_BxL, lengths_B)

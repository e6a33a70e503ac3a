"""Prepare the first step of generation: encode the inputs, or read a decoder's prompts in one pass.

A decoder reads what it read in training (see `objectives.batch`): the start id, where the layout has one, then the
prompt. Rows are padded at their end. Generation takes over at a row's last token that is not padding. For an
encoder-decoder, that token is the start id. The slots of the prompt come first in the cache. Each step then has
`streams` slots, one for each beam or sample of a row:

    prompts   0 5 6 7    slots   0 1 2 3 | step 0: 4 5 | step 1: 6 7 | …      row 0: token 7 is read again at step 0
              0 8 . .                                                         row 1: token 8 is

    positions of row 0           0 1 2 3 |         3 3 |         4 4 | …
                 row 1           0 1 2 3 |         1 1 |         2 2 | …

A row sees its prompt without the last token; it sees the copy of that token at step 0. So no row sees its padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.model.stack import Cache
from t5lite.model.transformer import Transformer

Array = jax.Array


class Prefilled(NamedTuple):
    """The state where generation takes over.

    tokens_B: the token that each row reads next. visible_BxS: the slots of its prompt.
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
      room: the number of steps that the cache has slots for, before it grows; None: all.
      start: the id in front of the decoder's input; None: no id, on a decoder without an encoder only.
    """
    batch, length = inputs_BxL.shape
    own_slots = (steps if room is None else room) * streams
    after = jnp.repeat(jnp.arange(steps), streams)
    if model.config.num_encoder_layers:
        segment_ids = (jnp.arange(length) < lengths_B[:, None]).astype(jnp.int32)
        memory = model.apply({"params": params}, inputs_BxL, segment_ids, method=Transformer.encode)
        cache = model.apply({"params": params}, batch, after[None], memory, segment_ids, own_slots,
                            method=Transformer.start_cache)  # fmt: skip
        first = jnp.full((batch, 1), start, jnp.int32)
        return Prefilled(cache, first[:, 0], jnp.zeros((batch, len(after)), bool), first, jnp.ones(batch, jnp.int32))
    if start is not None:
        inputs_BxL = jnp.concatenate([jnp.full((batch, 1), start, jnp.int32), inputs_BxL], axis=1)
        lengths_B = lengths_B + 1
    slots_P = jnp.arange(inputs_BxL.shape[1])
    last_Bx1 = lengths_B[:, None] - 1
    positions = jnp.concatenate([jnp.broadcast_to(slots_P, inputs_BxL.shape), last_Bx1 + after], axis=1)
    cache = model.apply({"params": params}, batch, positions, slots=len(slots_P) + own_slots,
                        method=Transformer.start_cache)  # fmt: skip
    seen = (slots_P <= slots_P[:, None])[None]
    if prefix_attention:
        prompt_BxP = slots_P <= last_Bx1
        seen = seen | (prompt_BxP[:, :, None] & prompt_BxP[:, None, :])
    _, cache = model.apply({"params": params}, inputs_BxL, cache, 0, seen, method=Transformer.extend)
    visible = jnp.arange(positions.shape[1]) < last_Bx1
    tokens_B = jnp.take_along_axis(inputs_BxL, last_Bx1, axis=1)[:, 0]
    return Prefilled(cache, tokens_B, visible, inputs_BxL, lengths_B)

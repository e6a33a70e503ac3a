"""Before the first new token: the encoder's output as keys and values, or a decoder's prompt read in one pass.

A decoder reads what training gave it (see `objectives.batch`): the start id, where the layout puts one, then the
prompt. Rows are padded at their end, and the last token that is none is where generation takes over, as the start id
is for an encoder-decoder. Slots of the cache come after those of the longest prompt, `streams` of them a step, for
the beams or samples of each row:

    prompts   0 5 6 7    slots   0 1 2 3 | step 0: 4 5 | step 1: 6 7 | …      row 0: token 7 is read again at step 0
              0 8 . .                                                         row 1: token 8 is

    positions of row 0           0 1 2 3 |         3 3 |         4 4 | …
                 row 1           0 1 2 3 |         1 1 |         2 2 | …

A row sees its prompt but for the last token (whose copy at step 0 it sees), so its padding is never seen.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.model.stack import Cache
from t5lite.model.transformer import Transformer

Array = jax.Array


class Prefilled(NamedTuple):
    """Where generation takes over. tokens_B: what each row reads next. visible_BxS: the slots of its prompt.

    prompt_BxP, prompt_lengths_B: what the decoder has read, `tokens_B` included.
    """

    cache: Cache
    tokens_B: Array
    visible_BxS: Array
    prompt_BxP: Array
    prompt_lengths_B: Array

    @property
    def first_slot(self) -> int:
        """Of step 0."""
        return 0 if self.cache.memory_segment_ids is not None else self.prompt_BxP.shape[1]


def prefill(model: Transformer, params: Any, inputs_BxL: Array, lengths_B: Array, *, steps: int, streams: int = 1,
            room: int | None = None, prefix_attention: bool = False, start: int | None = 0) -> Prefilled:  # fmt: skip
    """Read inputs int32 [B, L] of `lengths_B`: the encoder's, or a decoder's prompts. `steps` steps are to follow.

    room: for how many of them the cache has slots, before it is grown; None: all.
    start: the id in front of what a decoder reads; None: nothing, for a decoder alone.
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

"""Find the ids that would repeat an n-gram of a history: the ids that a decoder has read and generated.

The rule is that of transformers (`NoRepeatNGramLogitsProcessor`). With n = 2:

    history  5 8 3 5      8 has followed 5, so 8 is forbidden now
"""

import jax
import jax.numpy as jnp

Array = jax.Array

NOTHING = -1  # stands where a row has no id


def align_prompts(prompt_BxP: Array, lengths_B: Array, size: int) -> Array:
    """Return int32 [B, size - 1 + P]: the prompts, moved to the end of their rows, after NOTHING."""
    length = prompt_BxP.shape[1]
    source_BxP = jnp.arange(length) - (length - lengths_B[:, None])
    moved_BxP = jnp.take_along_axis(prompt_BxP, jnp.maximum(source_BxP, 0), axis=1)
    return jnp.pad(jnp.where(source_BxP < 0, NOTHING, moved_BxP), ((0, 0), (size - 1, 0)), constant_values=NOTHING)


def find_repeats(history_BxRxH: Array, length: Array, size: int, vocab_size: int) -> Array:
    """Return bool [B, R, V]: the ids that would repeat `size` ids of a history.

    Args:
      history_BxRxH: int32, from `align_prompts`, followed by the generated ids.
      length: int32 [], the number of columns that hold ids or NOTHING. The later columns are ignored.
    """
    before = size - 1
    starts = history_BxRxH.shape[-1] - before  # the number of places where `size` ids begin
    newest = jax.lax.dynamic_slice_in_dim(history_BxRxH, length - before, before, axis=-1)
    next_ids = history_BxRxH[..., before:]
    repeats = (jnp.arange(starts) + before < length) & (next_ids != NOTHING)
    for place in range(before):
        repeats &= history_BxRxH[..., place : place + starts] == newest[..., place, None]
    mark = lambda ids, repeated: jnp.zeros(vocab_size, bool).at[ids].max(repeated)
    return jax.vmap(jax.vmap(mark))(next_ids, repeats)

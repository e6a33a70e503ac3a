"""The mask of attention: which keys a query sees."""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


@flax.struct.dataclass
class Mask:
    """The description of a mask. A query sees only the keys of its own segment.

    query_segments_BxT, key_segments_BxS: int32; 0 is padding. None: all tokens are in segment 1.
    causal: whether keys after the query are hidden. Then queries and keys belong to the same tokens.
    prefix_BxT: bool. Tokens of the prefix see the whole prefix, also if `causal` is True.
    """

    query_segments_BxT: Array | None = None
    key_segments_BxS: Array | None = None
    prefix_BxT: Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def compute(self, queries: int, keys: int) -> Array | None:
        """Return bool [B or 1, 1, T, S], True if the query sees the key. None if every query sees every key."""
        query_segments, key_segments, prefix = self.query_segments_BxT, self.key_segments_BxS, self.prefix_BxT
        mask = jnp.tril(jnp.ones((1, 1, queries, keys), bool)) if self.causal else None
        if mask is not None and prefix is not None:
            mask = mask | (prefix[:, None, :, None] & prefix[:, None, None, :])
        if query_segments is None and key_segments is None:
            return mask
        query_segments = 1 if query_segments is None else query_segments[:, None, :, None]
        key_segments = 1 if key_segments is None else key_segments[:, None, None, :]
        same_segment = (query_segments == key_segments) & (key_segments > 0)
        return same_segment if mask is None else mask & same_segment

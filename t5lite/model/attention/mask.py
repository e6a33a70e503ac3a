"""Which keys a query sees."""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


@flax.struct.dataclass
class Mask:
    """A query sees the keys of its own segment.

    query_segments_BxT, key_segments_BxS: int32; 0 is padding. None: all in segment 1.
    causal: a query sees no key after it; queries and keys are the same tokens.
    prefix_BxT: bool. Tokens of a prefix see the whole prefix, in spite of `causal`.
    """

    query_segments_BxT: Array | None = None
    key_segments_BxS: Array | None = None
    prefix_BxT: Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def array(self, queries: int, keys: int) -> Array | None:
        """Return bool [B or 1, 1, T, S], True where a query sees a key; None where every query sees every key."""
        of_queries, of_keys, prefix = self.query_segments_BxT, self.key_segments_BxS, self.prefix_BxT
        mask = jnp.tril(jnp.ones((1, 1, queries, keys), bool)) if self.causal else None
        if mask is not None and prefix is not None:
            mask = mask | (prefix[:, None, :, None] & prefix[:, None, None, :])
        if of_queries is None and of_keys is None:
            return mask
        of_queries = 1 if of_queries is None else of_queries[:, None, :, None]
        of_keys = 1 if of_keys is None else of_keys[:, None, None, :]
        same = (of_queries == of_keys) & (of_keys > 0)
        return same if mask is None else mask & same

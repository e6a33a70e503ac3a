"""Attention: one interface, and a file for each implementation.

    attend = prepare("auto", bias, mask, queries=q.shape, keys=T)       once for all layers of a stack
    y = attend(q, k, v, scale=K**-0.5)                                  in each layer

Bias and mask arrive as what they mean (bias.py, mask.py), not as arrays [T, S]. An implementation is a module with

    prepare(bias, mask, queries, keys) -> {name: value}   what its `attend` reads beside q, k and v; made once a stack
    attend(q, k, v, *, scale, dropout, key, **prepared)   softmax(scale · q k + bias) v under the mask

`einsum` and `mapped` make arrays in `prepare`. An implementation that works in blocks can hand bias and mask on, and
compute each block's share in `attend`. Generation attends to a cache instead: cached.py.

To add an implementation: a module, and a line in IMPLEMENTATIONS.
"""

import functools
from typing import Protocol

import jax

from t5lite.model.attention import einsum, mapped
from t5lite.model.attention.bias import Bias
from t5lite.model.attention.mask import Mask

Array = jax.Array
IMPLEMENTATIONS = {"einsum": einsum, "mapped": mapped}


class Attend(Protocol):
    """Attention with its bias and mask."""

    def __call__(
        self, q: Array, k: Array, v: Array, *, scale: float, dropout: float = 0.0, key: Array | None = None
    ) -> Array:
        """Return [B, T, H, K] in the dtype of v; the softmax is in float32.

        Keys and values may have fewer heads than queries. Then consecutive query heads share a head of keys and values.
        A query that sees no key (padding) gets the average of all values. This is finite, and nothing uses it: padding
        is never a key and has no loss.

        Args:
          q: [B, T, H, K]. k, v: [B, S, KV heads, K].
          dropout: the rate for attention weights; 0 needs no PRNG `key`. PRNG key, row of the batch, head, query and
            key position decide which weights are dropped (`dropout.keep_weights`). So all implementations drop the same
            weights, on every mesh.
        """


def prepare(implementation: str, bias: Bias | None, mask: Mask | None, queries: tuple[int, int, int],
            keys: int) -> Attend:  # fmt: skip
    """Return attention under `bias` and `mask`, for all layers that share them.

    Args:
      implementation: a name in IMPLEMENTATIONS, or "auto".
      bias: None: no bias. mask: None: every query sees every key.
      queries: (batch B, queries T, heads H). keys: S.
    """
    if implementation == "auto":
        implementation = choose(queries, keys)
    module = IMPLEMENTATIONS[implementation]
    return functools.partial(module.attend, **module.prepare(bias, mask, queries[1], keys))


def choose(queries: tuple[int, int, int], keys: int) -> str:
    """Return the implementation for "auto": "mapped" where all scores would not fit a CPU's cache, else "einsum"."""
    batch, length, heads = queries
    alone = jax.sharding.get_abstract_mesh().size <= 1  # Mapping over the batch would undo its sharding.
    large = batch * heads * length * keys > 2**20 and length > 1
    return "mapped" if alone and large and jax.default_backend() == "cpu" else "einsum"

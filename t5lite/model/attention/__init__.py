"""Attention: one interface, and a file for each implementation.

    attend = prepare("auto", bias, mask, queries=(B, T, H), keys=S)     once for all layers of a stack
    y = attend(q, k, v, scale=K**-0.5)                                  in each layer

Bias and mask are descriptions (bias.py, mask.py), not arrays [T, S]. An implementation is a module with two functions:

    prepare(bias, mask, queries, keys) -> {name: value}   more arguments of `attend`, the same for all layers of a stack
    attend(q, k, v, *, scale, dropout, key, **prepared)   softmax(scale · q k + bias) v under the mask

In `einsum` and `mapped`, `prepare` makes arrays. An implementation that works in blocks can pass bias and mask to
`attend`, and `attend` can compute each block's part of them. Generation attends to a cache instead; see cached.py.

To add an implementation, write a module, and add a line to IMPLEMENTATIONS.
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
    """A function that computes attention. Bias and mask are bound to it."""

    def __call__(
        self, q: Array, k: Array, v: Array, *, scale: float, dropout: float = 0.0, key: Array | None = None
    ) -> Array:
        """Return [B, T, H, K] in the dtype of v; the softmax is in float32.

        Keys and values may have fewer heads than queries. Then consecutive query heads share a head of keys and values.
        The result of a query that sees no key (padding) is finite: the average of all values. It is not used, because
        padding is never a key and has no loss.

        Args:
          q: [B, T, H, K]. k, v: [B, S, KV heads, K].
          dropout: the rate for attention weights. With 0, no PRNG `key` is needed. `dropout.keep_weights` decides which
            weights are dropped, so all implementations drop the same weights, on every mesh.
        """


def prepare(implementation: str, bias: Bias | None, mask: Mask | None, queries: tuple[int, int, int],
            keys: int) -> Attend:  # fmt: skip
    """Return the function that computes attention with `bias` and `mask`, for all layers that share them.

    Args:
      implementation: a name in IMPLEMENTATIONS, or "auto".
      bias: None: no bias. mask: None: every query sees every key.
      queries: (batch B, queries T, heads H). keys: S.
    """
    if implementation == "auto":
        implementation = choose_implementation(queries, keys)
    module = IMPLEMENTATIONS[implementation]
    return functools.partial(module.attend, **module.prepare(bias, mask, queries[1], keys))


def choose_implementation(queries: tuple[int, int, int], keys: int) -> str:
    """Return the implementation for "auto": "mapped" if the scores do not fit into a CPU's cache, else "einsum"."""
    batch, length, heads = queries
    alone = jax.sharding.get_abstract_mesh().size <= 1  # A loop over the batch would undo the batch's sharding.
    large = batch * heads * length * keys > 2**20 and length > 1
    return "mapped" if alone and large and jax.default_backend() == "cpu" else "einsum"

"""Random bits for dropout of attention weights: a hash of each weight's indices.

Attention has several implementations. They compute the weights in different orders and blocks, but all of them must
drop the same weights, on every mesh. So whether a weight is kept depends only on the PRNG key and its indices:

    keep(PRNG key, row of the batch, head, query, key position) -> bool

The function is MurmurHash3's (Appleby 2011, public domain, `MurmurHash3_x86_32`): `absorb` is its step for one word,
`finalise` is its `fmix32`. PRNG key, row, head and query are hashed once for each query, from two seeds. The result has
64 bits, so that no two queries of a batch are likely to share their bits. The key position is hashed once for each
column. A single weight then only needs `finalise` of the two hashes: two products and eight bit operations. A kernel
that works in blocks computes `finalise` for its block.

All arithmetic is uint32 and wraps around.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
SEEDS = (0x9747B28C, 0x1B873593)


def uint32(x: Array | int) -> Array:
    """Convert `x` to uint32, modulo 2**32."""
    return jnp.asarray(x, jnp.uint32)


def rotate_left(x: Array, bits: int) -> Array:
    """Rotate the bits of `x` to the left: the highest bits become the lowest bits."""
    return (x << bits) | (x >> (32 - bits))


def scramble(word: Array | int) -> Array:
    """Return the scrambled `word` that `absorb` combines with the hash."""
    return rotate_left(uint32(word) * uint32(0xCC9E2D51), 15) * uint32(0x1B873593)


def absorb(state: Array, word: Array | int) -> Array:
    """Return the hash after one more word. Shapes broadcast."""
    return rotate_left(state ^ scramble(word), 13) * uint32(5) + uint32(0xE6546B64)


def finalise(state: Array, more: Array | int = 0) -> Array:
    """Mix the bits of the hash. more: a second word of state, combined between the two products."""
    state = (state ^ (state >> 16)) * uint32(0x85EBCA6B)
    state = state ^ uint32(more)
    state = (state ^ (state >> 13)) * uint32(0xC2B2AE35)
    return state ^ (state >> 16)


def attention_bits(key: Array, rows: Array, heads: Array, queries: Array, keys: Array) -> Array:
    """Return uint32 bits for each attention weight.

    Args:
      key: a PRNG key.
      rows, heads, queries, keys: integers, the indices of the weights; their shapes broadcast to the result's shape.
        rows: indices in the whole batch, also if only a part of the batch is computed. keys: positions of the keys.
    """
    words = jax.random.key_data(key)
    states = []
    for seed in SEEDS:
        state = uint32(seed)
        for word in (*words, rows, heads, queries):
            state = absorb(state, word)
        states.append(finalise(state))
    return finalise(states[0] ^ scramble(keys), states[1])


def keep_weights(key: Array, rows: Array, heads: Array, queries: Array, keys: Array, rate: float) -> Array:
    """Return bool: the attention weights that dropout with this `rate` keeps. Other arguments: see `attention_bits`."""
    return attention_bits(key, rows, heads, queries, keys) >= uint32(min(round(rate * 2**32), 2**32 - 1))

"""Random bits for dropout of attention weights: a hash of a weight's place.

Attention has implementations that visit the weights in other orders and in other blocks. All of them must drop the
same weights, on every mesh. So whether a weight stays is a function of its place alone:

    keep(PRNG key, row of the batch, head, query, key position) -> bool

The function is MurmurHash3's (Appleby 2011, public domain, `MurmurHash3_x86_32`): `absorb` is its step for one word,
`finalise` is its `fmix32`. The PRNG key, the row, the head and the query are hashed twice from different seeds, once a
query: 64 bits, so that no two queries of a batch are likely to share their bits. The key position is hashed once a
column. What remains for a single weight is `finalise` of the two, which is two products and eight bit operations; a
kernel that works in blocks evaluates it for the block at hand.

All arithmetic is uint32 and wraps around.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
SEEDS = (0x9747B28C, 0x1B873593)


def uint32(x: Array | int) -> Array:
    """`x` as uint32, modulo 2**32."""
    return jnp.asarray(x, jnp.uint32)


def rotate_left(x: Array, bits: int) -> Array:
    """The bits of `x`, each so many places higher; those that leave at the top come in at the bottom."""
    return (x << bits) | (x >> (32 - bits))


def scramble(word: Array | int) -> Array:
    """What `absorb` makes of a word before the word meets the hash."""
    return rotate_left(uint32(word) * uint32(0xCC9E2D51), 15) * uint32(0x1B873593)


def absorb(state: Array, word: Array | int) -> Array:
    """The hash after one more word. Shapes broadcast."""
    return rotate_left(state ^ scramble(word), 13) * uint32(5) + uint32(0xE6546B64)


def finalise(state: Array, more: Array | int = 0) -> Array:
    """The hash's bits, well mixed. more: a second word of the state, which enters between the two products."""
    state = (state ^ (state >> 16)) * uint32(0x85EBCA6B)
    state = state ^ uint32(more)
    state = (state ^ (state >> 13)) * uint32(0xC2B2AE35)
    return state ^ (state >> 16)


def attention_bits(key: Array, rows: Array, heads: Array, queries: Array, keys: Array) -> Array:
    """Uint32 bits for each attention weight.

    Args:
      key: a PRNG key.
      rows, heads, queries, keys: integers that say where the weights stand; their shapes broadcast to the result's.
        rows: places in the whole batch, whichever part of it is at hand. keys: positions of the keys.
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
    """Bool: which attention weights stay at this dropout `rate`. The other arguments are those of `attention_bits`."""
    return attention_bits(key, rows, heads, queries, keys) >= uint32(min(round(rate * 2**32), 2**32 - 1))

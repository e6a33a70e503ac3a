"""A checksum of an array, computed where the array lies.

    sum over all elements of mix(bits ^ mix(place))   mod 2³²

`place` is the element's index in the whole array in C order, and `mix` a one-to-one map of 32 bits whose outputs look
random (MurmurHash3's finalizer, Appleby 2016). So a change of a single element always shows, any other with a chance of
1 − 2⁻³²; and a sum that wraps is the same in any order, hence on any mesh and any number of hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from t5lite.training.tables import flatten_with_paths

Array = jax.Array


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(x: Array) -> Array:
    """The bit patterns of `x` as uint32, of the same shape; elements of 8 bytes in two along a last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)


@jax.jit
def checksum(x: Array) -> Array:
    """The checksum of an array of numbers or booleans: uint32 scalar."""
    bits, place, stride = _bits(x), jnp.uint32(0), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits ^ _mix(place)), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """{path: checksum} of the arrays of a tree; fetched together, once the device has computed them all."""
    computed = jax.device_get({path: checksum(leaf) for path, leaf in flatten_with_paths(tree)})
    return {path: int(value) for path, value in computed.items()}

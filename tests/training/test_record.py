"""Checksums of arrays: any change shows, and neither sharding nor the order of a sum matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.training.record import compute_checksum, compute_checksums
from t5lite.training.sharding import make_mesh

RNG = np.random.default_rng(0)
WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def _mix(x):
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _expected(array):
    bits = np.ascontiguousarray(array).reshape(-1).view(WIDTHS[array.dtype.itemsize]).astype(np.uint32)
    return int(np.sum(_mix(bits ^ _mix(np.arange(bits.size, dtype=np.uint32))), dtype=np.uint32))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool"])
def test_it_is_the_sum_of_the_docstring(dtype, shape):
    array = np.asarray(jnp.asarray(RNG.integers(-100, 100, shape)).astype(dtype))
    assert int(compute_checksum(array)) == _expected(array)


@pytest.mark.parametrize("spec", [P(), P("data"), P("data", "fsdp"), P(None, ("fsdp", "tensor"))], ids=str)
def test_it_is_the_same_on_any_mesh(spec):
    array = RNG.normal(size=(16, 24)).astype(np.float32)
    for mesh in (make_mesh(2, 2, 2), make_mesh(1, 4, 1), make_mesh(8, 1, 1)):
        assert int(compute_checksum(jax.device_put(array, NamedSharding(mesh, spec)))) == _expected(array)


def test_every_flip_of_one_bit_shows():
    array = RNG.normal(size=(4, 3)).astype(np.float32)
    before = int(compute_checksum(array))
    for place in range(array.size):
        for bit in range(32):
            bits = array.copy().view(np.uint32)
            bits.reshape(-1)[place] ^= np.uint32(1 << bit)
            assert int(compute_checksum(bits.view(np.float32))) != before


CHANGES = {
    "two signs": lambda x: np.concatenate([-x[:2], x[2:]]),
    "all signs": lambda x: -x,
    "two places": lambda x: np.concatenate([x[1::-1], x[2:]]),
    "reversed": lambda x: x[::-1],
    "zeros": lambda x: np.where(np.arange(x.size) // 64 == 1, 0, x).astype(x.dtype),
    "a block twice": lambda x: np.concatenate([x[:64], x[:64], x[128:]]),
    "shifted": lambda x: np.roll(x, 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_damage_looks_like_shows(change):
    array = RNG.normal(size=256).astype(np.float32)
    assert int(compute_checksum(change(array))) != int(compute_checksum(array))


def test_not_a_number_and_the_two_zeros_are_told_apart_by_their_bits():
    nan, other = np.uint32(0x7FC00000), np.uint32(0x7FC00001)
    assert int(compute_checksum(nan.view(np.float32))) != int(compute_checksum(other.view(np.float32)))
    assert int(compute_checksum(np.float32(0.0))) != int(compute_checksum(np.float32(-0.0)))


def test_a_tree_by_its_paths():
    tree = {"a": {"b": np.float32(1)}, "c": [np.int32(2)]}
    assert compute_checksums(tree) == {"a/b": _expected(np.float32([1])), "c/0": _expected(np.int32([2]))}

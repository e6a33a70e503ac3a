"""Dropout of attention weights is a hash of each weight's indices, as random as a good random generator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.attention.dropout import absorb, attention_bits, finalise, keep_weights, uint32

B, H, T, S = 4, 4, 128, 256
LAGS = (1, 2, 3, 4, 8, 16, 32, 64)


@jax.jit
def bits_of(key):
    return attention_bits(key, *jnp.indices((B, H, T, S), sparse=True))


@pytest.fixture(scope="module")
def bits():
    """Return uint32 [steps, B, H, T, S], for the PRNG keys of successive steps."""
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
    return np.stack([np.asarray(bits_of(key)) for key in keys])


def standardise(bits, rate):
    """Return whether each weight is kept, standardised to mean 0 and variance 1."""
    return ((bits >= np.uint32(rate * 2**32)) - (1 - rate)) / np.sqrt(rate * (1 - rate))


def z_score(products):
    """Return the sum of numbers with mean 0 and variance 1, in standard deviations."""
    return float(abs(products.sum()) / np.sqrt(products.size))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_the_share_that_stays_is_binomial(rate):
    keep = np.asarray(jax.jit(lambda key: keep_weights(key, *jnp.indices((B, H, T, S), sparse=True), rate))(
        jax.random.key(3)))  # fmt: skip
    assert abs(keep.mean() - (1 - rate)) <= 4.5 * np.sqrt(rate * (1 - rate) / keep.size)


def test_every_byte_is_uniform(bits):
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((bits >> shift) & 255).ravel(), minlength=256)
        expected = bits.size / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < 4.5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("axis", range(5), ids=["steps", "rows", "heads", "queries", "keys"])
def test_neighbours_are_independent(bits, axis, rate):
    x = np.moveaxis(standardise(bits, rate), axis, 0)
    for lag in LAGS:
        if lag < len(x):
            assert z_score(x[lag:] * x[:-lag]) < 4.5, f"lag {lag}"


@pytest.mark.parametrize("axes", list(itertools.combinations(range(5), 2)), ids=str)
def test_there_is_no_lattice(bits, axes):
    """The product of the four corners of each rectangle has mean 0. With a sum or XOR of two hashes, it would not."""
    x = np.moveaxis(standardise(bits, 0.5), axes, (0, 1))
    for one, other in itertools.product(LAGS, LAGS):
        if one < x.shape[0] and other < x.shape[1]:
            corners = x[one:, other:] * x[:-one, other:] * x[one:, :-other] * x[:-one, :-other]
            assert z_score(corners) < 4.5, f"lags {one}, {other}"


def test_no_frequency_stands_out(bits):
    """If weights are independent, the power of each frequency over queries × keys is exponential with mean 1."""
    power = np.abs(np.fft.rfft2(standardise(bits, 0.5))) ** 2 / (T * S)
    assert power.max() < np.log(power.size) + 7


def test_keys_that_differ_in_a_bit_give_other_bits():
    plain = standardise(np.asarray(bits_of(jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)))), 0.5)
    for word, bit in itertools.product((0, 1), (0, 7, 16, 31)):
        data = jnp.zeros(2, jnp.uint32).at[word].set(jnp.uint32(1 << bit))
        assert z_score(plain * standardise(np.asarray(bits_of(jax.random.wrap_key_data(data))), 0.5)) < 4.5


def test_a_block_has_the_bits_of_the_whole(bits):
    """A kernel that works in blocks relies on this property."""
    key = jax.random.fold_in(jax.random.key(0), 0)
    block = attention_bits(key, 2, 3, jnp.arange(32, 64)[:, None], jnp.arange(128, 192))
    np.testing.assert_array_equal(block, bits[0, 2, 3, 32:64, 128:192])


def test_the_hash_is_murmurs():
    """The known values of the finaliser (SMHasher's fmix32), and one word absorbed by hand."""
    assert int(finalise(uint32(0))) == 0 and int(finalise(uint32(1))) == 0x514E28B7
    rotate = lambda x, n: (x << n | x >> (32 - n)) & 0xFFFFFFFF
    word = rotate(7 * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
    assert int(absorb(uint32(5), 7)) == (rotate(5 ^ word, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF

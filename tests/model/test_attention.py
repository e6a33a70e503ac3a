"""The implementations of attention agree, in values and gradients, and masks let nothing through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.attention import attend, causal_mask, choose, segment_mask
from t5lite.model.dropout import keep_weights

B, T, S, H, K = 2, 10, 12, 3, 8


def random_inputs():
    q, k, v, dy = (
        jax.random.normal(jax.random.key(i), (B, length, H, K)) for i, length in enumerate((T, S, S, T))
    )  # fmt: skip
    bias = jax.random.normal(jax.random.key(9), (1, H, T, S))
    return q, k, v, bias, dy


def by_hand(q, k, v, bias, mask, scale):
    """One query at a time, in NumPy and float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    y = np.zeros((B, T, H, K))
    for b, t, h in np.ndindex(B, T, H):
        scores = k[b, :, h] @ q[b, t, h] * scale
        if bias is not None:
            scores = scores + np.asarray(bias)[0, h, t]
        if mask is not None:
            scores = np.where(np.broadcast_to(mask, (B, 1, T, S))[b, 0, t], scores, -1e9)
        weights = np.exp(scores - scores.max())
        y[b, t, h] = weights / weights.sum() @ v[b, :, h]
    return y


def masks():
    shared = jnp.arange(S)[None, None, None, :] <= jnp.arange(T)[None, None, :, None]
    queries = jnp.array([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    keys = jnp.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * 12])
    return {"none": None, "shared": shared, "segments": segment_mask(queries, keys)}


@pytest.mark.parametrize("implementation", ["einsum", "mapped"])
@pytest.mark.parametrize("mask", ["none", "shared", "segments"])
@pytest.mark.parametrize(("with_bias", "scale"), [(True, 1.0), (False, 0.3)])
def test_attention_is_softmax_by_hand(implementation, mask, with_bias, scale):
    q, k, v, bias, _ = random_inputs()
    bias, mask = bias if with_bias else None, masks()[mask]
    y = attend(q, k, v, bias, mask, scale=scale, implementation=implementation)
    np.testing.assert_allclose(y, by_hand(q, k, v, bias, mask, scale), atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "shared", "segments"])
@pytest.mark.parametrize(("with_bias", "scale"), [(True, 1.0), (False, 0.3)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_mapped_values_and_gradients_equal_those_of_einsum(mask, with_bias, scale, dropout):
    q, k, v, bias, dy = random_inputs()
    bias, mask = bias if with_bias else None, masks()[mask]

    def values_and_gradients(implementation):
        def loss(q, k, v, bias):
            y = attend(q, k, v, bias, mask, scale=scale, dropout=dropout, key=jax.random.key(4),
                       implementation=implementation)  # fmt: skip
            return jnp.vdot(y, dy), y

        arguments = (0, 1, 2, 3) if with_bias else (0, 1, 2)
        gradients, y = jax.jit(jax.grad(loss, arguments, has_aux=True))(q, k, v, bias)
        return y, *gradients

    for mapped, einsum in zip(values_and_gradients("mapped"), values_and_gradients("einsum"), strict=True):
        np.testing.assert_allclose(mapped, einsum, atol=2e-5)


@pytest.mark.parametrize("implementation", ["einsum", "mapped"])
def test_the_dropped_weights_are_those_that_the_hash_names(implementation):
    """With equal scores and one value a key, the output shows each weight: 0, or 1 / (S · keep)."""
    rate, key = 0.3, jax.random.key(11)
    zeros, one_hot = jnp.zeros((B, T, H, S)), jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, H, S))
    y_BxTxHxS = attend(zeros, jnp.zeros((B, S, H, S)), one_hot, None, None, scale=1.0, dropout=rate, key=key,
                       implementation=implementation)  # fmt: skip
    b, t, h, s = (index.ravel() for index in np.indices((B, T, H, S)))
    kept = np.asarray(keep_weights(key, b, h, t, s, rate)).reshape(B, T, H, S)
    np.testing.assert_allclose(y_BxTxHxS, kept / (S * (1 - rate)), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_dropped_weights_are_the_same_on_every_mesh(sizes):
    batch, heads = 8, 4
    q, k, v = (jax.random.normal(jax.random.key(i), (batch, T, heads, K)) for i in range(3))
    function = jax.jit(lambda q, k, v: attend(q, k, v, None, None, scale=1.0, dropout=0.4, key=jax.random.key(4)))
    alone = function(q, k, v)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        spread = function(*(jax.device_put(x, sharding) for x in (q, k, v)))
    np.testing.assert_allclose(spread, alone, atol=1e-6)


def test_mapped_bias_of_each_example_has_its_gradient():
    q, k, v, bias, dy = random_inputs()
    bias = jnp.concatenate([bias, 2 * bias])
    gradient = lambda implementation: jax.grad(
        lambda bias: jnp.vdot(attend(q, k, v, bias, None, scale=1.0, implementation=implementation), dy)
    )(bias)
    np.testing.assert_allclose(gradient("mapped"), gradient("einsum"), atol=2e-5)


@pytest.mark.parametrize("implementation", ["einsum", "mapped"])
def test_dropout_keeps_the_mean_and_its_gradient_fits(implementation):
    q, k, v, bias, dy = random_inputs()
    function = jax.jit(lambda v, key: attend(
        q, k, v, bias, None, scale=1.0, dropout=0.25, key=key, implementation=implementation
    ))  # fmt: skip
    many = jax.vmap(lambda key: function(v, key))(jax.random.split(jax.random.key(0), 200)).mean(axis=0)
    plain = attend(q, k, v, bias, None, scale=1.0, implementation=implementation)
    assert np.abs(many - plain).max() < 0.25  # 200 draws; a forgotten rescaling is above it.
    assert np.abs(function(v, jax.random.key(0)) - plain).max() > 0.3
    loss = jax.jit(lambda q: jnp.vdot(
        attend(q, k, v, bias, None, scale=1.0, dropout=0.25, key=jax.random.key(3), implementation=implementation), dy
    ))  # fmt: skip
    direction = jax.random.normal(jax.random.key(5), q.shape)
    numeric = (loss(q + 1e-2 * direction) - loss(q - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(q), direction), numeric, rtol=2e-2)


@pytest.mark.parametrize("implementation", ["einsum", "mapped"])
def test_rows_of_padding_are_finite_and_padding_is_never_read(implementation):
    q, k, v, bias, dy = random_inputs()
    queries, keys = jnp.zeros((B, T), jnp.int32).at[0, :5].set(1), jnp.zeros((B, S), jnp.int32).at[:, :6].set(1)

    def loss(v):
        y = attend(q, k, v, bias, segment_mask(queries, keys), scale=1.0, implementation=implementation)
        return jnp.vdot(y * (queries > 0)[..., None, None], dy)

    gradient = jax.grad(loss)(v)
    assert np.isfinite(loss(v)) and np.isfinite(gradient).all()
    assert np.abs(gradient[0, 6:]).max() == 0 and np.abs(gradient[1]).max() == 0
    assert np.abs(gradient[0, :6]).min() > 0


def test_causal_mask_with_prefix_and_segments():
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    prefix = jnp.array([[1, 1, 0, 1, 1, 0]], bool)
    mask = causal_mask(segments, prefix, 6)[0, 0].astype(int)
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask, expected)


def test_masks_of_nothing_are_none():
    assert segment_mask(None, None) is None
    np.testing.assert_array_equal(segment_mask(None, jnp.array([[1, 1, 0]]))[0, 0, 0], [True, True, False])


def test_auto_maps_large_scores_on_cpu_only_without_a_mesh():
    large, small = (8, 512, 4, 64), (8, 32, 4, 64)
    assert choose(large, large) == "mapped" and choose(small, small) == "einsum"
    assert choose((512, 1, 16, 64), (512, 2048, 16, 64)) == "einsum"
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert choose(large, large) == "einsum"

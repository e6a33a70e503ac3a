"""The implementations of attention agree in values and gradients, and masked keys have no influence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.attention import IMPLEMENTATIONS, choose_implementation, prepare
from t5lite.model.attention.bias import BucketBias, SlopeBias
from t5lite.model.attention.dropout import keep_weights
from t5lite.model.attention.mask import Mask

B, T, S, H, K = 2, 10, 12, 3, 8


def random_inputs():
    return [jax.random.normal(jax.random.key(i), (B, length, H, K)) for i, length in enumerate((T, S, S, T))]


def buckets(values=None):
    values = jax.random.normal(jax.random.key(9), (8, H)) if values is None else values
    return BucketBias(values, bidirectional=True, max_distance=16)


def segments():
    queries = jnp.array([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    keys = jnp.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * 12])
    return Mask(queries, keys)


def attend(q, k, v, bias=None, mask=None, *, implementation="einsum", **rest):
    return prepare(implementation, bias, mask, q.shape[:3], k.shape[1])(q, k, v, **rest)


def by_hand(q, k, v, bias, mask, scale):
    """Compute attention for one query at a time, in NumPy and float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    bias = np.zeros((1, H, T, S)) if bias is None else np.asarray(bias.compute(T, S))
    mask = np.broadcast_to(True if mask is None else mask.compute(T, S), (B, 1, T, S))
    y = np.zeros((B, T, H, K))
    for b, t, h in np.ndindex(B, T, H):
        scores = np.where(mask[b, 0, t], k[b, :, h] @ q[b, t, h] * scale + bias[0, h, t], -1e9)
        weights = np.exp(scores - scores.max())
        y[b, t, h] = weights / weights.sum() @ v[b, :, h]
    return y


BIASES = {"none": lambda: None, "buckets": buckets, "slopes": lambda: SlopeBias(H)}
MASKS = {"none": lambda: None, "segments": segments, "padding": lambda: Mask(None, jnp.ones((B, S)).at[0, 7:].set(0)),
         "causal": lambda: Mask(causal=True)}  # fmt: skip
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@implementations
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("bias", "scale"), [("buckets", 1.0), ("slopes", 0.3), ("none", 0.3)])
def test_attention_is_softmax_by_hand(implementation, mask, bias, scale):
    q, k, v, _ = random_inputs()
    bias, mask = BIASES[bias](), MASKS[mask]()
    y = attend(q, k, v, bias, mask, scale=scale, implementation=implementation)
    np.testing.assert_allclose(y, by_hand(q, k, v, bias, mask, scale), atol=1e-5)


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "einsum"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("with_bias", "scale", "dropout"),
    [
        (True, 1.0, 0.3),
        (False, 0.3, 0.0),
        pytest.param(True, 1.0, 0.0, marks=pytest.mark.slow),
        pytest.param(False, 0.3, 0.3, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_equal_those_of_einsum(implementation, mask, with_bias, scale, dropout):
    q, k, v, dy = random_inputs()
    mask, given = MASKS[mask](), [buckets().values] if with_bias else []

    def values_and_gradients(implementation):
        def loss(q, k, v, *given):
            bias = buckets(*given) if given else None
            y = attend(q, k, v, bias, mask, scale=scale, dropout=dropout, key=jax.random.key(4),
                       implementation=implementation)  # fmt: skip
            return jnp.vdot(y, dy), y

        arguments = tuple(range(3 + len(given)))
        gradients, y = jax.jit(jax.grad(loss, arguments, has_aux=True))(q, k, v, *given)
        return y, *gradients

    both = values_and_gradients(implementation), values_and_gradients("einsum")
    for other, einsum in zip(*both, strict=True):
        np.testing.assert_allclose(other, einsum, atol=3e-5)


@implementations
def test_the_dropped_weights_are_those_that_the_hash_names(implementation):
    """With equal scores and a one-hot value for each key, the output shows each weight: 0, or 1 / (S · keep)."""
    rate, key = 0.3, jax.random.key(11)
    zeros, one_hot = jnp.zeros((B, T, H, S)), jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, H, S))
    y_BxTxHxS = attend(zeros, jnp.zeros((B, S, H, S)), one_hot, scale=1.0, dropout=rate, key=key,
                       implementation=implementation)  # fmt: skip
    b, t, h, s = (index.ravel() for index in np.indices((B, T, H, S)))
    kept = np.asarray(keep_weights(key, b, h, t, s, rate)).reshape(B, T, H, S)
    np.testing.assert_allclose(y_BxTxHxS, kept / (S * (1 - rate)), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_dropped_weights_are_the_same_on_every_mesh(sizes):
    batch, heads = 8, 4
    q, k, v = (jax.random.normal(jax.random.key(i), (batch, T, heads, K)) for i in range(3))
    function = jax.jit(lambda q, k, v: attend(q, k, v, scale=1.0, dropout=0.4, key=jax.random.key(4)))
    alone = function(q, k, v)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh):
        spread = function(*(jax.device_put(x, sharding) for x in (q, k, v)))
    np.testing.assert_allclose(spread, alone, atol=1e-6)


@implementations
def test_dropout_keeps_the_mean_and_its_gradient_fits(implementation):
    q, k, v, dy = random_inputs()
    function = jax.jit(lambda v, key: attend(
        q, k, v, buckets(), scale=1.0, dropout=0.25, key=key, implementation=implementation
    ))  # fmt: skip
    many = jax.vmap(lambda key: function(v, key))(jax.random.split(jax.random.key(0), 200)).mean(axis=0)
    plain = attend(q, k, v, buckets(), scale=1.0, implementation=implementation)
    assert np.abs(many - plain).max() < 0.25  # 200 draws; without rescaling, the difference is larger
    assert np.abs(function(v, jax.random.key(0)) - plain).max() > 0.3
    loss = jax.jit(lambda q: jnp.vdot(
        attend(q, k, v, buckets(), scale=1.0, dropout=0.25, key=jax.random.key(3), implementation=implementation), dy
    ))  # fmt: skip
    direction = jax.random.normal(jax.random.key(5), q.shape)
    numeric = (loss(q + 1e-2 * direction) - loss(q - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(q), direction), numeric, rtol=2e-2)


@implementations
def test_rows_of_padding_are_finite_and_padding_is_never_read(implementation):
    q, k, v, dy = random_inputs()
    queries, keys = jnp.zeros((B, T), jnp.int32).at[0, :5].set(1), jnp.zeros((B, S), jnp.int32).at[:, :6].set(1)

    def loss(v):
        y = attend(q, k, v, buckets(), Mask(queries, keys), scale=1.0, implementation=implementation)
        return jnp.vdot(y * (queries > 0)[..., None, None], dy)

    gradient = jax.grad(loss)(v)
    assert np.isfinite(loss(v)) and np.isfinite(gradient).all()
    assert np.abs(gradient[0, 6:]).max() == 0 and np.abs(gradient[1]).max() == 0
    assert np.abs(gradient[0, :6]).min() > 0


def test_causal_mask_with_prefix_and_segments():
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    prefix = jnp.array([[1, 1, 0, 1, 1, 0]], bool)
    mask = Mask(segments, segments, prefix, causal=True).compute(6, 6)[0, 0].astype(int)
    expected = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask, expected)


def test_a_mask_without_segments_is_none_and_one_side_counts_as_one_segment():
    assert Mask().compute(4, 4) is None
    np.testing.assert_array_equal(Mask(None, jnp.array([[1, 1, 0]])).compute(1, 3)[0, 0, 0], [True, True, False])


def test_auto_maps_large_scores_on_cpu_only_without_a_mesh():
    large, small = ((8, 512, 4), 512), ((8, 32, 4), 32)
    assert choose_implementation(*large) == "mapped" and choose_implementation(*small) == "einsum"
    assert choose_implementation((512, 1, 16), 2048) == "einsum"
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert choose_implementation(*large) == "einsum"

"""The blocks of a layer: norms, attention with its cache, feed-forward; and how activations lie on a mesh.

Each block is residual, with its norm before or after:

    pre    x + dropout(block(norm(x)))        (T5, GPT-2, Llama)
    post   norm(x + dropout(block(x)))        (BERT, BART)

`ModelConfig.dropout_at` says at which places a model drops; this dropout is its place "residual".

Kernels are 2-D and applied to 2-D activations: one matrix product, which XLA's CPU backend runs faster than the same
product of more dimensions.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from t5lite.model.attention import attend, attend_cached
from t5lite.model.config import ModelConfig
from t5lite.model.positions import rotate

Array = jax.Array
BATCH = ("data", "fsdp")  # The mesh axes that a batch is spread over.
TENSOR = "tensor"  # The mesh axis of heads, of the feed-forward's hidden width, and of the vocabulary.


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Pin the layout of `x` on the ambient mesh (`jax.set_mesh`), a mesh axis or several for each dimension.

    Does nothing without a mesh. An axis that the mesh lacks, or that does not divide its dimension, is left to XLA.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    usable = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    spec = []
    for size, names in zip(x.shape, axes, strict=True):
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if name in usable)
        divides = size % math.prod(mesh.shape[name] for name in names) == 0
        spec.append((names or None) if divides else PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def embedding_stddev(config: ModelConfig) -> float:
    """T5: 1, with logits scaled where tied. Others: GPT-2's 0.02, so that the first loss is close to ln V."""
    return 1.0 if config.starts_like_t5 else 0.02


def kernel_stddev(config: ModelConfig, name: str) -> float:
    """The standard deviation of a fresh kernel, all normal.

    T5: 1 / sqrt(fan-in), with the missing scale of the scores in the queries (mesh-tensorflow; Hugging Face's
    T5PreTrainedModel at factor 1 is the same). An untied head follows T5X's fan-in; Hugging Face's 1.0 would start at
    a loss far above ln V. Others: GPT-2's 0.02, divided by sqrt(2N) where a block writes to the residual stream.
    """
    writes = name in ("output", "down")
    if not config.starts_like_t5:
        layers = max(config.num_encoder_layers, config.num_decoder_layers)
        return 0.02 * (2 * layers) ** -0.5 if writes else 0.02
    fan_in = {"output": config.num_heads * config.head_dim, "down": config.d_ff}.get(name, config.d_model)
    return (fan_in * config.head_dim) ** -0.5 if name == "query" else fan_in**-0.5


QKV = ("query", "key", "value", "query_key_value")


class Dense(nn.Module):
    """A product with a kernel [in, features] in the compute dtype, plus a bias [features] where the config has one.

    `name` decides the initialisation, and whether "qkv" biases concern it.
    """

    config: ModelConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init, biases = nn.initializers.normal(kernel_stddev(self.config, self.name)), self.config.biases
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(self.config.dtype)
        if biases == "all" or (biases == "qkv" and self.name in QKV):
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.config.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · scale, in float32, returned in the compute dtype (Zhang and Sennrich 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (x * inverse * scale).astype(self.config.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + ε) · scale, plus a bias where all have one; in float32 (Ba et al. 2016)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.config.norm_epsilon) * scale
        if self.config.biases == "all":
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return y.astype(self.config.dtype)


def make_norm(config: ModelConfig, **arguments: Any) -> nn.Module:
    """The norm of all blocks of a model."""
    return {"rms": RMSNorm, "layer": LayerNorm}[config.norm](config, **arguments)


class Attention(nn.Module):
    """Attention of one layer with its norm and residual: self-attention, or cross-attention to `memory`."""

    config: ModelConfig

    def setup(self):
        config = self.config
        self.norm = make_norm(config)
        self.query = Dense(config, config.num_heads * config.head_dim)
        self.key, self.value = (Dense(config, config.kv_heads * config.head_dim) for _ in range(2))
        self.query_key_value = Dense(config, (config.num_heads + 2 * config.kv_heads) * config.head_dim)
        if config.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(config), RMSNorm(config)
        self.output = Dense(config, config.d_model)
        self.drop = nn.Dropout(config.dropout_at("residual"))

    def _heads(self, x_BxTxHK: Array) -> Array:
        x_BxTxHxK = x_BxTxHK.reshape(*x_BxTxHK.shape[:-1], -1, self.config.head_dim)
        return constrain(x_BxTxHxK, BATCH, None, TENSOR, None)

    def _queries(self, q_BxTxHK: Array) -> Array:
        q_BxTxHxK = self._heads(q_BxTxHK)
        return self.query_norm(q_BxTxHxK) if self.config.qk_norm else q_BxTxHxK

    def _keys(self, k_BxSxHK: Array) -> Array:
        k_BxSxHxK = self._heads(k_BxSxHK)
        return self.key_norm(k_BxSxHxK) if self.config.qk_norm else k_BxSxHxK

    def keys_values(self, memory_BxSxD: Array) -> tuple[Array, Array]:
        """Keys and values [B, S, KV heads, K] of what is attended to: of a decoder's memory, they serve all steps."""
        return self._keys(self.key(memory_BxSxD)), self._heads(self.value(memory_BxSxD))

    def _own(self, h_BxTxD: Array) -> tuple[Array, Array, Array]:
        """The tokens' own queries, keys and values [B, T, heads, K]: one product where the parameters are `joined`."""
        if not self.has_variable("params", "query_key_value"):
            return self._queries(self.query(h_BxTxD)), *self.keys_values(h_BxTxD)
        ends = np.cumsum([self.config.num_heads, self.config.kv_heads]) * self.config.head_dim
        q, k, v = jnp.split(self.query_key_value(h_BxTxD), ends, axis=-1)
        return self._queries(q), self._keys(k), self._heads(v)

    def __call__(self, x_BxTxD: Array, bias: Array | None, mask: Array | None, *,
                 keys_values: tuple[Array, Array] | None = None, positions_BxT: Array | None = None,
                 cache: tuple[Array, Array] | None = None, slot: Array | int | None = None,
                 deterministic: bool = True) -> tuple[Array, tuple[Array, Array] | None]:  # fmt: skip
        """Returns x and the cache with its own keys and values. Bias and mask are those of `attend`.

        keys_values: of another sequence, for cross-attention; None is self-attention, for which
        positions_BxT: turn queries and keys (rotary), from 0 where None.
        cache: keys [B, H, K, S] and values [B, H, S, K], of which as many slots are attended to as the mask has; into
        it the tokens' own are written from `slot` on. Without a slot it is another sequence's, and complete.
        """
        config, pre = self.config, self.config.norm_position == "pre"
        h_BxTxD = self.norm(x_BxTxD) if pre else x_BxTxD
        if keys_values is None and (cache is None or slot is not None):
            q_BxTxHxK, k, v = self._own(h_BxTxD)
            if config.positions == "rotary":
                index_BxT = jnp.arange(x_BxTxD.shape[1])[None] if positions_BxT is None else positions_BxT
                q_BxTxHxK, k = (rotate(x, index_BxT, config.rotary_base, config.rotary_scaling) for x in (q_BxTxHxK, k))
        else:
            q_BxTxHxK, (k, v) = self._queries(self.query(h_BxTxD)), keys_values or (None, None)
        if cache is not None:
            cache = cache if slot is None else written(cache, k, v, slot)
            y_BxTxHxK = attend_cached(q_BxTxHxK, *cache, bias, mask, scale=config.score_scale)
        else:
            rate = 0.0 if deterministic else config.dropout_at("attention")
            y_BxTxHxK = attend(q_BxTxHxK, k, v, bias, mask, scale=config.score_scale, dropout=rate,
                               key=self.make_rng("dropout") if rate else None,
                               implementation=config.attention)  # fmt: skip
        y_BxTxD = self.output(y_BxTxHxK.reshape(*y_BxTxHxK.shape[:2], -1))
        y_BxTxD = constrain(self.drop(y_BxTxD, deterministic=deterministic), BATCH, None, None)
        return (x_BxTxD + y_BxTxD if pre else self.norm(x_BxTxD + y_BxTxD)), cache


def as_cached(k_BxSxHxK: Array, v_BxSxHxK: Array) -> tuple[Array, Array]:
    """Keys [B, H, K, S] and values [B, H, S, K], as products with few queries read them without a copy."""
    return (constrain(k_BxSxHxK.transpose(0, 2, 3, 1), BATCH, TENSOR, None, None),
            constrain(v_BxSxHxK.transpose(0, 2, 1, 3), BATCH, TENSOR, None, None))  # fmt: skip


def written(cache: tuple[Array, Array], k_BxTxHxK: Array, v_BxTxHxK: Array, slot: Array | int) -> tuple[Array, Array]:
    """The cache with the keys and values of T tokens from `slot` on.

    All rows write the same slots: in place within a loop, which a scatter to slots of each row is not on CPU.
    """
    update = jax.lax.dynamic_update_slice_in_dim
    (keys, values), (k, v) = cache, as_cached(k_BxTxHxK, v_BxTxHxK)
    return update(keys, k, slot, axis=3), update(values, v, slot, axis=2)


ACTIVATIONS = {
    "geglu": nn.gelu,
    "swiglu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


class MLP(nn.Module):
    """Feed-forward block of one layer with its norm and residual: down(activation(gate x) · up x), or un-gated."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: Array, *, deterministic: bool = True) -> Array:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        norm, pre = make_norm(config, name="norm"), config.norm_position == "pre"
        h_BxTxD = norm(x_BxTxD) if pre else x_BxTxD
        if self.has_variable("params", "gate_up"):  # `joined`
            gate_BxTxF, up_BxTxF = jnp.split(Dense(config, 2 * config.d_ff, name="gate_up")(h_BxTxD), 2, axis=-1)
            h_BxTxF = activation(gate_BxTxF) * up_BxTxF
        elif config.gated:
            up_BxTxF = Dense(config, config.d_ff, name="up")(h_BxTxD)
            h_BxTxF = activation(Dense(config, config.d_ff, name="gate")(h_BxTxD)) * up_BxTxF
        else:
            h_BxTxF = activation(Dense(config, config.d_ff, name="up")(h_BxTxD))
        h_BxTxF = constrain(h_BxTxF, BATCH, None, TENSOR)
        h_BxTxF = nn.Dropout(config.dropout_at("activation"))(h_BxTxF, deterministic=deterministic)
        y_BxTxD = Dense(config, config.d_model, name="down")(h_BxTxF)
        y_BxTxD = nn.Dropout(config.dropout_at("residual"))(y_BxTxD, deterministic=deterministic)
        y_BxTxD = x_BxTxD + constrain(y_BxTxD, BATCH, None, None)
        return y_BxTxD if pre else norm(y_BxTxD)


class Layer(nn.Module):
    """Self-attention, cross-attention where `cross`, feed-forward."""

    config: ModelConfig
    cross: bool

    def setup(self):
        self.self_attention = Attention(self.config)
        if self.cross:
            self.cross_attention = Attention(self.config)
        self.mlp = MLP(self.config)

    def __call__(self, x_BxTxD: Array, bias: Array | None, mask: Array | None, cross_mask: Array | None = None, *,
                 positions_BxT: Array | None = None, memory_BxSxD: Array | None = None,
                 deterministic: bool = True) -> Array:  # fmt: skip
        """Whole sequences: x [B, T, D] after the layer. The masks are those of self- and of cross-attention."""
        x_BxTxD, _ = self.self_attention(x_BxTxD, bias, mask, positions_BxT=positions_BxT, deterministic=deterministic)
        if self.cross:
            keys_values = self.cross_attention.keys_values(memory_BxSxD)
            x_BxTxD, _ = self.cross_attention(x_BxTxD, None, cross_mask, keys_values=keys_values,
                                              deterministic=deterministic)  # fmt: skip
        return self.mlp(x_BxTxD, deterministic=deterministic)

    def extend(self, x_BxTxD: Array, bias: Array | None, mask: Array, cross_mask: Array | None, positions_BxT: Array,
               cache: dict[str, Any], slot: Array | int) -> tuple[Array, dict[str, Any]]:  # fmt: skip
        """Tokens that join the cache {"self": (keys, values), "cross": (keys, values)}: x and the new cache."""
        x_BxTxD, own = self.self_attention(x_BxTxD, bias, mask, positions_BxT=positions_BxT, cache=cache["self"],
                                           slot=slot)  # fmt: skip
        if self.cross:
            x_BxTxD, _ = self.cross_attention(x_BxTxD, None, cross_mask, cache=cache["cross"])
        return self.mlp(x_BxTxD), {**cache, "self": own}

    def cross_keys_values(self, memory_BxSxD: Array) -> tuple[Array, Array]:
        """As a cache holds them: keys [B, H, K, S] and values [B, H, S, K]."""
        return as_cached(*self.cross_attention.keys_values(memory_BxSxD))


def joined(layer: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A decoder layer's parameters for steps: kernels in the compute dtype, and side by side where they read the same
    activations; without those that made cross-attention's keys and values, which the cache holds.

        self_attention/query_key_value in place of query, key, value;  mlp/gate_up in place of gate, up

    A step of few tokens takes as long as its weights take to read, and to begin with each. On a mesh that splits heads
    or hidden width the parts stay apart: each device's share of the whole would not be its share of the parts.
    """
    cast = lambda path, leaf: leaf.astype(config.dtype) if path[-1].key == "kernel" else leaf
    blocks = dict(jax.tree.map_with_path(cast, layer))
    if "cross_attention" in blocks:
        blocks["cross_attention"] = _without(blocks["cross_attention"], ("key", "value", "key_norm"))
    if jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1) == 1:
        blocks["self_attention"] = _side_by_side(blocks["self_attention"], "query_key_value", ("query", "key", "value"))
        if config.gated:
            blocks["mlp"] = _side_by_side(blocks["mlp"], "gate_up", ("gate", "up"))
    return blocks


def _side_by_side(block: dict[str, Any], name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    together = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *(block[part] for part in parts))
    return {**_without(block, parts), name: together}


def _without(block: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in parts}

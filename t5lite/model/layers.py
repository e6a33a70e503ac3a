"""The blocks of a layer: norms, attention with its cache, feed-forward. Also the layout of activations on a mesh.

Each block is residual. Its norm is before or after the block:

    pre    x + dropout(block(norm(x)))        (T5, GPT-2, Llama)
    post   norm(x + dropout(block(x)))        (BERT, BART)

`ModelConfig.dropout_rate(place)` returns the rate of dropout at a place. The dropout above is at the place "residual".

Kernels and activations are 2-D in each product: XLA's CPU backend runs one 2-D product faster than the same product
with more dimensions.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from t5lite.model.attention import Attend
from t5lite.model.config import ModelConfig
from t5lite.model.module import Module
from t5lite.model.positions import rotate

Array = jax.Array
BATCH = ("data", "fsdp")  # the mesh axes of the batch
TENSOR = "tensor"  # the mesh axis of heads, of the feed-forward's hidden width, and of the vocabulary


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Pin the layout of `x` on the ambient mesh (`jax.set_mesh`). axes: for each dimension, one mesh axis or several.

    Without a mesh, return `x` unchanged. Axis names that the mesh does not have are ignored. If the sizes of the other
    axes do not divide a dimension, XLA chooses the layout of this dimension.
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
    """Return the standard deviation of new embeddings.

    T5 has 1, and scales the logits if embeddings are tied. Other models have GPT-2's 0.02, so that the first loss is
    close to ln V.
    """
    return 1.0 if config.starts_like_t5 else 0.02


def kernel_stddev(config: ModelConfig, name: str) -> float:
    """Return the standard deviation of a new kernel. The distribution is normal.

    In T5: 1 / sqrt(fan-in). For queries, this is divided by sqrt(head_dim), because T5 does not scale the scores.
    Sources: mesh-tensorflow, and Hugging Face's T5PreTrainedModel with initializer_factor = 1. An untied head follows
    T5X (1 / sqrt(fan-in)), because Hugging Face's 1.0 gives a first loss far above ln V.

    In other models: GPT-2's 0.02. Kernels that write to the residual stream ("output", "down") are divided by sqrt(2N),
    where N is the number of layers of the deeper stack.
    """
    writes = name in ("output", "down")
    if not config.starts_like_t5:
        layers = max(config.num_encoder_layers, config.num_decoder_layers)
        return 0.02 * (2 * layers) ** -0.5 if writes else 0.02
    fan_in = {"output": config.num_heads * config.head_dim, "down": config.d_ff}.get(name, config.d_model)
    return (fan_in * config.head_dim) ** -0.5 if name == "query" else fan_in**-0.5


QKV = ("query", "key", "value", "query_key_value")


class Dense(Module):
    """A product with a kernel [in, features] in the compute dtype, plus a bias [features] if the config has biases.

    The module's `name` decides the initialisation, and whether the layer has a bias if `biases` is "qkv".
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


class RMSNorm(Module):
    """x / sqrt(mean(x²) + ε) · scale, in float32, returned in the compute dtype (Zhang and Sennrich 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (x * inverse * scale).astype(self.config.dtype)


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + ε) · scale, plus a bias if `biases` is "all"; in float32 (Ba et al. 2016)."""

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
    """Return a new norm of the kind that the config names."""
    return {"rms": RMSNorm, "layer": LayerNorm}[config.norm](config, **arguments)


class Attention(Module):
    """Attention of one layer, with norm and residual: self-attention, or cross-attention to the encoder's output."""

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
        self.drop = nn.Dropout(config.dropout_rate("residual"))

    def _split_heads(self, x_BxTxHK: Array) -> Array:
        x_BxTxHxK = x_BxTxHK.reshape(*x_BxTxHK.shape[:-1], -1, self.config.head_dim)
        return constrain(x_BxTxHxK, BATCH, None, TENSOR, None)

    def _make_queries(self, q_BxTxHK: Array) -> Array:
        q_BxTxHxK = self._split_heads(q_BxTxHK)
        return self.query_norm(q_BxTxHxK) if self.config.qk_norm else q_BxTxHxK

    def _make_keys(self, k_BxSxHK: Array) -> Array:
        k_BxSxHxK = self._split_heads(k_BxSxHK)
        return self.key_norm(k_BxSxHxK) if self.config.qk_norm else k_BxSxHxK

    def keys_values(self, memory_BxSxD: Array) -> tuple[Array, Array]:
        """Return keys and values [B, S, KV heads, K] of the sequence that is attended to."""
        return self._make_keys(self.key(memory_BxSxD)), self._split_heads(self.value(memory_BxSxD))

    def _project_self(self, h_BxTxD: Array) -> tuple[Array, Array, Array]:
        """Return queries, keys and values [B, T, heads, K] of the tokens in `h`. With joined kernels: one product."""
        if not self.has_variable("params", "query_key_value"):
            return self._make_queries(self.query(h_BxTxD)), *self.keys_values(h_BxTxD)
        ends = np.cumsum([self.config.num_heads, self.config.kv_heads]) * self.config.head_dim
        q, k, v = jnp.split(self.query_key_value(h_BxTxD), ends, axis=-1)
        return self._make_queries(q), self._make_keys(k), self._split_heads(v)

    def __call__(self, x_BxTxD: Array, attend: Attend, *,
                 keys_values: tuple[Array, Array] | None = None, positions_BxT: Array | None = None,
                 cache: tuple[Array, Array] | None = None, slot: Array | int | None = None,
                 deterministic: bool = True) -> tuple[Array, tuple[Array, Array] | None]:  # fmt: skip
        """Return x after the block, and the cache. In self-attention, the cache then has the keys and values of x too.

        Args:
          attend: a function that computes attention; bias and mask are bound to it. With a cache, it comes from
            `attention.cached.attend_cached`.
          keys_values: the keys and values of another sequence, for cross-attention. None: self-attention.
          positions_BxT: int32, positions for rotary embeddings in self-attention. None: positions count from 0.
          cache: keys [B, H, K, S], values [B, H, S, K]. The new tokens are written to `slot`, `slot + 1`, ….
          slot: the first slot that the new tokens are written to. None: the cache holds another, complete sequence.
        """
        config, pre = self.config, self.config.norm_position == "pre"
        h_BxTxD = self.norm(x_BxTxD) if pre else x_BxTxD
        if keys_values is None and (cache is None or slot is not None):
            q_BxTxHxK, k, v = self._project_self(h_BxTxD)
            if config.positions == "rotary":
                index_BxT = jnp.arange(x_BxTxD.shape[1])[None] if positions_BxT is None else positions_BxT
                q_BxTxHxK, k = (rotate(x, index_BxT, config.rotary_base, config.rotary_scaling) for x in (q_BxTxHxK, k))
        else:
            q_BxTxHxK, (k, v) = self._make_queries(self.query(h_BxTxD)), keys_values or (None, None)
        if cache is not None:
            cache = cache if slot is None else write_cache(cache, k, v, slot)
            y_BxTxHxK = attend(q_BxTxHxK, *cache, scale=config.score_scale)
        else:
            rate = 0.0 if deterministic else config.dropout_rate("attention")
            y_BxTxHxK = attend(q_BxTxHxK, k, v, scale=config.score_scale, dropout=rate,
                               key=self.make_rng("dropout") if rate else None)  # fmt: skip
        y_BxTxD = self.output(y_BxTxHxK.reshape(*y_BxTxHxK.shape[:2], -1))
        y_BxTxD = constrain(self.drop(y_BxTxD, deterministic=deterministic), BATCH, None, None)
        return (x_BxTxD + y_BxTxD if pre else self.norm(x_BxTxD + y_BxTxD)), cache


def arrange_for_cache(k_BxSxHxK: Array, v_BxSxHxK: Array) -> tuple[Array, Array]:
    """Return keys [B, H, K, S] and values [B, H, S, K]: products with few queries read this layout without a copy."""
    return (constrain(k_BxSxHxK.transpose(0, 2, 3, 1), BATCH, TENSOR, None, None),
            constrain(v_BxSxHxK.transpose(0, 2, 1, 3), BATCH, TENSOR, None, None))  # fmt: skip


def write_cache(
    cache: tuple[Array, Array], k_BxTxHxK: Array, v_BxTxHxK: Array, slot: Array | int
) -> tuple[Array, Array]:
    """Return the cache with the keys and values of T tokens at `slot`, …, `slot + T - 1`.

    All rows write to the same slots. XLA does such a write in place in a loop. On a CPU, a scatter to different slots
    copies the cache.
    """
    update = jax.lax.dynamic_update_slice_in_dim
    (keys, values), (k, v) = cache, arrange_for_cache(k_BxTxHxK, v_BxTxHxK)
    return update(keys, k, slot, axis=3), update(values, v, slot, axis=2)


ACTIVATIONS = {
    "geglu": nn.gelu,
    "swiglu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


class MLP(Module):
    """Feed-forward, norm and residual. Gated: down(activation(gate x) · up x); else down(activation(up x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: Array, *, deterministic: bool = True) -> Array:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        norm, pre = make_norm(config, name="norm"), config.norm_position == "pre"
        h_BxTxD = norm(x_BxTxD) if pre else x_BxTxD
        if self.has_variable("params", "gate_up"):  # parameters from `join_kernels`
            gate_BxTxF, up_BxTxF = jnp.split(Dense(config, 2 * config.d_ff, name="gate_up")(h_BxTxD), 2, axis=-1)
            h_BxTxF = activation(gate_BxTxF) * up_BxTxF
        elif config.gated:
            up_BxTxF = Dense(config, config.d_ff, name="up")(h_BxTxD)
            h_BxTxF = activation(Dense(config, config.d_ff, name="gate")(h_BxTxD)) * up_BxTxF
        else:
            h_BxTxF = activation(Dense(config, config.d_ff, name="up")(h_BxTxD))
        h_BxTxF = constrain(h_BxTxF, BATCH, None, TENSOR)
        h_BxTxF = nn.Dropout(config.dropout_rate("activation"))(h_BxTxF, deterministic=deterministic)
        y_BxTxD = Dense(config, config.d_model, name="down")(h_BxTxF)
        y_BxTxD = nn.Dropout(config.dropout_rate("residual"))(y_BxTxD, deterministic=deterministic)
        y_BxTxD = x_BxTxD + constrain(y_BxTxD, BATCH, None, None)
        return y_BxTxD if pre else norm(y_BxTxD)


class Layer(Module):
    """One layer: self-attention, cross-attention if `cross` is True, and feed-forward."""

    config: ModelConfig
    cross: bool

    def setup(self):
        self.self_attention = Attention(self.config)
        if self.cross:
            self.cross_attention = Attention(self.config)
        self.mlp = MLP(self.config)

    def __call__(self, x_BxTxD: Array, attend: Attend, cross_attend: Attend | None = None, *,
                 positions_BxT: Array | None = None, memory_BxSxD: Array | None = None,
                 deterministic: bool = True) -> Array:  # fmt: skip
        """Return x [B, T, D] after the layer, for whole sequences.

        attend: computes self-attention. cross_attend: computes cross-attention. Bias and mask are bound to both.
        """
        x_BxTxD, _ = self.self_attention(x_BxTxD, attend, positions_BxT=positions_BxT, deterministic=deterministic)
        if self.cross:
            keys_values = self.cross_attention.keys_values(memory_BxSxD)
            x_BxTxD, _ = self.cross_attention(x_BxTxD, cross_attend, keys_values=keys_values,
                                              deterministic=deterministic)  # fmt: skip
        return self.mlp(x_BxTxD, deterministic=deterministic)

    def extend(self, x_BxTxD: Array, attend: Attend, cross_attend: Attend | None, positions_BxT: Array,
               cache: dict[str, Any], slot: Array | int) -> tuple[Array, dict[str, Any]]:  # fmt: skip
        """Return x after the layer for new tokens, and the cache {"self": …, "cross": …} with these tokens added."""
        x_BxTxD, self_cache = self.self_attention(x_BxTxD, attend, positions_BxT=positions_BxT, cache=cache["self"],
                                           slot=slot)  # fmt: skip
        if self.cross:
            x_BxTxD, _ = self.cross_attention(x_BxTxD, cross_attend, cache=cache["cross"])
        return self.mlp(x_BxTxD), {**cache, "self": self_cache}

    def cross_keys_values(self, memory_BxSxD: Array) -> tuple[Array, Array]:
        """Return keys [B, H, K, S] and values [B, H, S, K], as a cache holds them."""
        return arrange_for_cache(*self.cross_attention.keys_values(memory_BxSxD))


def join_kernels(layer: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Return a decoder layer's parameters for steps of generation.

        self_attention/query_key_value in place of query, key, value;  mlp/gate_up in place of gate, up

    All kernels are cast to the compute dtype. Kernels with the same input are concatenated along their last axis. The
    kernels for cross-attention's keys and values are removed, because the cache already holds these keys and values.
    A step with few tokens is limited by memory: its time is that of reading the weights, plus a fixed cost for each
    read. If the mesh splits heads or hidden width, kernels are not concatenated: a device's part of the joined
    kernel would not be made of the device's parts of the single kernels.
    """
    cast = lambda path, leaf: leaf.astype(config.dtype) if path[-1].key == "kernel" else leaf
    blocks = dict(jax.tree.map_with_path(cast, layer))
    if "cross_attention" in blocks:
        blocks["cross_attention"] = _remove_parts(blocks["cross_attention"], ("key", "value", "key_norm"))
    if jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1) == 1:
        blocks["self_attention"] = _concatenate_kernels(
            blocks["self_attention"], "query_key_value", ("query", "key", "value")
        )
        if config.gated:
            blocks["mlp"] = _concatenate_kernels(blocks["mlp"], "gate_up", ("gate", "up"))
    return blocks


def _concatenate_kernels(block: dict[str, Any], name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *(block[part] for part in parts))
    return {**_remove_parts(block, parts), name: joined}


def _remove_parts(block: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in parts}

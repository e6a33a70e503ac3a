"""The layers of an encoder or a decoder, with the operations before and after them, and the cache of a decoder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from t5lite.model.attention import prepare
from t5lite.model.attention.bias import Bias, SlopeBias
from t5lite.model.attention.cached import attend_cached
from t5lite.model.attention.mask import Mask
from t5lite.model.config import ModelConfig
from t5lite.model.layers import Layer, embedding_stddev, join_kernels, make_norm
from t5lite.model.module import Module
from t5lite.model.positions import LearnedPositions, RelativeBias, sinusoids
from t5lite.system.errors import UserError

Array = jax.Array


@flax.struct.dataclass
class Cache:
    """The keys and values that a decoder keeps between steps. Each token has a slot; a slot is not a position.

    A slot can belong to one of several beams of its row. In one step, all rows write the same slots, although the
    lengths of their prompts differ.

    layers: for each layer {"self": (keys [B, H, K, S], values [B, H, S, K])}. An encoder-decoder also has "cross", with
        L in place of S.
    positions: int32 [B, S], the position of the token in each slot; [1, S] if all rows have the same positions. S may
        be larger than the present number of slots; see `grow`.
    memory_segment_ids: [B, L], 0 at the encoder's padding; or None.
    """

    layers: tuple[dict[str, Any], ...]
    positions: Array
    memory_segment_ids: Array | None = None

    @property
    def slots(self) -> int:
        return self.layers[0]["self"][0].shape[-1]

    def grow(self, slots: int) -> "Cache":
        """Return the cache with `slots` slots. The new slots are empty."""
        more = slots - self.slots
        pad = lambda x, axis: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
        layers = tuple({**layer, "self": (pad(layer["self"][0], 3), pad(layer["self"][1], 2))} for layer in self.layers)
        return self.replace(layers=layers)


class Stack(Module):
    """The layers of an encoder or a decoder, with the norm after the last layer."""

    config: ModelConfig
    num_layers: int
    causal: bool
    cross: bool

    def setup(self):
        config = self.config
        if config.positions == "relative_bias":
            self.relative_bias = RelativeBias(config.num_heads, bidirectional=not self.causal,
                                              buckets=config.relative_buckets,
                                              max_distance=config.relative_max_distance,
                                              stddev=config.d_model**-0.5)  # fmt: skip
        elif config.positions == "learned":
            self.position_embedding = LearnedPositions(config.max_positions, config.position_offset, config.d_model,
                                                       embedding_stddev(config))  # fmt: skip
        if config.embedding_norm:
            self.embedding_norm = make_norm(config)
        if config.norm_position == "pre":
            self.final_norm = make_norm(config)
        self.drop_embedding = nn.Dropout(config.dropout_rate("embedding"))
        self.drop_final = nn.Dropout(config.dropout_rate("final"))
        self.layer = Layer(config, cross=self.cross, parent=None)
        self.layers = self.param("layers", self._init_layers)

    def _init_layers(self, key: Array) -> Any:
        x_1x1xD = jnp.zeros((1, 1, self.config.d_model), self.config.dtype)

        def init_one(key):
            attend = prepare("einsum", None, None, (1, 1, self.config.num_heads), 1)
            memory = x_1x1xD if self.cross else None
            return self.layer.init(key, x_1x1xD, attend, attend, memory_BxSxD=memory)["params"]

        return jax.vmap(init_one)(jax.random.split(key, self.num_layers))

    def __call__(self, x_BxTxD: Array, *, segment_ids: Array | None = None, positions: Array | None = None,
                 prefix_mask: Array | None = None, memory_BxSxD: Array | None = None,
                 memory_segment_ids: Array | None = None, deterministic: bool = True) -> Array:  # fmt: skip
        """Return [B, T, D] for whole sequences. memory_BxSxD: the encoder's output. Other arguments: see Batch."""
        config, (batch, length, _) = self.config, x_BxTxD.shape
        self._check_length(length)
        queries = batch, length, config.num_heads
        mask = Mask(segment_ids, segment_ids, prefix_mask, causal=self.causal)
        attend = prepare(config.attention, self._make_bias(), mask, queries, length)
        cross_attend = None
        if self.cross:
            mask = Mask(segment_ids, memory_segment_ids)
            cross_attend = prepare(config.attention, None, mask, queries, memory_BxSxD.shape[1])

        def layer(params, key, x_BxTxD):
            rngs = None if key is None else {"dropout": key}
            return self.layer.apply({"params": params}, x_BxTxD, attend, cross_attend, positions_BxT=positions,
                                    memory_BxSxD=memory_BxSxD, deterministic=deterministic, rngs=rngs)  # fmt: skip

        if self.config.remat == "full":
            layer = jax.checkpoint(layer, prevent_cse=not self.config.scan_layers)
        needs_key = config.dropout_by_place and not deterministic
        keys = jax.random.split(self.make_rng("dropout"), self.num_layers) if needs_key else None
        x_BxTxD = self._prepare_input(x_BxTxD, jnp.arange(length) if positions is None else positions)
        x_BxTxD = self._apply_layers(layer, keys, self.drop_embedding(x_BxTxD, deterministic=deterministic))
        return self.drop_final(self._apply_final_norm(x_BxTxD), deterministic=deterministic)

    def _prepare_input(self, x_BxTxD: Array, positions: Array) -> Array:
        """Return the input of the first layer: the embedded tokens, with positions added and the norm applied.

        Only learned and sinusoidal positions are added. There is a norm only with `embedding_norm`. positions: [T] or
        [B, T].
        """
        config = self.config
        if config.positions == "learned":
            x_BxTxD = x_BxTxD + self.position_embedding(positions).astype(config.dtype)
        elif config.positions == "sinusoidal":
            x_BxTxD = x_BxTxD + sinusoids(positions, config.d_model).astype(config.dtype)
        return self.embedding_norm(x_BxTxD) if config.embedding_norm else x_BxTxD

    def _apply_final_norm(self, x_BxTxD: Array) -> Array:
        return self.final_norm(x_BxTxD) if self.config.norm_position == "pre" else x_BxTxD

    def _check_length(self, length: int) -> None:
        """Raise UserError if `length` tokens are more than `max_positions`.

        Learned positions have only this many rows. With other positions, `max_positions` is the window of a released
        model with sliding attention.
        """
        limit = self.config.max_positions
        if limit is not None and length > limit:
            side = "decoder" if self.causal else "encoder"
            has = "has learned positions for" if self.config.positions == "learned" else "reads at most"
            raise UserError(f"the {side} would read {length} tokens, but it {has} {limit}: "
                            "model.max_positions; shorten objective.inputs_length")  # fmt: skip

    def _make_bias(self) -> Bias | None:
        """Return the bias on the scores of self-attention. All layers have the same bias."""
        if self.config.positions == "relative_bias":
            return self.relative_bias()
        return SlopeBias(self.config.num_heads) if self.config.positions == "alibi" else None

    def extend(self, x_BxTxD: Array, cache: Cache, positions_BxT: Array, slot: Array | int, visible_BxTxS: Array,
               layers: Sequence[Any] | None) -> tuple[Array, Cache]:  # fmt: skip
        """Return [B, T, D] for new tokens, and the cache with these tokens added; see `Transformer.extend`.

        The layers are always unrolled here, because a scan would copy every layer's cache at every step.
        """
        keys_BxS, bias = cache.positions[:, : visible_BxTxS.shape[-1]], self._make_bias()
        bias = None if bias is None else bias.compute_at_positions(positions_BxT, keys_BxS)
        attend = functools.partial(attend_cached, bias=bias, mask=visible_BxTxS[:, None])
        cross_attend = None
        if self.cross:
            mask = Mask(None, cache.memory_segment_ids).compute(x_BxTxD.shape[1], cache.layers[0]["cross"][0].shape[-1])
            cross_attend = functools.partial(attend_cached, mask=mask)
        x_BxTxD, extended = self._prepare_input(x_BxTxD, positions_BxT), []
        for params, old in zip(layers or _unstack(self.layers, self.num_layers), cache.layers, strict=True):
            x_BxTxD, new = self.layer.apply({"params": params}, x_BxTxD, attend, cross_attend, positions_BxT, old,
                                            slot, method=Layer.extend)  # fmt: skip
            extended.append(new)
        return self._apply_final_norm(x_BxTxD), cache.replace(layers=tuple(extended))

    def join_kernels(self) -> list[Any]:
        """Return each layer's parameters as `layers.join_kernels` arranges them."""
        return [join_kernels(layer, self.config) for layer in _unstack(self.layers, self.num_layers)]

    def cross_keys_values(self, memory_BxSxD: Array) -> list[tuple[Array, Array]]:
        """Return keys [B, H, K, S] and values [B, H, S, K] of the encoder's output for each layer."""
        return [self.layer.apply({"params": params}, memory_BxSxD, method=Layer.cross_keys_values)
                for params in _unstack(self.layers, self.num_layers)]  # fmt: skip

    def _apply_layers(self, layer: Callable, keys: Array | None, x: Array) -> Array:
        """Apply layer(params, key, x) for each layer. Parameters and PRNG keys are stacked over layers."""
        if self.config.scan_layers:
            return jax.lax.scan(lambda x, each: (layer(*each, x), None), x, (self.layers, keys))[0]
        for params, key in _unstack((self.layers, keys), self.num_layers):
            x = layer(params, key, x)
        return x


def _unstack(tree: Any, length: int) -> list[Any]:
    """Return `length` trees with the slices of every leaf. The gradient of `split` is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part.squeeze(0) for part in jax.lax.split(leaf, (1,) * length)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[i] for part in parts]) for i in range(length)]

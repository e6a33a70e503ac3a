"""One `Transformer` for encoder-decoders, decoders and encoders. The numbers of layers decide the architecture.

    model = Transformer(config)
    params = model.init(key, batch)["params"]
    logits = model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key})

The parameters are all float32. The parameters of layers are stacked: their first axis has the N layers. Lines name the
settings with which a parameter exists:

    token_embedding/embedding [V, D]
    lm_head/kernel [D, V]                                               (untied only)
    lm_head/bias [V]                                                    (logits_bias only)
    token_type_embedding/embedding [types, D]                           (token_types only)
    encoder/relative_bias/embedding [buckets, H]                        (relative_bias only, shared by the layers)
    encoder/position_embedding/embedding [offset + max_positions, D]    (learned only)
    encoder/embedding_norm/scale [D]                                    (embedding_norm only)
    encoder/layers/self_attention/{norm/scale, query/kernel, key/kernel, value/kernel, output/kernel}
    encoder/layers/self_attention/{query_norm, key_norm}/scale [N, K]   (qk_norm only)
    encoder/layers/mlp/{norm/scale, gate/kernel, up/kernel, down/kernel}            (gate: gated activations only)
    encoder/final_norm/scale [D]                                        (pre-norm only)
    decoder/…  as encoder/…, and decoder/layers/cross_attention/…       (encoder-decoder only)
    mlm_transform/{dense/kernel [D, D], norm/scale}                     (mlm_transform; encoder only)
    pooler/kernel [D, D]                                                (a head for the whole example; not on a decoder)
    HEAD/kernel [D, outputs of the head]                                (heads other than the vocabulary)
    …/bias, for each kernel and for the scale of each layer norm        (biases)

For generation, call `encode` once, then `start_cache`. Then call `extend` with a prompt, or with one token of each beam
at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5lite.model.config import ModelConfig
from t5lite.model.layers import (
    ACTIVATIONS,
    BATCH,
    TENSOR,
    Dense,
    arrange_for_cache,
    constrain,
    embedding_stddev,
    kernel_stddev,
    make_norm,
)
from t5lite.model.module import Module
from t5lite.model.stack import Cache, Stack
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import VOCABULARY

Array = jax.Array


class StepWeights(NamedTuple):
    """Parameters in the layout that `extend` and `logits` read fastest, for a few tokens at a time.

    layers: the layers of the decoder, one tree for each layer, with joined kernels (`layers.join_kernels`).
    vocabulary_DxV: the kernel of the logits. All kernels are in the compute dtype.
    """

    layers: list[Any]
    vocabulary_DxV: Array


class Transformer(Module):
    """The whole model. Call its methods by `model.apply({"params": params}, …, method=…)`."""

    config: ModelConfig

    def setup(self):
        config = self.config
        embed_init = nn.initializers.normal(embedding_stddev(config))
        self.token_embedding = nn.Embed(config.vocab_size, config.d_model, embedding_init=embed_init)
        if config.token_types:
            self.token_type_embedding = nn.Embed(config.token_types, config.d_model, embedding_init=embed_init)
        if config.num_encoder_layers:
            self.encoder = Stack(config, config.num_encoder_layers, causal=False, cross=False)
        if config.num_decoder_layers:
            self.decoder = Stack(config, config.num_decoder_layers, causal=True, cross=bool(config.num_encoder_layers))
        heads, init, biased = (
            config.heads,
            nn.initializers.normal(kernel_stddev(config, "lm_head")),
            config.biases == "all",
        )
        if heads.vocabulary and (config.logits_bias or not config.tie_embeddings):
            self.lm_head = Head(None if config.tie_embeddings else config.d_model, config.vocab_size, init,
                                config.logits_bias)  # fmt: skip
        if config.mlm_transform:
            self.mlm_transform = HeadTransform(config)
        if self._has_pooler:
            self.pooler = Dense(config, config.d_model)
        self.drop_head = nn.Dropout(config.dropout_rate("head"))
        for head in heads.others:
            setattr(self, head.name, Head(config.d_model, head.size, init, biased))

    @property
    def _has_pooler(self) -> bool:
        return self.config.heads.pooled and bool(self.config.num_encoder_layers)

    def _embed(self, tokens_BxT: Array, token_types_BxT: Array | None = None) -> Array:
        x_BxTxD = self.token_embedding.embedding[tokens_BxT].astype(self.config.dtype)
        if self.config.scale_embeddings:
            x_BxTxD = x_BxTxD * self.config.d_model**0.5
        if self.config.token_types:
            embedding = self.token_type_embedding.embedding.astype(self.config.dtype)
            if token_types_BxT is None:
                x_BxTxD = x_BxTxD + embedding[0]
            else:  # The gradient of a lookup would be slow: it adds one token at a time to each of the few rows.
                x_BxTxD = (
                    x_BxTxD + jax.nn.one_hot(token_types_BxT, self.config.token_types, dtype=x_BxTxD.dtype) @ embedding
                )
        return constrain(x_BxTxD, BATCH, None, None)

    def __call__(self, batch: Batch, *, deterministic: bool = True) -> Array | None:
        """Return the logits of the vocabulary, float32. None if the model has no head for the vocabulary.

        The shape is [B, T, V] for a decoder, [B, L, V] for an encoder, and [B, P, V] if the batch has `predicted`.
        """
        return self.outputs(batch, deterministic=deterministic).get(VOCABULARY)

    def outputs(self, batch: Batch, *, deterministic: bool = True) -> dict[str, Array]:
        """Return {head: logits} of all heads, float32. For "vocabulary", see `__call__`; others: [B, L, C] or [B, C].

        A head for each token reads the encoder's output, or a decoder's. A head for the whole example reads one place:

            encoder            the first token, then a dense layer and tanh, as in BERT
            encoder-decoder    the decoder's first token, then a dense layer and tanh, as in BART's classifier
            decoder            the last token that is not padding

        If the batch has `answer_places` [B, P], the head reads these P places instead, and its logits are [B, P, C].
        """
        memory_BxLxD, hidden_BxTxD = self._run(batch, deterministic)
        heads, answers = self.config.heads, {}
        if heads.vocabulary:
            selected = hidden_BxTxD
            if batch.predicted is not None:
                selected = jnp.take_along_axis(hidden_BxTxD, batch.predicted[..., None], axis=1)
            answers[VOCABULARY] = self.logits(selected)
        if heads.pooled:
            pooled_BxD = self._pool(hidden_BxTxD, batch)
        tokens_BxLxD = hidden_BxTxD if memory_BxLxD is None else memory_BxLxD
        for head in heads.others:
            features = tokens_BxLxD if head.each == "token" else pooled_BxD
            features = self.drop_head(features, deterministic=deterministic) if head.dropout else features
            answers[head.name] = self._apply_head(features, getattr(self, head.name))
        return answers

    def _pool(self, hidden_BxTxD: Array, batch: Batch) -> Array:
        """Return what a head for the whole example reads, [B, D], or [B, P, D] with `answer_places`."""
        if batch.answer_places is not None:
            pooled = jnp.take_along_axis(hidden_BxTxD, batch.answer_places[..., None], axis=1)
        elif self._has_pooler:
            pooled = hidden_BxTxD[:, 0]
        else:
            pooled = _select_last(hidden_BxTxD, batch.targets_segment_ids)
        return jnp.tanh(self.pooler(pooled)) if self._has_pooler else pooled

    def hidden(self, batch: Batch, *, deterministic: bool = True) -> Array:
        """Return the hidden states before the logits, [B, T, D] in the compute dtype.

        A loss can use them to compute only a part of the logits at a time.
        """
        return self._run(batch, deterministic)[1]

    def _run(self, batch: Batch, deterministic: bool) -> tuple[Array | None, Array]:
        """Return (the encoder's output, the last stack's output). A decoder alone has no encoder's output: None."""
        memory = None
        if self.config.num_encoder_layers:
            memory = self.encode(batch.inputs, batch.inputs_segment_ids, batch.inputs_positions,
                                 token_types=batch.token_types, deterministic=deterministic)  # fmt: skip
            if not self.config.num_decoder_layers:
                return memory, memory
        hidden = self.decoder(self._embed(batch.decoder_inputs), segment_ids=batch.targets_segment_ids,
                              positions=batch.targets_positions, prefix_mask=batch.prefix_mask, memory_BxSxD=memory,
                              memory_segment_ids=batch.inputs_segment_ids, deterministic=deterministic)  # fmt: skip
        return memory, hidden

    def logits(self, hidden_BxTxD: Array, vocabulary_DxV: Array | None = None) -> Array:
        """Return float32 logits [B, T, V] for hidden states [B, T, D], or [B, V] for [B, D]. Products sum in float32.

        vocabulary_DxV: see `step_weights`.
        """
        if self.config.mlm_transform:
            hidden_BxTxD = self.mlm_transform(hidden_BxTxD)
        config = self.config
        if config.logit_scale != 1.0:
            hidden_BxTxD = hidden_BxTxD * config.logit_scale
        if vocabulary_DxV is not None:
            logits = self._project(hidden_BxTxD, vocabulary_DxV)
        elif config.tie_embeddings:
            logits = self._project(hidden_BxTxD, self.token_embedding.embedding, transposed=True)
        else:
            logits = self._project(hidden_BxTxD, self.lm_head.kernel)
        if config.logits_bias:
            logits = logits + self.lm_head.bias
        if config.logits_soft_cap is not None:
            logits = config.logits_soft_cap * jnp.tanh(logits / config.logits_soft_cap)
        return constrain(logits, BATCH, *(None,) * (logits.ndim - 2), TENSOR)

    def _apply_head(self, x: Array, head: "Head") -> Array:
        logits = self._project(x, head.kernel)
        return logits + head.bias if head.biased else logits

    def _project(self, x: Array, kernel: Array, transposed: bool = False) -> Array:
        """Return float32 [..., C]: x [..., D] times a kernel [D, C], or [C, D] if transposed, as one 2-D product."""
        dtype, (*lead, d_model) = self.config.dtype, x.shape
        contract = ((1,), (1 if transposed else 0,))
        y = jax.lax.dot_general(x.reshape(-1, d_model).astype(dtype), kernel.astype(dtype), (contract, ((), ())),
                                preferred_element_type=jnp.float32)  # fmt: skip
        return y.reshape(*lead, -1)

    def encode(self, inputs: Array, segment_ids: Array | None = None, positions: Array | None = None, *,
               token_types: Array | None = None, deterministic: bool = True) -> Array:  # fmt: skip
        """Return the encoder's output [B, L, D]. The arguments are [B, L], as in a Batch."""
        return self.encoder(self._embed(inputs, token_types), segment_ids=segment_ids, positions=positions,
                            deterministic=deterministic)  # fmt: skip

    def start_cache(self, batch: int, positions_BxS: Array, memory_BxSxD: Array | None = None,
                    memory_segment_ids: Array | None = None, slots: int | None = None) -> Cache:  # fmt: skip
        """Return an empty cache for `batch` rows.

        Args:
          positions_BxS: int32 [B, S] or [1, S], the position of each slot.
          memory_BxSxD: the encoder's output. Its keys and values are computed here.
          slots: the number of slots at the start. None: S.
        """
        config = self.config
        zeros = jnp.zeros((batch, slots or positions_BxS.shape[1], config.kv_heads, config.head_dim), config.dtype)
        layers = [{"self": arrange_for_cache(zeros, zeros)} for _ in range(config.num_decoder_layers)]
        if config.num_encoder_layers:
            cross = self.decoder.cross_keys_values(memory_BxSxD)
            layers = [{**layer, "cross": pair} for layer, pair in zip(layers, cross, strict=True)]
        return Cache(tuple(layers), positions_BxS, memory_segment_ids)

    def extend(self, tokens_BxT: Array, cache: Cache, slot: Array | int, visible_BxTxS: Array,
               layers: Sequence[Any] | None = None) -> tuple[Array, Cache]:  # fmt: skip
        """Return the decoder's hidden states [B, T, D] for new tokens, and the cache with these tokens added.

        Args:
          slot: the tokens are written to `slot`, …, `slot + T - 1`.
          visible_BxTxS: bool, the slots that each token sees, with its own slot; B may be 1. Attention sees only the
            first S slots.
          layers: see `step_weights`.
        """
        positions_BxT = jax.lax.dynamic_slice_in_dim(cache.positions, slot, tokens_BxT.shape[1], axis=1)
        return self.decoder.extend(self._embed(tokens_BxT), cache, positions_BxT, slot, visible_BxTxS, layers)

    def step_weights(self) -> StepWeights:
        """Return the weights for many steps. Call it once: it copies the parameters, which are stacked over layers."""
        kernel = self.token_embedding.embedding.T if self.config.tie_embeddings else self.lm_head.kernel
        return StepWeights(self.decoder.join_kernels(), kernel.astype(self.config.dtype))


def _select_last(x_BxTxD: Array, segment_ids_BxT: Array | None) -> Array:
    """Return [B, D]: the last place of each row that is not padding."""
    if segment_ids_BxT is None:
        return x_BxTxD[:, -1]
    last_B = jnp.maximum(jnp.sum(segment_ids_BxT > 0, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.take_along_axis(x_BxTxD, last_B[:, None, None], axis=1)[:, 0]


@functools.lru_cache(16)
def parameter_shapes(config: ModelConfig) -> Any:
    """Return the tree of a model's parameters. Each leaf is a jax.ShapeDtypeStruct."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = Batch(targets=ids, weights=ids, inputs=ids if config.num_encoder_layers else None,
                  decoder_inputs=ids if config.num_decoder_layers else None)  # fmt: skip
    key = jax.eval_shape(jax.random.key, 0)  # abstract, because a real key would start JAX
    scanned_config = dataclasses.replace(
        config, scan_layers=True
    )  # a scan traces only one layer, and has the same parameters
    return jax.eval_shape(Transformer(scanned_config).init, key, batch)["params"]


def num_parameters(config: ModelConfig) -> int:
    """Return the number of trained parameters, embeddings included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(config)))


class HeadTransform(Module):
    """The block between an encoder and its vocabulary head: dense, activation, norm (Devlin et al. 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> Array:
        activation = ACTIVATIONS[self.config.activation]
        x_BxLxD = activation(Dense(self.config, self.config.d_model, name="dense")(x_BxLxD))
        return make_norm(self.config, name="norm")(x_BxLxD)


class Head(Module):
    """The parameters of an output projection: kernel [D, C], and bias [C] if `biased`. If d_model is None: no kernel.

    The methods of Transformer apply the parameters.
    """

    d_model: int | None
    features: int
    init_fn: Callable
    biased: bool = False

    def setup(self):
        if self.d_model is not None:
            self.kernel = self.param("kernel", self.init_fn, (self.d_model, self.features), jnp.float32)
        if self.biased:
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

"""One `Transformer` for encoder-decoders, decoders and encoders: which it is follows from its numbers of layers.

    model = Transformer(config)
    params = model.init(key, batch)["params"]
    logits = model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key})

Parameters, all float32; kernels of a stack carry the layers N in front, whether the program scans or unrolls them:

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
    decoder/…  the same, and decoder/layers/cross_attention/…  (encoder-decoder only)
    mlm_transform/{dense/kernel [D, D], norm/scale}                     (an encoder's, before the vocabulary)
    pooler/kernel [D, D], next_sentence/kernel [D, 2] or classifier/kernel [D, classes], tagger/kernel [D, tags]
    …/bias beside a kernel, and beside the scale of a layer norm        (biases)

For generation: `encode` once, `start_cache`, then `extend` by a prompt, or by a token of each beam at a time.
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
    as_cached,
    constrain,
    embedding_stddev,
    kernel_stddev,
    make_norm,
)
from t5lite.model.stack import Cache, Stack
from t5lite.objectives.batch import Batch

Array = jax.Array


class Outputs(NamedTuple):
    """Logits, float32. tokens: [B, T, V], of a tagger [B, L, tags], None on a classifier. labels: [B, classes], of the
    whole example; None where nothing is asked of it.
    """

    tokens: Array | None
    labels: Array | None


class StepWeights(NamedTuple):
    """Parameters as `extend` and `logits` read them fastest, a few tokens at a time: layers, of the decoder, each apart
    and with its kernels side by side (`layers.joined`); vocabulary_DxV. Kernels are in the compute dtype.
    """

    layers: list[Any]
    vocabulary_DxV: Array


class Transformer(nn.Module):
    """The whole model. Every method runs through `model.apply({"params": params}, …, method=…)`."""

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
        if heads.tagger:
            self.tagger = Head(config.d_model, heads.tagger, init, biased)
        if heads.classes:
            self.pooler = Dense(config, config.d_model)
        self.drop_head = nn.Dropout(config.dropout_at("head"))
        if heads.next_sentence:
            self.next_sentence = Head(config.d_model, 2, init, biased)
        if heads.classifier:
            self.classifier = Head(config.d_model, heads.classifier, init, biased)

    def _embed(self, tokens_BxT: Array, token_types_BxT: Array | None = None) -> Array:
        x_BxTxD = self.token_embedding.embedding[tokens_BxT].astype(self.config.dtype)
        if self.config.scale_embeddings:
            x_BxTxD = x_BxTxD * self.config.d_model**0.5
        if self.config.token_types:
            embedding = self.token_type_embedding.embedding.astype(self.config.dtype)
            if token_types_BxT is None:
                x_BxTxD = x_BxTxD + embedding[0]
            else:  # A product, because the gradient of looking up in so few rows would add to one of them in turns.
                x_BxTxD = (
                    x_BxTxD + jax.nn.one_hot(token_types_BxT, self.config.token_types, dtype=x_BxTxD.dtype) @ embedding
                )
        return constrain(x_BxTxD, BATCH, None, None)

    def __call__(self, batch: Batch, *, deterministic: bool = True) -> Array | None:
        """Logits float32 [B, T, V] of the decoder, [B, L, V] of an encoder alone, or [B, P, V] of the places that the
        batch names: the tokens' of `outputs`.
        """
        return self.outputs(batch, deterministic=deterministic).tokens

    def outputs(self, batch: Batch, *, deterministic: bool = True) -> Outputs:
        """All that the config's heads answer. That of the whole example is BERT's: tanh of a dense layer on the first
        token, and then a head.
        """
        hidden_BxTxD, heads = self.hidden(batch, deterministic=deterministic), self.config.heads
        tokens = labels = None
        if heads.vocabulary:
            wanted = hidden_BxTxD
            if batch.predicted is not None:
                wanted = jnp.take_along_axis(hidden_BxTxD, batch.predicted[..., None], axis=1)
            tokens = self.logits(wanted)
        elif heads.tagger:
            tokens = self._answer(self.drop_head(hidden_BxTxD, deterministic=deterministic), self.tagger)
        if heads.classes:
            pooled_BxD = jnp.tanh(self.pooler(hidden_BxTxD[:, 0]))
        if heads.next_sentence:
            labels = self._answer(pooled_BxD, self.next_sentence)
        elif heads.classifier:
            labels = self._answer(self.drop_head(pooled_BxD, deterministic=deterministic), self.classifier)
        return Outputs(tokens, labels)

    def hidden(self, batch: Batch, *, deterministic: bool = True) -> Array:
        """What the logits are made of, [B, T, D] in the compute dtype: for a loss that never holds all logits."""
        memory = None
        if self.config.num_encoder_layers:
            memory = self.encode(batch.inputs, batch.inputs_segment_ids, batch.inputs_positions,
                                 token_types=batch.token_types, deterministic=deterministic)  # fmt: skip
            if not self.config.num_decoder_layers:
                return memory
        return self.decoder(self._embed(batch.decoder_inputs), segment_ids=batch.targets_segment_ids,
                            positions=batch.targets_positions, prefix_mask=batch.prefix_mask, memory_BxSxD=memory,
                            memory_segment_ids=batch.inputs_segment_ids, deterministic=deterministic)  # fmt: skip

    def logits(self, hidden_BxTxD: Array, vocabulary_DxV: Array | None = None) -> Array:
        """Float32 [B, T, V] of hidden [B, T, D], or [B, V] of [B, D]; products accumulate in float32.

        vocabulary_DxV: that of `step_weights`.
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

    def _answer(self, x: Array, head: "Head") -> Array:
        logits = self._project(x, head.kernel)
        return logits + head.bias if head.biased else logits

    def _project(self, x: Array, kernel: Array, transposed: bool = False) -> Array:
        """x [..., D] times a kernel [D, C], or [C, D] transposed: float32 [..., C], as one 2-D product."""
        dtype, (*lead, d_model) = self.config.dtype, x.shape
        contract = ((1,), (1 if transposed else 0,))
        y = jax.lax.dot_general(x.reshape(-1, d_model).astype(dtype), kernel.astype(dtype), (contract, ((), ())),
                                preferred_element_type=jnp.float32)  # fmt: skip
        return y.reshape(*lead, -1)

    def encode(self, inputs: Array, segment_ids: Array | None = None, positions: Array | None = None, *,
               token_types: Array | None = None, deterministic: bool = True) -> Array:  # fmt: skip
        """The encoder's output [B, L, D] for inputs, segment_ids, positions and token_types [B, L] as in a Batch."""
        return self.encoder(self._embed(inputs, token_types), segment_ids=segment_ids, positions=positions,
                            deterministic=deterministic)  # fmt: skip

    def start_cache(self, batch: int, positions_BxS: Array, memory_BxSxD: Array | None = None,
                    memory_segment_ids: Array | None = None, slots: int | None = None) -> Cache:  # fmt: skip
        """An empty cache of `batch` rows with a slot for each of `positions_BxS`, int32 [B, S] or [1, S], or for the
        first `slots` of them.

        With an encoder, its output is turned into keys and values once.
        """
        config = self.config
        zeros = jnp.zeros((batch, slots or positions_BxS.shape[1], config.kv_heads, config.head_dim), config.dtype)
        layers = [{"self": as_cached(zeros, zeros)} for _ in range(config.num_decoder_layers)]
        if config.num_encoder_layers:
            cross = self.decoder.cross_keys_values(memory_BxSxD)
            layers = [{**layer, "cross": pair} for layer, pair in zip(layers, cross, strict=True)]
        return Cache(tuple(layers), positions_BxS, memory_segment_ids)

    def extend(self, tokens_BxT: Array, cache: Cache, slot: Array | int, visible_BxTxS: Array,
               layers: Sequence[Any] | None = None) -> tuple[Array, Cache]:  # fmt: skip
        """The decoder's hidden states [B, T, D] of tokens that join the cache in slots `slot` … slot + T - 1, and it.

        visible_BxTxS: which slots each token sees, its own included; B may be 1. Slots from S on are not looked at.
        layers: those of `step_weights`.
        """
        positions_BxT = jax.lax.dynamic_slice_in_dim(cache.positions, slot, tokens_BxT.shape[1], axis=1)
        return self.decoder.extend(self._embed(tokens_BxT), cache, positions_BxT, slot, visible_BxTxS, layers)

    def step_weights(self) -> StepWeights:
        """What many steps read, made once: to cut the stacked parameters copies them."""
        kernel = self.token_embedding.embedding.T if self.config.tie_embeddings else self.lm_head.kernel
        return StepWeights(self.decoder.joined(), kernel.astype(self.config.dtype))


@functools.lru_cache(16)
def parameter_shapes(config: ModelConfig) -> Any:
    """The tree of a model's parameters as jax.ShapeDtypeStruct."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = Batch(targets=ids, weights=ids, inputs=ids if config.num_encoder_layers else None,
                  decoder_inputs=ids if config.num_decoder_layers else None)  # fmt: skip
    key = jax.eval_shape(jax.random.key, 0)  # abstract too: to make one would start JAX
    one_of_each = dataclasses.replace(config, scan_layers=True)  # to trace, with the same parameters
    return jax.eval_shape(Transformer(one_of_each).init, key, batch)["params"]


def num_parameters(config: ModelConfig) -> int:
    """Every number that training changes, embeddings included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(config)))


class HeadTransform(nn.Module):
    """What stands between an encoder and its vocabulary: dense, activation, norm (Devlin et al. 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> Array:
        activation = ACTIVATIONS[self.config.activation]
        x_BxLxD = activation(Dense(self.config, self.config.d_model, name="dense")(x_BxLxD))
        return make_norm(self.config, name="norm")(x_BxLxD)


class Head(nn.Module):
    """An output projection: only its parameters, kernel [D, C] (d_model None: no kernel) and where `biased` bias [C];
    the methods of Transformer multiply by them.
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

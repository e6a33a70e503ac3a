"""`ModelConfig`, and the letters that name the dimensions of every array in `model` and `decoding`.

    B  batch                L  encoder length          D  d_model, width of the residual stream
    T  decoder length       S  length of the keys      F  d_ff, hidden width of the feed-forward block
    H  attention heads      K  head_dim                N  layers of a stack
    V  rows of the vocabulary

The name of an array ends in its shape, `x_BxTxD`. 1 stands for a dimension that broadcasts. In `attention`, T is the
length of the queries, in the encoder and in the decoder.

All fields are independent. A family is a choice of fields (`presets.py` has the published families). Defaults are
those of `t5lite.config.base_config`. Some fields may be None. Then the architecture decides `positions` and
`token_types`, and the positions decide `scale_scores`, `scale_logits`, `initialisation` and `dropout_places`. In other
fields None means none, or what the field's line says.

With T5's relative bias, attention scores are not scaled, logits are scaled if embeddings are tied, and the
initialisation is T5's. With other positions, scores are scaled by head_dim ** -0.5, logits are not scaled, and the
initialisation is GPT-2's.

    T5 v1.0     relative_bias, rms, relu, tied              BERT   learned, layer, post, gelu, biases, embedding_norm
    T5 v1.1     relative_bias, rms, geglu, untied           BART   as BERT, encoder and decoder
    GPT-2       learned, layer, gelu_tanh, biases, tied     Llama  rotary, rms, swiglu, num_kv_heads

Dropout has the rate `dropout`. The places with dropout (DROPOUT_PLACES) differ between families:

    embedding   the input of the first layer, after positions and the embeddings' norm
    attention   attention weights, after softmax
    activation  inside the feed-forward block, before its last product
    residual    the output of a block, before it is added to the residual stream
    final       the output of a stack, after its last norm
    head        the input of a head that is not the vocabulary's

    T5      embedding, attention, activation, residual, final       transformers' modeling_t5.py and mesh-tensorflow
    BERT    embedding, attention, residual, head                    modeling_bert.py and google-research/bert
    GPT-2   embedding, attention, residual                          modeling_gpt2.py
    BART    embedding, attention, activation, residual              modeling_bart.py and fairseq
    Llama   attention                                               modeling_llama.py; also Mistral and Qwen

If `dropout_places` is None, a model with relative_bias has dropout at all places: the places of T5, and an encoder's
head. Every other model has it at the places of BERT and GPT-2. Presets and released weights of BART and Llama set
`dropout_places`. A place that `dropout_rates` names has the rate given there, instead:

    dropout=0.1, dropout_places=("attention", "residual"), dropout_rates=(("attention", 0.0), ("head", 0.3))
    → residual 0.1, head 0.3
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from t5lite.config import base_config
from t5lite.model.attention import IMPLEMENTATIONS
from t5lite.objectives.objective import VOCABULARY_ONLY, Heads
from t5lite.system.errors import UserError, nearest

POSITIONS = ("relative_bias", "rotary", "learned", "sinusoidal", "alibi")
GATED = ("geglu", "swiglu")
ACTIVATIONS = (*GATED, "gelu", "gelu_tanh", "relu", "silu")
NORMS = ("rms", "layer")
NORM_POSITIONS = ("pre", "post")
BIASES = ("none", "qkv", "all")
INITIALISATIONS = ("t5", "gpt2")
ROTARY_SCALINGS = {"linear": 1, "llama3": 4}  # {name: how many numbers follow it}
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full")
ATTENTION = ("auto", *IMPLEMENTATIONS)
DROPOUT_PLACES = ("embedding", "attention", "activation", "residual", "final", "head")
USUAL_DROPOUT_PLACES = ("embedding", "attention", "residual", "head")
VOCAB_MULTIPLE = 128
USUAL = base_config().model  # the defaults


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, and how it computes. Hashable. The constructor raises UserError for a bad value.

    vocab_size: rows of the embedding. Choose a multiple of 128 (the lanes of a TPU): the axes of most
        meshes divide it.
    num_kv_heads: number of heads of keys and values. A group of query heads shares each of them (Ainslie et al. 2023,
        GQA). None: num_heads.
    positions: "relative_bias" is T5's, with relative_buckets and relative_max_distance. "rotary" turns queries and
        keys, with rotary_base and rotary_scaling: ("linear", factor) or ("llama3", factor, low frequency factor, high
        frequency factor, original length). "learned" adds a row of a table with position_offset + max_positions rows
        (BART leaves its first two rows unused). "sinusoidal" adds sines and cosines. "alibi" lowers scores by distance.
    max_positions: the largest number of tokens that the encoder or the decoder reads. Learned positions need it. With
        other positions, it is set for a released model whose attention slides over a window of this many tokens:
        up to this length, sliding attention is plain attention.
    norm_position: "pre": a norm on the input of each block, and one after the last layer. "post": a norm on the sum
        after each block.
    norm_epsilon: added to the mean square or variance. embedding_norm: a norm before the first layer.
    scale_embeddings: multiply token embeddings by sqrt(d_model).
    activation: "geglu" and "swiglu" are gated. geglu's GELU is the tanh approximation, as in T5 v1.1. "gelu" is exact.
    biases: the layers with a bias. "all": dense layers and layer norms. "qkv": queries, keys and values. "none": none.
    qk_norm: RMS norm on each head's queries and keys (Dehghani et al. 2023; Qwen3).
    scale_scores: multiply attention scores by head_dim ** -0.5. scale_logits: multiply the last hidden states by
        d_model ** -0.5.
    dropout: the rate. dropout_places: some of DROPOUT_PLACES; None: the family's places, as above.
    dropout_rates: ((place, rate), …), for places with another rate than `dropout`.
    logits_soft_cap: c · tanh(logits / c) (Gemma 2). logits_bias: whether each vocabulary row has a bias.
    dtype: the dtype of matrix products. Parameters, norms, softmax and logits are always float32.
    remat: "full" keeps only the inputs of each layer; the backward pass computes the rest again.
    scan_layers: True compiles one layer and loops over it (fast to compile); False unrolls all layers (fast to run on
        CPU). Parameters are stacked in both cases.
    attention: "einsum" holds all scores [B, H, T, S] in memory. "mapped" computes one head of one example at a time, so
        that its scores stay in the processor's cache. "auto" chooses by device and length.

    heads: the outputs.

    Only for an encoder:
    token_types: number of token types; 0: no token types. mlm_transform: whether BERT's dense layer, activation and
        norm are before the vocabulary head.
    """

    num_encoder_layers: int
    num_decoder_layers: int
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int
    num_kv_heads: int | None = USUAL.num_kv_heads
    positions: str | None = USUAL.positions
    relative_buckets: int = USUAL.relative_buckets
    relative_max_distance: int = USUAL.relative_max_distance
    rotary_base: float = USUAL.rotary_base
    rotary_scaling: tuple | None = USUAL.rotary_scaling
    max_positions: int | None = USUAL.max_positions
    position_offset: int = USUAL.position_offset
    norm: str = USUAL.norm
    norm_position: str = USUAL.norm_position
    norm_epsilon: float = USUAL.norm_epsilon
    embedding_norm: bool = USUAL.embedding_norm
    scale_embeddings: bool = USUAL.scale_embeddings
    activation: str = USUAL.activation
    biases: str = USUAL.biases
    qk_norm: bool = USUAL.qk_norm
    scale_scores: bool | None = USUAL.scale_scores
    tie_embeddings: bool = USUAL.tie_embeddings
    scale_logits: bool | None = USUAL.scale_logits
    logits_soft_cap: float | None = USUAL.logits_soft_cap
    logits_bias: bool = USUAL.logits_bias
    initialisation: str | None = USUAL.initialisation
    dropout: float = USUAL.dropout
    dropout_places: tuple[str, ...] | None = USUAL.dropout_places
    dropout_rates: tuple[tuple[str, float], ...] | None = USUAL.dropout_rates
    dtype: str = USUAL.dtype
    remat: str = USUAL.remat
    scan_layers: bool = USUAL.scan_layers
    attention: str = USUAL.attention
    heads: Heads = VOCABULARY_ONLY
    token_types: int | None = USUAL.token_types
    mlm_transform: bool = USUAL.mlm_transform

    def __post_init__(self):
        self._resolve_fields()
        for field in ("num_encoder_layers", "num_decoder_layers"):
            _require_int(field, getattr(self, field), minimum=0)
        for field in ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim"):
            _require_int(field, getattr(self, field), minimum=1)
        if self.num_encoder_layers + self.num_decoder_layers == 0:
            raise UserError(
                "config.model.num_encoder_layers and config.model.num_decoder_layers are both 0; set one above 0"
            )
        choices = {"positions": POSITIONS, "norm": NORMS, "norm_position": NORM_POSITIONS, "activation": ACTIVATIONS,
                   "biases": BIASES, "dtype": DTYPES, "remat": REMAT, "attention": ATTENTION}  # fmt: skip
        if self.initialisation is not None:
            choices["initialisation"] = INITIALISATIONS
        for field, known in choices.items():
            value = getattr(self, field)
            if value not in known:
                raise UserError(f"config.model.{field}={value!r} is unknown; {nearest(str(value), known)}")
        self._check_attention_heads()
        self._check_positions()
        self._check_dropout()
        _require_int("token_types", self.token_types, minimum=0)
        if self.num_decoder_layers and self.token_types:
            raise UserError(
                f"config.model.token_types={self.token_types}: only an encoder has token types; set the field to 0"
            )
        for field in ("norm_epsilon", "rotary_base", "logits_soft_cap"):
            if getattr(self, field) is not None and not getattr(self, field) > 0:
                raise UserError(f"config.model.{field}={getattr(self, field)} must be above 0")

    def _resolve_fields(self) -> None:
        """Replace None in positions and token_types, and make dropout_places and dropout_rates tuples.

        Set mlm_transform to False in a model without an encoder's vocabulary head.
        """
        on_encoder = self.architecture == "encoder"
        usual_positions = "rotary" if self.architecture == "decoder" else "relative_bias"
        resolved = {
            "positions": usual_positions if self.positions is None else self.positions,
            "token_types": 2 * on_encoder if self.token_types is None else self.token_types,
            "mlm_transform": bool(self.mlm_transform and on_encoder and self.heads.vocabulary),
        }
        if self.dropout_places is not None:
            resolved["dropout_places"] = tuple(self.dropout_places)
        if self.dropout_rates is not None:
            rows = self.dropout_rates
            resolved["dropout_rates"] = tuple(tuple(row) if isinstance(row, list) else row for row in rows)
        for field, value in resolved.items():
            object.__setattr__(self, field, value)

    def _check_dropout(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"config.model.dropout={self.dropout} must be at least 0 and below 1")
        for place in self.dropout_places or ():
            _check_place("dropout_places", place)
        places = set()
        for row in self.dropout_rates or ():
            if not isinstance(row, tuple) or len(row) != 2:
                raise UserError(
                    f'config.model.dropout_rates: {row!r} is not a pair (place, rate); write it as (("head", 0.3),)'
                )
            place, rate = row
            _check_place("dropout_rates", place)
            if place in places:
                raise UserError(f"config.model.dropout_rates: {place!r} is there twice; give each place one rate")
            places.add(place)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise UserError(
                    f"config.model.dropout_rates: the rate of {place!r} is {rate!r}; give a number of at least 0 and "
                    "below 1"
                )

    def _check_attention_heads(self) -> None:
        if self.num_kv_heads is not None:
            _require_int("num_kv_heads", self.num_kv_heads, minimum=1)
            if self.num_heads % self.num_kv_heads:
                raise UserError(
                    f"config.model.num_kv_heads={self.num_kv_heads} must divide config.model.num_heads={self.num_heads}"
                )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"config.model.head_dim={self.head_dim} must be even for rotary positions")

    def _check_positions(self) -> None:
        if self.positions == "relative_bias":
            _require_int("relative_buckets", self.relative_buckets, minimum=4)
            _require_int("relative_max_distance", self.relative_max_distance, minimum=self.relative_buckets // 2 + 1)
            if self.relative_buckets % 4:
                raise UserError(f"config.model.relative_buckets={self.relative_buckets} must be a multiple of 4")
        if self.positions == "learned":
            if self.max_positions is None:
                raise UserError(
                    "config.model.max_positions: learned positions need it; set it to the largest length of a sequence"
                )
            _require_int("max_positions", self.max_positions, minimum=1)
            _require_int("position_offset", self.position_offset, minimum=0)
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise UserError(f"config.model.d_model={self.d_model} must be even for sinusoidal positions")
        if self.rotary_scaling is not None:
            name, *numbers = self.rotary_scaling or ("",)
            known = "; ".join(
                f"{known_name!r} and {count} positive number{'s' * (count > 1)}"
                for known_name, count in ROTARY_SCALINGS.items()
            )
            if ROTARY_SCALINGS.get(name) != len(numbers) or not all(map(_is_positive, numbers)):
                raise UserError(
                    f"config.model.rotary_scaling={self.rotary_scaling!r} is not valid; choose one of: {known}"
                )

    @property
    def architecture(self) -> str:
        """The architecture, from the stacks that have layers: "encoder_decoder", "decoder" or "encoder"."""
        if not self.num_encoder_layers:
            return "decoder"
        return "encoder_decoder" if self.num_decoder_layers else "encoder"

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def score_scale(self) -> float:
        """The factor on queries · keys. In T5 it is 1: the queries' initialisation contains head_dim ** -0.5."""
        scaled = self.positions != "relative_bias" if self.scale_scores is None else self.scale_scores
        return self.head_dim**-0.5 if scaled else 1.0

    @property
    def logit_scale(self) -> float:
        """The factor on the last hidden states before the logits. In T5 it is 1, except if embeddings are tied."""
        scaled_as_t5 = self.positions == "relative_bias" and self.tie_embeddings
        return self.d_model**-0.5 if (scaled_as_t5 if self.scale_logits is None else self.scale_logits) else 1.0

    def dropout_rate(self, place: str) -> float:
        """Return the rate of dropout at `place`, one of DROPOUT_PLACES; 0 if there is no dropout at this place."""
        return self.dropout_by_place.get(place, 0.0)

    @property
    def dropout_by_place(self) -> dict[str, float]:
        """{place: rate}, for the places with dropout, in the order of DROPOUT_PLACES. Rates are above 0."""
        usual = DROPOUT_PLACES if self.positions == "relative_bias" else USUAL_DROPOUT_PLACES
        places = usual if self.dropout_places is None else self.dropout_places
        return combine_rates(self.dropout, places, self.dropout_rates)

    @property
    def starts_like_t5(self) -> bool:
        """Whether new parameters are initialised as in T5. Otherwise they are initialised as in GPT-2."""
        return (self.initialisation or ("t5" if self.positions == "relative_bias" else "gpt2")) == "t5"


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


def combine_rates(dropout: float, places: Iterable[str], rates: Iterable[tuple[str, float]] | None) -> dict[str, float]:
    """Return {place: rate} in the order of DROPOUT_PLACES, without places whose rate is 0.

    Args:
        dropout: the rate at `places`, but for those in `rates`.
        rates: pairs (place, rate).
    """
    combined = dict.fromkeys(places, dropout) | dict(rates or ())
    return {place: combined[place] for place in DROPOUT_PLACES if combined.get(place)}


def _check_place(field: str, place: Any) -> None:
    if place not in DROPOUT_PLACES:
        raise UserError(f"config.model.{field}: unknown place {place!r}; {nearest(str(place), DROPOUT_PLACES)}")


def _require_int(field: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"config.model.{field}={value!r} must be a whole number, at least {minimum}")

"""What a model is: `ModelConfig`, and the letters that name the dimensions of every array in `model` and `decoding`.

    B  batch                L  encoder length          D  d_model, width of the residual stream
    T  decoder length       S  length of the keys      F  d_ff, hidden width of the feed-forward block
    H  attention heads      K  head_dim                N  layers of a stack
    V  rows of the vocabulary

An array's name ends in its shape, `x_BxTxD`; 1 stands for a dimension that broadcasts. In `attention`, T is the length
of the queries, whichever side they come from.

T5's family has `positions="relative_bias"`, and with it everything else that is T5's own: attention scores that are
not scaled, tied logits that are, and T5's initialisation. Every other family scales scores by head_dim ** -0.5, leaves
logits alone, and starts from GPT-2's initialisation.

    T5 v1.1   relative_bias, geglu, untied        T5 v1.0   relative_bias, relu, tied
    rotary decoder   num_encoder_layers=0, rotary, swiglu
"""

import dataclasses

from t5lite.errors import UserError, nearest
from t5lite.objectives.objective import OF_TOKENS, Heads

POSITIONS = ("relative_bias", "rotary")
GATED = ("geglu", "swiglu")
ACTIVATIONS = (*GATED, "gelu", "relu")
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full")
ATTENTION = ("auto", "einsum", "mapped")
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model and how it computes. Hashable; checked on construction, a `UserError` names the field.

    vocab_size: rows of the embedding, a multiple of 128 (the lanes of a TPU, and divisible by any sensible mesh).
    activation: "geglu" is T5 v1.1's gated GELU ("gelu_new", tanh approximation); "relu" is T5 v1.0's.
    dtype: of matrix products. Parameters, norms, softmax and logits are float32 whatever it is.
    remat: "full" keeps the inputs of each layer only and computes the rest again in the backward pass.
    scan_layers: compile one layer and loop over it (fast to compile), or lay all out (fast to run on CPU). The
    parameters are stacked in either case.
    attention: "einsum" holds all scores [B, H, T, S]; "mapped" goes through the batch one example at a time, keeping
    scores in cache; "auto" chooses by device and length.

    Of an encoder alone: heads: what it answers, beside or in place of the vocabulary. token_types: how many are told
    apart; 0: none. mlm_transform: BERT's dense layer, GELU and norm before the vocabulary.
    """

    num_encoder_layers: int
    num_decoder_layers: int
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int
    positions: str = "relative_bias"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rotary_base: float = 10000.0
    activation: str = "geglu"
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    heads: Heads = OF_TOKENS
    token_types: int = 0
    mlm_transform: bool = False

    def __post_init__(self):
        for field in ("num_encoder_layers", "num_decoder_layers"):
            _require_int(field, getattr(self, field), minimum=0)
        for field in ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim"):
            _require_int(field, getattr(self, field), minimum=1)
        if self.num_encoder_layers + self.num_decoder_layers == 0:
            raise UserError("model.num_encoder_layers and model.num_decoder_layers are both 0: a model needs layers")
        if self.vocab_size % VOCAB_MULTIPLE:
            above = -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
            raise UserError(f"model.vocab_size={self.vocab_size} is not a multiple of {VOCAB_MULTIPLE}: use {above}")
        choices = {"positions": POSITIONS, "activation": ACTIVATIONS, "dtype": DTYPES, "remat": REMAT,
                   "attention": ATTENTION}  # fmt: skip
        for field, known in choices.items():
            value = getattr(self, field)
            if value not in known:
                raise UserError(f"model.{field}={value!r} is unknown: {nearest(str(value), known)}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even for rotary positions")
        if self.positions == "relative_bias":
            _require_int("relative_buckets", self.relative_buckets, minimum=4)
            _require_int("relative_max_distance", self.relative_max_distance, minimum=self.relative_buckets // 2 + 1)
            if self.relative_buckets % 4:
                raise UserError(f"model.relative_buckets={self.relative_buckets} must be a multiple of 4")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout={self.dropout} must be at least 0 and below 1")
        _require_int("token_types", self.token_types, minimum=0)
        if self.num_decoder_layers and (self.heads != OF_TOKENS or self.token_types or self.mlm_transform):
            raise UserError(
                "model.token_types, model.mlm_transform and heads are an encoder's: set them to 0 and False"
            )
        for field in ("norm_epsilon", "rotary_base"):
            if not getattr(self, field) > 0:
                raise UserError(f"model.{field}={getattr(self, field)} must be above 0")

    @property
    def architecture(self) -> str:
        """encoder_decoder, decoder or encoder: which stacks have layers."""
        if not self.num_encoder_layers:
            return "decoder"
        return "encoder_decoder" if self.num_decoder_layers else "encoder"

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def score_scale(self) -> float:
        """What queries · keys are multiplied by. T5 puts the factor into the queries' initialisation instead."""
        return 1.0 if self.positions == "relative_bias" else self.head_dim**-0.5

    @property
    def logit_scale(self) -> float:
        """What the last hidden states are multiplied by before the logits: T5's, with tied embeddings only."""
        return self.d_model**-0.5 if self.positions == "relative_bias" and self.tie_embeddings else 1.0


def _require_int(field: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"model.{field}={value!r} must be a whole number, at least {minimum}")

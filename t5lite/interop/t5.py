"""T5 v1.0 and v1.1, FLAN-T5, mT5 and UL2.

The head is tied to the embedding if config.json says so, and the files have no different tensor for the head.
transformers 5 writes "tied" for every T5, so a different tensor counts more.

The field `scale_decoder_outputs` tells whether the last hidden states are scaled. Without this field,
`tie_word_embeddings` tells: v1.0 scales them, v1.1 does not. mT5 does not scale them by default, although transformers
5 writes `tie_word_embeddings: true` for mT5 too.
"""

from collections.abc import Mapping
from typing import Any

from t5lite.interop import family
from t5lite.interop.dropout import Rate
from t5lite.interop.family import Entry, Family, Json, Shape
from t5lite.model.config import ModelConfig

ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu_new": "geglu",
}
FIXED = {
    "positions": "relative_bias",
    "norm": "rms",
    "norm_position": "pre",
    "biases": "none",
    "embedding_norm": False,
    "scale_embeddings": False,
    "qk_norm": False,
    "score_scale": 1.0,
    "logits_soft_cap": None,
    "logits_bias": False,
}
HEAD = "lm_head.weight"


def _is_tied(json: Json) -> bool:
    return bool(json.get("tie_word_embeddings", json["model_type"] != "mt5"))


def _read_fields(json: Json, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    family.refuse_others(json, {"tie_encoder_decoder": False, "is_decoder": False})
    activation = family.read_choice(json, "feed_forward_proj", ACTIVATIONS, "relu")
    name = json.get("feed_forward_proj", "relu")
    act = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
    family.refuse_contradictions(
        json, "feed_forward_proj", {"is_gated_act": name.startswith("gated-"), "dense_act_fn": act}
    )
    layers = family.read_count(json, "num_layers")
    decoder_layers = layers if json.get("num_decoder_layers") is None else family.read_count(json, "num_decoder_layers")
    scaled = json.get("scale_decoder_outputs", json["model_type"] != "mt5" and _is_tied(json))
    return {
        **{name: value for name, value in FIXED.items() if name != "score_scale"},
        "architecture": "encoder_decoder",
        "num_encoder_layers": layers,
        "num_decoder_layers": decoder_layers,
        "vocab_size": family.read_count(json, "vocab_size"),
        "d_model": family.read_count(json, "d_model"),
        "d_ff": family.read_count(json, "d_ff"),
        "num_heads": family.read_count(json, "num_heads"),
        "head_dim": family.read_count(json, "d_kv"),
        "num_kv_heads": None,
        "relative_buckets": json.get("relative_attention_num_buckets", 32),
        "relative_max_distance": json.get("relative_attention_max_distance", 128),
        "norm_epsilon": family.read_number(json, "layer_norm_epsilon", 1e-6),
        "activation": activation,
        "tie_embeddings": _is_tied(json) and HEAD not in shapes,
        "token_types": 0,
        "scale_scores": False,
        "scale_logits": bool(scaled),
        "initialisation": "t5",
    }


def _write_fields(config: ModelConfig) -> dict[str, Any]:
    family.require_same(config, FIXED | {"num_kv_heads": None, "architecture": "encoder_decoder"}, "T5")
    scaled = config.logit_scale != 1.0
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": family.find_released_activation(ACTIVATIONS, config, "T5"),
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": scaled,
    }


def _list_entries(config: ModelConfig) -> list[Entry]:
    entries = [Entry("token_embedding/embedding", "shared.weight")]
    if not config.tie_embeddings:
        entries.append(Entry("lm_head/kernel", "lm_head.weight", transposed=True))
    projections = {"query": "q", "key": "k", "value": "v", "output": "o"}
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    for side in ("encoder", "decoder"):
        blocks = {"self_attention": ("SelfAttention", projections), "mlp": ("DenseReluDense", mlp)}
        if side == "decoder":
            self_attention, feed_forward = blocks.items()
            blocks = dict((self_attention, ("cross_attention", ("EncDecAttention", projections)), feed_forward))
        entries.append(
            Entry(
                f"{side}/relative_bias/embedding",
                f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            )
        )
        for place, (block, (stored, kernels)) in enumerate(blocks.items()):
            tensor = f"{side}.block.{{n}}.layer.{place}."
            kernels = {name: f"{stored}.{letter}" for name, letter in kernels.items()}
            entries += family.layer_entries(
                f"{side}/layers/{block}/", tensor, kernels, {"norm": "layer_norm"}, biases=False
            )
        entries.append(Entry(f"{side}/final_norm/scale", f"{side}.final_layer_norm.weight"))
    return entries


T5 = Family(
    model_types=("t5", "mt5"),
    fields=_read_fields,
    to_json=_write_fields,
    entries=_list_entries,
    dropout={"dropout_rate": Rate(("embedding", "attention", "activation", "residual", "final"), 0.1)},
    kinds={
        "ForConditionalGeneration": (),
        "Model": ("lm_head",),
        "ForSequenceClassification": ("lm_head",),
        "ForQuestionAnswering": ("lm_head",),
        "EncoderModel": ("decoder", "lm_head"),
        "ForTokenClassification": ("decoder", "lm_head"),
        "": ("decoder", "lm_head"),
    },
    answering_kinds=("ForConditionalGeneration", "Model", "EncoderModel", ""),
    kinds_of_kept_heads={
        r"classification_head\..*": "ForSequenceClassification",
        r"qa_outputs\..*": "ForQuestionAnswering",
        r"classifier\..*": "ForTokenClassification",
    },
    # An early converter gave the decoder's cross-attention its own relative bias, which no model reads.
    buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    renames=((r"^transformer\.", ""),),
    aliases={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        HEAD: "shared.weight",
    },
    ties=_is_tied,
    architectures=("encoder",),
)

"""BART: an encoder-decoder with post-norm and learned positions. The position table begins with two unused rows."""

from collections.abc import Mapping
from typing import Any

from t5lite.interop import family
from t5lite.interop.dropout import Rate
from t5lite.interop.family import Entry, Family, Json, Shape
from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError

FIXED = {
    "positions": "learned",
    "position_offset": 2,
    "norm": "layer",
    "norm_position": "post",
    "norm_epsilon": 1e-5,
    "biases": "all",
    "embedding_norm": True,
    "qk_norm": False,
    "tie_embeddings": True,
    "logits_soft_cap": None,
    "logits_bias": True,
}
# The only values that are supported. Older files have fields for other computations.
SUPPORTED = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
    "extra_pos_embeddings": 2,
    "tie_word_embeddings": True,
    "tie_encoder_decoder": False,
}


def _read_fields(json: Json, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    del shapes
    family.refuse_others(json, SUPPORTED)
    for pair in (("encoder_attention_heads", "decoder_attention_heads"), ("encoder_ffn_dim", "decoder_ffn_dim")):
        if family.read_count(json, pair[0]) != family.read_count(json, pair[1]):
            raise UserError(f"config.json: {pair[0]} and {pair[1]} differ, which is not supported; give them one value")
    return {
        **FIXED,
        **family.COMMON_SCALES,
        **family.read_heads(json, "d_model", "encoder_attention_heads"),
        "architecture": "encoder_decoder",
        "num_encoder_layers": family.read_count(json, "encoder_layers"),
        "num_decoder_layers": family.read_count(json, "decoder_layers"),
        "vocab_size": family.read_count(json, "vocab_size"),
        "d_ff": family.read_count(json, "encoder_ffn_dim"),
        "max_positions": family.read_count(json, "max_position_embeddings"),
        "scale_embeddings": bool(json.get("scale_embedding", False)),
        "activation": family.read_choice(json, "activation_function", family.UNGATED, "gelu"),
    }


def _write_fields(config: ModelConfig) -> dict[str, Any]:
    family.require_same(config, FIXED | family.even_head_fields(config) | {"architecture": "encoder_decoder"}, "BART")
    return {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "d_model": config.d_model,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "activation_function": family.find_released_activation(family.UNGATED, config, "BART"),
        "scale_embedding": config.scale_embeddings,
        "tie_word_embeddings": True,
    }


def _list_entries(config: ModelConfig) -> list[Entry]:
    del config
    entries = [
        Entry("token_embedding/embedding", "model.shared.weight"),
        Entry("lm_head/bias", "final_logits_bias", row=True, optional=True),
    ]
    for side in ("encoder", "decoder"):
        entries += [
            Entry(f"{side}/position_embedding/embedding", f"model.{side}.embed_positions.weight"),
            Entry(f"{side}/embedding_norm/scale", f"model.{side}.layernorm_embedding.weight"),
            Entry(f"{side}/embedding_norm/bias", f"model.{side}.layernorm_embedding.bias"),
        ]
        kernels, norms = {"mlp/up": "fc1", "mlp/down": "fc2"}, {"mlp/norm": "final_layer_norm"}
        blocks = {"self_attention": "self_attn"} | ({"cross_attention": "encoder_attn"} if side == "decoder" else {})
        for block, stored in blocks.items():
            kernels |= {f"{block}/{name}": f"{stored}.{name[0]}_proj" for name in ("query", "key", "value")}
            kernels[f"{block}/output"] = f"{stored}.out_proj"
            norms[f"{block}/norm"] = f"{stored}_layer_norm"
        entries += family.layer_entries(f"{side}/layers/", f"model.{side}.layers.{{n}}.", kernels, norms, biases=True)
    return entries


BART = Family(
    model_types=("bart",),
    fields=_read_fields,
    to_json=_write_fields,
    entries=_list_entries,
    dropout={
        "dropout": Rate(("embedding", "residual"), 0.1),
        "attention_dropout": Rate(("attention",), 0.0),
        "activation_dropout": Rate(("activation",), 0.0),
        "encoder_layerdrop": Rate((), 0.0),
        "decoder_layerdrop": Rate((), 0.0),
    },
    kinds={
        "ForConditionalGeneration": (),
        "Model": (),
        "ForSequenceClassification": (),
        "ForQuestionAnswering": (),
        "ForCausalLM": ("encoder",),
        "": ("encoder",),
    },
    answering_kinds=("ForConditionalGeneration", "Model", "ForCausalLM", ""),
    kinds_of_kept_heads={
        r"classification_head\..*": "ForSequenceClassification",
        r"qa_outputs\..*": "ForQuestionAnswering",
    },
    buffers=(r"(model\.)?(encoder|decoder)\.version",),
    renames=((r"^(shared|encoder|decoder)\.", r"model.\1."),),
    aliases={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)

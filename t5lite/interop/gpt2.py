"""GPT-2: kernels are [in, out], as in the models here. One tensor holds the kernels of queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from t5lite.interop import family
from t5lite.interop.dropout import Rate
from t5lite.interop.family import Entry, Family, Json, Shape
from t5lite.model.config import ModelConfig

FIXED = {
    "positions": "learned",
    "position_offset": 0,
    "norm": "layer",
    "norm_position": "pre",
    "biases": "all",
    "embedding_norm": False,
    "scale_embeddings": False,
    "qk_norm": False,
    "logits_soft_cap": None,
    "logits_bias": False,
}


def _read_fields(json: Json, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    del shapes
    # reorder_and_upcast_attn needs no check: here scores and softmax are float32 anyway.
    family.refuse_others(json, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                         "add_cross_attention": False})  # fmt: skip
    heads = family.read_heads(json, "n_embd", "n_head")
    return {
        **FIXED,
        **family.COMMON_SCALES,
        **heads,
        "architecture": "decoder",
        "num_encoder_layers": 0,
        "num_decoder_layers": family.read_count(json, "n_layer"),
        "vocab_size": family.read_count(json, "vocab_size"),
        "d_ff": 4 * heads["d_model"] if json.get("n_inner") is None else family.read_count(json, "n_inner"),
        "max_positions": family.read_count(json, "n_positions"),
        "norm_epsilon": family.read_number(json, "layer_norm_epsilon", 1e-5),
        "activation": family.read_choice(json, "activation_function", family.UNGATED, "gelu_new"),
        "tie_embeddings": bool(json.get("tie_word_embeddings", True)),
    }


def _write_fields(config: ModelConfig) -> dict[str, Any]:
    family.require_same(config, FIXED | family.even_head_fields(config) | {"architecture": "decoder"}, "GPT-2")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_decoder_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": family.find_released_activation(family.UNGATED, config, "GPT-2"),
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _list_entries(config: ModelConfig) -> list[Entry]:
    entries = [
        Entry("token_embedding/embedding", "transformer.wte.weight"),
        Entry("decoder/position_embedding/embedding", "transformer.wpe.weight"),
    ]
    if not config.tie_embeddings:
        entries.append(Entry("lm_head/kernel", "lm_head.weight", transposed=True))
    path, tensor = "decoder/layers/", "transformer.h.{n}."
    for i, name in enumerate(("query", "key", "value")):
        for leaf, stored in (("kernel", "weight"), ("bias", "bias")):
            entries.append(Entry(f"{path}self_attention/{name}/{leaf}", f"{tensor}attn.c_attn.{stored}", part=(i, 3)))
    kernels = {"self_attention/output": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"}
    norms = {"self_attention/norm": "ln_1", "mlp/norm": "ln_2"}
    entries += family.layer_entries(path, tensor, kernels, norms, biases=True, transposed=False)
    return entries + family.layer_entries("decoder/", "transformer.", {}, {"final_norm": "ln_f"}, biases=True)


GPT2 = Family(
    model_types=("gpt2",),
    fields=_read_fields,
    to_json=_write_fields,
    entries=_list_entries,
    dropout={
        "embd_pdrop": Rate(("embedding",), 0.1),
        "attn_pdrop": Rate(("attention",), 0.1),
        "resid_pdrop": Rate(("residual",), 0.1),
    },
    kinds={
        "LMHeadModel": (),
        "DoubleHeadsModel": (),
        **dict.fromkeys(
            ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", ""), ("lm_head",)
        ),
    },
    answering_kinds=("LMHeadModel", "DoubleHeadsModel", "Model", ""),
    kinds_of_kept_heads={
        r"score\..*": "ForSequenceClassification",
        r"classifier\..*": "ForTokenClassification",
        r"qa_outputs\..*": "ForQuestionAnswering",
        r"multiple_choice_head\..*": "DoubleHeadsModel",
    },
    buffers=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    renames=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    aliases={"lm_head.weight": "transformer.wte.weight"},
)

"""Llama, Mistral, Qwen2 and Qwen3.

Mistral has the architecture of Llama. Qwen2 adds biases to queries, keys and values. Qwen3 adds norms to queries and
keys.
"""

from collections.abc import Mapping
from typing import Any

from t5lite.interop import family
from t5lite.interop.dropout import Rate
from t5lite.interop.family import Entry, Family, Json, Shape
from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError

ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
FIXED = {
    "positions": "rotary",
    "norm": "rms",
    "norm_position": "pre",
    "embedding_norm": False,
    "scale_embeddings": False,
    "logits_soft_cap": None,
    "logits_bias": False,
}
# {model_type: (biases, norms of queries and keys)}
VARIANTS = {"llama": ("none", False), "mistral": ("none", False), "qwen2": ("qkv", False), "qwen3": ("none", True)}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def _read_rotary(json: Json) -> tuple[float, tuple | None]:
    """Return (base, scaling). transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.

    Raises UserError if the fields contradict each other, and for a scaling that is not supported.
    """
    earlier = {**(json.get("rope_scaling") or {}), "rope_theta": json.get("rope_theta")}
    rope = json.get("rope_parameters") or earlier
    rotary = _read_rope(rope)
    for place, name in enumerate(("rope_theta", "rope_scaling")):
        if json.get(name) and _read_rope(earlier)[place] != rotary[place]:
            raise UserError(f"config.json: {name}={json[name]!r} contradicts rope_parameters={rope!r}; correct one")
    return rotary


def _read_rope(rope: Mapping[str, Any]) -> tuple[float, tuple | None]:
    """Return (base, scaling). rope: rope_parameters, or the older fields in one mapping."""
    base = float(rope.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, ("linear", float(rope["factor"]))
    if kind == "llama3":
        return base, ("llama3", *(float(rope[name]) for name in LLAMA3))
    raise UserError(f"config.json: rotary positions scaled by {kind!r} are not supported; known: linear, llama3")


def _read_window(json: Json) -> int | None:
    """Return the length of the sliding window: up to this length attention is plain. None: there is no window."""
    if json["model_type"] == "llama":
        family.refuse_others(json, {"use_sliding_window": False, "sliding_window": None})
        return None
    slides = json["model_type"] == "mistral" or json.get("use_sliding_window") is True
    slides = slides or "sliding_attention" in (json.get("layer_types") or ())
    return family.read_count(json, "sliding_window") if slides and json.get("sliding_window") is not None else None


def _read_fields(json: Json, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    del shapes
    biases, qk_norm = VARIANTS[json["model_type"]]
    family.refuse_others(json, {"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0})
    d_model, heads = family.read_count(json, "hidden_size"), family.read_count(json, "num_attention_heads")
    head_dim = d_model // heads if json.get("head_dim") is None else family.read_count(json, "head_dim")
    try:
        base, scaling = _read_rotary(json)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"config.json: the fields of rotary positions (rope_…) are damaged: {error!r}; correct them"
        ) from error
    return {
        **FIXED,
        **family.COMMON_SCALES,
        "architecture": "decoder",
        "num_encoder_layers": 0,
        "num_decoder_layers": family.read_count(json, "num_hidden_layers"),
        "vocab_size": family.read_count(json, "vocab_size"),
        "d_model": d_model,
        "d_ff": family.read_count(json, "intermediate_size"),
        "num_heads": heads,
        "head_dim": head_dim,
        "num_kv_heads": json.get("num_key_value_heads"),
        "rotary_base": base,
        "rotary_scaling": scaling,
        "norm_epsilon": family.read_number(json, "rms_norm_eps", 1e-6),
        "activation": family.read_choice(json, "hidden_act", ACTIVATIONS, "silu"),
        "biases": biases,
        "qk_norm": qk_norm,
        "tie_embeddings": bool(json.get("tie_word_embeddings", False)),
        "max_positions": _read_window(json),
    }


def _write_fields(config: ModelConfig) -> dict[str, Any]:
    scales = {"logit_scale": 1.0, "score_scale": config.head_dim**-0.5}
    family.require_same(config, FIXED | {"architecture": "decoder"} | scales, "Llama")
    variants = {shape: model_type for model_type, shape in reversed(VARIANTS.items()) if model_type in CLASSES}
    variant = variants.get((config.biases, config.qk_norm))
    if variant is None:
        raise UserError(
            f"none of Llama, Qwen2 and Qwen3 has config.model.biases={config.biases!r} with "
            f"config.model.qk_norm={config.qk_norm}"
        )
    if variant == "llama" and config.d_model % config.num_heads:
        raise UserError(
            f"Llama needs config.model.d_model={config.d_model} to be a multiple of "
            f"config.model.num_heads={config.num_heads}"
        )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scaling is not None:
        name, *numbers = config.rotary_scaling
        fields = {"linear": ("factor",), "llama3": LLAMA3}[name]
        rope |= {"rope_type": name, **dict(zip(fields, numbers, strict=True))}
        if name == "llama3":
            rope["original_max_position_embeddings"] = int(numbers[-1])
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "model_type": variant,
        "architectures": [CLASSES[variant]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_decoder_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": family.find_released_activation(ACTIVATIONS, config, "Llama"),
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,
        "rope_scaling": scaling if config.rotary_scaling is not None else None,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _list_entries(config: ModelConfig) -> list[Entry]:
    entries = [Entry("token_embedding/embedding", "model.embed_tokens.weight")]
    if not config.tie_embeddings:
        entries.append(Entry("lm_head/kernel", "lm_head.weight", transposed=True))
    path, tensor = "decoder/layers/", "model.layers.{n}."
    kernels = {f"self_attention/{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "output")}
    mlp = {f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    norms = {"self_attention/norm": "input_layernorm", "mlp/norm": "post_attention_layernorm"}
    if config.qk_norm:
        norms |= {f"self_attention/{name}_norm": f"self_attn.{name[0]}_norm" for name in ("query", "key")}
    entries += family.layer_entries(path, tensor, kernels | mlp, norms, biases=False)
    if config.biases == "qkv":
        for name in ("query", "key", "value"):
            entries.append(Entry(f"{path}self_attention/{name}/bias", f"{tensor}self_attn.{name[0]}_proj.bias"))
    return [*entries, Entry("decoder/final_norm/scale", "model.norm.weight")]


LLAMA = Family(
    model_types=tuple(VARIANTS),
    fields=_read_fields,
    to_json=_write_fields,
    entries=_list_entries,
    dropout={"attention_dropout": Rate(("attention",), 0.0)},
    kinds={
        "ForCausalLM": (),
        **dict.fromkeys(
            ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", ""), ("lm_head",)
        ),
    },
    answering_kinds=("ForCausalLM", "Model", ""),
    kinds_of_kept_heads={
        r"score\.weight": "ForSequenceClassification",
        r"score\.bias": "ForTokenClassification",
        r"qa_outputs\..*": "ForQuestionAnswering",
    },
    buffers=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    renames=((r"^(embed_tokens|layers|norm|rotary_emb)\.", r"model.\1."), (r"^transformer\.", "model.")),
    aliases={"lm_head.weight": "model.embed_tokens.weight"},
)

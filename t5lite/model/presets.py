"""Families of released models and their published sizes, as values of a config's `model`.

    config.model.update(preset("t5_v1_1_base"))
    config.model.update(preset("llama3_8b"))

A preset sets all fields that define a family. Other fields (the rate of dropout, dtype, rematerialisation) keep the
config's values. Sources: Raffel et al. 2020 and Google's t5.1.1 configs (T5; FLAN-T5 has
the shapes of v1.1), Xue et al. 2021 (mT5), Tay et al. 2022 (UL2), Lewis et al. 2020 (BART), Devlin et al. 2019 (BERT),
Radford et al. 2019 (GPT-2), Touvron et al. 2023 and Grattafiori et al. 2024 (Llama 2 and 3).
"""

from typing import Any

from t5lite.system.errors import UserError, nearest

Fields = dict[str, Any]

_T5 = {
    "architecture": "encoder_decoder",
    "positions": "relative_bias",
    "norm": "rms",
    "norm_position": "pre",
    "norm_epsilon": 1e-6,
    "biases": "none",
    "tie_embeddings": False,
    "vocab_size": 32128,
}
_WITH_LAYER_NORM = {"positions": "learned", "norm": "layer", "biases": "all", "tie_embeddings": True}
_LLAMA = {
    "architecture": "decoder",
    "positions": "rotary",
    "norm": "rms",
    "norm_position": "pre",
    "norm_epsilon": 1e-5,
    "activation": "swiglu",
    "biases": "none",
    "tie_embeddings": False,
    "dropout_places": ("attention",),
}
FAMILIES: dict[str, Fields] = {
    "t5_v1_0": {**_T5, "activation": "relu", "tie_embeddings": True},
    "t5_v1_1": {**_T5, "activation": "geglu"},
    "mt5": {**_T5, "activation": "geglu", "vocab_size": 250112},
    "ul2": {**_T5, "activation": "swiglu"},
    "bart": {
        **_WITH_LAYER_NORM,
        "architecture": "encoder_decoder",
        "norm_position": "post",
        "norm_epsilon": 1e-5,
        "activation": "gelu",
        "embedding_norm": True,
        "logits_bias": True,
        "max_positions": 1024,
        "position_offset": 2,
        "dropout_places": ("embedding", "attention", "activation", "residual"),
        "vocab_size": 50265,
    },
    "bert": {
        **_WITH_LAYER_NORM,
        "architecture": "encoder",
        "norm_position": "post",
        "norm_epsilon": 1e-12,
        "activation": "gelu",
        "embedding_norm": True,
        "logits_bias": True,
        "mlm_transform": True,
        "token_types": 2,
        "max_positions": 512,
        "vocab_size": 30522,
    },
    "gpt2": {
        **_WITH_LAYER_NORM,
        "architecture": "decoder",
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "gelu_tanh",
        "max_positions": 1024,
        "vocab_size": 50257,
    },
    "llama2": {**_LLAMA, "vocab_size": 32000},
    "llama3": {**_LLAMA, "rotary_base": 500000.0, "vocab_size": 128256},
}
ROTARY_OF_LLAMA_3_2 = ("llama3", 32.0, 1.0, 4.0, 8192)


def _make_sizes(layers: int, d_model: int, d_ff: int, heads: int, head_dim: int | None = None) -> Fields:
    """Return the fields with a model's sizes. An architecture with one stack ignores the other number of layers."""
    return {
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "d_model": d_model,
        "d_ff": d_ff,
        "num_heads": heads,
        "head_dim": head_dim or d_model // heads,
    }


_T5_V1_1_SIZES = {
    "small": _make_sizes(8, 512, 1024, 6, 64),
    "base": _make_sizes(12, 768, 2048, 12),
    "large": _make_sizes(24, 1024, 2816, 16),
    "xl": _make_sizes(24, 2048, 5120, 32),
    "xxl": _make_sizes(24, 4096, 10240, 64),
}
SIZES: dict[str, dict[str, Fields]] = {
    "t5_v1_0": {
        "small": _make_sizes(6, 512, 2048, 8),
        "base": _make_sizes(12, 768, 3072, 12),
        "large": _make_sizes(24, 1024, 4096, 16),
        "3b": _make_sizes(24, 1024, 16384, 32, 128),
        "11b": _make_sizes(24, 1024, 65536, 128, 128),
    },
    "t5_v1_1": _T5_V1_1_SIZES,
    "mt5": _T5_V1_1_SIZES,
    "ul2": {"20b": _make_sizes(32, 4096, 16384, 16)},
    "bart": {"base": _make_sizes(6, 768, 3072, 12), "large": _make_sizes(12, 1024, 4096, 16)},
    "bert": {"base": _make_sizes(12, 768, 3072, 12), "large": _make_sizes(24, 1024, 4096, 16)},
    "gpt2": {
        "small": _make_sizes(12, 768, 3072, 12),
        "medium": _make_sizes(24, 1024, 4096, 16),
        "large": _make_sizes(36, 1280, 5120, 20),
        "xl": _make_sizes(48, 1600, 6400, 25),
    },
    "llama2": {
        "7b": _make_sizes(32, 4096, 11008, 32),
        "13b": _make_sizes(40, 5120, 13824, 40),
        "70b": _make_sizes(80, 8192, 28672, 64) | {"num_kv_heads": 8},
    },
    "llama3": {
        "1b": _make_sizes(16, 2048, 8192, 32)
        | {"num_kv_heads": 8, "tie_embeddings": True, "rotary_scaling": ROTARY_OF_LLAMA_3_2},
        "3b": _make_sizes(28, 3072, 8192, 24)
        | {"num_kv_heads": 8, "tie_embeddings": True, "rotary_scaling": ROTARY_OF_LLAMA_3_2},
        "8b": _make_sizes(32, 4096, 14336, 32) | {"num_kv_heads": 8},
        "70b": _make_sizes(80, 8192, 28672, 64) | {"num_kv_heads": 8},
    },
}
PRESETS: dict[str, Fields] = {
    f"{family}_{size}": FAMILIES[family] | fields for family, sizes in SIZES.items() for size, fields in sizes.items()
}


def preset(name: str) -> Fields:
    """Return the values of a config's `model` for a released model. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return dict(PRESETS[name])

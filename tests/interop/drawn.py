"""Random shapes of released models: a config.json of each family, and a batch with padding.

Every shape is possible in transformers and here. Sizes are not rounded to multiples.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

Json = dict[str, Any]


def _t5(draw: random.Random) -> Json:
    buckets = draw.choice([8, 12, 32])
    return {
        "model_type": "t5",
        "vocab_size": draw.randint(50, 150),
        "d_model": draw.randint(9, 40),
        "d_kv": draw.randint(3, 17),
        "d_ff": draw.randint(11, 50),
        "num_layers": draw.randint(1, 3),
        "num_decoder_layers": draw.randint(1, 3),
        "num_heads": draw.randint(1, 5),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": draw.randint(buckets // 2 + 1, 140),
        "layer_norm_epsilon": draw.choice([1e-6, 1e-5]),
        "feed_forward_proj": draw.choice(["relu", "gated-gelu", "gated-silu", "gelu_new", "silu"]),
        "tie_word_embeddings": draw.random() < 0.5,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _bart(draw: random.Random) -> Json:
    heads, width = draw.randint(1, 4), draw.randint(50, 80)
    return {
        "model_type": "bart",
        "vocab_size": draw.randint(50, 150),
        "max_position_embeddings": width,
        "d_model": heads * draw.randint(3, 13),
        "encoder_layers": draw.randint(1, 3),
        "decoder_layers": draw.randint(1, 3),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": (hidden := draw.randint(11, 50)),
        "decoder_ffn_dim": hidden,
        "activation_function": draw.choice(["gelu", "relu", "gelu_new", "silu"]),
        "scale_embedding": draw.random() < 0.5,
    }


BERT_HEADS = (
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)


def _bert(draw: random.Random) -> Json:
    heads = draw.randint(1, 4)
    config_json: Json = {
        "model_type": "bert",
        "architectures": [draw.choice(BERT_HEADS)],
        "vocab_size": draw.randint(50, 150),
        "hidden_size": heads * draw.randint(3, 13),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(11, 50),
        "max_position_embeddings": draw.randint(50, 80),
        "type_vocab_size": draw.randint(2, 4),
        "hidden_act": draw.choice(["gelu", "relu", "gelu_new", "silu"]),
        "layer_norm_eps": draw.choice([1e-12, 1e-5]),
    }
    if config_json["architectures"][0].endswith("Classification"):
        config_json["id2label"] = {str(i): f"label {i}" for i in range(draw.randint(2, 12))}
    return config_json


def _gpt2(draw: random.Random) -> Json:
    heads = draw.randint(1, 4)
    return {
        "model_type": "gpt2",
        "vocab_size": draw.randint(50, 150),
        "n_positions": draw.randint(50, 80),
        "n_embd": heads * draw.randint(3, 13),
        "n_layer": draw.randint(1, 3),
        "n_head": heads,
        "n_inner": draw.choice([None, draw.randint(11, 50)]),
        "activation_function": draw.choice(["gelu_new", "gelu", "relu", "silu"]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-6]),
        "tie_word_embeddings": draw.random() < 0.6,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def _llama(draw: random.Random) -> Json:
    kv_heads, group = draw.randint(1, 3), draw.randint(1, 3)
    scalings = (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": draw.choice([1.5, 4.0])},
        {
            "rope_type": "llama3",
            "factor": draw.choice([2.0, 8.0]),
            "low_freq_factor": 1.0,
            "high_freq_factor": draw.choice([2.0, 4.0]),
            "original_max_position_embeddings": draw.choice([16, 64]),
        },
    )
    return {
        "model_type": "llama",
        "vocab_size": draw.randint(50, 150),
        "hidden_size": kv_heads * group * draw.randint(3, 9),  # transformers refuses others, whatever head_dim is
        "intermediate_size": draw.randint(11, 50),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw.randint(1, 9),
        "max_position_embeddings": 128,
        "rms_norm_eps": draw.choice([1e-6, 1e-5]),
        "hidden_act": draw.choice(["silu", "gelu_pytorch_tanh"]),
        "rope_parameters": {"rope_theta": draw.choice([100.0, 10000.0, 5e5]), **draw.choice(scalings)},
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _like(model_type: str, make: Callable[[random.Random], Json], **fields: Any) -> Callable[[random.Random], Json]:
    return lambda draw: {**make(draw), "model_type": model_type, **fields}


FAMILIES: dict[str, Callable[[random.Random], Json]] = {
    "t5": _t5,
    "mt5": _like("mt5", _t5),
    "bart": _bart,
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _like("qwen2", _llama, use_sliding_window=False),
    "qwen3": _like("qwen3", _llama, use_sliding_window=False),
    "mistral": _like("mistral", _llama, sliding_window=None),
}


def draw_config(family: str, seed: int) -> Json:
    """Return a config.json. The same seed gives the same config.json."""
    return FAMILIES[family](random.Random(f"{family} {seed}"))


def draw_batch(config_json: Json, seed: int) -> dict[str, np.ndarray]:
    """Return a batch like `variants.seeded_batch`, with random lengths. Rows are padded at the end, also the decoder's.

    Rows are at most as long as the table of learned positions. Without a table they may be longer than 128, from which
    on T5 has one bucket for all distances.
    """
    rng, vocab = np.random.default_rng(seed), config_json["vocab_size"]
    max_length = config_json.get("n_positions") or config_json.get("max_position_embeddings", 170)
    rows, length, decoder_length = 3, int(rng.integers(20, max_length)), int(rng.integers(20, max_length))
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int64)
    decoder_mask = (np.arange(decoder_length) < rng.integers(2, decoder_length + 1, (rows, 1))).astype(np.int64)
    return {
        "ids": rng.integers(3, vocab, mask.shape) * mask,
        "mask": mask,
        "token_types": rng.integers(0, config_json.get("type_vocab_size", 1), mask.shape),
        "decoder_ids": rng.integers(3, vocab, decoder_mask.shape) * decoder_mask,
        "decoder_mask": decoder_mask,
        "labels": np.where(decoder_mask > 0, rng.integers(3, vocab, decoder_mask.shape), -100),
    }

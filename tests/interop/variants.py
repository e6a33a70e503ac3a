"""Small released models of every family: config.json, and seeded weights with the names and shapes of transformers.

The weights come from NumPy's legacy generator, which never changes. So the stored vectors need not contain them.
"""

import json
from pathlib import Path

import numpy as np

from t5lite.interop.family import Entry, Json, list_shapes, tensor_shape
from t5lite.interop.released import FAMILIES
from t5lite.interop.tensors import TensorToWrite, write_tensors
from t5lite.model.config import ModelConfig

T5 = dict(
    vocab_size=100,
    d_model=24,
    d_kv=5,
    d_ff=40,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    pad_token_id=0,
    eos_token_id=1,
)
BART = dict(
    model_type="bart",
    vocab_size=90,
    max_position_embeddings=170,
    d_model=24,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=40,
    decoder_ffn_dim=40,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
)
BERT = dict(
    model_type="bert",
    vocab_size=90,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=170,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
GPT2 = dict(
    model_type="gpt2",
    vocab_size=90,
    n_positions=170,
    n_embd=24,
    n_layer=3,
    n_head=3,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=89,
    eos_token_id=89,
)
LLAMA = dict(
    model_type="llama",
    vocab_size=90,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
VARIANTS: dict[str, Json] = {
    "t5_v1_0": {**T5, "model_type": "t5", "feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_v1_1": {**T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {**T5, "model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "ul2": {
        **T5,
        "model_type": "t5",
        "feed_forward_proj": "gated-silu",
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 40,
    },
    "bart": BART,
    "bart_scaled": {**BART, "scale_embedding": True, "activation_function": "relu"},
    "bert": {**BERT, "architectures": ["BertForPreTraining"]},
    "bert_masked": {**BERT, "architectures": ["BertForMaskedLM"], "hidden_act": "gelu_new"},
    "bert_classifier": {
        **BERT,
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "a", "1": "b", "2": "c"},
    },
    "gpt2": GPT2,
    "gpt2_inner": {**GPT2, "n_inner": 36, "activation_function": "gelu"},
    "llama": {**LLAMA, "rope_theta": 500.0},
    "llama_tied": {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 10},
    "llama3": {
        **LLAMA,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {**LLAMA, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
}
UNTIED = ("t5_v1_1", "mt5", "ul2", "llama", "llama3", "llama_linear", "qwen2", "qwen3")
ENCODER_LENGTH, DECODER_LENGTH = 160, 150  # longer than 128, from which on T5 has one bucket for all distances
STORED_POSITIONS = (0, 1, 40, 99, 149)  # positions whose logits are stored


def table(config_json: Json, tied: bool | None = None) -> tuple[ModelConfig, list[Entry]]:
    """Return (the model, the rows of its family's table) for a config.json."""
    family = FAMILIES[config_json["model_type"]]
    shapes = {"classifier.weight": (len(config_json["id2label"]), 1)} if "id2label" in config_json else {}
    if tied is None:
        tied = bool(config_json.get("tie_word_embeddings", config_json["model_type"] in ("gpt2", "bart")))
    shapes |= {} if tied else {"lm_head.weight": (1, 1)}
    fields = family.fields(config_json, shapes)
    model = ModelConfig(**{name: value for name, value in fields.items() if name != "architecture"})
    return model, family.entries(model)


def seeded_state(config_json: Json, seed: int) -> dict[str, np.ndarray]:
    """Return {tensor: float32 array}, sorted by name: scales near 1, biases that are not small, kernels by fan-in."""
    model, entries = table(config_json)
    shapes = {}
    for entry in entries:
        shape = list_shapes(model)[entry.path]
        for layer in range(shape[0]) if entry.stacked else (0,):
            shapes[entry.tensor.format(n=layer)] = tensor_shape(entry, shape), entry
    random, state = np.random.RandomState(seed), {}
    for name, (shape, entry) in sorted(shapes.items()):
        values = random.standard_normal(shape)
        if entry.path.endswith("scale"):
            values = 1 + 0.3 * values
        elif entry.path.endswith("bias"):
            values = 0.3 * values
        elif entry.path.endswith("kernel"):
            values = 1.5 * values / np.sqrt(shape[-1] if entry.transposed else shape[0])
        state[name] = values.astype(np.float32)
    return state


def seeded_batch(config_json: Json, seed: int) -> dict[str, np.ndarray]:
    """Return a batch: ids, mask, token_types [2, 160]; decoder_ids, labels [2, 150].

    The second row of ids is padded from position 100 on.
    """
    random, vocab = np.random.RandomState(seed), config_json["vocab_size"]
    mask = np.ones((2, ENCODER_LENGTH), np.int64)
    mask[1, 100:] = 0
    return {
        "ids": random.randint(3, vocab, mask.shape) * mask,
        "mask": mask,
        "token_types": np.repeat(np.arange(ENCODER_LENGTH)[None] >= 60, 2, axis=0).astype(np.int64),
        "decoder_ids": random.randint(3, vocab, (2, DECODER_LENGTH)),
        "labels": random.randint(3, vocab, (2, DECODER_LENGTH)),
    }


def write_folder(
    folder: Path, config_json: Json, state: dict[str, np.ndarray], dtype: str = "float32", **options
) -> Path:
    """Write a folder of released weights, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json))
    tensors = {name: TensorToWrite(values.shape, lambda values=values: values) for name, values in state.items()}
    write_tensors(folder, tensors, dtype, **options)
    return folder

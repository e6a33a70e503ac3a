"""Small released weights of every class that transformers has for a family: names, heads and buffers.

    config_json, state = draw_class("bert", "BertForQuestionAnswering", seed=0)
    write_class(folder, config_json, state, seed=0)          with a random dtype for each tensor, or one dtype for all

Sizes are random. Names are those of transformers; the live tests check this.
"""

import random
import re
from pathlib import Path

import numpy as np

from t5lite.interop.tensors import DTYPES, TensorFolder, TensorToWrite, write_tensors
from tests.interop import drawn
from tests.interop.variants import seeded_state, write_folder

# {family: the prefix of most tensors}
BODY = {"t5": "", "bart": "model.", "bert": "bert.", "gpt2": "transformer.", "llama": "model."}
LABELS = 3


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _two(width: int) -> dict[str, tuple[int, ...]]:
    return _linear("classification_head.dense", width, width) | _linear("classification_head.out_proj", LABELS, width)


# {family: {end of the class name: (regex of tensors that it lacks, function for tensors that it adds, prefix)}}.
# prefix None: the prefix in BODY.
_QA, _NONE = lambda width: _linear("qa_outputs", 2, width), lambda width: {}
_CLASSIFIER = lambda width: _linear("classifier", LABELS, width)
_SCORE = lambda width: _linear("score", LABELS, width, bias=False)
CLASSES = {
    "t5": {
        "ForConditionalGeneration": ("$^", _NONE, None),
        "Model": (r"lm_head\.", _NONE, None),
        "EncoderModel": (r"decoder\.|lm_head\.", _NONE, None),
        "ForSequenceClassification": (r"lm_head\.", _two, "transformer."),
        "ForTokenClassification": (r"decoder\.|lm_head\.", _CLASSIFIER, "transformer."),
        "ForQuestionAnswering": (r"lm_head\.", _QA, None),
    },
    "bart": {
        "ForConditionalGeneration": ("$^", _NONE, None),
        "Model": ("final_logits_bias", _NONE, ""),
        "ForSequenceClassification": ("final_logits_bias", _two, None),
        "ForQuestionAnswering": ("final_logits_bias", _QA, None),
        "ForCausalLM": (r"final_logits_bias|model\.encoder\.", _NONE, None),
    },
    "bert": {
        "Model": (r"cls\.", _NONE, ""),
        "ForPreTraining": ("$^", _NONE, None),
        "ForMaskedLM": (r"cls\.seq_relationship|bert\.pooler", _NONE, None),
        "ForNextSentencePrediction": (r"cls\.predictions", _NONE, None),
        "ForSequenceClassification": (r"cls\.", _CLASSIFIER, None),
        "ForTokenClassification": (r"cls\.|bert\.pooler", _CLASSIFIER, None),
        "ForQuestionAnswering": (r"cls\.|bert\.pooler", _QA, None),
        "ForMultipleChoice": (r"cls\.", lambda width: _linear("classifier", 1, width), None),
    },
    "gpt2": {
        "LMHeadModel": ("$^", _NONE, None),
        "Model": (r"lm_head\.", _NONE, ""),
        "ForSequenceClassification": (r"lm_head\.", _SCORE, None),
        "ForTokenClassification": (r"lm_head\.", _CLASSIFIER, None),
        "ForQuestionAnswering": (r"lm_head\.", _QA, None),
        "DoubleHeadsModel": ("$^", lambda width: _linear("multiple_choice_head.summary", 1, width), None),
    },
    "llama": {
        "ForCausalLM": ("$^", _NONE, None),
        "Model": (r"lm_head\.", _NONE, ""),
        "ForSequenceClassification": (r"lm_head\.", _SCORE, None),
        "ForTokenClassification": (r"lm_head\.", lambda width: _linear("score", LABELS, width), None),
        "ForQuestionAnswering": (r"lm_head\.", _QA, "transformer."),
    },
}
NAMES = {"t5": "T5", "bart": "Bart", "bert": "Bert", "gpt2": "GPT2", "llama": "Llama"}
ALL = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds]
# {family: {buffer in older files: dtype}}
BUFFERS = {
    "bert": {"bert.embeddings.position_ids": np.int64},
    "gpt2": {"transformer.h.0.attn.bias": np.uint8, "transformer.h.0.attn.masked_bias": np.float32},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": np.float32},
    "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.float32},
}
# {family: {tensor in older files: the tensor that it repeats}}
COPIES = {
    "t5": {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    "bart": {
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
    "bert": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "gpt2": {"lm_head.weight": "transformer.wte.weight"},
    "llama": {"lm_head.weight": "model.embed_tokens.weight"},
}


def draw_class(family: str, kind: str, seed: int, **changes) -> tuple[dict, dict[str, np.ndarray]]:
    """Return (config.json, {tensor: values}) of a class with a random shape. changes: fields of config.json."""
    without, added, prefix = CLASSES[family][kind]
    config_json = {**drawn.draw_config(family, seed), "architectures": [f"{NAMES[family]}{kind}"], **changes}
    config_json.pop("id2label", None)
    full = {**config_json, "architectures": ["BertForPreTraining"]} if family == "bert" else config_json
    state = {name: values for name, values in seeded_state(full, seed).items() if not re.match(without, name)}
    if (family, kind) == ("bart", "ForCausalLM"):
        state["model.decoder.embed_tokens.weight"] = state.pop("model.shared.weight")
    if "Classification" in kind:
        config_json["id2label"] = {str(i): f"label {i}" for i in range(LABELS)}
    width = config_json.get("d_model") or config_json.get("hidden_size") or config_json["n_embd"]
    generator = np.random.default_rng(seed)
    heads = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in added(width).items()}
    if prefix is not None:
        body = BODY[family]
        state = {prefix + name.removeprefix(body): values for name, values in state.items()}
    return config_json, {**state, **heads}


def add_extras(family: str, config_json: dict, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the state with the buffers and copies that older files also have."""
    buffers = {name: np.arange(6).reshape(1, 6).astype(dtype) for name, dtype in BUFFERS.get(family, {}).items()}
    tied = config_json.get("tie_word_embeddings", True) or family not in ("gpt2", "llama")
    copies = COPIES[family] if tied else {}
    return {**state, **buffers, **{name: state[of] for name, of in copies.items() if of in state}}


def write_class(folder: Path, config_json: dict, state: dict[str, np.ndarray], seed: int) -> Path:
    """Write a folder of released weights, with one dtype for all tensors or a random dtype for each."""
    draw = random.Random(seed)
    common_dtype = draw.choice([*DTYPES, None])
    write_folder(folder, config_json, {})
    names = {np.dtype(np.int64): "I64", np.dtype(np.uint8): "U8"}
    tensors, by_value = {}, {}
    for name, values in state.items():
        dtype = by_value.setdefault(id(values), common_dtype or draw.choice([*DTYPES]))  # copies have one dtype
        if values.dtype in names:
            raw = values.tobytes()
            tensors[name] = TensorToWrite(values.shape, lambda raw=raw: raw, stored=names[values.dtype], size=len(raw))
        else:
            tensors[name] = TensorToWrite(values.shape, lambda values=values: values, dtype=dtype)

    write_tensors(folder, tensors, "float32")
    return folder


def contents(folder: Path) -> dict[str, tuple]:
    """Return {tensor: (dtype, shape, bytes)} of a folder."""

    return {name: (each.dtype, each.shape, each.bytes(name)) for name, each in TensorFolder(folder).tensors.items()}

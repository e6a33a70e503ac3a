"""Use transformers, if it is installed: compute logits and losses of a model, and load folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}  # fmt: skip


def class_of(config_json: Mapping[str, Any]) -> Any:
    """Return the class of transformers for a config.json."""
    import transformers

    return getattr(transformers, CLASSES.get(config_json["model_type"]) or config_json["architectures"][0])


def fresh_model(config_json: Mapping[str, Any], seed: int) -> Any:
    """Return a model of this config.json with random weights: scales near 1, biases that are not 0.

    T5 does not scale scores, so its queries are made smaller. Otherwise scores are so large that the rounding of
    float32 exceeds the tolerance of the comparison.
    """
    import torch
    import transformers

    model = class_of(config_json)(transformers.AutoConfig.for_model(**config_json)).eval()
    # transformers 5 ties the head of every new T5
    if config_json["model_type"] in ("t5", "mt5") and not config_json["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(seed)
    buffers = {name: values for name, values in model.named_buffers() if name == "final_logits_bias"}
    with torch.no_grad():
        for name, values in (dict(model.named_parameters()) | buffers).items():
            noise = torch.randn(values.shape, generator=generator)
            if values.ndim == 1 and name.endswith("weight"):
                values.copy_(1 + 0.3 * noise)
            elif values.ndim == 1 or name == "final_logits_bias":
                values.copy_(0.3 * noise)
            else:
                fan_in = values.shape[-1] * (config_json["d_kv"] if name.endswith(".q.weight") else 1)
                values.copy_(noise if "embed" in name or "shared" in name else 1.5 * noise / fan_in**0.5)
    return model


def outputs_of(model: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the logits, the logits of whole examples, and the mean loss of the labels, if the model has them."""
    import torch

    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    inputs = {"input_ids": tensors["ids"], "attention_mask": tensors["mask"]}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            out = model(**inputs, decoder_input_ids=tensors["decoder_ids"], labels=tensors["labels"], use_cache=False)
            results = {"logits": out.logits, "loss": out.loss}
        elif model.config.model_type == "bert":
            out = model(**inputs, token_type_ids=tensors["token_types"])
            if hasattr(out, "prediction_logits"):
                results = {"logits": out.prediction_logits, "labels": out.seq_relationship_logits}
            else:
                results = {"labels" if out.logits.ndim == 2 else "logits": out.logits}
        else:
            mask = tensors["decoder_mask"]
            logits = model(input_ids=tensors["decoder_ids"], attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["labels"].flatten())
            results = {"logits": logits, "loss": loss}
    return {name: value.float().numpy() for name, value in results.items()}


def load_model(folder: Path, config_json: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return (the model of a folder, transformers' report: missing, unexpected and mismatched keys)."""
    import torch

    model, info = class_of(config_json).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), info

"""What transformers computes, where it is installed: logits and losses of a model, and folders it writes and reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}  # fmt: skip


def class_of(said: Mapping[str, Any]) -> Any:
    """The class of transformers for a config.json."""
    import transformers

    return getattr(transformers, CLASSES.get(said["model_type"]) or said["architectures"][0])


def fresh_model(said: Mapping[str, Any], seed: int) -> Any:
    """A model of this config.json with weights that matter: norms near 1, biases that are not 0.

    T5's queries have the factor in them that its scores lack: else these are so large that float32 itself, here and
    there, is off by more than what is compared to.
    """
    import torch
    import transformers

    model = class_of(said)(transformers.AutoConfig.for_model(**said)).eval()
    if said["model_type"] in ("t5", "mt5") and not said["tie_word_embeddings"]:  # transformers 5 ties all it creates
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
                fan_in = values.shape[-1] * (said["d_kv"] if name.endswith(".q.weight") else 1)
                values.copy_(noise if "embed" in name or "shared" in name else 1.5 * noise / fan_in**0.5)
    return model


def outputs_of(model: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, logits of the whole example, and the mean loss of the labels, as far as the model has them."""
    import torch

    given = {name: torch.from_numpy(values) for name, values in batch.items()}
    inputs = {"input_ids": given["ids"], "attention_mask": given["mask"]}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            out = model(**inputs, decoder_input_ids=given["decoder_ids"], labels=given["labels"], use_cache=False)
            found = {"logits": out.logits, "loss": out.loss}
        elif model.config.model_type == "bert":
            out = model(**inputs, token_type_ids=given["token_types"])
            if hasattr(out, "prediction_logits"):
                found = {"logits": out.prediction_logits, "labels": out.seq_relationship_logits}
            else:
                found = {"labels" if out.logits.ndim == 2 else "logits": out.logits}
        else:
            mask = given["decoder_mask"]
            logits = model(input_ids=given["decoder_ids"], attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["labels"].flatten())
            found = {"logits": logits, "loss": loss}
    return {name: value.float().numpy() for name, value in found.items()}


def loaded(folder: Path, said: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model of a folder, and what transformers says of the loading: missing, unexpected, mismatched keys."""
    import torch

    model, info = class_of(said).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), info

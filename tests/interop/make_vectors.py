"""Make vectors.npz: the logits and losses that transformers computes for the variants. Needs torch and transformers.

python -m tests.interop.make_vectors
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import torch
import transformers

from tests.interop.variants import STORED_POSITIONS, VARIANTS, seeded_batch, seeded_state

CLASSES = {
    "t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def reference_model(config_json: Mapping, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return the model of this config.json with these weights. Names and shapes must be those of transformers."""
    name = CLASSES.get(config_json["model_type"]) or config_json["architectures"][0]
    config = transformers.AutoConfig.for_model(**config_json)
    model = getattr(transformers, name)(config).eval()
    if "lm_head.weight" in state:  # transformers 5 ties every T5 that it creates
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(state["lm_head.weight"].shape))
    parameters = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n == "final_logits_bias"}
    assert parameters.keys() == state.keys(), sorted(parameters.keys() ^ state.keys())
    with torch.no_grad():
        for tensor, values in state.items():
            parameters[tensor].copy_(torch.from_numpy(values))
    return model


def reference(
    config_json: Mapping, state: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the logits, and the mean loss of the labels if the model has one."""
    model = reference_model(config_json, state)
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    inputs = {"input_ids": tensors["ids"], "attention_mask": tensors["mask"]}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            out = model(**inputs, decoder_input_ids=tensors["decoder_ids"], labels=tensors["labels"], use_cache=False)
            return {"logits": out.logits.numpy(), "loss": out.loss.numpy()}
        if config_json["model_type"] == "bert":
            out = model(**inputs, token_type_ids=tensors["token_types"])
            results = {
                "logits": getattr(out, "prediction_logits", None),
                "labels": getattr(out, "seq_relationship_logits", None),
            }
            if results["logits"] is None:
                results["labels" if "classifier.weight" in state else "logits"] = out.logits
            return {name: value.numpy() for name, value in results.items() if value is not None}
        logits = model(input_ids=tensors["decoder_ids"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["labels"].flatten())
        return {"logits": logits.numpy(), "loss": loss.numpy()}


def main() -> None:
    vectors = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    for name, config_json in VARIANTS.items():
        results = reference(config_json, seeded_state(config_json, seed=0), seeded_batch(config_json, seed=1))
        for part, values in results.items():
            vectors[f"{name}/{part}"] = values[:, list(STORED_POSITIONS)] if part == "logits" else values
    path = pathlib.Path(__file__).with_name("vectors.npz")
    np.savez_compressed(path, **vectors)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

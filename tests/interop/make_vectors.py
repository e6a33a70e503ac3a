"""Make vectors.npz: logits and losses of the variants by transformers. Needs torch and transformers.

python -m tests.interop.make_vectors
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import torch
import transformers

from tests.interop.variants import KEPT, VARIANTS, seeded_batch, seeded_state

CLASSES = {
    "t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def reference_model(said: Mapping, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """The model of this config.json with these weights; names and shapes must be those that it has itself."""
    name = CLASSES.get(said["model_type"]) or said["architectures"][0]
    config = transformers.AutoConfig.for_model(**said)
    model = getattr(transformers, name)(config).eval()
    if "lm_head.weight" in state:  # transformers 5 ties every T5 that it creates
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(state["lm_head.weight"].shape))
    own = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n == "final_logits_bias"}
    assert own.keys() == state.keys(), sorted(own.keys() ^ state.keys())
    with torch.no_grad():
        for tensor, values in state.items():
            own[tensor].copy_(torch.from_numpy(values))
    return model


def reference(said: Mapping, state: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits, and the mean loss of the labels where the model has one."""
    model, given = reference_model(said, state), {name: torch.from_numpy(values) for name, values in batch.items()}
    inputs = {"input_ids": given["ids"], "attention_mask": given["mask"]}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            out = model(**inputs, decoder_input_ids=given["decoder_ids"], labels=given["labels"], use_cache=False)
            return {"logits": out.logits.numpy(), "loss": out.loss.numpy()}
        if said["model_type"] == "bert":
            out = model(**inputs, token_type_ids=given["token_types"])
            found = {
                "logits": getattr(out, "prediction_logits", None),
                "labels": getattr(out, "seq_relationship_logits", None),
            }
            if found["logits"] is None:
                found["labels" if "classifier.weight" in state else "logits"] = out.logits
            return {name: value.numpy() for name, value in found.items() if value is not None}
        logits = model(input_ids=given["decoder_ids"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["labels"].flatten())
        return {"logits": logits.numpy(), "loss": loss.numpy()}


def main() -> None:
    vectors = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    for name, said in VARIANTS.items():
        found = reference(said, seeded_state(said, seed=0), seeded_batch(said, seed=1))
        for part, values in found.items():
            vectors[f"{name}/{part}"] = values[:, list(KEPT)] if part == "logits" else values
    path = pathlib.Path(__file__).with_name("vectors.npz")
    np.savez_compressed(path, **vectors)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""Folders of small released weights, complete with a tokenizer."""

import json
from pathlib import Path

from tests.data import released as tokenizers
from tests.interop.variants import VARIANTS, seeded_state, write_folder

# {name: (variant, the tokenizer beside it, an objective to go on with)}
PLACES = {
    "t5": ("t5_v1_1", tokenizers.t5, "span_corruption"),
    "bart": ("bart", tokenizers.bart, "supervised"),
    "bert": ("bert", tokenizers.bert, "mlm_nsp"),
    "gpt2": ("gpt2", tokenizers.neox, "causal_lm"),
    "llama": ("llama", tokenizers.llama, "causal_lm"),
}


def make_place(folder: Path, name: str, **changes) -> Path:
    """A folder of released weights with a tokenizer whose ids they have rows for."""
    variant, tokenizer, _ = PLACES[name]
    tokenizer(folder)
    beside = {file.name: json.loads(file.read_text()) for file in folder.glob("config.json")}.get("config.json", {})
    said = {**VARIANTS[variant], **beside, "model_type": VARIANTS[variant]["model_type"], "vocab_size": 768, **changes}
    return write_folder(folder, said, seeded_state(said, seed=0), "bfloat16")

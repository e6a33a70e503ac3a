"""Folders of small released weights with a tokenizer."""

import json
from pathlib import Path

from tests.data import released as tokenizers
from tests.interop.variants import VARIANTS, seeded_state, write_folder

# {name: (variant, function that writes the tokenizer, objective for continued training)}
PLACES = {
    "t5": ("t5_v1_1", tokenizers.t5, "span_corruption"),
    "bart": ("bart", tokenizers.bart, "supervised"),
    "bert": ("bert", tokenizers.bert, "mlm_nsp"),
    "gpt2": ("gpt2", tokenizers.neox, "causal_lm"),
    "llama": ("llama", tokenizers.llama, "causal_lm"),
}


def make_place(folder: Path, name: str, **changes) -> Path:
    """Write released weights with a tokenizer; the embedding has a row for each of its ids. changes: of config.json."""
    variant, tokenizer, _ = PLACES[name]
    tokenizer(folder)
    beside = {file.name: json.loads(file.read_text()) for file in folder.glob("config.json")}.get("config.json", {})
    config_json = {
        **VARIANTS[variant],
        **beside,
        "model_type": VARIANTS[variant]["model_type"],
        "vocab_size": 768,
        **changes,
    }
    return write_folder(folder, config_json, seeded_state(config_json, seed=0), "bfloat16")

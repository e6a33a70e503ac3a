"""What many tests need: a little text, and a config of a network that trains in seconds."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from t5lite.config import base_config
from t5lite.data.tokenizers.tokenizer import Tokenizer

WORDS = ["the", "a", "of", "sea", "ship", "captain", "whale", "white", "old", "man", "went", "said", "cold"]


def sentence(rng: np.random.Generator, words: int) -> str:
    """Words whose first letters follow from the word before, so that there is something to learn."""
    at, chosen = int(rng.integers(len(WORDS))), []
    for _ in range(words):
        chosen.append(WORDS[at])
        at = (3 * at + int(rng.integers(2))) % len(WORDS)
    return " ".join(chosen) + "."


def write_texts(folder: Path, documents: int = 30, sentences: int = 20, seed: int = 0) -> str:
    """Write .txt files and return the source that reads them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        text = "\n".join(sentence(rng, int(rng.integers(5, 15))) for _ in range(sentences))
        (folder / f"{i:03d}.txt").write_text(text)
    return f"files:{folder}/*.txt"


def write_pairs(path: Path, pairs: int = 200, seed: int = 0) -> str:
    """Write a .jsonl of a task with two labels, and return the source that reads it."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(pairs):
            text = sentence(rng, int(rng.integers(3, 20)))
            label = "about the sea" if "whale" in text else "other"
            file.write(json.dumps({"inputs": text, "targets": label}) + "\n")
    return f"files:{path}"


def config_with(tokenizer: Tokenizer, workdir: Path) -> ConfigDict:
    """The base config with a tokenizer that stands in `workdir`."""
    tokenizer.save(workdir / "tokenizer")
    config = base_config()
    config.tokenizer.path = str(workdir)
    return config


def small_config(source: str, objective: str = "span_corruption", architecture: str = "encoder_decoder") -> ConfigDict:
    """A network of one layer a stack, width 32, on windows of 32 tokens."""
    config = base_config()
    config.name = "small"
    config.data.train.source = source
    config.tokenizer.vocab_size = 290
    config.tokenizer.sentinels = 20
    config.objective.name = objective
    config.objective.inputs_length = 32
    if objective == "supervised":
        config.objective.targets_length = 16
    config.model.architecture = architecture
    config.model.num_encoder_layers = 1
    config.model.num_decoder_layers = 1
    config.model.d_model = 32
    config.model.d_ff = 64
    config.model.num_heads = 2
    config.model.head_dim = 16
    config.mesh.data = 1
    config.batch_size = 8
    config.schedule.rate = 3e-3
    config.eval.rows = 16
    config.eval.generate_rows = 8
    config.budget.steps = 6
    config.checkpoint.every_steps = 3
    config.log_every_steps = 2
    return config


class Spy:
    """Leaves a file `trace` if it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")

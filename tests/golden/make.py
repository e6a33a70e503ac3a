"""Make the workdir of a tiny complete run, with its text, for test_golden.py: workdirs of today stay readable.

    python -m tests.golden.make

It is made anew when FORMAT (t5lite/files.py) is raised and older formats are no longer read; the old one is then what a
test of the refusal needs.
"""

import contextlib
import os
import tarfile
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.train import train
from tests.small import small_config, write_texts

ARCHIVE = Path(__file__).parent / "run.tar.gz"


def golden_config() -> ConfigDict:
    """A decoder of 2,000 parameters with an average, on text in the folder texts/ of the working directory."""
    config = small_config("files:texts/*.txt", "causal_lm", "decoder")
    config.tokenizer.vocab_size, config.tokenizer.sentinels = 280, 10
    config.objective.inputs_length = 16
    config.model.num_encoder_layers, config.model.vocab_size = 0, 384
    config.model.d_model, config.model.d_ff, config.model.num_heads, config.model.head_dim = 4, 4, 1, 4
    config.ema_decay = 0.9
    config.budget.steps = config.checkpoint.every_steps = 4
    return config


def main() -> None:
    """Train, and pack what a reader needs."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["T5LITE_CACHE"] = f"{folder}/cache"
        write_texts(Path("texts"), documents=24, sentences=8)
        train(golden_config(), Path("run"))
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            for path in (
                "texts",
                *(f"run/{name}" for name in os.listdir("run") if name not in (".lock", "tensorboard")),
            ):
                archive.add(path)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

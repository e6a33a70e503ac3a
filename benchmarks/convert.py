"""Measure memory and time of converting released weights, in both directions. The weights are random.

    python benchmarks/convert.py --preset t5_v1_1_large --dtype bfloat16

Each conversion runs in its own process. Its peak resident memory is compared with the size of the parameters in
float32, which is the size in a run. Prints JSON lines.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from t5lite.config import base_config
from t5lite.data.tokenizers.training import train_tokenizer
from t5lite.interop.released import open_released
from t5lite.interop.writing import describe, write_released
from t5lite.model.build import make_model
from t5lite.model.presets import preset
from t5lite.model.transformer import num_parameters, parameter_shapes
from t5lite.system.vocabulary import Vocabulary
from t5lite.training.tables import flatten_with_paths


class Random:
    """{path: random values}. An array is made when it is read."""

    def __init__(self, shapes):
        self.shapes = {path: leaf.shape for path, leaf in flatten_with_paths(shapes)}

    def __getitem__(self, path):
        rng = np.random.default_rng(abs(hash(path)) % 2**32)
        return rng.standard_normal(self.shapes[path], np.float32) * np.float32(0.02)


def make_weights(folder: Path, name: str, dtype: str) -> int:
    """Write a folder of random released weights with a tokenizer. Return the folder and the number of parameters."""
    fields = base_config().model
    fields.update(preset(name))
    model = make_model(fields, Vocabulary.synthetic(8000, 100)).config
    describe(model)
    folder.mkdir()
    write_released(folder, model, Random(parameter_shapes(model)), dtype)
    words = [f"{a}{b}{c}." for a in "abcdefgh" for b in "aeiou" for c in "stuvwx"]
    (folder / "spiece.model").write_bytes(train_tokenizer(words * 20, 300, 0).model)
    return num_parameters(model)


def run(source: str, target: str, *more: str) -> dict:
    """Run one conversion. Return its seconds and its peak resident bytes."""
    command = [sys.executable, "-m", "t5lite.convert", "--from", source, "--to", target, *more]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="t5_v1_1_large")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, help="a folder on a disk with enough room; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        weights, workdir, back = Path(made) / "weights", Path(made) / "run", Path(made) / "back"
        count = make_weights(weights, arguments.preset, arguments.dtype)
        about = {"preset": arguments.preset, "dtype": arguments.dtype, "parameters": count, "float32_bytes": 4 * count,
                 "machine": platform.processor() or platform.machine(), "jax": version("jax")}  # fmt: skip
        for direction, source, target, more in (
            ("import", f"hf:{weights}", str(workdir), ()),
            ("export", str(workdir), f"hf:{back}", ("--dtype", arguments.dtype)),
        ):
            measured = run(source, target, *more)
            share = measured["peak_bytes"] / (4 * count)
            print(
                json.dumps({"direction": direction, **about, **measured, "peak_of_float32": round(share, 2)}),
                flush=True,
            )
        first, second = open_released(weights), open_released(back)
        same = all(np.array_equal(first.read(path), second.read(path)) for path in first.rows)
        print(json.dumps({"same_bits_after_both": same}))


if __name__ == "__main__":
    main()

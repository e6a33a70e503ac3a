"""Compare the speed of generation with a peer's. Both run in turn on the same machine, and are compared pair by pair.

    python benchmarks/generate.py --peer 'PYTHON hf_t5_generate.py' --pairs 5

A T5 of 4 + 4 layers reads 128 tokens and generates 64. The settings: greedy or 4 beams, 1 request or 16 at once. EOS is
forbidden, so all answers have equal length. Each side runs in its own process. The peer's command prints a JSON line
for each setting, with "batch", "beams" and "tokens_per_second".

Prints a line for each run and setting. Then prints a line for each setting: the medians, and the median of the ratios
of neighbouring runs (ours divided by the peer's). Our lines also have the rate of the first call, which compiles.
"""

import argparse
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
INPUTS, NEW_TOKENS, REPEATS = 128, 64, 3
SETTINGS = [(batch, beams) for batch in (1, 16) for beams in (1, 4)]


def measure_ours() -> None:
    """Print a JSON line for each setting."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from t5lite.decoding.generate import generate, step_weights
    from t5lite.decoding.settings import Settings
    from t5lite.model.config import ModelConfig
    from t5lite.model.transformer import Transformer
    from t5lite.objectives.batch import Batch

    config = ModelConfig(4, 4, 8192, d_model=256, d_ff=512, num_heads=4, head_dim=64, tie_embeddings=True)
    model, ids = Transformer(config), jnp.zeros((1, 4), jnp.int32)
    batch_of_one = Batch(targets=ids, weights=ids, inputs=ids, decoder_inputs=ids)
    params = jax.jit(model.init)(jax.random.key(0), batch_of_one)["params"]
    allowed = np.arange(config.vocab_size) > 1
    for batch, beams in SETTINGS:
        inputs = np.random.default_rng(0).integers(3, config.vocab_size, (batch, INPUTS), dtype=np.int32)
        lengths = np.full(batch, INPUTS, np.int32)
        settings = Settings(max_new_tokens=NEW_TOKENS, num_beams=beams)
        jax.clear_caches()
        start = time.perf_counter()
        weights = step_weights(model, params)  # kept between calls, as `run.generator.Generator` does
        run = functools.partial(generate, model, params, inputs, lengths, settings, allowed=allowed, weights=weights)
        assert (run().lengths == NEW_TOKENS).all()
        first = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(REPEATS):
            jax.block_until_ready(run())
        seconds = (time.perf_counter() - start) / REPEATS
        tokens = batch * NEW_TOKENS
        print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "batch": batch,
                          "beams": beams, "tokens_per_second": tokens / seconds,
                          "tokens_per_second_with_compiling": tokens / first}))  # fmt: skip


def measure(command: list[str]) -> list[dict]:
    """Run `command`, and return the JSON objects that it prints, one on each line."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def summarise(setting: tuple[int, int], runs: dict[str, list[dict]]) -> dict:
    """Return the medians of one setting, and the ratios of neighbouring runs."""
    of = {name: [run for run in each if (run["batch"], run["beams"]) == setting] for name, each in runs.items()}
    rates = {name: [run["tokens_per_second"] for run in each] for name, each in of.items()}
    line = {"batch": setting[0], "beams": setting[1]}
    line |= {f"{name}_tokens_per_second": round(statistics.median(values), 1) for name, values in rates.items()}
    compiling = [run["tokens_per_second_with_compiling"] for run in of["t5lite"]]
    line["t5lite_tokens_per_second_with_compiling"] = round(statistics.median(compiling), 1)
    if "peer" in rates:
        ratios = [a / b for a, b in zip(rates["t5lite"], rates["peer"], strict=True)]
        line |= {"ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the peer's command; default: measure only our side")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help="measure our side in this process")
    arguments = parser.parse_args()
    if arguments.ours:
        return measure_ours()
    sides = {"t5lite": [sys.executable, "-m", "benchmarks.generate", "--ours"]}
    sides |= {"peer": shlex.split(arguments.peer)} if arguments.peer else {}
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(arguments.pairs):
        for name, command in sides.items():
            for measured in measure(command):
                runs[name].append(measured)
                print(json.dumps({"side": name, **measured}), flush=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
               "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES")}  # fmt: skip
    for setting in SETTINGS:
        print(json.dumps({**summarise(setting, runs), "pairs": arguments.pairs, **machine}))


if __name__ == "__main__":
    main()

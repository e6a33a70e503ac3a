"""Measure the speed of the objectives and of a collator in NumPy. Print JSON lines on stdout.

    python benchmarks/objectives.py
    python benchmarks/objectives.py --batch 256 --seconds 5 --share ''         no training steps

Each objective has a line: tokens a second, for batches of windows that fill 512 inputs. The objective is vmapped and
jitted on this device. The collator has a line too. It makes T5's span corruption on one core of the host, one example
after another.

The last lines say how much of a training step of `--config` is spent on making the batch: the time of making the batch
alone, divided by the step time of t5lite.bench.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from t5lite.bench import bench, make_synthetic_rows
from t5lite.objectives.catalogue import OBJECTIVES, make_objective, special_tokens
from t5lite.objectives.lengths import span_corruption_lengths
from t5lite.objectives.noise import span_counts
from t5lite.objectives.objective import Objective, example_keys, make_batch
from t5lite.system.python_files import load_function
from t5lite.system.vocabulary import EOS, Vocabulary

NAMES = [name for name, kind in OBJECTIVES.items() if kind.data == "text" and name != "mixture"]
INPUTS_LENGTH = 512


def seconds_a_call(call: Callable[[int], Any], seconds: float) -> float:
    """Median time of `call`, of as many calls as `seconds` hold, after the first, which compiles."""
    jax.block_until_ready(call(0))
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(call(len(times) + 1))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_in(config: ConfigDict) -> tuple[Objective, Vocabulary]:
    """The config's objective over a synthetic vocabulary."""
    specials = special_tokens(config.tokenizer, config.objective)
    vocabulary = Vocabulary.synthetic(config.tokenizer.vocab_size, config.tokenizer.sentinels, specials)
    return make_objective(config.objective, config.model.architecture, vocabulary), vocabulary


def batch_seconds(objective: Objective, vocabulary: Vocabulary, batch_size: int, seconds: float) -> float:
    """Return the seconds of making a batch and its keys, as in the training step."""
    rows = jax.device_put(make_synthetic_rows(objective, vocabulary, batch_size))

    @jax.jit
    def batch_of(rows: Any, step: jax.Array) -> Any:
        return make_batch(objective, example_keys(jax.random.key(0), step, batch_size), rows, vocabulary.table)

    return seconds_a_call(lambda step: batch_of(rows, jnp.int32(step)), seconds)


def collate(rng: np.random.Generator, window: np.ndarray, size: int, noise: int, spans: int) -> tuple[list, list]:
    """Return (inputs, targets) of T5's span corruption for one window, in NumPy."""

    def lengths(items: int) -> np.ndarray:
        cuts = np.sort(rng.choice(np.arange(1, items), spans - 1, replace=False))
        return np.diff(np.concatenate([[0], cuts, [items]]))

    both = np.stack([lengths(len(window) - noise), lengths(noise)], axis=1).ravel()
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, both)
    sides = []
    for hidden in (mask, ~mask):
        starts = hidden & ~np.concatenate([[False], hidden[:-1]])
        side = np.where(starts, size - np.cumsum(starts), window)
        sides.append(np.append(side[starts | ~hidden], EOS))
    return sides[0], sides[1]


def collator_seconds(batch_size: int, size: int, seconds: float) -> float:
    """Return the seconds of making a batch of span corruption in NumPy."""
    window, targets_length = span_corruption_lengths(INPUTS_LENGTH)
    noise, spans = span_counts(window, 0.15, 3.0)
    rng = np.random.default_rng(0)
    rows = rng.integers(3, size - 100, (batch_size, window), dtype=np.int32)

    def batch_of(step: int) -> list[np.ndarray]:
        del step
        made = [collate(rng, row, size, noise, spans) for row in rows]
        return [np.stack(side).astype(np.int32) for side in zip(*made, strict=True)]

    inputs, targets = batch_of(0)
    assert inputs.shape[1:] == (INPUTS_LENGTH,) and targets.shape[1:] == (targets_length,)
    return seconds_a_call(batch_of, seconds)


def read_run_config(path: str, **choices: str) -> ConfigDict:
    """The config of a file, with what its argument chooses."""
    return load_function(Path(path), "get_config")(",".join(f"{name}={value}" for name, value in choices.items()))


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in NAMES:
        architecture = OBJECTIVES[name].architectures[0]
        config = read_run_config(arguments.config, objective=name, architecture=architecture)
        config.objective.inputs_length = INPUTS_LENGTH
        objective, vocabulary = make_in(config)
        seconds = batch_seconds(objective, vocabulary, arguments.batch, arguments.seconds)
        yield {
            "benchmark": "objective",
            "objective": name,
            "architecture": architecture,
            "window": objective.window,
            "ms_per_batch": round(1e3 * seconds, 3),
            "tokens_per_second": round(arguments.batch * objective.window / seconds),
        }
    window, _ = span_corruption_lengths(INPUTS_LENGTH)
    seconds = collator_seconds(arguments.batch, 8100, arguments.seconds)
    yield {
        "benchmark": "numpy collator",
        "objective": "span_corruption",
        "window": window,
        "ms_per_batch": round(1e3 * seconds, 3),
        "tokens_per_second": round(arguments.batch * window / seconds),
    }
    for name in filter(None, arguments.share.split(",")):
        config = read_run_config(arguments.config, objective=name)
        objective, vocabulary = make_in(config)
        step = bench(config)["step_seconds"]
        seconds = batch_seconds(objective, vocabulary, config.batch_size, arguments.seconds)
        yield {
            "benchmark": "share of a training step",
            "config": config.name,
            "objective": name,
            "batch_ms": round(1e3 * seconds, 3),
            "step_ms": round(1e3 * step, 1),
            "share": round(seconds / step, 5),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="windows in a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each is measured")
    parser.add_argument("--config", default="configs/tiny.py")
    parser.add_argument("--share", default="span_corruption,ul2", help="objectives whose training step is measured")
    arguments = parser.parse_args()
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    machine |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "batch": arguments.batch}
    print(json.dumps({**machine, "load": round(os.getloadavg()[0], 2)}), flush=True)
    for line in measured(arguments):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

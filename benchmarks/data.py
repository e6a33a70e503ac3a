"""Measure speed and memory of data: preparing text, reading rows, packing pairs. Print JSON lines on stdout.

    python benchmarks/data.py                                     the docstrings of pydocs/general
    python benchmarks/data.py --text 'books/*.txt' --gigabytes 1  a .txt file of 1 GB, by repetition

Preparing (tokenizer and token store, with an empty cache) runs in its own process. So its peak memory includes nothing
else.
"""

import argparse
import glob
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from t5lite.config import base_config
from t5lite.data.dataset import open_dataset, open_tokenizer
from t5lite.data.packing import pack
from t5lite.data.rows import TrainRows, Windows
from t5lite.data.sources import open_source
from t5lite.data.store import Span

WINDOW, BATCH = 512, 64
VOCAB_SIZE = 8000


def read_texts(pattern: str | None) -> Iterator[str]:
    """Return the text to repeat: from the files that match `pattern`, or from pydocs/general."""
    source = open_source(f"files:{pattern}" if pattern else "pydocs/general")
    for text, ends_document in source.fragments():
        yield text + ("\n" if ends_document else "")


def write_repeated(path: Path, pattern: str | None, num_bytes: int) -> None:
    """Write a .txt file of about `num_bytes`, by repeating the text."""
    written = 0
    with open(path, "wb") as file:
        while written < num_bytes:
            before = written
            for text in read_texts(pattern):
                block = text.encode()[: num_bytes - written].decode(errors="ignore").encode()
                file.write(block)
                written += len(block)
                if written >= num_bytes - 3:
                    return
            if written == before:
                sys.exit("the files have no text")


def _config(path: str):
    config = base_config()
    config.data.train.source = f"files:{path}"
    config.tokenizer.vocab_size = VOCAB_SIZE
    return config


def prepare(path: str) -> None:
    """Build tokenizer and store of the file at `path`. Print seconds and memory. Runs in its own process."""
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_tokenizer(_config(path), "text")
    tokenizer_seconds = time.perf_counter() - start
    dataset = open_dataset(_config(path), "text")
    seconds = time.perf_counter() - start
    tokens = dataset.train["train"].store.num_tokens
    size = Path(path).stat().st_size
    print(
        json.dumps(
            {
                "benchmark": "prepare",
                "bytes": size,
                "tokens": tokens,
                "seconds": round(seconds, 2),
                "mb_per_second": round(size / seconds / 1e6, 2),
                "tokenizer_seconds": round(tokenizer_seconds, 2),
                "encoding_mb_per_second": round(size / (seconds - tokenizer_seconds) / 1e6, 2),
                "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
                "rss_after_imports_gib": round(before / 2**20, 3),
            }
        )
    )


def measure_rows(span: Span, with_eos: bool, seconds: float) -> dict[str, object]:
    """Return the tokens per second of `TrainRows` over windows of `span`, in one thread."""
    reader = TrainRows([(Windows(span, WINDOW, with_eos, segments=with_eos), 1.0)], BATCH, seed=0)
    reader(0)
    steps, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        steps += 1
        reader(steps)
    return {
        "benchmark": "rows",
        "window": WINDOW,
        "batch": BATCH,
        "with_eos": with_eos,
        "tokens_per_second": round(steps * BATCH * WINDOW / taken),
        "ms_per_batch": round(1e3 * taken / steps, 3),
    }


def measure_packing(pairs: int) -> dict[str, object]:
    """Measure packing: pairs per second, and the filled share of the rows. Lengths are log-normal, like summaries."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal([4.6, 2.8], [0.8, 0.5], (pairs, 2))).astype(np.int64) + 1
    limits = (512, 128)
    start = time.perf_counter()
    plan = pack(lengths, rng.permutation(pairs), *limits)
    seconds = time.perf_counter() - start
    filled = np.minimum(lengths, limits).sum(axis=0) / (len(plan) * np.array(limits))
    return {
        "benchmark": "packing",
        "pairs": pairs,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(pairs / seconds),
        "inputs_filled": round(float(filled[0]), 4),
        "targets_filled": round(float(filled[1]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="GLOB", help="repeat the text of these files; default: pydocs/general")
    parser.add_argument("--gigabytes", type=float, default=0.05, help="size of the text to prepare, in 1e9 bytes")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of reading rows, for each of the two kinds")
    parser.add_argument("--pairs", type=int, default=160_000, help="number of pairs to pack")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)  # internal: run `prepare` in this process
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare)
        return
    if arguments.text and not glob.glob(arguments.text, recursive=True):
        parser.error(f"no file matches {arguments.text!r}")
    print(json.dumps({"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.platform()}))
    with tempfile.TemporaryDirectory(dir=os.environ.get("T5LITE_CACHE")) as folder:
        path = Path(folder, "text.txt")
        write_repeated(path, arguments.text, int(arguments.gigabytes * 1e9))
        os.environ["T5LITE_CACHE"] = f"{folder}/cache"
        subprocess.run([sys.executable, __file__, "--prepare", path], check=True)
        span = open_dataset(_config(str(path)), "text").train["train"]
        for with_eos in (True, False):
            print(json.dumps(measure_rows(span, with_eos, arguments.seconds)))
    print(json.dumps(measure_packing(arguments.pairs)))


if __name__ == "__main__":
    main()

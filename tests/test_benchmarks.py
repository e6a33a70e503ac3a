"""The scripts in benchmarks/ start from the repository's root, and the benchmark of the data runs to its end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small import write_pairs

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def run(script, *arguments):
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_starts_and_explains_its_flags(script):
    assert "usage: " in run(script, "--help")


def test_the_benchmark_of_the_data_measures_preparing_reading_and_packing(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"The ship number {i} sailed {i * i} miles.\n" for i in range(30_000)))
    flags = ["--text", str(tmp_path / "*.txt"), "--gigabytes", "0.002", "--seconds", "0.1", "--pairs", "500"]
    lines = [json.loads(line) for line in run("data.py", *flags).splitlines()]
    assert [line.get("benchmark") for line in lines] == [None, "prepare", "rows", "rows", "packing"]


@pytest.mark.parametrize(
    "tasks", ["texts", pytest.param("labels,encoder_labels,texts,score_2,score_13", marks=pytest.mark.slow)]
)
def test_the_benchmark_of_fine_tuning_measures_each_task(tmp_path, tasks):
    source = write_pairs(tmp_path / "rows.jsonl", pairs=60)
    flags = ["--labels_source", source, "--texts_source", source, "--tasks", tasks, "--pairs", "1"]
    flags += ["--inputs_length", "32", "--texts_length", "16", "--vocab_size", "285", "--layers", "1"]
    output = run("fine_tuning.py", *flags, "--batch_size", "4", "--seconds", "0.01", "--score_batches", "1")
    lines = [json.loads(line) for line in output.splitlines()]
    names = tasks.split(",")
    assert [(each["task"], each["side"]) for each in lines if "side" in each] == [
        (name, side) for name in names for side in ("packed", "padded") if side == "padded" or "score" not in name
    ]
    *tasks, machine = lines[-len(names) - 1 :]
    assert [task["task"] for task in tasks] == names and "date" in machine
    for task in tasks:
        assert task["padded_examples_per_second"] > 0
        if "epoch" in task:
            packed, padded = task["epoch"]["packed"], task["epoch"]["padded"]
            assert (packed["examples"], padded["examples"]) == (57, 57) and packed["tokens"] == padded["tokens"]
            assert packed["rows"] < padded["rows"] == 57 and packed["padding"] < padded["padding"]

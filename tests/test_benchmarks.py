"""The scripts in benchmarks/ start from the repository's root, and the benchmark of the data runs to its end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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

"""Compare the training step with a peer's. Both run in turn on the same machine, and are compared pair by pair.

    python benchmarks/train_step.py --peer 'PYTHON hf_t5_train_step.py --size tiny --batch 8' --pairs 5

Each side runs in its own process. The peer's command prints a JSON line with "tokens_per_second". Prints a line for
each run. The last line has the medians, and the median of the ratios of neighbouring runs (ours divided by the peer's).
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(command: list[str]) -> dict:
    """Run `command`, and return the JSON object on its last line."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the peer's command; default: measure only our side")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--config", default="configs/tiny.py")
    arguments, overrides = parser.parse_known_args()
    ours = [sys.executable, "-m", "t5lite.bench", "--config", arguments.config, "--json", *overrides]
    sides = {"t5lite": ours} | ({"peer": shlex.split(arguments.peer)} if arguments.peer else {})
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.pairs):
        for name, command in sides.items():
            measured = measure(command)
            rates[name].append(measured["tokens_per_second"])
            print(json.dumps({"side": name, **measured}), flush=True)
    summary = {f"{name}_tokens_per_second": round(statistics.median(values)) for name, values in rates.items()}
    if arguments.peer:
        ratios = [a / b for a, b in zip(rates["t5lite"], rates["peer"], strict=True)]
        summary |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({**summary, "pairs": arguments.pairs, **machine}))


if __name__ == "__main__":
    main()

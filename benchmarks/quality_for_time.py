"""Compare the loss after some minutes of training with a peer's, with equal text, tokenizer and machine, in turn.

    python benchmarks/quality_for_time.py --minutes 12 --tokenizer pieces.model --train 'GLOB' --validation 'GLOB' \\
        --peer 'PYTHON hf_t5_pretrain.py' [--config.a.b=value …]

The peer's command also gets --minutes, --tokenizer, --train and --validation. It prints JSON lines with "seconds" of
training, "tokens" and "validation_loss". If there is no tokenizer, the peer makes it. Each side runs in its own
process. The time of evaluations does not count as training.

Prints a line for each point of a curve, and a line with the last losses. A loss is the mean over the target tokens of
256 windows of the validation text, in nats. Sentinels and EOS count. Each side draws its own noise.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_peer(command: list[str]) -> Iterator[dict]:
    """Run the peer, and return the points that it prints."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        sys.exit(f"the peer failed: {shlex.join(command)}")


def read_our_curve(workdir: Path) -> Iterator[dict]:
    """Return the points in a run's metrics.jsonl, with the seconds of its steps."""
    seconds, step, tokens = 0.0, 0, 0
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if values["split"] == "train":
            seconds += (values["step"] - step) * values["step_ms"] / 1000
            step, tokens = values["step"], values["tokens"]
        else:
            point = {"step": values["step"], "seconds": round(seconds, 1), "tokens": tokens}
            yield {**point, "validation_loss": round(values["loss"], 4)}


def train_ours(arguments: argparse.Namespace, overrides: list[str]) -> Iterator[dict]:
    """Train our side: a run of `--config` in a temporary folder."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "t5lite.train", "--config", arguments.config, "--workdir", workdir]
        command += ["--config.budget.steps=None", f"--config.budget.minutes={arguments.minutes}"]
        command += [f"--config.tokenizer.path={arguments.tokenizer}", "--config.eval.every_steps=100"]
        command += [f"--config.data.{part}.source=files:{getattr(arguments, part)}" for part in ("train", "validation")]
        subprocess.run([*command, *overrides], cwd=ROOT, stdout=sys.stderr, check=True)
        yield from read_our_curve(Path(workdir))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the peer's command; default: measure only our side")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--config", default="configs/tiny.py")
    arguments, overrides = parser.parse_known_args()
    last = {}
    sides = {}
    if arguments.peer:
        given = {name: getattr(arguments, name) for name in ("train", "validation", "tokenizer", "minutes")}
        flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        sides["peer"] = run_peer([*shlex.split(arguments.peer), *flags])
    sides["t5lite"] = train_ours(arguments, overrides)
    for side, curve in sides.items():
        for point in curve:
            print(json.dumps({"side": side, **point}), flush=True)
            last[side] = point["validation_loss"]
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({"validation_loss": last, "minutes": arguments.minutes, "overrides": overrides, **machine}))


if __name__ == "__main__":
    main()

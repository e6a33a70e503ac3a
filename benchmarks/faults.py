"""Kill training runs at random moments, start them again, and compare them with runs that were never killed.

    python benchmarks/faults.py --kills 60 --seed 0 > benchmarks/results/faults_cpu.jsonl

A run is killed (SIGKILL), and started again by the same command. It survives if its result equals the result of a run
that was never killed: the same `params_sha256`, and the same (step, split, loss) lines in metrics.jsonl, each line once
and in order. There are two kinds of runs, in turn. Each run begins with an empty cache of data:

    pretraining    a UL2 mixture on two sources of text, with dropout
    finetuning     packed pairs, microbatches, the encoder frozen, from a pre-trained run

The moment of a kill is random: either a time within the run, or a short time after one of the events in `MOMENTS`. A
run is killed once or twice. Prints a line for each trial, and a last line with the counts. This file is also the
config file of the runs.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from t5lite.config import base_config, parse_arg

ROOT = Path(__file__).parents[1]
STEPS, SAVE_EVERY, EVALUATE_EVERY = 160, 20, 50
WORDS = ["the", "a", "of", "sea", "ship", "captain", "whale", "white", "old", "man", "went", "said", "cold", "stone"]
CASES = ("pretraining", "finetuning")


def get_config(arg: str | None = None) -> Any:
    """Return the config of the run `case`. The folder `texts` has its text, and the run to start from."""
    arg = parse_arg(arg, case="pretraining", texts="")
    config = base_config()
    config.tokenizer.vocab_size, config.tokenizer.sentinels = 280, 40
    config.objective.inputs_length = 32
    for name in ("d_model", "d_ff"):
        config.model[name] = 32
    config.model.num_heads, config.model.head_dim = 2, 16
    config.model.num_encoder_layers = config.model.num_decoder_layers = 1
    config.model.dropout = 0.1
    config.budget.steps, config.checkpoint.every_steps = STEPS, SAVE_EVERY
    config.eval.every_steps = EVALUATE_EVERY
    config.log_every_steps, config.eval.rows, config.eval.generate_rows = 1, 32, 0
    config.mesh.data = 1
    if arg.case == "pretraining":
        config.objective.name = "ul2"
        config.data.train.mixture = {
            "one": {"source": f"files:{arg.texts}/one/*.txt", "weight": 2.0},
            "two": {"source": f"files:{arg.texts}/two/*.txt", "weight": 1.0},
        }
    else:
        config.objective.name, config.objective.targets_length, config.microbatches = "supervised", 16, 2
        config.data.train.source = f"files:{arg.texts}/pairs.jsonl"
        config.init_from = f"{arg.texts}/pretrained"
        config.trainable = (("encoder.*", False), (".*", True))
    return config


def write_texts(folder: Path) -> None:
    """Write two corpora and a file of pairs, all of random words."""
    draw = random.Random(0)
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            (folder / name / f"{i}.txt").write_text(" ".join(draw.choices(WORDS, k=300)) + ".\n")
    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(800):
            words = draw.choices(WORDS, k=draw.randint(2, 12))
            file.write(json.dumps({"inputs": " ".join(words), "targets": " ".join(sorted(words)[:4])}) + "\n")


def _command(case: str, texts: Path, workdir: Path) -> list[str]:
    config = f"{Path(__file__).absolute()}:case={case},texts={texts}"
    return [sys.executable, "-m", "t5lite.train", "--config", config, "--workdir", str(workdir)]


def start_run(case: str, texts: Path, workdir: Path, cache: Path) -> subprocess.Popen:
    """Start the run in its own process group. All trials share compiled programs, but not data."""
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(texts / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | compiled | {"T5LITE_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    with open(workdir.with_suffix(".log"), "ab") as log:
        command = _command(case, texts, workdir)
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill_run(process: subprocess.Popen) -> None:
    """Send SIGKILL to the whole process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# The events after which a run is killed: (workdir, cache) -> whether the event has happened.
MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "building data": lambda workdir, cache: any(cache.rglob(".*")),
    "before the first checkpoint": lambda workdir, cache: (workdir / "metrics.jsonl").exists(),
    "evaluating": lambda workdir, cache: _is_evaluating(workdir / "metrics.jsonl"),
    "saving": lambda workdir, cache: any((workdir / "checkpoints").glob("*tmp*")),
    "saved": lambda workdir, cache: _find_newest_step(workdir) > 0,
    "the last save": lambda workdir, cache: any((workdir / "checkpoints").glob(f"{STEPS}*tmp*")),
    "after the last save": lambda workdir, cache: _find_newest_step(workdir) == STEPS,
}


EVERY_MOMENT = ("any", "any", *MOMENTS)


def _is_evaluating(log: Path) -> bool:
    """Return whether an evaluation is running: the newest step in the log is evaluated, but its lines are missing."""
    newest = log.read_text().rsplit("\n", 2)[-2:-1] if log.exists() else []
    step, split = (json.loads(newest[0]).get(name) for name in ("step", "split")) if newest else (0, None)
    return split == "train" and (step % EVALUATE_EVERY == 0 or step == STEPS)


def _find_newest_step(workdir: Path) -> int:
    """Return the step of the newest complete checkpoint; 0: there is none."""
    found = (workdir / "checkpoints").glob("*") if (workdir / "checkpoints").is_dir() else ()
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def wait_for(moment: str, delay: float, process: subprocess.Popen, workdir: Path, cache: Path) -> bool:
    """Wait for `moment`, then `delay` seconds. Return False if the run ended before."""
    has_come = MOMENTS.get(moment, lambda workdir, cache: True)
    while process.poll() is None and not has_come(workdir, cache):
        time.sleep(0.001)
    end = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < end:
        time.sleep(min(0.001, delay))
    return process.poll() is None


def read_outcome(workdir: Path) -> dict[str, Any]:
    """Return what the two runs must share: the digest of the parameters, and the lines of the log."""
    result = json.loads((workdir / "result.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "params_sha256": result["params_sha256"],
        "lines": [(line["step"], line["split"], line["loss"]) for line in lines],
        "tokens": result["cost"]["tokens"],
        "metrics": result["metrics"],
    }


def run_to_end(case: str, texts: Path, workdir: Path, cache: Path) -> tuple[dict[str, Any], float]:
    """Run `case` to its end. Return (its outcome, seconds)."""
    begun = time.monotonic()
    code = start_run(case, texts, workdir, cache).wait()
    if code:
        raise RuntimeError(f"{case} ended with exit code {code}: {workdir.with_suffix('.log').read_text()[-2000:]}")
    return read_outcome(workdir), time.monotonic() - begun


def run_references(folder: Path) -> tuple[Path, dict[str, dict], dict[str, float]]:
    """Return (the texts, {case: outcome}, {case: seconds}) of runs that are not killed."""
    texts = folder / "texts"
    write_texts(texts)
    expected, seconds = {}, {}
    for case in CASES:  # the run `finetuning` starts from the run `pretraining`
        workdir = texts / "pretrained" if case == "pretraining" else folder / case
        expected[case], seconds[case] = run_to_end(case, texts, workdir, folder / f"{case}-cache")
    return texts, expected, seconds


def draw_moment(draw: random.Random, seconds: float, moments: Sequence[str]) -> tuple[str, float]:
    """Draw (moment, seconds after the moment)."""
    moment = draw.choice(moments)
    if moment == "evaluating":  # an event can be as short as some milliseconds
        return moment, draw.choice((0.0, draw.uniform(0, 0.02)))
    return moment, draw.uniform(0, seconds) if moment == "any" else draw.choice((0.0, draw.uniform(0, 0.2)))


def run_trial(
    case: str,
    folder: Path,
    texts: Path,
    expected: dict,
    seconds: float,
    draw: random.Random,
    moments: Sequence[str] = EVERY_MOMENT,
) -> dict[str, Any]:
    """Kill a run once or twice, let it end, and compare its outcome."""
    workdir, cache = folder / "run", folder / "run-cache"
    for path in (workdir, cache):
        shutil.rmtree(path, ignore_errors=True)
    workdir.with_suffix(".log").unlink(missing_ok=True)
    kills = []
    for _ in range(draw.choice((1, 1, 2))):
        moment, delay = draw_moment(draw, seconds, moments)
        process = start_run(case, texts, workdir, cache)
        if wait_for(moment, delay, process, workdir, cache):
            kill_run(process)
            kills.append({"moment": moment, "seconds_after": round(delay, 3), "checkpoint": _find_newest_step(workdir)})
    try:
        found, _ = run_to_end(case, texts, workdir, cache)
        differs = [name for name in expected if found[name] != expected[name]]
    except (RuntimeError, OSError, ValueError) as error:
        differs = [str(error)]
    left = sorted(path.name for path in (*cache.rglob(".*"), *workdir.rglob("*tmp*")))
    return {"case": case, "kills": kills, "survived": not differs, "differs": differs, "left_behind": left}


def run_trials(folder: Path, number: int, seed: int, moments: Sequence[str] = EVERY_MOMENT) -> Iterator[dict[str, Any]]:
    """Run trials until `number` kills were made."""
    texts, expected, seconds = run_references(folder)
    draw, made, index = random.Random(seed), 0, 0
    while made < number:
        case = CASES[index % len(CASES)]
        index += 1
        said = run_trial(case, folder, texts, expected[case], seconds[case], draw, moments)
        made += len(said["kills"])
        yield said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", nargs="+", choices=sorted(set(EVERY_MOMENT)), default=EVERY_MOMENT)
    arguments = parser.parse_args()
    versions = {name: version(name) for name in ("jax", "orbax-checkpoint")}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), **versions}
    print(json.dumps({"date": str(datetime.date.today()), **vars(arguments), **machine}), flush=True)
    moments: dict[str, int] = {}
    survived = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for said in run_trials(Path(folder), arguments.kills, arguments.seed, arguments.moments):
            print(json.dumps(said), flush=True)
            survived, lost = survived + said["survived"], lost + (not said["survived"])
            for each in said["kills"]:
                moments[each["moment"]] = moments.get(each["moment"], 0) + 1
    print(json.dumps({"kills": sum(moments.values()), "moments": moments, "survived": survived, "lost": lost}))


if __name__ == "__main__":
    main()

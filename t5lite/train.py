"""Train: from a config to a workdir with checkpoints, metrics and a result. The same command goes on where it stopped.

python -m t5lite.train --config configs/tiny.py --workdir runs/tiny
"""

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from t5lite import cli
from t5lite.config import check, check_budget, load_json, to_dict
from t5lite.data.rows import prefetch
from t5lite.errors import UserError
from t5lite.evaluation import Evaluator
from t5lite.experiment import Experiment, open_experiment
from t5lite.files import write_json
from t5lite.model.flops import peak_flops
from t5lite.progress import progress
from t5lite.training.budget import seconds_per_step, steps_in, steps_of
from t5lite.training.checkpoint import Checkpoints, params_sha256
from t5lite.training.loop import RUN_ME_AGAIN, Interrupted, LoopSettings, Progress, run_loop
from t5lite.training.metrics import Metrics, MetricsLog, first_losses
from t5lite.training.sharding import check_batch, local_rows, make_mesh, put_batch
from t5lite.training.start import find_weights
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer, flops_of_a_step, make_trainer, peak_bytes

# What may differ when a workdir is gone on with: how a run is watched and where it runs, not what it computes.
MAY_CHANGE = ("name", "eval", "log_every_steps", "checkpoint", "mesh")


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Run `config` to its end in `workdir` and return its result. A complete run is not run again.

    Raises UserError for what the user can mend, Interrupted after a signal.
    """
    check_budget(config)
    check(config)
    check_batch(config.batch_size, config.microbatches, make_mesh(**config.mesh))
    _make_workdir(workdir)
    _check_same_run(config, workdir)
    if (workdir / "result.json").exists():
        print(f"{workdir} is complete", file=sys.stderr)
        return json.loads((workdir / "result.json").read_text())
    # A run that has begun needs the run it started from no more.
    own = workdir if (workdir / "checkpoints").is_dir() and (workdir / "tokenizer").is_dir() else None
    experiment = open_experiment(config, own)
    _check_same_data(experiment, workdir)
    objective, model, table = experiment.objective, experiment.model, experiment.vocabulary.table
    steps = total_steps(experiment, workdir)
    with progress("compiling the training step", 1, show_count=False) as advance:
        trainer = make_trainer(config, model, objective, table, steps)
        advance()
    experiment.dataset.tokenizer.save(workdir / "tokenizer")
    write_json(workdir / "config.json", to_dict(config))
    write_json(workdir / "provenance.json", provenance(experiment))

    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    state, done, hand_off = find_weights(trainer, checkpoints, config.init_from)
    if hand_off is not None:
        print(hand_off.report(), file=sys.stderr)
    state, metrics = _run(experiment, trainer, state, steps, done, checkpoints, workdir)
    checkpoints.close()
    result = {
        "step": steps,
        "metrics": metrics,
        "params_sha256": params_sha256(state.params),
        "cost": {
            "tokens": int(done.tokens),
            "flops": flops_of_a_step(config, experiment.model, experiment.objective) * steps,
            "seconds": done.seconds,
            "device_seconds": done.seconds * trainer.mesh.size,
            "peak_bytes": peak_bytes(trainer),
        },
    }
    write_json(workdir / "result.json", result)
    return result


def total_steps(experiment: Experiment, workdir: Path) -> int:
    """The run's budget in steps."""
    config, objective = experiment.config, experiment.objective
    tokens = config.batch_size * sum(experiment.lengths)
    steps = steps_of(config.budget, tokens, flops_of_a_step(config, experiment.model, experiment.objective))
    if steps is not None:
        return steps

    def measure() -> float:
        # The schedule does not matter to the time of a step, only that one can be made.
        probe = make_trainer(config, experiment.model, objective, experiment.vocabulary.table, 10**9)
        rows = experiment.train_rows(local_rows(config.batch_size, probe.mesh))(0)
        return seconds_per_step(probe.step, probe.init(), put_batch(rows, probe.mesh))

    return steps_in(config.budget.minutes, workdir, measure)


def _run(
    experiment: Experiment,
    trainer: Trainer,
    state: TrainState,
    steps: int,
    done: Progress,
    checkpoints: Checkpoints,
    workdir: Path,
) -> tuple[TrainState, dict[str, Metrics]]:
    """The state after the last step, and its metrics on each held-out set."""
    config = experiment.config
    first = int(state.step)
    evaluator = Evaluator(experiment, trainer.mesh)
    # A run without a checkpoint of its own starts over, the evaluation before its first step included.
    log = MetricsLog(workdir, keep_until=first if first else -1)
    at_end: dict[str, Metrics] = {}

    def evaluate(state: TrainState, step: int) -> None:
        metrics = evaluator.all(state.params) if step == steps else evaluator.losses(state.params)
        for split, values in metrics.items():
            log.write(step, split, values)
        if step == steps:
            at_end.update(metrics)

    settings = LoopSettings(
        total_steps=steps,
        log_every=config.log_every_steps,
        save_every=config.checkpoint.every_steps,
        evaluate_every=config.eval.every_steps,
        flops_per_step=flops_of_a_step(config, experiment.model, experiment.objective),
        peak_flops=(peak_flops(jax.devices()[0].device_kind) or 0.0) * trainer.mesh.size,
    )
    rows = experiment.train_rows(local_rows(config.batch_size, trainer.mesh))
    batches = prefetch(lambda step: put_batch(rows(step), trainer.mesh), first, steps)
    title = f"training {config.name or workdir.name}"
    with contextlib.closing(log), contextlib.closing(batches):
        if first == 0:
            evaluate(state, 0)
        state = run_loop(trainer, state, batches, settings, done, log, checkpoints, evaluate, title)
    return state, at_end or evaluator.all(state.params)


def provenance(experiment: Experiment) -> dict[str, Any]:
    """What a result depends on beside the config: versions, devices, code, data."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "git_commit": _git_commit(),
        "data": experiment.dataset.identity,
        "labels": experiment.dataset.labels,
    }


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git here
        return None
    return said.stdout.strip() or None


def _make_workdir(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Refuse to go on in a workdir with a config that computes something else."""
    if not (workdir / "config.json").exists():
        return
    now, before = (_flat(to_dict(c)) for c in (config, load_json(workdir / "config.json")))
    changed = sorted(name for name in now.keys() | before if now.get(name) != before.get(name))
    changed = [name for name in changed if name.split(".")[0] not in MAY_CHANGE]
    if changed:
        listed = ", ".join(f"{name} (was {before.get(name)}, now {now.get(name)})" for name in changed)
        raise UserError(f"{workdir} belongs to a run of another config: {listed}; choose another --workdir")


def _check_same_data(experiment: Experiment, workdir: Path) -> None:
    """Refuse to go on when the text or the tokenizer behind an unchanged config is not what it was."""
    path = workdir / "provenance.json"
    if not path.exists():
        return
    before, now = json.loads(path.read_text())["data"], experiment.dataset.identity
    changed = sorted(name for name in now.keys() | before if now.get(name) != before.get(name))
    if changed:
        raise UserError(
            f"{workdir} was trained on other data: {', '.join(changed)} changed since; choose another --workdir"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Train the config at --config in --workdir, and print where the result lies."""
    parser = cli.parser("train", __doc__)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of the run; its own checkpoint is gone on with"
    )
    arguments, config = cli.parse_with_config(parser, argv)
    cli.start_jax(config.deterministic)
    try:
        result = train(config, arguments.workdir)
    except Interrupted as stop:
        print(f"t5lite: {stop}", file=sys.stderr)
        sys.exit(RUN_ME_AGAIN)
    before = first_losses(arguments.workdir / "metrics.jsonl")
    for split, metrics in result["metrics"].items():
        others = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "loss")
        first = "not finite" if before[split] is None else f"{before[split]:.4g}"
        print(f"{split}: loss {first} before, {metrics['loss']:.4g} after; {others}")
    print(f"result: {arguments.workdir / 'result.json'}")


if __name__ == "__main__":
    main()

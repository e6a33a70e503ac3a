"""Train: run a config in a workdir, with checkpoints, metrics and a result, and go on where an earlier start stopped.

python -m t5lite.train --config configs/tiny.py --workdir runs/tiny

To read the code: `fit` brings together the rows (run/experiment.py), the step (training/step.py) and the loop
(training/loop.py). `_train_network` makes them from a config. `train` guards the workdir: it locks the workdir, and
refuses changes of the config.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from t5lite import cli
from t5lite.checks import check, check_budget, require_training_data
from t5lite.config import BAG_OF_WORDS, flatten_fields, lookup_field, require, to_dict
from t5lite.data.dataset import open_dataset
from t5lite.data.labelled import check_labels
from t5lite.data.rows import prefetch
from t5lite.model.flops import peak_flops
from t5lite.model.transformer import parameter_shapes
from t5lite.run.evaluation import Evaluator
from t5lite.run.experiment import Experiment, open_experiment, total_steps
from t5lite.run.facts import leave_facts
from t5lite.run.inherit import count_known_rows, with_inherited_shape
from t5lite.run.released import dropout_note, moved_dropout_note
from t5lite.run.siblings import with_siblings
from t5lite.system.cores import use_all_cores
from t5lite.system.errors import UserError
from t5lite.system.files import write_json
from t5lite.system.hosts import check_agreement, count_hosts, from_primary, is_primary, primary_first
from t5lite.system.progress import progress, say, warn
from t5lite.system.signals import Stopping
from t5lite.tasks.metrics import Metrics
from t5lite.training.checkpoint import Checkpoints, params_sha256
from t5lite.training.loop import LoopSettings, run_loop
from t5lite.training.metrics import MetricsLog, NoLog, first_losses
from t5lite.training.policy import make_policy
from t5lite.training.reading import saved_steps
from t5lite.training.sharding import check_batch, local_rows, make_mesh, put_batch
from t5lite.training.start import check_shapes, find_weights, shapes_at
from t5lite.training.step import TrainState
from t5lite.training.tables import flatten_with_paths
from t5lite.training.trainer import Trainer, counted_peak, flops_of_a_step, make_trainer, peak_bytes
from t5lite.training.watch import Progress
from t5lite.training.workdir import (
    Changes,
    check_same_data,
    check_same_run,
    make_workdir,
    owned,
    read_result,
)

_MISSING = object()


def fit(
    experiment: Experiment,
    trainer: Trainer,
    state: TrainState,
    steps: int,
    done: Progress,
    checkpoints: Checkpoints,
    workdir: Path,
) -> tuple[TrainState, dict[str, Any]]:
    """Train up to step `steps`, and return (state, {"metrics": …, "evaluated": the rows used}) for each held-out set.

    The rows of each step, the pure step and the loop meet here. Held-out text is evaluated before the first step, every
    `eval.every_steps` and at the end.

    Args:
        state: where training goes on; step 0, or the state of a checkpoint.
        done: the counts and costs up to `state`.
    """
    config = experiment.config
    first = int(state.step)
    stop = Stopping()
    evaluator = Evaluator(experiment, trainer.mesh, stop.raise_if_stopped)
    for note in experiment.cut_notes():
        warn(note)
    for note in evaluator.share_notes():
        say(note)
    # A run without a checkpoint starts over, and repeats the evaluation before the first step.
    log = MetricsLog(workdir, keep_until=first if first else -1) if is_primary() else NoLog()
    at_end: dict[str, Metrics] = {}

    def evaluate(state: TrainState, step: int) -> None:
        evaluate = evaluator.evaluate_all if step == steps else evaluator.evaluate_losses
        metrics = evaluate(state.evaluated_params)
        checkpoints.note_metrics(step, metrics)
        log.write_all(step, metrics)
        if step == steps:
            at_end.update(metrics)

    settings = LoopSettings(
        total_steps=steps,
        log_every=config.log_every_steps,
        save_every=config.checkpoint.every_steps,
        evaluate_every=config.eval.every_steps,
        flops_per_step=flops_of_a_step(config, experiment.model, experiment.objective),
        peak_flops=(peak_flops(jax.devices()[0].device_kind) or 0.0) * trainer.mesh.size,
        most_skipped=config.max_skipped_steps,
        debug_nans=config.debug_nans,
    )
    rows = experiment.train_rows(local_rows(config.batch_size, trainer.mesh))
    batches = prefetch(lambda step: put_batch(rows(step), trainer.mesh), first, steps)
    title = f"training {config.name or workdir.name}"
    with contextlib.closing(log), contextlib.closing(batches):
        # A step is saved but not evaluated if the run was stopped during the evaluation.
        if first == 0 or (settings.evaluates(first) and not from_primary(log.has_evaluation(first))):
            evaluate(state, first)
        state = run_loop(trainer, state, batches, settings, done, log, checkpoints, evaluate, stop, title)
    metrics = at_end or evaluator.evaluate_all(state.evaluated_params)
    return state, {"metrics": metrics, "evaluated": evaluator.count_rows()}


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints) -> Iterator[None]:
    """Close the checkpoints after the block. After a UserError, finish the one that is being saved: it is good."""
    try:
        yield
    except UserError:
        if count_hosts() == 1:  # among several hosts, the parts of the others may never come
            with contextlib.suppress(UserError):
                checkpoints.wait()
        raise
    checkpoints.close()


def _train_network(
    config: ConfigDict, workdir: Path, allowed: Sequence[str], changes: Changes, given: Collection[str]
) -> dict[str, Any]:
    """Make experiment, trainer and state of the config, train, and return the result."""
    policy, peak_before = make_policy(config), counted_peak()
    opened = with_siblings(config, workdir)
    # A run that has begun no longer needs `init_from`. A run writes its config last, so then its tokenizer is complete.
    has_begun = from_primary((workdir / "config.json").is_file() and (workdir / "tokenizer").is_dir())
    starts = opened.init_from is not None and not from_primary(saved_steps(workdir))
    # Read now, so that an `init_from` without weights is refused before the data is prepared.
    origin_shapes = shapes_at(opened.init_from, opened.init_from_step) if starts else {}
    with primary_first():
        experiment = open_experiment(opened, workdir if has_begun else None, given)
    labels = experiment.dataset.labels
    if starts:
        shapes = {path: leaf.shape for path, leaf in flatten_with_paths(parameter_shapes(experiment.model.config))}
        check_shapes(origin_shapes, shapes, opened.init_from, labels)
    changes |= check_same_data(experiment.dataset.identity, workdir, allowed)
    if is_primary():
        experiment.dataset.tokenizer.save(workdir / "tokenizer")  # early, because other runs of a study may wait for it
    objective, model, table = experiment.objective, experiment.model, experiment.vocabulary.table
    steps = total_steps(experiment, workdir)
    with progress("compiling the training step", 1, show_count=False) as advance:
        trainer = make_trainer(config, model, objective, table, steps)
        advance()

    checkpoints = Checkpoints(workdir, policy)
    rows = count_known_rows(experiment.config, experiment.vocabulary) if starts else None
    state, done, hand_off = find_weights(trainer, checkpoints, opened.init_from, opened.init_from_step, labels, rows)
    # Read before `leave_facts` writes the config anew.
    moved = moved_dropout_note(workdir, model.config) if int(state.step) else None
    if int(state.step) > steps:
        raise UserError(
            f"{workdir} is at step {int(state.step)} already, beyond the {steps} of config.budget; raise the budget, "
            "or choose another workdir"
        )
    leave_facts(config, experiment.dataset, workdir, int(state.step), changes)
    if int(state.step):
        say(f"going on from step {int(state.step)} of {steps}")
    if moved is not None:
        say(moved)
    if hand_off is not None:
        say(hand_off.report())
        if note := dropout_note(opened):
            say(note)
    with _closing(checkpoints):
        state, evaluation = fit(experiment, trainer, state, steps, done, checkpoints, workdir)
    return {
        "step": steps,
        **evaluation,
        "rows": experiment.dataset.rows,
        "cut": experiment.count_cut(),
        "params_sha256": params_sha256(state.params),
        "skipped_steps": done.skipped,
        "cost": {
            "tokens": int(done.tokens),
            "flops": flops_of_a_step(config, experiment.model, experiment.objective) * steps,
            "seconds": done.seconds,
            "device_seconds": done.seconds * trainer.mesh.size,
            "peak_bytes": peak_bytes(trainer, peak_before),
        },
    }


def _train_baseline(
    config: ConfigDict, workdir: Path, allowed: Sequence[str], changes: Changes, given: Collection[str]
) -> dict[str, Any]:
    """Train the bag of words, and return its result."""
    del given
    # Imported here, because scikit-learn takes a second and few runs need it.
    from t5lite.run.bag_of_words import train_bag_of_words

    require(config.objective.name == "supervised", "objective.name", "must be supervised for a bag of words")
    with primary_first():
        dataset = open_dataset(with_siblings(config, workdir), "pairs")
    changes |= check_same_data(dataset.identity, workdir, allowed)
    check_labels(dataset.tokenizer, dataset.labels or (), None)
    leave_facts(config, dataset, workdir, 0, changes)
    return {**train_bag_of_words(config, dataset), "rows": dataset.rows, "cut": {}}


def train(
    config: ConfigDict, workdir: Path, allow_changes: Sequence[str] = (), given: Collection[str] = ()
) -> dict[str, Any]:
    """Run `config` to its end in `workdir` and return its result. A complete run is not run again.

    Args:
        allow_changes: fields or groups of the config, and data, that may differ from those with which the run began.
        The
            run then goes on with the new ones.
        given: the fields that the command line has set.

    Raises UserError for a mistake that the user can correct, and Interrupted after a signal.
    """
    check_budget(config)
    check(config)
    require_training_data(config)
    config = with_inherited_shape(config, workdir, given)
    check_batch(config.batch_size, config.microbatches, make_mesh(**config.mesh))
    use_all_cores()  # JAX has counted its own for the mesh
    for field in allow_changes:
        require(
            lookup_field(config, field, _MISSING) is not _MISSING,
            field,
            "is no field or group; correct --allow_changes",
        )
    make_workdir(workdir)
    check_agreement(flatten_fields(to_dict(config)))
    with owned(workdir) if is_primary() else contextlib.nullcontext():
        changes = check_same_run(config, workdir, allow_changes)
        result = from_primary(read_result(workdir))
        if result is not None and not changes:
            say(f"{workdir} is complete")
            return result
        run = _train_baseline if config.model.architecture == BAG_OF_WORDS else _train_network
        result = run(config, workdir, allow_changes, changes, given)
        if is_primary():
            write_json(workdir / "result.json", result)
        return result


def _show(result: dict[str, Any], workdir: Path) -> None:
    """Print a line for each held-out set: the loss before and after, and the other metrics."""
    before = first_losses(workdir / "metrics.jsonl")
    for split, metrics in result["metrics"].items():
        parts = [f"{name} {_format(value)}" for name, value in metrics.items() if name != "loss"]
        if "loss" in metrics:
            after = _format(metrics["loss"])
            loss = f"loss {_format(before[split])} before, {after} after" if split in before else f"loss {after}"
            parts.insert(0, loss)
        print(f"{split}: {', '.join(parts)}")


def _format(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Train the config at --config in --workdir, and print where the result lies."""
    parser = cli.parser("train", __doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        help="folder of the run; training goes on from a checkpoint in it. Several hosts must share the folder",
    )
    parser.add_argument(
        "--debug_nans", action="store_true", help="end at the first number that is not finite, and name the operation"
    )
    parser.add_argument(
        "--allow_changes",
        type=lambda names: [name for name in names.split(",") if name],
        default=[],
        metavar="FIELD[,FIELD…]",
        help="go on although these fields or groups of the config have changed since the run began",
    )
    cli.add_hosts(parser)
    arguments, config = cli.parse_with_config(parser, argv)
    config.debug_nans |= arguments.debug_nans
    with cli.start_jax_on_hosts(arguments, config.deterministic):
        result = train(config, arguments.workdir, arguments.allow_changes, arguments.given)
        _show(result, arguments.workdir)
        print(f"result: {arguments.workdir / 'result.json'}")


if __name__ == "__main__":
    main()

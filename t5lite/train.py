"""Train: run a config in a workdir, with checkpoints, metrics and a result. A stopped run goes on where it stopped.

python -m t5lite.train --config configs/tiny.py --workdir runs/tiny

To read the code: `fit` brings together the rows (run/experiment.py), the step (training/step.py) and the loop
(training/loop.py). `_train_network` makes them from a config. `train` guards the workdir: it locks the workdir, and
refuses changes of the config.
"""

import contextlib
import dataclasses
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
from t5lite.run.held_out import HeldOut
from t5lite.run.inherit import count_known_rows, with_inherited_shape
from t5lite.run.released import dropout_note, moved_dropout_note
from t5lite.run.siblings import with_siblings
from t5lite.system.cores import use_all_cores
from t5lite.system.errors import UserError
from t5lite.system.files import write_json
from t5lite.system.hosts import check_agreement, count_hosts, from_primary, is_primary, primary_first
from t5lite.system.progress import progress, say, warn
from t5lite.system.signals import Stopping
from t5lite.training.checkpoint import Checkpoints, hash_params
from t5lite.training.early_stopping import make_early_stopping
from t5lite.training.loop import LoopSettings, run_loop
from t5lite.training.metrics import MetricsLog, NoLog, read_first_losses
from t5lite.training.policy import make_policy
from t5lite.training.reading import saved_steps
from t5lite.training.sharding import check_batch, local_rows, make_mesh, place_batch
from t5lite.training.start import check_shapes, find_weights, read_shapes
from t5lite.training.step import TrainState
from t5lite.training.tables import flatten_with_paths
from t5lite.training.trainer import Trainer, count_step_flops, make_trainer, measure_peak_bytes, peak_bytes
from t5lite.training.watch import Totals
from t5lite.training.workdir import (
    Changes,
    check_same_data,
    check_same_run,
    lock_workdir,
    make_workdir,
    read_result,
)

_MISSING = object()


def fit(
    experiment: Experiment,
    trainer: Trainer,
    state: TrainState,
    steps: int,
    totals: Totals,
    checkpoints: Checkpoints,
    workdir: Path,
) -> tuple[TrainState, dict[str, Any]]:
    """Train up to step `steps`. Return (the state to keep, {"metrics": {split: …}, "evaluated": {split: …}, …}).

    This function brings together the rows of each step, the pure step and the loop. Held-out text is evaluated before
    the first step, every `eval.every_steps` and at the end. Early stopping may end the training before `steps`. Then
    the state of the best evaluation is the state to keep.

    Args:
        state: the state to start from: the initial state, or the state of a checkpoint.
        totals: the counts and costs of all steps before `state`. They are updated in place.
    """
    config = experiment.config
    first = int(state.step)
    stop = Stopping()
    evaluator = Evaluator(experiment, trainer.mesh, stop.raise_if_stopped)
    for note in experiment.cut_notes():
        warn(note)
    for note in (*evaluator.share_notes(), *filter(None, [experiment.describe_references()])):
        say(note)
    if shares := experiment.compute_shares():
        say(
            "mixture, shares of examples: "
            + ", ".join(f"{name} {each.of_examples:.1%}" for name, each in shares.items())
        )
    settings = LoopSettings(
        total_steps=steps,
        log_every=config.log_every_steps,
        save_every=config.checkpoint.every_steps,
        evaluate_every=config.eval.every_steps,
        flops_per_step=count_step_flops(config, experiment.model, experiment.objective),
        peak_flops=(peak_flops(jax.devices()[0].device_kind) or 0.0) * trainer.mesh.size,
        max_skipped=config.max_skipped_steps,
        debug_nans=config.debug_nans,
    )
    # A run without a checkpoint starts over, and repeats the evaluation before the first step.
    log = MetricsLog(workdir, keep_until=first if first else -1) if is_primary() else NoLog()
    heldout = HeldOut(evaluator, checkpoints, log, make_early_stopping(config), steps)
    rows = experiment.train_rows(local_rows(config.batch_size, trainer.mesh))
    batches = prefetch(lambda step: place_batch(rows(step), trainer.mesh), first, steps)
    title = f"training {config.name or workdir.name}"
    with contextlib.closing(log), contextlib.closing(batches):
        # If the run was stopped during an evaluation, the checkpoint of this step exists but its evaluation does not.
        if first == 0 or (settings.is_evaluation_step(first) and not from_primary(log.has_evaluation(first))):
            verdict = heldout.evaluate(state, first)
            if verdict.saves:
                checkpoints.save(state, dataclasses.asdict(totals))
        if not heldout.must_stop:
            state = run_loop(trainer, state, batches, settings, totals, log, checkpoints, heldout.evaluate, stop, title)
    return heldout.finish(state, trainer)


@contextlib.contextmanager
def _close_after(checkpoints: Checkpoints) -> Iterator[None]:
    """Close the checkpoints after the block. After a UserError, first finish a save in progress: its state is good."""
    try:
        yield
    except UserError:
        if count_hosts() == 1:  # with several hosts, the other hosts may never save their parts
            with contextlib.suppress(UserError):
                checkpoints.wait()
        raise
    checkpoints.close()


def _train_network(
    config: ConfigDict, workdir: Path, allowed: Sequence[str], changes: Changes, flag_fields: Collection[str]
) -> dict[str, Any]:
    """Make the experiment, the trainer and the state from the config. Then train, and return the result."""
    policy, peak_before = make_policy(config), measure_peak_bytes()
    make_early_stopping(config)  # refuses a mistake before the data is prepared
    resolved = with_siblings(config, workdir)
    # A run that has begun no longer needs `init_from`. The run writes its config last. So if there is a config, the
    # tokenizer is complete.
    has_begun = from_primary((workdir / "config.json").is_file() and (workdir / "tokenizer").is_dir())
    needs_source = resolved.init_from is not None and not from_primary(saved_steps(workdir))
    # Read the shapes now, so that an `init_from` without weights is refused before the data is prepared.
    source_shapes = read_shapes(resolved.init_from, resolved.init_from_step) if needs_source else {}
    with primary_first():
        experiment = open_experiment(resolved, workdir if has_begun else None, flag_fields)
    labels = experiment.dataset.labels
    if needs_source:
        shapes = {path: leaf.shape for path, leaf in flatten_with_paths(parameter_shapes(experiment.model.config))}
        check_shapes(source_shapes, shapes, resolved.init_from, labels)
    changes |= check_same_data(experiment.dataset.identity, workdir, allowed)
    if is_primary():
        experiment.dataset.tokenizer.save(workdir / "tokenizer")  # early, because other runs of a study may wait for it
    objective, model, table = experiment.objective, experiment.model, experiment.vocabulary.table
    steps, class_weights = total_steps(experiment, workdir), experiment.choose_class_weights()
    with progress("compiling the training step", 1, show_count=False) as advance:
        trainer = make_trainer(config, model, objective, table, steps, class_weights)
        advance()

    checkpoints = Checkpoints(workdir, policy)
    rows = count_known_rows(experiment.config, experiment.vocabulary) if needs_source else None
    source, source_step = resolved.init_from, resolved.init_from_step
    state, totals, hand_off = find_weights(trainer, checkpoints, source, source_step, labels, rows)
    # `leave_facts` overwrites the config that this note compares with.
    moved_note = moved_dropout_note(workdir, model.config) if int(state.step) else None
    if int(state.step) > steps:
        raise UserError(
            f"{workdir} is already at step {int(state.step)}, but config.budget is {steps} steps; raise the budget, "
            "or choose another workdir"
        )
    leave_facts(config, experiment.dataset, workdir, int(state.step), changes)
    if int(state.step):
        say(f"going on from step {int(state.step)} of {steps}")
    if moved_note is not None:
        say(moved_note)
    if hand_off is not None:
        say(hand_off.report())
        if note := dropout_note(resolved):
            say(note)
    with _close_after(checkpoints):
        state, evaluation = fit(experiment, trainer, state, steps, totals, checkpoints, workdir)
    ended_at = evaluation.get("ended_at", steps)
    return {
        "step": int(state.step),
        **evaluation,
        **experiment.report_rows(),
        "cut": experiment.count_cut(),
        "params_sha256": hash_params(state.params),
        "skipped_steps": totals.skipped,
        "cost": {
            "tokens": int(totals.tokens),
            "flops": count_step_flops(config, experiment.model, experiment.objective) * ended_at,
            "seconds": totals.seconds,
            "device_seconds": totals.seconds * trainer.mesh.size,
            "peak_bytes": peak_bytes(trainer, peak_before),
        },
    }


def _train_baseline(
    config: ConfigDict, workdir: Path, allowed: Sequence[str], changes: Changes, flag_fields: Collection[str]
) -> dict[str, Any]:
    """Train the bag of words, and return its result."""
    del flag_fields
    # Imported here, because importing scikit-learn takes a second and few runs need it.
    from t5lite.run.bag_of_words import train_bag_of_words

    require(config.objective.name == "supervised", "objective.name", "must be supervised for a bag of words")
    no_steps = "a bag of words is not trained in steps; leave it unset"
    require(config.early_stopping.metric is None, "early_stopping.metric", no_steps)
    with primary_first():
        dataset = open_dataset(with_siblings(config, workdir), "pairs")
    changes |= check_same_data(dataset.identity, workdir, allowed)
    check_labels(dataset.tokenizer, dataset.labels or (), None)
    leave_facts(config, dataset, workdir, 0, changes)
    return {**train_bag_of_words(config, dataset), "rows": dataset.rows, "cut": {}}


def train(
    config: ConfigDict, workdir: Path, allow_changes: Sequence[str] = (), flag_fields: Collection[str] = ()
) -> dict[str, Any]:
    """Run `config` to its end in `workdir` and return its result. A complete run is not run again.

    Args:
        allow_changes: fields or groups of the config, and parts of the data, that may have changed since the run began.
            The run then goes on with the new values.
        flag_fields: the fields that the command line has set.

    Raises:
        UserError: for a mistake that the user can correct.
        Interrupted: after a signal.
    """
    check_budget(config)
    check(config)
    require_training_data(config)
    no_source = "mixes parameters with those of config.init_from, which is unset; set it, or set mixout to 0"
    require(not config.mixout or config.init_from is not None, "mixout", no_source)
    config = with_inherited_shape(config, workdir, flag_fields)
    check_batch(config.batch_size, config.microbatches, make_mesh(**config.mesh))
    use_all_cores()  # after `make_mesh`, because JAX counts the cores of this process when it makes its devices
    for field in allow_changes:
        require(
            lookup_field(config, field, _MISSING) is not _MISSING,
            field,
            "is not a field or a group of fields; correct --allow_changes",
        )
    make_workdir(workdir)
    check_agreement(flatten_fields(to_dict(config)))
    with lock_workdir(workdir) if is_primary() else contextlib.nullcontext():
        changes = check_same_run(config, workdir, allow_changes)
        result = from_primary(read_result(workdir))
        if result is not None and not changes:
            say(f"{workdir} is complete")
            return result
        run = _train_baseline if config.model.architecture == BAG_OF_WORDS else _train_network
        result = run(config, workdir, allow_changes, changes, flag_fields)
        if is_primary():
            write_json(workdir / "result.json", result)
        return result


def _show(result: dict[str, Any], workdir: Path) -> None:
    """Print a line for each held-out set: the loss before and after training, and the other metrics."""
    before = read_first_losses(workdir / "metrics.jsonl")
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
    """Train the config of --config in the folder --workdir, and print the path of the result."""
    parser = cli.parser("train", __doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        help="folder of the run. If it has a checkpoint, training goes on from there. All hosts must share the folder",
    )
    parser.add_argument(
        "--debug_nans", action="store_true", help="end at the first NaN or infinite number, and name the operation"
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
        result = train(config, arguments.workdir, arguments.allow_changes, flag_fields=arguments.given)
        _show(result, arguments.workdir)
        print(f"result: {arguments.workdir / 'result.json'}")


if __name__ == "__main__":
    main()

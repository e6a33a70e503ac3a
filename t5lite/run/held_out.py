"""Evaluate held-out text during training and after it, and decide by early stopping when training ends.

heldout = HeldOut(evaluator, checkpoints, log, early_stopping, steps)
heldout.evaluate(state, step)              Verdict(saves=False, ends=False)
state, result = heldout.finish(state, trainer)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from t5lite.run.evaluation import Evaluator
from t5lite.system.errors import UserError
from t5lite.system.hosts import from_primary
from t5lite.system.progress import say, warn
from t5lite.tasks.metrics import Metrics, describe_weakness
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.early_stopping import EarlyStopping
from t5lite.training.loop import Verdict
from t5lite.training.metrics import MetricsLog, NoLog
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer

Classes = dict[str, Any]
MAX_LABELS = 100  # result.json has no larger confusion matrix


@dataclasses.dataclass
class HeldOut:
    """The evaluations of one run.

    log: the evaluations so far. Early stopping goes on from these evaluations.
    early_stopping: None: training ends after `steps` steps, and its last state is kept.
    """

    evaluator: Evaluator
    checkpoints: Checkpoints
    log: MetricsLog | NoLog
    early_stopping: EarlyStopping | None
    steps: int

    def __post_init__(self):
        self._last_metrics: dict[str, Metrics] | None = None
        if self.early_stopping is not None:
            self.early_stopping.replay(from_primary(self.log.read()))
            self.checkpoints.best_step = self.early_stopping.best_step

    @property
    def must_stop(self) -> bool:
        """Whether early stopping has ended the training."""
        return self.early_stopping is not None and self.early_stopping.must_stop

    def evaluate(self, state: TrainState, step: int) -> Verdict:
        """Evaluate `state`, log the metrics, and note them for the checkpoint of this step.

        Without early stopping, the evaluation after the last step also reads the test set. The log has no metrics of
        the test set. Raises UserError if the metric of early stopping is not among the metrics.
        """
        is_last = step == self.steps and self.early_stopping is None
        evaluate = self.evaluator.evaluate_all if is_last else self.evaluator.evaluate_in_training
        metrics = evaluate(state.evaluated_params)
        self._last_metrics = metrics if is_last else None
        metrics = {split: values for split, values in metrics.items() if not self.evaluator.is_test(split)}
        self.checkpoints.note_metrics(step, metrics)
        self.log.write_all(step, metrics)
        if self.early_stopping is None:
            return Verdict()
        metric = self.early_stopping.metric
        scores = {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
        if metric not in scores:
            raise UserError(f"config.early_stopping.metric: {metric} is not evaluated; known: {', '.join(scores)}")
        improved = self.early_stopping.note(step, scores[metric])
        self.checkpoints.best_step = self.early_stopping.best_step
        return Verdict(saves=improved, ends=self.must_stop)

    def finish(self, state: TrainState, trainer: Trainer) -> tuple[TrainState, dict[str, Any]]:
        """Return (the state to keep, its metrics and facts for the result). Consumes `state`.

        With early stopping, the state to keep is the state of the best evaluation.
        """
        facts: dict[str, Any] = {}
        if self.early_stopping is not None:
            ended_at, best_step = int(state.step), self.early_stopping.best_step
            facts = {"ended_at": ended_at, "ended_by": "patience" if self.must_stop else "budget"}
            if best_step is None:
                raise UserError(
                    f"config.early_stopping.metric: {self.early_stopping.metric} was never finite, so no step is the "
                    "best; lower config.schedule.rate, or choose another metric"
                )
            say(f"ended at step {ended_at} by {facts['ended_by']}; the best step is {best_step}")
            if best_step != ended_at:
                self.checkpoints.wait()
                for leaf in jax.tree.leaves(state):
                    leaf.delete()
                state, _ = self.checkpoints.restore(trainer.shapes, trainer.shardings, best_step)
        metrics = self._last_metrics or self.evaluator.evaluate_all(state.evaluated_params)
        facts |= review_classes(metrics, self.evaluator.describe_classes())
        return state, {"metrics": metrics, "evaluated": self.evaluator.count_rows(), **facts}


def warn_of_weakness(metrics: Mapping[str, Metrics]) -> None:
    """Warn about classifiers that have learned nothing. metrics: {split: metrics}."""
    for split, values in metrics.items():
        if (weakness := describe_weakness(values)) is not None:
            warn(f"{split}: {weakness}")


def review_classes(metrics: Mapping[str, Metrics], classes: Mapping[str, Classes]) -> dict[str, dict[str, Classes]]:
    """Call `warn_of_weakness`, and return {"classes": those for the result}; {} without any.

    Args:
        metrics: {split: metrics}.
        classes: {split: {"labels": names, "confusion": rows of the confusion matrix}}.
    """
    warn_of_weakness(metrics)
    kept = {split: each for split, each in classes.items() if len(each["labels"]) <= MAX_LABELS}
    for split in classes.keys() - kept.keys():
        say(f"{split}: the result has no confusion matrix, because there are more than {MAX_LABELS} labels")
    return {"classes": kept} if kept else {}

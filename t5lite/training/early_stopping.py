"""Early stopping: end a run when a metric of held-out text no longer improves, and keep the best parameters.

    watch = make_early_stopping(config.early_stopping)
    watch.note(0, 5.0), watch.note(5, 4.2), watch.note(10, 4.3)      True, True, False
    watch.best_step, watch.must_stop                                 5, False (True after `patience` evaluations)

The state depends only on the metric's values so far. A resumed run reads them from its log again.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import base_config, require
from t5lite.system.files import NUMBER, has_shape
from t5lite.tasks.metrics import find_metric


@dataclasses.dataclass
class EarlyStopping:
    """Follow one metric through the evaluations of a run.

    metric: held-out set and metric, such as "validation/loss".
    patience: the number of evaluations in a row without an improvement that end the run.
    min_delta: an improvement is larger than this.
    sign: 1 if lower values are better, -1 if higher values are better.
    best_step, best: the step of the last improvement, and the value there. None before the first evaluation.
    waited: evaluations since the last improvement.
    """

    metric: str
    patience: int
    min_delta: float
    sign: int
    best_step: int | None = None
    best: float = math.inf
    waited: int = 0

    def note(self, step: int, value: float | None) -> bool:
        """Note the value at an evaluation, and return whether it is an improvement. The first finite value is one.

        A value that is None or not finite is no improvement.
        """
        if value is not None and math.isfinite(value):
            improvement = self.sign * (self.best - value) if self.best_step is not None else math.inf
            if improvement > self.min_delta:
                self.best_step, self.best, self.waited = step, value, 0
                return True
        self.waited += 1
        return False

    def replay(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Note all values in the lines of a log, in their order."""
        split, _, name = self.metric.rpartition("/")
        for values in entries:
            if values["split"] == split:
                value = values.get(name)
                self.note(values["step"], value if has_shape(value, NUMBER) else None)

    @property
    def must_stop(self) -> bool:
        """Whether the run has waited for an improvement long enough."""
        return self.waited >= self.patience


def make_early_stopping(config: ConfigDict) -> EarlyStopping | None:
    """Return the early stopping of a config; None if `early_stopping.metric` is unset.

    Raises UserError for fields that are invalid or do not fit together.
    """
    fields = config.early_stopping
    if fields.metric is None:
        for name, default in base_config().early_stopping.items():
            no_metric = "is set, but config.early_stopping.metric is not; set both, or neither"
            require(fields[name] == default, f"early_stopping.{name}", no_metric)
        return None
    split, _, name = fields.metric.rpartition("/")
    example = "write a held-out set and a metric, such as validation/loss"
    require(bool(split and name), "early_stopping.metric", f"{fields.metric!r} has no '/'; {example}")
    require(
        not split.startswith("test"),
        "early_stopping.metric",
        f"{fields.metric}: the test set does not steer training; choose a metric of a validation set",
    )
    better = find_metric(name).better
    require(better != 0, "early_stopping.metric", f"it is not known which values of {name!r} are better; {example}")
    require(
        config.eval.every_steps is not None,
        "early_stopping.metric",
        "there is no evaluation during training; set config.eval.every_steps",
    )
    return EarlyStopping(fields.metric, fields.patience, fields.min_delta, -better)

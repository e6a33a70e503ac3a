"""The policy of checkpoints: which checkpoints are kept, and which one is the best.

newest `keep`             at least one, because a stopped run goes on from the newest
every `keep_every_steps`  never deleted
best `keep_best`          by `metric`, among the steps at which held-out text was evaluated
"""

import dataclasses
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from t5lite.config import base_config, require
from t5lite.tasks.metrics import find_metric

DEFAULTS = base_config().checkpoint

Scores = Mapping[int, float | None]  # {step: value of the metric; None if the step was not evaluated}


@dataclasses.dataclass(frozen=True)
class Policy:
    """The fields of `config.checkpoint` that decide which checkpoints are kept.

    mode: "min" if a lower score is better, "max" if a higher score is better. None: the metric's name decides.
    """

    keep: int = DEFAULTS.keep
    keep_every_steps: int | None = DEFAULTS.keep_every_steps
    keep_best: int | None = DEFAULTS.keep_best
    metric: str = DEFAULTS.metric
    mode: str | None = DEFAULTS.mode

    def rank_steps(self, scores: Scores) -> list[int]:
        """Return the steps that have a finite score, best first. Among equal scores the earlier step comes first."""
        lower_is_better = find_metric(self.metric.rpartition("/")[2]).better < 0
        sign = 1 if (self.mode or ("min" if lower_is_better else "max")) == "min" else -1
        steps = [step for step, score in scores.items() if score is not None and math.isfinite(score)]
        return sorted(steps, key=lambda step: (sign * scores[step], step))

    def select_kept_steps(self, scores: Scores) -> set[int]:
        """Return the steps of the checkpoints to keep, from the steps in `scores`."""
        steps = sorted(scores)
        kept_steps = set(steps[-self.keep :]) | set(self.rank_steps(scores)[: self.keep_best or 0])
        if self.keep_every_steps is not None:
            kept_steps |= {step for step in steps if step % self.keep_every_steps == 0}
        return kept_steps


def make_policy(config: ConfigDict) -> Policy:
    """Return the policy of a run's config. Raises UserError for fields that are invalid or do not fit together."""
    fields = {name: config.checkpoint[name] for name in ("keep", "keep_every_steps", "keep_best", "metric", "mode")}
    for name in ("keep", "keep_every_steps", "keep_best"):
        value = fields[name]
        require(value is None or value > 0, f"checkpoint.{name}", f"must be positive, but is {value}")
    require(fields["mode"] in (None, "min", "max"), "checkpoint.mode", f"must be min or max, but is {fields['mode']!r}")
    save_every, keep_every = config.checkpoint.every_steps, fields["keep_every_steps"]
    evaluate_every = config.eval.every_steps
    require(
        keep_every is None or keep_every % save_every == 0,
        "checkpoint.keep_every_steps",
        f"must be a multiple of checkpoint.every_steps={save_every}, but is {keep_every}",
    )
    if fields["keep_best"] is not None:
        require(
            evaluate_every is not None,
            "checkpoint.keep_best",
            "checkpoints have no score without evaluations; set eval.every_steps",
        )
        require(
            save_every % evaluate_every == 0 or evaluate_every % save_every == 0,
            "checkpoint.keep_best",
            f"checkpoint.every_steps={save_every} must be a multiple of eval.every_steps={evaluate_every} or a divisor",
        )
    return Policy(**fields)

"""The policy of checkpoints: which stay, and which is the best.

newest `keep`             always at least one: the run goes on from it
every `keep_every_steps`  for good
best `keep_best`          by `metric`, among the steps at which held-out text was evaluated
"""

import dataclasses
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from t5lite.config import base_config, require
from t5lite.tasks.metrics import metric_of

DEFAULTS = base_config().checkpoint

Scores = Mapping[int, float | None]  # {step: value of the metric, None where it was not evaluated}


@dataclasses.dataclass(frozen=True)
class Policy:
    """The fields of `config.checkpoint` that decide which checkpoints stay.

    mode: "min", "max", or None: the direction that the metric's name implies.
    """

    keep: int = DEFAULTS.keep
    keep_every_steps: int | None = DEFAULTS.keep_every_steps
    keep_best: int | None = DEFAULTS.keep_best
    metric: str = DEFAULTS.metric
    mode: str | None = DEFAULTS.mode

    def rank_steps(self, scores: Scores) -> list[int]:
        """Return the steps that have a finite score, best first. Among equal scores the earlier step comes first."""
        falls = metric_of(self.metric.rpartition("/")[2]).better < 0
        sign = 1 if (self.mode or ("min" if falls else "max")) == "min" else -1
        known = [step for step, score in scores.items() if score is not None and math.isfinite(score)]
        return sorted(known, key=lambda step: (sign * scores[step], step))

    def select_kept_steps(self, scores: Scores) -> set[int]:
        """Return the steps of `scores` whose checkpoints stay."""
        steps = sorted(scores)
        stay = set(steps[-self.keep :]) | set(self.rank_steps(scores)[: self.keep_best or 0])
        if self.keep_every_steps is not None:
            stay |= {step for step in steps if step % self.keep_every_steps == 0}
        return stay


def make_policy(config: ConfigDict) -> Policy:
    """Return the policy of a run's config. Raises UserError for a policy that cannot keep what it promises."""
    fields = {name: config.checkpoint[name] for name in ("keep", "keep_every_steps", "keep_best", "metric", "mode")}
    for name in ("keep", "keep_every_steps", "keep_best"):
        value = fields[name]
        require(value is None or value > 0, f"checkpoint.{name}", f"must be positive, is {value}")
    require(fields["mode"] in (None, "min", "max"), "checkpoint.mode", f"must be min or max, is {fields['mode']!r}")
    saves, evaluates, forever = config.checkpoint.every_steps, config.eval.every_steps, fields["keep_every_steps"]
    require(
        forever is None or forever % saves == 0,
        "checkpoint.keep_every_steps",
        f"{forever} is no multiple of checkpoint.every_steps={saves}",
    )
    if fields["keep_best"] is not None:
        require(evaluates is not None, "checkpoint.keep_best", "needs eval.every_steps, or no checkpoint has a score")
        require(
            saves % evaluates == 0 or evaluates % saves == 0,
            "checkpoint.keep_best",
            f"of checkpoint.every_steps={saves} and eval.every_steps={evaluates} one must be a multiple of the other",
        )
    return Policy(**fields)

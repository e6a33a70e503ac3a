"""Watch a run while it trains: report skipped updates and spikes of the loss.

The step skips its update if its loss or gradient is not finite (step.py). This module counts and reports such updates,
with the numbers of the step's examples; `preview --step` shows these examples. After too many skipped updates in a row
the run ends, and its last checkpoint stays as it is. If the loss and the gradient are finite but the update is not, the
run ends at once.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from t5lite.system.errors import UserError
from t5lite.system.progress import warn

SPIKE_DEVIATIONS = 6.0  # standard deviations of recent losses above their mean
SPIKE_DECAY = 0.98  # the factor on the weight of a loss at each later step; about the last fifty losses count
LOSSES_BEFORE_SPIKES = 100
MAX_LISTED_ROWS = 8


@dataclasses.dataclass
class Totals:
    """The totals of a run. They are saved with each checkpoint, so they include the time before a restart.

    tokens: the number of tokens without padding.
    seconds: the time that the loop has taken.
    skipped: the number of skipped updates.
    skipped_in_a_row: the number of skipped updates since the last update that was applied.
    losses: the number of losses, without those of skipped updates. Saved checkpoints use this name.
    loss_mean, loss_variance: the exponentially weighted mean and variance of the losses, see SPIKE_DECAY.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    losses: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0


class Watch:
    """Check the metrics of each step, and count in `totals`."""

    def __init__(self, totals: Totals, max_skipped: int):
        self.totals, self.max_skipped = totals, max_skipped

    def check(self, step: int, loss: float, skipped: bool, finite_rows: np.ndarray) -> dict[str, Any]:
        """Return the notes to log for `step` beside its metrics: {} if nothing unusual has happened.

        Raises UserError if more than `max_skipped` updates in a row were skipped.

        finite_rows: bool [B], which rows have a finite loss.
        """
        if skipped:
            return self._count_skipped(step, finite_rows)
        self.totals.skipped_in_a_row = 0
        return self._check_spike(step, loss)

    @staticmethod
    def require_finite_update(step: int, is_finite: bool) -> None:
        """Raise UserError if the update of `step` is not finite although its loss and gradient are finite."""
        if not is_finite:
            raise UserError(
                f"step {step}: the loss and the gradient are finite, but the update is not: the optimizer divided by "
                "zero, or a number became too large. The last checkpoint is intact: raise optimizer.epsilon or lower "
                "schedule.rate, and go on from there with --allow_changes=optimizer.epsilon,schedule.rate"
            )

    def _count_skipped(self, step: int, finite_rows: np.ndarray) -> dict[str, Any]:
        totals = self.totals
        totals.skipped += 1
        totals.skipped_in_a_row += 1
        # If all losses are finite, any row may be the cause.
        indices = np.flatnonzero(~finite_rows) if not finite_rows.all() else np.arange(len(finite_rows))
        rows = ((step - 1) * len(finite_rows) + indices).tolist()
        listed = ", ".join(map(str, rows[:MAX_LISTED_ROWS])) + (", …" if len(rows) > MAX_LISTED_ROWS else "")
        place = f"in the examples {listed} of the run (preview --step {step - 1})"
        text = f"step {step}: the loss or the gradient is not finite, {place}"
        if totals.skipped_in_a_row > self.max_skipped:
            raise UserError(
                f"{text}, as in the {totals.skipped_in_a_row - 1} steps before it. The parameters have not changed in "
                "these steps; lower schedule.rate, or look for the operation with --debug_nans"
            )
        warn(f"{text}: the update is skipped ({totals.skipped} so far)")
        return {"skipped": totals.skipped, "rows": rows}

    def _check_spike(self, step: int, loss: float) -> dict[str, Any]:
        totals = self.totals
        deviations = (loss - totals.loss_mean) / math.sqrt(max(totals.loss_variance, 1e-12))
        is_spike = totals.losses >= LOSSES_BEFORE_SPIKES and deviations > SPIKE_DEVIATIONS
        # In the mean, a spike counts like the highest loss that is no spike. Otherwise the next spike would be missed.
        counted = totals.loss_mean + SPIKE_DEVIATIONS * math.sqrt(totals.loss_variance) if is_spike else loss
        weight = max(1 - SPIKE_DECAY, 1 / (totals.losses + 1))
        difference = counted - totals.loss_mean
        totals.loss_mean += weight * difference
        totals.loss_variance = (1 - weight) * (totals.loss_variance + weight * difference**2)
        totals.losses += 1
        if not is_spike:
            return {}
        warn(
            f"step {step}: the loss, {loss:.4g}, is {deviations:.0f} standard deviations above the mean of the steps "
            f"before (preview --step {step - 1})"
        )
        return {"spike": round(deviations, 2)}

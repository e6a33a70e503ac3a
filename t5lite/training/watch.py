"""Watching a run while it trains: updates left out because a number was not finite, and spikes of the loss.

The step itself leaves out an update if its loss or gradient is not finite (`step.py`). Here such updates are counted
and reported, with the rows of the step, which `preview --step` shows. After too many in a row the run ends, and its
last checkpoint is untouched. Where the optimizer turns finite numbers into an update that is not finite, the run ends
at once.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from t5lite.system.errors import UserError
from t5lite.system.progress import warn

SPIKE_DEVIATIONS = 6.0  # standard deviations of recent losses above their mean
SPIKE_DECAY = 0.98  # of a loss's weight at each later step: about the last fifty losses count
LOSSES_BEFORE_SPIKES = 100
MAX_LISTED_ROWS = 8


@dataclasses.dataclass
class Progress:
    """Totals that continue over restarts, saved with each checkpoint.

    tokens: without padding.
    seconds: of the loop's clock.
    skipped, skipped_in_a_row: updates left out, in all and since the last update that was made.
    losses, loss_mean, loss_variance: the number of losses, and the moments of the recent ones.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    losses: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0


class Watch:
    """Checks the metrics of each step in turn."""

    def __init__(self, done: Progress, max_skipped: int):
        self.done, self.max_skipped = done, max_skipped

    def check(self, step: int, loss: float, skipped: bool, finite_rows: np.ndarray) -> dict[str, Any]:
        """Return what to log for `step` beside its metrics: mostly nothing.

        Raises UserError where more than `max_skipped` updates in a row were left out.

        finite_rows: bool [B], which rows have a finite loss.
        """
        if skipped:
            return self._skipped(step, finite_rows)
        self.done.skipped_in_a_row = 0
        return self._spike(step, loss)

    @staticmethod
    def require_finite_update(step: int, is_finite: bool) -> None:
        """Raise UserError where the update of `step` is not finite although its loss and gradient are."""
        if not is_finite:
            raise UserError(
                f"step {step}: the loss and the gradient are finite, but what the optimizer made of them is not: a "
                "division by zero or a number too large. The last checkpoint is intact: raise optimizer.epsilon or "
                "lower schedule.rate, and go on from there with --allow_changes=optimizer.epsilon,schedule.rate"
            )

    def _skipped(self, step: int, finite_rows: np.ndarray) -> dict[str, Any]:
        done = self.done
        done.skipped += 1
        done.skipped_in_a_row += 1
        # Where all losses are finite, any row may be the cause.
        places = np.flatnonzero(~finite_rows) if not finite_rows.all() else np.arange(len(finite_rows))
        rows = ((step - 1) * len(finite_rows) + places).tolist()
        said = ", ".join(map(str, rows[:MAX_LISTED_ROWS])) + (", …" if len(rows) > MAX_LISTED_ROWS else "")
        where = f"step {step}: the loss or the gradient is not finite, in the rows {said} (preview --step {step - 1})"
        if done.skipped_in_a_row > self.max_skipped:
            raise UserError(
                f"{where}, as in the {done.skipped_in_a_row - 1} steps before it, since which no checkpoint was saved; "
                "lower schedule.rate, or look for the operation with --debug_nans"
            )
        warn(f"{where}: the update is left out ({done.skipped} so far)")
        return {"skipped": done.skipped, "rows": rows}

    def _spike(self, step: int, loss: float) -> dict[str, Any]:
        done = self.done
        deviations = (loss - done.loss_mean) / math.sqrt(max(done.loss_variance, 1e-12))
        is_spike = done.losses >= LOSSES_BEFORE_SPIKES and deviations > SPIKE_DEVIATIONS
        # A spike counts like the highest loss that is no spike. Otherwise the next spike would not be noticed.
        seen = done.loss_mean + SPIKE_DEVIATIONS * math.sqrt(done.loss_variance) if is_spike else loss
        weight = max(1 - SPIKE_DECAY, 1 / (done.losses + 1))
        difference = seen - done.loss_mean
        done.loss_mean += weight * difference
        done.loss_variance = (1 - weight) * (done.loss_variance + weight * difference**2)
        done.losses += 1
        if not is_spike:
            return {}
        warn(
            f"step {step}: the loss, {loss:.4g}, is {deviations:.0f} standard deviations above that of the steps "
            f"before (preview --step {step - 1})"
        )
        return {"spike": round(deviations, 2)}

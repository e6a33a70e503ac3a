"""The training loop: step after step until the last step, with logs, evaluations and checkpoints.

The loop does not read text: `batches` yields the rows of each step. The metrics of a step are read while the next step
runs, so the device does not wait for the host.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from t5lite.system.errors import Interrupted, UserError
from t5lite.system.hosts import wait_for_all
from t5lite.system.progress import progress
from t5lite.system.signals import EvaluationStopped, Stopping
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.debug import find_first_nan
from t5lite.training.metrics import MetricsLog
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer
from t5lite.training.watch import Totals, Watch


class Verdict(NamedTuple):
    """What an evaluation decides. saves: save a checkpoint now. ends: this step is the last step."""

    saves: bool = False
    ends: bool = False


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The settings of the loop.

    total_steps: the number of the last step.
    log_every, save_every, evaluate_every: numbers of steps. evaluate_every=None: evaluate only after the last step.
    flops_per_step: FLOPs of the model in a step, for the log.
    peak_flops: FLOPs per second of all devices together; 0 if unknown.
    max_skipped: how many updates in a row may be skipped because a number is not finite.
    debug_nans: whether to stop at the first skipped update, and to look for the operation.
    """

    total_steps: int
    log_every: int
    save_every: int
    evaluate_every: int | None
    flops_per_step: float
    peak_flops: float
    max_skipped: int
    debug_nans: bool

    def is_evaluation_step(self, step: int) -> bool:
        """Return whether an evaluation follows this step: every `evaluate_every` steps, and after the last step."""
        return step == self.total_steps or (self.evaluate_every is not None and step % self.evaluate_every == 0)


def run_loop(
    trainer: Trainer,
    state: TrainState,
    batches: Iterator[Any],
    settings: LoopSettings,
    totals: Totals,
    log: MetricsLog,
    checkpoints: Checkpoints,
    evaluate: Callable[[TrainState, int], Verdict],
    stop: Stopping,
    title: str,
) -> TrainState:
    """Train from `state` to the last step, and return the new state. `evaluate` may end the run before.

    Raises Interrupted after a signal, when the current step is saved.

    Args:
        batches: yields the rows of each remaining step, placed on the mesh.
        totals: the totals of the run up to `state`; updated in place.
        evaluate: `evaluate(state, step)` evaluates and logs the metrics. Raises EvaluationStopped if `stop` ended it.
        title: the title of the progress bar.
    """
    first = int(state.step)
    meter = _Meter(settings, totals, log, trainer)
    pending: tuple[int, Any] | None = None
    with progress(title, settings.total_steps, done=first) as advance, stop:
        for step in range(first + 1, settings.total_steps + 1):
            rows = meter.wait_for(batches)
            state, metrics = trainer.step(state, rows)
            if pending is not None:
                advance(1, note=meter.read(*pending))
            if settings.debug_nans and metrics["skipped"]:
                before = state.replace(step=state.step - 1)  # the skipped update did not change the parameters
                raise UserError(f"step {step}: {find_first_nan(trainer.function, before, rows, trainer.mesh)}")
            pending = (step, metrics)
            is_last = step == settings.total_steps
            evaluates, evaluation_stopped, verdict = settings.is_evaluation_step(step), False, Verdict()
            saves = is_last or step % settings.save_every == 0
            if evaluates or saves:
                advance(1, note=meter.read(*pending))
                pending = None
            if evaluates:
                try:
                    verdict = meter.time_other_work(lambda: evaluate(state, step))  # noqa: B023 - called at once
                    is_last = is_last or verdict.ends
                except EvaluationStopped:
                    evaluation_stopped = True
            # Ask only once: two calls could give different answers if a signal comes between them. After the last step
            # there is nothing to stop.
            stopping = evaluation_stopped or (not is_last and stop.must_stop(at_once=evaluates or saves))
            # In a series of skipped updates, keep the last checkpoint from before it. But save before the run ends.
            if (saves and not totals.skipped_in_a_row) or verdict.saves or is_last or stopping:
                if pending is not None:
                    advance(1, note=meter.read(*pending))
                    pending = None
                log.sync()
                meter.time_other_work(lambda: checkpoints.save(state, dataclasses.asdict(totals)))  # noqa: B023
            if stopping:
                checkpoints.wait()
                wait_for_all()  # a host that ends early would end the hosts that are still saving
                raise Interrupted(f"stopped after step {step}, which is saved; run the same command again")
            if is_last:
                break
    checkpoints.wait()
    return state


class _Meter:
    """Read the metrics of each step, add them to `totals`, and write lines of the log.

    step_start: the time, in seconds of the clock, from which the seconds of the next step count. It is the time when
        metrics were last read, plus the seconds of other work since then.
    since_line: the counts since the last line of the log.
    waited: the seconds spent waiting for batches since metrics were last read.
    """

    def __init__(self, settings: LoopSettings, totals: Totals, log: MetricsLog, trainer: Trainer):
        self.settings, self.totals, self.log, self.trainer = settings, totals, log, trainer
        self.watch = Watch(totals, settings.max_skipped)
        self.step_start = time.perf_counter()
        self.since_line = self._zero_counts()
        self.waited = 0.0

    @staticmethod
    def _zero_counts() -> dict[str, float]:
        return {"steps": 0, "tokens": 0.0, "seconds": 0.0, "input_wait": 0.0}

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and count the seconds until it is ready."""
        start = time.perf_counter()
        rows = next(batches)
        self.waited += time.perf_counter() - start
        return rows

    def time_other_work(self, work: Callable[[], Any]) -> Any:
        """Do work that is not training, and return its result. Its time counts for the run, but not for a step."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            seconds = time.perf_counter() - start
            self.totals.seconds += seconds
            self.step_start += seconds

    def read(self, step: int, metrics: Any) -> str:
        """Wait for the metrics of `step`, log them if it is time, and return a note for the progress bar."""
        values = jax.device_get(metrics)
        self.watch.require_finite_update(step, bool(values.pop("finite_update")))
        skipped, finite_rows = bool(values.pop("skipped")), values.pop("finite_rows")
        values = {name: float(value) for name, value in values.items()}
        now = time.perf_counter()
        seconds, self.step_start = now - self.step_start, now
        self.totals.tokens += values["tokens"]
        self.totals.seconds += seconds
        self.since_line["steps"] += 1
        self.since_line["tokens"] += values["tokens"]
        self.since_line["seconds"] += seconds
        self.since_line["input_wait"] += self.waited
        self.waited = 0.0
        settings = self.settings
        notes = self.watch.check(step, values["loss"], skipped, finite_rows)
        if notes or step % settings.log_every == 0 or step in (1, settings.total_steps):
            self._write(step, values, notes)
        return f"loss {values['loss']:.3f}"

    def _write(self, step: int, values: dict[str, float], notes: dict[str, Any]) -> None:
        """Write a line of the log, with rates since the last line."""
        counts, self.since_line = self.since_line, self._zero_counts()
        seconds = max(counts["seconds"], 1e-9)
        line = {
            "loss": values["loss"],
            "learning_rate": float(self.trainer.schedule(step - 1)),
            "grad_norm": values["grad_norm"],
            "tokens": int(self.totals.tokens),
            "tokens_per_second": counts["tokens"] / seconds,
            "step_ms": 1000 * seconds / counts["steps"],
            "input_wait": counts["input_wait"] / seconds,
            "padding": 1 - values["tokens"] / values["places"],
        }
        if self.settings.peak_flops:
            line["mfu"] = self.settings.flops_per_step * counts["steps"] / seconds / self.settings.peak_flops
        self.log.write(step, "train", line, notes)

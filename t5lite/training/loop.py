"""The training loop of all stages: step after step until the budget is spent, with logs, evaluations and checkpoints.

The loop knows nothing about text files: `batches` yields the rows of each step. The metrics of a step are read while
the next step runs, so the device never waits for the host.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

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
from t5lite.training.watch import Progress, Watch


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When to do what, in steps.

    flops_per_step: the model's, for the log.
    peak_flops: per second, of all devices; 0: unknown.
    max_skipped: how many updates in a row may be left out because a number is not finite.
    debug_nans: stop at the first such update and look for the operation.
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
        """Return whether an evaluation follows this step: every `evaluate_every` steps, and at the end."""
        return step == self.total_steps or (self.evaluate_every is not None and step % self.evaluate_every == 0)


def run_loop(
    trainer: Trainer,
    state: TrainState,
    batches: Iterator[Any],
    settings: LoopSettings,
    done: Progress,
    log: MetricsLog,
    checkpoints: Checkpoints,
    evaluate: Callable[[TrainState, int], None],
    stop: Stopping,
    title: str,
) -> TrainState:
    """Train from `state` to the last step.

    Raises Interrupted after a signal, once the last step is saved.

    Args:
        batches: yields the rows of each remaining step, placed on the mesh.
        evaluate: `evaluate(state, step)` writes its own metrics. It raises EvaluationStopped where `stop` asks for it.
    """
    first = int(state.step)
    meter = _Meter(settings, done, log, trainer)
    pending: tuple[int, Any] | None = None
    with progress(title, settings.total_steps, done=first) as advance, stop:
        for step in range(first + 1, settings.total_steps + 1):
            rows = meter.wait_for(batches)
            state, metrics = trainer.step(state, rows)
            if pending is not None:
                advance(1, note=meter.read(*pending))
            if settings.debug_nans and metrics["skipped"]:
                before = state.replace(step=state.step - 1)  # its parameters did not change
                raise UserError(f"step {step}: {find_first_nan(trainer.function, before, rows, trainer.mesh)}")
            pending = (step, metrics)
            last = step == settings.total_steps
            evaluates, given_up = settings.is_evaluation_step(step), False
            due = last or step % settings.save_every == 0
            if evaluates or due:
                advance(1, note=meter.read(*pending))
                pending = None
            if evaluates:
                try:
                    meter.apart(lambda: evaluate(state, step))  # noqa: B023 - called at once
                except EvaluationStopped:
                    given_up = True
            # Asked only once: a signal may come between two questions. After the last step there is nothing to stop.
            stopping = given_up or (not last and stop.asked(at_once=evaluates or due))
            if (due and not done.skipped_in_a_row) or last or stopping:
                if pending is not None:
                    advance(1, note=meter.read(*pending))
                    pending = None
                log.sync()
                meter.apart(lambda: checkpoints.save(state, dataclasses.asdict(done)))  # noqa: B023
            if stopping:
                checkpoints.wait()
                wait_for_all()  # a host that ends early would end the hosts that are still saving
                raise Interrupted(f"stopped after step {step}, which is saved; the same command goes on from there")
    checkpoints.wait()
    return state


class _Meter:
    """Reads the metrics of a step, adds them to `done`, and writes the lines of the log with rates."""

    def __init__(self, settings: LoopSettings, done: Progress, log: MetricsLog, trainer: Trainer):
        self.settings, self.done, self.log, self.trainer = settings, done, log, trainer
        self.watch = Watch(done, settings.max_skipped)
        self.last_read = time.perf_counter()
        self.since = self._zero()
        self.waited = 0.0

    @staticmethod
    def _zero() -> dict[str, float]:
        return {"steps": 0, "tokens": 0.0, "seconds": 0.0, "input_wait": 0.0}

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and count the time of waiting for it."""
        start = time.perf_counter()
        rows = next(batches)
        self.waited += time.perf_counter() - start
        return rows

    def apart(self, work: Callable[[], Any]) -> None:
        """Do work that is not training. Its time counts for the run, not for a step."""
        start = time.perf_counter()
        try:
            work()
        finally:
            seconds = time.perf_counter() - start
            self.done.seconds += seconds
            self.last_read += seconds

    def read(self, step: int, metrics: Any) -> str:
        """Wait for the metrics of `step`, log them if it is time, and return a note for the progress bar."""
        values = jax.device_get(metrics)
        self.watch.require_finite_update(step, bool(values.pop("finite_update")))
        skipped, finite_rows = bool(values.pop("skipped")), values.pop("finite_rows")
        values = {name: float(value) for name, value in values.items()}
        now = time.perf_counter()
        seconds, self.last_read = now - self.last_read, now
        self.done.tokens += values["tokens"]
        self.done.seconds += seconds
        self.since["steps"] += 1
        self.since["tokens"] += values["tokens"]
        self.since["seconds"] += seconds
        self.since["input_wait"] += self.waited
        self.waited = 0.0
        settings = self.settings
        notes = self.watch.check(step, values["loss"], skipped, finite_rows)
        if notes or step % settings.log_every == 0 or step in (1, settings.total_steps):
            self._write(step, values, notes)
        return f"loss {values['loss']:.3f}"

    def _write(self, step: int, values: dict[str, float], notes: dict[str, Any]) -> None:
        since, self.since = self.since, self._zero()
        seconds = max(since["seconds"], 1e-9)
        line = {
            "loss": values["loss"],
            "learning_rate": float(self.trainer.schedule(step - 1)),
            "grad_norm": values["grad_norm"],
            "tokens": int(self.done.tokens),
            "tokens_per_second": since["tokens"] / seconds,
            "step_ms": 1000 * seconds / since["steps"],
            "input_wait": since["input_wait"] / seconds,
            "padding": 1 - values["tokens"] / values["places"],
        }
        if self.settings.peak_flops:
            line["mfu"] = self.settings.flops_per_step * since["steps"] / seconds / self.settings.peak_flops
        self.log.write(step, "train", line, notes)

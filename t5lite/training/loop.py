"""The one loop, for every stage: step after step until the budget is spent, with logs, evaluations and checkpoints.

It knows nothing of files of text: `rows(step)` gives the rows of a step, wherever they come from. The metrics of a step
are read while the next one runs, so the device never waits for the host.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5lite.system.errors import Interrupted, UserError
from t5lite.system.hosts import meet
from t5lite.system.progress import progress
from t5lite.system.stopping import EvaluationStopped, Stopping
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.debug import first_nan
from t5lite.training.metrics import MetricsLog
from t5lite.training.step import TrainState
from t5lite.training.trainer import Trainer
from t5lite.training.watch import Progress, Watch


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When to do what, in steps. flops_per_step: of the model, for the log; peak_flops: of all devices, 0: unknown.
    most_skipped: updates in a row that may be left out because a number is not finite. debug_nans: stop at the first
    of them and look for the operation.
    """

    total_steps: int
    log_every: int
    save_every: int
    evaluate_every: int | None
    flops_per_step: float
    peak_flops: float
    most_skipped: int
    debug_nans: bool

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step: so many steps apart, and at the end."""
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
    """Train from `state` to the last step; `batches` yields the rows of each remaining step, placed on the mesh.

    `evaluate(state, step)` writes its own metrics, and raises EvaluationStopped where `stop` says so. Raises
    Interrupted, with the last step saved, after a signal.
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
                before = state.replace(step=state.step - 1)  # the parameters are as they were
                raise UserError(f"step {step}: {first_nan(trainer.function, before, rows, trainer.mesh)}")
            pending = (step, metrics)
            last = step == settings.total_steps
            evaluates, given_up = settings.evaluates(step), False
            due = last or step % settings.save_every == 0
            if evaluates or due:
                advance(1, note=meter.read(*pending))
                pending = None
            if evaluates:
                try:
                    meter.apart(lambda: evaluate(state, step))  # noqa: B023 - called at once
                except EvaluationStopped:
                    given_up = True
            # Asked once: a signal may come at any moment. After the last step there is nothing to stop.
            stopping = given_up or (not last and stop.asked(at_once=evaluates or due))
            if (due and not done.skipped_in_a_row) or last or stopping:
                if pending is not None:
                    advance(1, note=meter.read(*pending))
                    pending = None
                log.sync()
                meter.apart(lambda: checkpoints.save(state, dataclasses.asdict(done)))  # noqa: B023
            if stopping:
                checkpoints.wait()
                meet()  # a host that left would take along those that are still saving
                raise Interrupted(f"stopped after step {step}, which is saved; the same command goes on from there")
    checkpoints.wait()
    return state


class _Meter:
    """Reads a step's metrics, adds them up in `done`, and writes the log's lines with rates."""

    def __init__(self, settings: LoopSettings, done: Progress, log: MetricsLog, trainer: Trainer):
        self.settings, self.done, self.log, self.trainer = settings, done, log, trainer
        self.watch = Watch(done, settings.most_skipped)
        self.last_read = time.perf_counter()
        self.since = self._zero()
        self.waited = 0.0

    @staticmethod
    def _zero() -> dict[str, float]:
        return {"steps": 0, "tokens": 0.0, "seconds": 0.0, "input_wait": 0.0}

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """The next batch, and the time it was waited for."""
        start = time.perf_counter()
        rows = next(batches)
        self.waited += time.perf_counter() - start
        return rows

    def apart(self, work: Callable[[], Any]) -> None:
        """Do what is not training; it counts as the run's time, not as a step's."""
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
        notes = self.watch.look(step, values["loss"], skipped, finite_rows)
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

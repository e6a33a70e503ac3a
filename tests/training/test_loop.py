"""The loop's promises about signals, with a step that only counts."""

import itertools
import os
import signal
import types

import jax.numpy as jnp
import pytest

from t5lite.system.errors import Interrupted
from t5lite.system.signals import Stopping
from t5lite.training.loop import LoopSettings, Verdict, run_loop
from t5lite.training.metrics import MetricsLog
from t5lite.training.watch import Totals


class Saved:
    """Checkpoints that only note their steps."""

    def __init__(self):
        self.steps = []

    def save(self, state, progress):
        self.steps.append(int(state.step))

    def wait(self):
        pass


def _run(tmp_path, evaluate, total=10, evaluate_every=4, sick=(), stop=None):
    def step(state, rows):
        metrics = {name: jnp.ones(()) for name in ("loss", "tokens", "places", "grad_norm")}
        metrics |= {"skipped": jnp.bool_(state.step in sick), "finite_rows": jnp.ones(2, bool)}
        metrics["finite_update"] = jnp.bool_(True)
        return types.SimpleNamespace(step=state.step + 1), metrics

    def judge(state, step):
        verdict = evaluate(state, step)
        return verdict if isinstance(verdict, Verdict) else Verdict()

    trainer = types.SimpleNamespace(step=step, schedule=lambda step: 0.1)
    settings = LoopSettings(
        total, 2, 7, evaluate_every, flops_per_step=1.0, peak_flops=0.0, max_skipped=3, debug_nans=False
    )
    checkpoints, log = Saved(), MetricsLog(tmp_path, keep_until=-1)
    state = types.SimpleNamespace(step=0)
    try:
        run_loop(
            trainer,
            state,
            itertools.repeat(None),
            settings,
            Totals(),
            log,
            checkpoints,
            judge,
            stop or Stopping(),
            "test",
        )
    finally:
        log.close()
    return checkpoints


def test_it_saves_and_evaluates_when_due_and_at_the_end(tmp_path):
    evaluated = []
    checkpoints = _run(tmp_path, lambda state, step: evaluated.append(step))
    assert checkpoints.steps == [7, 10] and evaluated == [4, 8, 10]


def test_an_evaluation_may_save_its_step_and_end_the_run(tmp_path):
    verdicts = {4: Verdict(saves=True), 8: Verdict(), 12: Verdict(ends=True)}
    checkpoints = _run(tmp_path, lambda state, step: verdicts[step], total=40)
    assert checkpoints.steps == [4, 7, 12]
    in_a_series_of_skipped_updates = _run(tmp_path, lambda state, step: verdicts[step], total=40, sick=(3, 6))
    assert in_a_series_of_skipped_updates.steps == [4, 12]


def test_a_signal_during_an_evaluation_saves_that_step(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Saved, "save", lambda self, state, progress: saved.append(int(state.step)))

    def evaluate(state, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 4, which is saved"):
        _run(tmp_path, evaluate)
    assert saved == [4]


@pytest.mark.parametrize("last", [4, 10])
def test_an_evaluation_is_given_up_between_its_batches(tmp_path, monkeypatch, last):
    saved, stop, batches = [], Stopping(), []
    monkeypatch.setattr(Saved, "save", lambda self, state, progress: saved.append(int(state.step)))

    def evaluate(state, step):
        for batch in range(3):
            stop.raise_if_stopped()
            batches.append((step, batch))
            if (step, batch) == (last, 1):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"after step {last}, which is saved"):
        _run(tmp_path, evaluate, stop=stop)
    assert saved[-1] == last and batches[-1] == (last, 1)


def test_a_signal_in_the_last_batch_of_the_last_evaluation_lets_the_run_end(tmp_path):
    checkpoints = _run(tmp_path, lambda state, step: step == 10 and os.kill(os.getpid(), signal.SIGTERM))
    assert checkpoints.steps == [7, 10]


def test_nothing_is_saved_while_updates_are_left_out(tmp_path):
    checkpoints = _run(tmp_path, lambda state, step: None, total=15, sick=(5, 6, 14))
    assert checkpoints.steps == [14, 15]

"""Which checkpoints stay: the newest always, some for good, the best."""

import jax
import numpy as np
import pytest

from t5lite.config import to_dict
from t5lite.system.errors import UserError
from t5lite.system.files import write_json
from t5lite.tasks.metrics import METRICS
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import Policy, make_policy
from t5lite.training.reading import choose_steps, saved_steps
from t5lite.training.step import TrainState
from tests.small import small_config

SCORES = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: float("nan"), 60: 5.0}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, {60}),
        ({"keep": 3}, {40, 50, 60}),
        ({"keep": 9}, set(SCORES)),
        ({"keep_every_steps": 20}, {20, 40, 60}),
        ({"keep_best": 1}, {20, 60}),
        ({"keep_best": 2}, {20, 40, 60}),
        ({"keep_best": 1, "mode": "max"}, {60}),
        ({"keep_best": 2, "metric": "validation/accuracy"}, {10, 60}),
        ({"keep_best": 9}, {10, 20, 40, 60}),
        ({"keep_best": 1, "keep": 2, "keep_every_steps": 30}, {20, 30, 50, 60}),
    ],
    ids=str,
)
def test_what_stays(fields, kept):
    assert Policy(**{"keep": 1, **fields}).select_kept_steps(SCORES) == kept


def test_of_equal_scores_the_earlier_is_better():
    assert Policy(keep=1, keep_best=1).select_kept_steps({1: 2.0, 2: 2.0, 3: 9.0}) == {1, 3}


def test_the_direction_of_every_metric_is_that_of_the_report():
    for name, metric in METRICS.items():
        best = Policy(metric=f"validation/{name}").rank_steps({10: 0.25, 20: 0.75})[0]
        assert best == (10 if metric.better < 0 else 20)


def _state(step):
    return TrainState(np.int32(step), {"w": jax.numpy.full((3,), float(step))}, {"count": jax.numpy.int32(step)})


def _save(checkpoints, steps, scores):
    for step in steps:
        if step in scores:
            checkpoints.note_metrics(step, {"validation": {"loss": scores[step], "perplexity": 1.0}})
        checkpoints.save(_state(step), {})
        checkpoints.wait()


def test_the_folder_holds_what_the_policy_keeps_also_after_a_restart(tmp_path):
    scores = {2: 1.0, 4: 0.5, 6: 2.0, 8: 3.0}
    policy = Policy(keep=2, keep_best=1, keep_every_steps=3)
    checkpoints = Checkpoints(tmp_path, policy)
    _save(checkpoints, range(1, 5), scores)
    assert saved_steps(tmp_path) == [3, 4]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, policy)  # the scores come from the checkpoints
    _save(checkpoints, range(5, 10), scores)
    checkpoints.close()
    assert saved_steps(tmp_path) == [3, 4, 6, 8, 9]


def test_a_metric_that_is_not_evaluated_is_refused_with_those_that_are(tmp_path):
    checkpoints = Checkpoints(tmp_path, Policy(keep_best=1, metric="validation/bleu"))
    with pytest.raises(UserError, match=r"validation/bleu is not evaluated; known: validation/loss"):
        checkpoints.note_metrics(1, {"validation": {"loss": 1.0}})
    checkpoints.close()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"keep": 0}, "checkpoint.keep"),
        ({"keep_best": 0, "eval.every_steps": 3}, "checkpoint.keep_best"),
        ({"keep_best": 1}, "no score without evaluations; set eval.every_steps"),
        ({"keep_best": 1, "eval.every_steps": 2}, "must be a multiple of eval.every_steps=2 or a divisor"),
        ({"keep_every_steps": 4}, "must be a multiple of checkpoint.every_steps=3, but is 4"),
        ({"mode": "least"}, "must be min or max"),
    ],
    ids=str,
)
def test_policies_that_cannot_be_kept_are_refused(fields, fault):
    config = small_config("x")
    for name, value in fields.items():
        group, name = name.split(".") if "." in name else ("checkpoint", name)
        config[group][name] = value
    with pytest.raises(UserError, match=fault):
        make_policy(config)


def test_a_step_is_chosen_by_number_as_the_best_or_as_the_newest(tmp_path):
    config = small_config("x")
    config.checkpoint.metric = "validation/loss"
    write_json(tmp_path / "config.json", to_dict(config))
    with pytest.raises(UserError, match="no complete checkpoint"):
        choose_steps(tmp_path, None)
    checkpoints = Checkpoints(tmp_path, Policy(keep=9))
    _save(checkpoints, [1], {})
    with pytest.raises(UserError, match=r"no checkpoint in .* was evaluated by validation/loss; .* steps 1"):
        choose_steps(tmp_path, "best")
    _save(checkpoints, [2, 3], {2: 1.0, 3: 2.0})
    checkpoints.close()
    assert choose_steps(tmp_path, None) == [3, 2, 1]
    assert choose_steps(tmp_path, "best") == [2]
    assert choose_steps(tmp_path, "1") == [1]
    for step in ("7", "newest", "-1", "²"):
        with pytest.raises(UserError, match=r"no checkpoint of step .* steps 1, 2, 3, or 'best'"):
            choose_steps(tmp_path, step)

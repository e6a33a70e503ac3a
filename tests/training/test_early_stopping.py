"""Early stopping: which evaluation is the best, when a run ends, and which configs are refused."""

import math

import pytest

from t5lite.config import base_config
from t5lite.system.errors import UserError
from t5lite.training.early_stopping import EarlyStopping, make_early_stopping


def make(sign=1, patience=2, min_delta=0.0):
    return EarlyStopping("validation/loss", patience, min_delta, sign)


@pytest.mark.parametrize(
    ("values", "sign", "min_delta", "best_step", "ends_after"),
    [
        ([5, 4, 3, 2], 1, 0, 3, None),
        ([5, 4, 4, 4], 1, 0, 1, 4),
        ([5, 4.5, 3.9, 3], 1, 1.0, 2, None),  # 4.5 is no improvement over 5, but 3.9 is
        ([5, 4.5, 4.2, 4.1], 1, 1.0, 0, 3),
        ([0.1, 0.2, 0.2, 0.1], -1, 0, 1, 4),
        ([math.nan, 4, None, math.inf], 1, 0, 1, 4),
        ([None, None], 1, 0, None, 2),
        ([math.nan, -math.inf, 1], 1, 0, 2, 2),
    ],
)
def test_the_best_evaluation_and_the_end(values, sign, min_delta, best_step, ends_after):
    stopping, ended = make(sign, min_delta=min_delta), None
    for step, value in enumerate(values):
        stopping.note(step, value)
        ended = ended or (step + 1 if stopping.must_stop else None)
    assert (stopping.best_step, ended) == (best_step, ends_after)


def test_a_replay_of_the_log_gives_the_same_state():
    whole, resumed = make(), make()
    values = [5.0, 4.0, None, 4.5]
    for step, value in enumerate(values):
        whole.note(step, value)
    lines = [{"step": step, "split": "validation", "loss": value} for step, value in enumerate(values)]
    others = [{"step": 1, "split": "train", "loss": 0.1}, {"step": 1, "split": "validation_standard", "loss": 0.1}]
    resumed.replay([lines[0], *others, *lines[1:]])
    assert resumed == whole


def config_with(**fields):
    config = base_config()
    config.eval.every_steps = 5
    config.early_stopping.update(fields)
    return config


def test_no_metric_means_no_early_stopping():
    assert make_early_stopping(config_with()) is None
    stopping = make_early_stopping(config_with(metric="validation/accuracy", patience=4))
    assert (stopping.sign, stopping.patience, stopping.min_delta) == (-1, 4, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 4}, r"early_stopping\.patience: is set, but"),
        ({"min_delta": 0.1}, r"early_stopping\.min_delta: is set, but"),
        ({"metric": "loss"}, r"'loss' has no '/'"),
        ({"metric": "validation/"}, "has no '/'|write a held-out set"),
        ({"metric": "test/loss"}, "the test set does not steer training"),
        ({"metric": "validation/beauty"}, "which values of 'beauty' are better"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_early_stopping(config_with(**fields))


def test_evaluations_during_training_are_needed():
    config = config_with(metric="validation/loss")
    config.eval.every_steps = None
    with pytest.raises(UserError, match=r"set config\.eval\.every_steps"):
        make_early_stopping(config)

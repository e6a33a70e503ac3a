"""Every number in a config has a range, and an error names the field of a value outside its range."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from t5lite.checks import RANGES, check, check_budget, require_training_data
from t5lite.config import base_config, lookup_field, set_field
from tests.test_config import complaint, valid


def numbers(config, kinds, prefix=""):
    """Return the dotted paths of the numbers in a config that have one of the types `kinds`."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from numbers(value, kinds, f"{prefix}{name}.")
        elif config.get_type(name) in kinds:
            yield prefix + name


FLOATS = set(numbers(base_config(), (float,)))


def test_every_number_of_a_config_has_a_range_and_its_default_lies_in_it():
    assert set(RANGES) == set(numbers(base_config(), (int, float)))
    for field, (least, most) in RANGES.items():
        default = lookup_field(base_config(), field)
        assert default is None or least <= default <= most, field


@pytest.mark.parametrize("field", RANGES)
def test_a_number_outside_of_its_range_is_refused_by_name(field):
    least, most = RANGES[field]
    values = [least - 1, 2 * most + 1]
    if field in FLOATS:
        values += [math.nan, math.inf, -math.inf]
    else:
        values += [10**5000, -(10**5000)]
    for value in values:
        config = valid()
        set_field(config, field, value)
        complaint(lambda config=config: check(config), f"config.{field}: ")


@pytest.mark.parametrize("field", ["batch_size", "name", "seed", "model.d_model", "objective.name", "deterministic"])
def test_none_is_refused_where_a_value_is_needed(field):
    config = valid()
    set_field(config, field, None)
    complaint(lambda: check(config), f"config.{field}: needs a value")


def test_a_bool_is_no_number():
    config = valid()
    config.seed = True
    complaint(lambda: check(config), "config.seed: must be of type int")


@pytest.mark.parametrize("value", [(1, object()), ((np.float32(1),),), (math.nan,), (b"x",)])
def test_a_tuple_may_hold_only_values_of_json(value):
    config = valid()
    config.trainable = value
    complaint(lambda: check(config), "config.trainable")


@pytest.mark.parametrize(
    ("group", "member", "field"),
    [
        ("objective", {"name": "span_corruption", "noise_density": math.nan}, "noise_density"),
        ("objective", {"name": "span_corruption", "mean_noise_span_length": "3"}, "mean_noise_span_length"),
        ("objective", {"name": 3}, "name"),
        ("objective", {"name": "span_corruption", "mode": 1}, "mode"),
        ("objective", {"name": "span_corruption", "weight": -1.0}, "weight"),
        ("data.train", {"source": 3}, "source"),
        ("data.train", {"source": "pydocs", "split": ("a",)}, "split"),
        ("data.train", {"source": "pydocs", "weight": math.inf}, "weight"),
    ],
)
def test_members_of_a_mixture_are_checked_as_the_config_is(group, member, field):
    config = valid()
    if group == "data.train":
        config.data.train.source = None
    lookup_field(config, group).mixture = {"a": member}
    complaint(lambda: check(config), f"config.{group}.mixture.a.{field}: must be")


def test_a_name_is_printable():
    config = valid()
    config.name = "two\nlines"
    complaint(lambda: check(config), "config.name")


def test_a_valid_config_passes():
    check(valid())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("batch_size", 0), ("batch_size", -8), ("microbatches", 0), ("microbatches", 3), ("log_every_steps", 0)],
        *[("budget.steps", None), ("budget.steps", 0), ("budget.tokens", 5.0), ("budget.steps", -1), ("seed", -1)],
        *[
            ("checkpoint.every_steps", 0),
            ("checkpoint.keep", 0),
            ("ema_decay", 1.0),
            ("eval.rows", 0),
            ("eval.every_steps", 0),
        ],
        *[("eval.batch_size", -1), ("data.train.limit", 0), ("data.validation.split", "test")],
        *[("loss.label_smoothing", 1.0), ("loss.label_smoothing", -0.1), ("model.dropout", 1.0)],
        *[("data.train.source", None), ("data.train.mixture", {"a": {"source": "x"}})],
    ],
)
def test_values_that_no_run_can_have_are_refused_by_name(field, value):
    config = valid()
    group, _, name = field.rpartition(".")
    (config[group] if group else config)[name] = value
    fault = {"data.train.source": "data.train", "data.train.mixture": "data.train", "budget.tokens": "budget"}
    complaint(
        lambda: (check(config), check_budget(config), require_training_data(config)),
        f"config.{fault.get(field, 'budget' if value is None else field)}",
    )

"""Runs with different objectives are compared only by a standard with which all were evaluated."""

import pytest

from t5lite.reporting.comparison import compare
from t5lite.reporting.groups import split_standard
from t5lite.reporting.runs import read_run
from tests.reporting.fakes import write_run


def _runs(folder, name, objective, own, standard=None, **fields):
    splits = {} if standard is None else {"validation_span_corruption": {"loss": standard}}
    for seed in range(3):
        given = {"objective.name": objective, **fields}
        get_folder = write_run(
            folder, f"{name}-{seed}", {"loss": own + seed / 100}, seed=seed, fields=given, splits=splits
        )
        yield read_run(get_folder)


def _differences(runs):
    report = compare(runs, "title", (), {})
    return {(each.a, each.b, each.split): each.delta.mean for each in report.comparisons}, report


def test_a_denoiser_and_the_standard_itself_compare_on_the_standard_alone(tmp_path):
    runs = [*_runs(tmp_path, "spans", "span_corruption", 4.0), *_runs(tmp_path, "bart", "bart", 2.0, 4.5)]
    result, _ = _differences(runs)
    assert result == {("spans", "bart", "validation_span_corruption"): pytest.approx(0.49)}


def test_other_inputs_do_not_compare(tmp_path):
    runs = [
        *_runs(tmp_path, "spans", "span_corruption", 4.0),
        *_runs(tmp_path, "bart", "bart", 2.0, 4.5, **{"objective.inputs_length": 128}),
    ]
    assert _differences(runs)[0] == {}


def test_a_span_corruption_of_other_settings_is_not_the_standard(tmp_path):
    runs = [
        *_runs(tmp_path, "dense", "span_corruption", 4.0, 4.2, **{"objective.noise_density": 0.5}),
        *_runs(tmp_path, "bart", "bart", 2.0, 4.5),
    ]
    result, _ = _differences(runs)
    assert result == {("dense", "bart", "validation_span_corruption"): pytest.approx(0.3)}


def test_masked_lms_that_train_otherwise_are_evaluated_alike(tmp_path):
    runs = [
        *_runs(tmp_path, "usual", "mlm", 4.0),
        *_runs(tmp_path, "dense", "mlm", 3.5, **{"objective.noise_density": 0.3, "objective.masking": "bernoulli"}),
    ]
    assert _differences(runs)[0] == {("usual", "dense", "validation"): pytest.approx(-0.5)}


def test_without_another_objective_no_standard_is_named(tmp_path):
    _, report = _differences([*_runs(tmp_path, "spans", "span_corruption", 4.0)])
    assert [split for split, _ in report.tasks[0].metrics] == ["validation"]


def test_names_of_splits():
    assert split_standard("validation_books_causal_lm") == ("validation_books", "causal_lm")
    assert split_standard("validation") == ("validation", None)

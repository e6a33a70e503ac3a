"""Notes: each fact about runs and groups appears once."""

import json

import pytest

from t5lite.reporting.comparison import compare
from t5lite.reporting.document import cost_table, verdicts
from t5lite.reporting.runs import read_run
from tests.reporting.fakes import write_run, write_seeds

WIDE = {"model.d_model": 512}


def _report(workdirs):
    return compare([read_run(workdir) for workdir in workdirs], "t", (), {})


def _find_notes(report, *parts):
    return [note for note in report.notes if all(part in note for part in parts)]


def test_a_note_tells_that_seeds_share_a_pre_training(tmp_path):
    write_run(tmp_path, "general", {"loss": 4.0}, seed=5)
    for seed in range(3):
        write_run(tmp_path, f"pretrain-{seed}", {"loss": 3.0}, seed=seed, fields={"init_from": "@general"})
    scratch = write_seeds(tmp_path, "scratch", [3.0, 3.1, 3.2])
    one = write_seeds(tmp_path, "one", [2.0, 2.1, 2.3], fields={"init_from": "@pretrain-1", **WIDE})
    each = [
        write_run(tmp_path, f"each-{seed}", {"loss": 2.0}, seed=seed, fields={"init_from": f"@pretrain-{seed}"})
        for seed in range(2)
    ]
    report = _report([*scratch, *one, *each])
    caveat = "all 3 seeds start from pretrain-1 (seed 1): the interval does not cover another pre-training"
    assert report.notes.count(f"one: {caveat}.") == 1
    assert _find_notes(report, "each: both seeds start from general (seed 5)")
    assert not _find_notes(report, "scratch", "start from")
    blocks = {block.b: block.caveats for block in verdicts(report)}
    assert blocks["one"] == (f"one: {caveat}",) and blocks["each"][0].startswith("each: both seeds")


def test_a_note_tells_that_seeds_share_released_weights(tmp_path):
    runs = write_seeds(tmp_path, "a", [3.0, 3.1], fields={"init_from": "hf:t5-small"})
    assert _find_notes(_report(runs), "a: both seeds start from hf:t5-small: the interval")


@pytest.mark.parametrize(
    ("change", "what"),
    [({"git_commit": "other"}, "versions of t5lite"), ({"packages": {"jax": "0.11.0"}}, "versions of packages")],
)
def test_results_of_different_versions_may_not_be_comparable(tmp_path, change, what):
    mixed = [*write_seeds(tmp_path, "a", [3.0]), *write_seeds(tmp_path, "a", [3.1], first_seed=1, provenance=change)]
    same = write_seeds(tmp_path, "b", [3.0, 3.1], fields=WIDE)
    (note,) = _find_notes(_report([*mixed, *same]), what)
    assert "their results and costs may not be comparable" in note and "one group: a." in note
    apart = _report([*write_seeds(tmp_path / "x", "c", [3.0], provenance=change), *same])
    assert _find_notes(apart, what, "results") and not _find_notes(apart, "of one group")


def test_a_note_tells_that_a_config_was_changed_during_the_run(tmp_path):
    history = [
        {"step": 0, "changes": {}},
        {"step": 100},
        {"step": 500, "changes": {"schedule.rate": {"was": 0.1, "now": 0.01}}},
    ]
    write_run(tmp_path, "pretrain", {"loss": 3.0}, provenance={"history": history})
    runs = write_seeds(tmp_path, "a", [3.0, 3.1], fields={"init_from": "@pretrain"})
    note = "pretrain: schedule.rate was changed at step 500 (0.1 before, 0.01 after)."
    assert _report(runs).notes.count(note) == 1


def test_costs_on_different_devices_are_not_comparable(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0])
    b = write_seeds(tmp_path, "b", [3.0], fields=WIDE, provenance={"devices": ["NVIDIA H200"]})
    assert _find_notes(_report([*a, *b]), "different devices", "costs are not comparable")
    assert not _find_notes(_report(a), "costs are not comparable") and not _find_notes(_report([*a, *b]), "results")


def test_the_devices_of_an_origin_count(tmp_path):
    write_run(tmp_path, "pretrain", {"loss": 3.0}, provenance={"devices": ["NVIDIA H200"] * 2})
    report = _report(write_seeds(tmp_path, "a", [3.0], fields={"init_from": "@pretrain"}))
    assert _find_notes(report, "the runs that they started from", "different devices", "costs are not comparable")
    alone, with_origins = cost_table(report).rows
    assert alone[-1] == "1 × cpu" and with_origins[-1] == "1 × cpu; 2 × NVIDIA H200"


def test_times_with_different_evaluations_are_not_comparable(tmp_path):
    a = [*write_seeds(tmp_path, "a", [3.0]), *write_seeds(tmp_path, "a", [3.1], 1, fields={"eval.every_steps": 5})]
    assert _find_notes(_report(a), "eval.every_steps", "None of a-0; 5 of a-1", "times are not comparable")
    other_task = {"objective.name": "span_corruption", "eval.every_steps": 5}
    b = write_seeds(tmp_path, "b", [3.0], fields=other_task)
    assert not _find_notes(_report([a[0], *b]), "eval.every_steps")


def test_a_note_tells_that_the_cost_of_an_unreadable_origin_is_missing(tmp_path):
    run = write_seeds(tmp_path, "a", [3.0], fields={"init_from": "hf:t5-small"})
    assert _find_notes(_report(run), "hf:t5-small", "not counted")


def test_a_note_names_the_run_that_skipped_updates(tmp_path):
    workdirs = write_seeds(tmp_path, "steep", [2.0, 2.1, 2.2])
    result = json.loads((workdirs[1] / "result.json").read_text())
    (workdirs[1] / "result.json").write_text(json.dumps(result | {"skipped_steps": 3}))
    assert _find_notes(_report(workdirs), "skipped") == [
        "steep-1 skipped 3 updates, because a loss or gradient was not finite."
    ]


def test_a_note_tells_the_number_of_intervals(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0, 3.1])
    b = write_seeds(tmp_path, "b", [2.0, 2.2], fields=WIDE)
    assert _find_notes(_report([*a, *b]), "Intervals of differences in this report: 1.", "not adjusted")


def test_a_note_names_the_seeds_that_lack_a_metric(tmp_path):
    a = [
        write_run(tmp_path, f"a-{seed}", {"loss": 3.0} | ({"accuracy": 0.5} if seed == 1 else {}), seed=seed)
        for seed in range(3)
    ]
    assert _find_notes(_report(a), "a lacks accuracy on validation with seed 0, 2")


@pytest.mark.parametrize(
    "change", [{}, {"objective.name": "span_corruption", "eval.rows": 8}, {"eval.generate_rows": 8}]
)
def test_notes_do_not_grow_with_the_pairs(tmp_path, change):
    """24 groups with one seed each have 276 pairs. Half of the groups are changed."""
    runs = []
    for i in range(24):
        fields = {"model.d_model": 64 + i} | (change if i % 2 else {})
        values = {"loss": 3.0, "exact_match": 0.5} | ({"accuracy": 0.5} if i % 3 else {})
        run = {"fields": fields, "provenance": {"git_commit": str(i)}}
        runs.append(write_run(tmp_path, f"group{i:02d}-0", values, **run))
    notes = _report(runs).notes
    assert len(notes) < 24 and max(map(len, notes)) < 400


def test_a_note_tells_why_tasks_are_separate(tmp_path):
    runs = [
        write_run(tmp_path, f"{name}-0", {"loss": 3.0}, fields=fields)
        for name, fields in (
            ("a", {}),
            ("b", {"objective.inputs_length": 64}),
            ("c", {"eval.rows": 8}),
            ("d", {"eval.rows": 9}),
        )
    ]
    report = _report(runs)
    assert _find_notes(report, "b: not compared with a, because objective.inputs_length is not the same.")
    assert _find_notes(report, "c, d: not compared with a, because eval.rows is not the same.")

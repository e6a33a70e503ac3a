"""Reports pair runs by seed, sort groups into tasks, and compare only groups that are comparable."""

import re

import pytest

from t5lite.reporting import words
from t5lite.reporting.comparison import Comparison, compare
from t5lite.reporting.document import groups_table, verdicts
from t5lite.reporting.groups import find_different_rows
from t5lite.reporting.runs import read_run
from t5lite.reporting.statistics import Estimate
from t5lite.system.errors import UserError
from tests.reporting.fakes import write_run, write_seeds

WIDE = {"model.d_model": 512}


def _report(workdirs, bases=(), absent=None):
    return compare([read_run(workdir) for workdir in workdirs], "t", bases, absent or {})


def _find_notes(report, *parts):
    return [note for note in report.notes if all(part in note for part in parts)]


def test_differences_are_paired_by_seed(tmp_path):
    # Seeds differ much more than groups, but in the same way. So only paired differences show the effect of the group.
    scratch = write_seeds(tmp_path, "scratch", [3.0, 5.0, 9.0])
    wide = write_seeds(tmp_path, "wide", [2.9, 4.8, 8.9], fields=WIDE)
    (comparison,) = _report([*scratch, *reversed(wide)]).comparisons
    assert (comparison.a, comparison.b, comparison.metric, comparison.delta.n) == ("scratch", "wide", "loss", 3)
    assert list(comparison.deltas.values()) == pytest.approx([-0.1, -0.2, -0.1])
    assert comparison.delta.mean == pytest.approx(-0.4 / 3) and comparison.delta.resolved
    assert words.verdict(comparison) == "better"


@pytest.mark.parametrize(
    ("metric", "rises", "falls"),
    [("loss", "worse", "better"), ("accuracy", "better", "worse"), ("rouge", "higher", "lower")],
)
def test_a_verdict_uses_the_direction_of_the_metric(tmp_path, metric, rises, falls):
    for name, width, value in (("low", 64, 1.0), ("high", 128, 2.0)):
        for seed in range(3):
            values = {metric: value + 0.001 * seed * width}
            write_run(tmp_path, f"{name}-{seed}", values, seed=seed, fields={"model.d_model": width})
    low, high = (sorted(tmp_path.glob(f"{name}-*")) for name in ("low", "high"))
    assert words.verdict(_report([*low, *high]).comparisons[0]) == rises
    assert words.verdict(_report([*high, *low]).comparisons[0]) == falls


def test_one_common_seed_has_no_interval_and_is_not_judged(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0, 3.1])
    b = write_seeds(tmp_path, "b", [2.0], first_seed=1, fields=WIDE)
    report = _report([*a, *b])
    (comparison,) = report.comparisons
    assert comparison.delta.mean == pytest.approx(-1.1) and comparison.delta.low is None
    assert words.verdict(comparison) == "not judged"
    assert _find_notes(report, "one seed: no interval", "b against a")
    assert _find_notes(report, "seeds of both", "0, 1 of a; 1 of b")


def test_groups_without_a_common_seed_are_not_compared(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0])
    b = write_seeds(tmp_path, "b", [2.0], first_seed=7, fields=WIDE)
    report = _report([*a, *b])
    assert (
        not report.comparisons
        and _find_notes(report, "share no seed", "b against a")
        and _find_notes(report, "0 of a; 7 of b")
    )


def test_runs_of_one_group_and_seed_count_as_one(tmp_path):
    a = [*write_seeds(tmp_path, "a", [3.0]), write_run(tmp_path, "again-0", {"loss": 4.0}, name="a")]
    b = write_seeds(tmp_path, "b", [2.0], fields=WIDE)
    report = _report([*a, *b])
    assert report.comparisons[0].delta.mean == pytest.approx(-1.5) and _find_notes(report, "several runs with seed 0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provenance": {"heldout": {"validation": "other"}, "data": {"data.train": "x"}}}, "the held-out data"),
        ({"provenance": {"heldout": None, "data": {"data.train": "other"}}}, "the data"),
        ({"fields": {"objective.inputs_length": 64}}, "objective.inputs_length"),
        ({"fields": {"eval.rows": 8}}, "eval.rows"),
    ],
)
def test_runs_evaluated_on_other_rows_are_other_tasks(tmp_path, change, reason):
    report = _report([*write_seeds(tmp_path, "a", [3.0, 3.1]), *write_seeds(tmp_path, "b", [2.0, 2.1], **change)])
    assert not report.comparisons and len(report.tasks) == 2 and _find_notes(report, "same task are compared")
    assert _find_notes(report, f"b: not compared with a, because {reason} is not the same")
    assert find_different_rows(*report.groups, "validation", "loss") == reason


def test_groups_that_read_the_same_rows_in_different_ways_are_one_task(tmp_path):
    changed = {"objective.pack": False, "objective.prefix_attention": True, "data.train.limit": 9}
    other_data = {"data": {"data.train": "other"}}  # the held-out rows are the same
    b = write_seeds(tmp_path, "b", [2.0, 2.1], fields=changed, provenance=other_data)
    report = _report([*write_seeds(tmp_path, "a", [3.0, 3.1]), *b])
    assert len(report.comparisons) == 1 and len(report.tasks) == 1


def test_generated_metrics_need_the_same_generated_rows(tmp_path):
    both = {"loss": 1.0, "exact_match": 0.5}
    a = write_run(tmp_path, "a-0", both)
    b = write_run(tmp_path, "b-0", both, fields={"eval.generate_rows": 8})
    report = _report([a, b])
    assert [comparison.metric for comparison in report.comparisons] == ["loss"]
    assert _find_notes(report, "exact_match", "eval.generate_rows")


def test_a_metric_that_one_side_lacks_is_left_out_with_a_note(tmp_path):
    network = write_run(tmp_path, "network-0", {"loss": 1.0, "accuracy": 0.6})
    bag = write_run(tmp_path, "bag-0", {"accuracy": 0.7}, fields={"model.architecture": "bag_of_words"})
    report = _report([network, bag])
    assert [comparison.metric for comparison in report.comparisons] == ["accuracy"]
    assert _find_notes(report, "bag has no loss on validation")


def test_a_note_names_a_run_that_diverged(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0, 3.1])
    b = write_seeds(tmp_path, "b", [2.0, None], fields=WIDE)
    report = _report([*a, *b])
    assert not report.comparisons and _find_notes(report, "b has a value that is not finite, with seed 1")
    assert report.tasks[0].groups[1].estimates["validation", "loss"].mean is None
    assert _find_notes(report, "b-1: loss on validation is not finite")


def test_the_base_is_the_first_group_or_the_one_asked_for(tmp_path):
    runs = [
        *write_seeds(tmp_path, "a", [3.0]),
        *write_seeds(tmp_path, "b", [2.0], fields=WIDE),
        *write_seeds(tmp_path, "c", [1.0], fields={"model.d_model": 768}),
    ]
    assert [(each.a, each.b) for each in _report(runs).comparisons] == [("a", "b"), ("a", "c"), ("b", "c")]
    (task,) = _report(runs, ["b"]).tasks
    assert [(each.a, each.b) for each in task.against_base] == [("b", "a"), ("b", "c")]
    assert [(each.a, each.b) for each in task.among_others] == [("a", "c")]
    with pytest.raises(UserError, match="did you mean"):
        _report([*write_seeds(tmp_path / "x", "scratch", [1.0])], ["scrath"])


def test_runs_without_a_result_are_listed_and_not_compared(tmp_path):
    a = write_seeds(tmp_path, "a", [3.0, 3.1])
    line = {"step": 40, "split": "train", "loss": 3.0, "tokens": 9}
    unfinished = write_run(tmp_path, "a-2", None, seed=2, lines=[line])
    why = "not run: waits for pretrain, which failed"
    report = _report([*a, unfinished], absent={tmp_path / "b-0": why, tmp_path / "b-1": why})
    assert report.tasks[0].groups[0].seeds == (0, 1)
    assert report.missing == (
        "a-2: incomplete: last logged step 40, no result.json",
        f"b-0, b-1: {why}",
    )
    with pytest.raises(UserError, match="no run is complete"):
        _report([unfinished])


def test_an_absent_run_hides_no_run_of_the_same_name_in_another_folder(tmp_path):
    first = write_seeds(tmp_path / "first", "scratch", [3.0, 3.1])
    (there,) = write_seeds(tmp_path / "second", "scratch", [3.2], first_seed=2)
    report = _report([*first, there], absent={tmp_path / "second" / "scratch-0": "failed: out of memory"})
    assert report.tasks[0].groups[0].seeds == (0, 1, 2)
    listed = [(entry.folder_name, entry.seed, entry.status) for entry in report.entries]
    assert listed == [
        ("scratch-0", 0, "complete"),
        ("scratch-1", 1, "complete"),
        ("scratch-2", 2, "complete"),
        ("scratch-0", None, "failed: out of memory"),
    ]


def test_one_metric_under_two_objectives_is_not_compared(tmp_path):
    denoising = write_seeds(tmp_path, "denoising", [3.0, 3.1], fields={"objective.name": "span_corruption"})
    prefix = write_seeds(tmp_path, "prefix", [2.0, 2.1], fields={"objective.name": "prefix_lm"})
    report = _report([*denoising, *prefix])
    assert not report.comparisons and [len(task.groups) for task in report.tasks] == [1, 1]


@pytest.mark.parametrize("size", [1e-3, 1.0, 2e5, 1e300])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_rounding_error_counts_as_no_difference(tmp_path, size, seeds):
    values = [size * (1 + 0.1 * seed) for seed in range(seeds)]
    a = write_seeds(tmp_path, "a", values)
    b = write_seeds(tmp_path, "b", [value * (1 + 3e-7) for value in values], fields=WIDE)
    (comparison,) = _report([*a, *b]).comparisons
    assert comparison.delta.mean == 0
    assert words.verdict(comparison) == ("not resolved" if seeds > 1 else "not judged")


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e9])
def test_a_verdict_never_reads_0(tmp_path, size):
    values = [size * (1 + 0.1 * seed) for seed in range(3)]
    a = write_seeds(tmp_path, "a", values)
    b = write_seeds(tmp_path, "b", [v * (1 - 1e-5 * (1 + i / 9)) for i, v in enumerate(values)], fields=WIDE)
    (comparison,) = _report([*a, *b]).comparisons
    shown = words.delta_text(comparison)
    assert words.verdict(comparison) == "better" and re.search("[1-9]", shown.partition("e")[0]), shown


def test_no_interval_goes_beyond_the_range_of_its_metric(tmp_path):
    values = {"low": [0.90, 0.99, 0.98], "high": [0.95, 1.0, 1.0]}
    runs = [
        write_run(tmp_path, f"{name}-{seed}", {"accuracy": value}, seed=seed, fields={"model.d_model": len(name)})
        for name, of_name in values.items()
        for seed, value in enumerate(of_name)
    ]
    report = _report(runs)
    for group in report.groups:
        result = group.estimates["validation", "accuracy"]
        assert result.low < result.mean < result.high == 1
    assert "no accuracy is above 1" in report.method


def test_large_numbers_are_in_powers_of_ten():
    assert words.number(1234567.0, 2) == "1.23e6" and words.number(-1.5e300, 0, sign=True) == "−1.50e300"
    assert words.number(999999.0, 0) == "999999" and words.number(2.5e-9, 6, sign=True) == "+2.50e−9"


def test_the_end_of_an_interval_that_excludes_0_does_not_read_0():
    comparison = Comparison("a", "b", "loss", "validation", Estimate(0.3, 0.004, 1.0, 7), {})
    assert words.delta_range(comparison) == "+0.004 to +1.000"


def test_several_held_out_sets_are_compared_apart(tmp_path):
    runs = []
    for name, width, change in (("a", 256, 0.0), ("b", 512, -1.0)):
        for seed in range(2):
            other = {"validation_news": {"loss": 5.0 + seed - change, "accuracy": 0.5}}
            heldout = {"heldout": {"validation": "x", "validation_news": "y"}}
            values = {"perplexity": 9.0, "loss": 3.0 + seed + change}
            fields = {"model.d_model": width}
            run = {"seed": seed, "fields": fields, "provenance": heldout, "splits": other}
            runs.append(write_run(tmp_path, f"{name}-{seed}", values, **run))
    report = _report(runs)
    (task,) = report.tasks
    columns = [("validation", "loss"), ("validation", "perplexity"), ("validation_news", "accuracy")]
    assert task.metrics == [*columns, ("validation_news", "loss")]
    losses = {each.split: each.delta.mean for each in report.comparisons if each.metric == "loss"}
    assert losses == pytest.approx({"validation": -1.0, "validation_news": 1.0})
    header = groups_table(task).header
    assert header[2:4] == ("loss, validation", "perplexity, validation") and "loss, validation_news" in header
    (block,) = verdicts(report)
    assert [(each.split, each.metric) for each in block.comparisons] == [columns[0], *task.metrics[2:]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_234_567, "1.23 M"), (0, "0"), (None, "–"), (18_400, "18.4 K"), (999.6, "1000"), (3e9, "3.00 B")],
)
def test_counts_for_people(value, text):
    assert words.count_text(value) == text


def test_costs_have_units():
    assert words.count_text(3.4e15, "FLOPs") == "3.40 PFLOPs"
    assert words.bytes_text(512 * 2**20) == "512 MiB" and words.seconds_text(125) == "2m05s"
    assert words.tick_text(1_200_000) == "1.2 M" and words.tick_text(0) == "0"


def test_the_score_of_the_most_frequent_class_stands_in_the_table_and_is_no_difference(tmp_path):
    majority = {"majority_accuracy": 0.6, "majority_macro_f1": 0.25, "most_chosen": 0.7}
    for name, width, accuracy in (("narrow", 64, 0.6), ("wide", 512, 0.8)):
        for seed in range(3):
            values = {"accuracy": accuracy + 0.01 * seed, **majority}
            write_run(tmp_path, f"{name}-{seed}", values, seed=seed, fields={"model.d_model": width})
    report = _report(sorted(tmp_path.iterdir()))
    assert {comparison.metric for comparison in report.comparisons} == {"accuracy"}
    assert {metric for _, metric in report.tasks[0].metrics} == {"accuracy", *majority}


def test_a_run_that_learned_nothing_is_named(tmp_path):
    weak = {"accuracy": 0.6, "majority_accuracy": 0.6, "most_chosen": 1.0}
    write_run(tmp_path, "weak-0", weak)
    write_run(tmp_path, "fine-0", {**weak, "accuracy": 0.7, "most_chosen": 0.6}, fields=WIDE)
    (note,) = _find_notes(_report([tmp_path / "weak-0", tmp_path / "fine-0"]), "no better than")
    assert note.startswith("weak-0, validation: accuracy 0.600 is no better than 0.600")
    assert "100.0% of the answers are of the same class." in note

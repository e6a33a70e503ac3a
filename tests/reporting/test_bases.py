"""Bases of groups: by default, by --base, and in a task with several bases."""

import pytest

from t5lite import compare as compare_verb
from t5lite.reporting import words
from t5lite.reporting.comparison import compare
from t5lite.reporting.document import document, verdicts
from t5lite.reporting.runs import read_run
from t5lite.system.errors import UserError
from tests.reporting.fakes import write_seeds

FEW, WIDE = {"data.train.limit": 200}, {"model.d_model": 512}


def _report(runs, *bases):
    return compare([read_run(run) for run in runs], "t", bases, {})


def _bases_by_group(report):
    return {block.b: block.a for block in verdicts(report)}


@pytest.fixture
def labels(tmp_path):
    """Four groups of one task: two networks, each on 200 labels and on all labels."""
    losses = [3.0, 3.1, 3.2]
    return [
        *write_seeds(tmp_path, "few", losses, fields=FEW),
        *write_seeds(tmp_path, "few_wide", losses, fields=FEW | WIDE),
        *write_seeds(tmp_path, "all", losses),
        *write_seeds(tmp_path, "all_wide", losses, fields=WIDE),
    ]


def test_a_note_tells_that_a_group_has_other_training_data_than_its_base(labels):
    report = _report(labels)
    assert _bases_by_group(report) == dict.fromkeys(("few_wide", "all", "all_wide"), "few")
    (note,) = [note for note in report.notes if "other data" in note]
    assert note.startswith("all, all_wide: trained on other data than the base few (data.train.limit=None and not 200)")


def test_a_group_takes_the_base_with_the_most_similar_config(labels):
    report = _report(labels, "few", "all")
    assert _bases_by_group(report) == {"few_wide": "few", "all_wide": "all"}
    assert not [note for note in report.notes if "other data" in note]
    titles = [block.title for section in document(report).blocks for block in getattr(section, "blocks", ())
              if hasattr(block, "title")]  # fmt: skip
    assert "Differences to few" in titles and "Differences to all" in titles
    (task,) = report.tasks
    others = {(each.b, each.a) for each in task.among_others}
    assert others == {("all", "few"), ("all", "few_wide"), ("all_wide", "few"), ("all_wide", "few_wide")}


def test_a_base_may_be_named_for_one_task_only(tmp_path):
    elsewhere = {"provenance": {"heldout": {"validation": "other"}}}
    runs = []
    for task, given in (("summary_general", {}), ("science_topic", elsewhere)):
        source = {"data.train.source": f"pydocs/{task}"}
        runs += write_seeds(tmp_path / task, "scratch", [3.0], fields=source, **given)
        runs += write_seeds(tmp_path / task, "wide", [2.0], fields=source | WIDE, **given)
    bases = {task.title: task.bases for task in _report(runs, "science_topic=wide").tasks}
    assert [base.split("/")[-1] for (base,) in bases.values()] != ["wide", "wide"]
    (base,) = next(bases for title, bases in bases.items() if "science_topic" in title)
    assert "wide" in base
    assert all("wide" in base for task in _report(runs, "wide").tasks for base in task.bases)
    with pytest.raises(UserError, match=r"no task with 'topics' in its title has a group 'wide'; .*science_topic"):
        _report(runs, "topics=wide")
    with pytest.raises(UserError, match="no group of runs is called 'wied'; did you mean 'wide'"):
        _report(runs, "science_topic=wied")


def test_a_base_may_be_named_by_one_of_its_runs(labels):
    assert _report(labels, "all-1").tasks[0].bases == ("all",)


def test_the_name_of_a_group_may_contain_an_equals_sign(tmp_path):
    runs = [*write_seeds(tmp_path, "d=32", [3.0]), *write_seeds(tmp_path, "d=64", [2.0], fields=WIDE)]
    assert _report(runs, "d=64").tasks[0].bases == ("d=64",)


@pytest.mark.parametrize(("losses", "verdict"), [([1.0, 1.1], "not judged"), ([1.0, 1.1, 1.2], "better")])
def test_fewer_than_three_seeds_have_an_interval_and_no_verdict(tmp_path, losses, verdict):
    a = write_seeds(tmp_path, "a", [9.0, 9.11, 9.2][: len(losses)])
    (comparison,) = _report([*a, *write_seeds(tmp_path, "b", losses, fields=WIDE)]).comparisons
    assert comparison.delta.low is not None and comparison.delta.high < 0
    assert words.verdict(comparison) == verdict
    if verdict == "not judged":
        assert words.sentence(comparison).endswith("not judged: a verdict needs 3 seeds.")


def test_the_command_takes_several_bases(labels, tmp_path, capsys):
    compare_verb.main([*map(str, labels), "--base", "few", "--base", "supervised=all", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "all_wide against all," in printed and "few_wide against few," in printed
    assert "all against few," not in printed
    assert "Differences to all" in (tmp_path / "out" / "report.html").read_text()

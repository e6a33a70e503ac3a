"""A study's runs come in an order in which they can run, and mistakes in how they refer to each other are named."""

import pytest

from t5lite.config import base_config
from t5lite.run.siblings import with_siblings
from t5lite.studies.study import list_references, read_study, repeat, select_runs, sort_by_needs
from t5lite.system.errors import UserError


def config(init_from=None, tokenizer=None):
    made = base_config()
    made.init_from, made.tokenizer.path = init_from, tokenizer
    return made


def write_study(tmp_path, body):
    path = tmp_path / "study.py"
    path.write_text(f"from t5lite.config import base_config\nfrom t5lite.studies.study import repeat\n{body}")
    return str(path)


def test_runs_come_after_what_they_need_and_otherwise_as_given():
    study = {"c": config("@b"), "a": config(), "b": config("@a", "@d"), "e": config("runs/elsewhere"), "d": config()}
    order = list(sort_by_needs(study))
    assert sorted(order) == sorted(study)
    for name in study:
        assert all(order.index(needed) < order.index(name) for needed in list_references(study[name]))
    assert list(sort_by_needs({"z": config(), "y": config(), "x": config("@y")})) == ["z", "y", "x"]


def test_a_dependency_that_is_not_in_the_study_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"run task needs @pretrian, .*did you mean 'pretrain'"):
        sort_by_needs({"pretrain": config(), "task": config("@pretrian")})


def test_a_cycle_is_named():
    with pytest.raises(UserError, match=r"in a circle: .*a.* -> .*b"):
        sort_by_needs({"a": config("@b"), "b": config(tokenizer="@a")})


def test_repeated_runs_need_the_run_of_their_own_seed():
    runs = {"pretrain": config(), "task": config("@pretrain", "@vocabulary"), "other": config("pretrain")}
    repeated = repeat(runs, range(2))
    assert list(repeated) == ["pretrain-0", "task-0", "other-0", "pretrain-1", "task-1", "other-1"]
    assert [c.seed for c in repeated.values()] == [0, 0, 0, 1, 1, 1]
    assert repeated["task-1"].init_from == "@pretrain-1" and repeated["task-1"].name == "task"
    assert repeated["task-1"].tokenizer.path == "@vocabulary"  # not among the repeated
    assert repeated["other-1"].init_from == "pretrain"  # a folder that happens to have a run's name
    assert runs["task"].init_from == "@pretrain" and runs["task"].seed == 0


def test_one_run_is_chosen_with_all_that_it_needs():
    study = sort_by_needs({"a": config(), "b": config("@a"), "c": config("@b"), "d": config()})
    assert list(select_runs(study, ["c"])) == ["a", "b", "c"]
    assert list(select_runs(study, ["d", "a"])) == ["a", "d"]


def test_repeated_runs_are_chosen_by_their_common_name():
    study = repeat({"a": config(), "b": config()}, range(2))
    assert list(select_runs(study, ["a"])) == ["a-0", "a-1"]
    with pytest.raises(UserError, match="no run 'c'; known: a, a-0, a-1, b, b-0, b-1"):
        select_runs(study, ["c"])


def test_siblings_are_folders_beside_the_workdir(tmp_path):
    resolved = with_siblings(config("@a", "@b"), tmp_path / "study" / "run")
    assert resolved.init_from == str(tmp_path / "study" / "a")
    assert resolved.tokenizer.path == str(tmp_path / "study" / "b")
    assert with_siblings(config("runs/a"), tmp_path / "run").init_from == "runs/a"


def test_a_study_file_names_its_runs(tmp_path):
    spec = write_study(
        tmp_path,
        "def get_study(arg):\n"
        "    a, b = base_config(), base_config()\n"
        "    a.name, b.init_from = 'something', '@a'\n"
        "    return {'b': b, 'a': a} | repeat({'c': b}, range(2))\n",
    )
    study = read_study(spec)
    assert list(study) == ["a", "b", "c-0", "c-1"]
    assert [c.name for c in study.values()] == ["a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_study(arg):\n    return [base_config()]", "returned list; it must return a dict"),
        ("def get_study(arg):\n    return {}", "returned an empty dict"),
        ("def get_study(arg):\n    return {'a/b': base_config()}", "'a/b' cannot be the name"),
        ("def get_study(arg):\n    return {'configs': base_config()}", "a run cannot be called 'configs'"),
        ("def get_study(arg):\n    return {'Report.html': base_config()}", "a run cannot be called 'Report.html'"),
        ("def get_study(arg):\n    return {'config.json': base_config()}", "a run cannot be called 'config.json'"),
        ("def get_study(arg):\n    return {'a': {}}", "run a: returned dict instead of a config"),
        ("def get_study(arg):\n    x = 1\n    return 1 / 0", "line 5: .*division by zero"),
        ("def get_config(arg):\n    return base_config()", "has no function get_study"),
    ],
)
def test_a_study_that_is_none_is_refused(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        read_study(write_study(tmp_path, body))

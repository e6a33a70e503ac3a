"""Workdirs are read, and runs that repeat one experiment form a group."""

import json
from pathlib import Path

import pytest

from t5lite.reporting.costs import Cost, mean_cost, read_cost, read_cost_with_origins
from t5lite.reporting.groups import make_groups
from t5lite.reporting.runs import find_workdirs, read_curves, read_run
from t5lite.system.errors import UserError
from tests.reporting.fakes import write_run


def _groups(workdirs):
    return {group.name: group.seeds for group in make_groups([read_run(workdir) for workdir in workdirs])}


def test_held_out_curves_have_the_training_tokens_of_their_step(tmp_path):
    lines = [
        {"step": 0, "split": "validation", "loss": 7.0},
        {"step": 10, "split": "train", "loss": 6.0, "tokens": 1000},
        {"step": 10, "split": "validation", "loss": None},
        {"step": 20, "split": "train", "loss": 5.0, "tokens": 2400},
        {"step": 20, "split": "validation", "loss": 5.5},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "spl')
    curves = read_curves(path)
    loss = curves["validation"]
    assert (loss.steps, loss.values, loss.tokens) == ((0, 20), (7.0, 5.5), (0.0, 2400.0))
    assert curves["train"].tokens == (1000.0, 2400.0)


def test_true_and_false_are_no_losses(tmp_path):
    path = tmp_path / "metrics.jsonl"
    losses = {10: True, 20: 5.0, 30: False}
    lines = [{"step": step, "split": "train", "loss": loss} for step, loss in losses.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curves(path)["train"].values == (5.0,)


def test_a_run_has_the_name_under_which_its_folder_lists_it(tmp_path, monkeypatch):
    workdir = write_run(tmp_path / "large_disk", "moved", {"loss": 1.0})
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a-0").symlink_to(workdir)
    assert read_run(tmp_path / "study" / "a-0").folder_name == "a-0"
    monkeypatch.chdir(workdir)
    assert [read_run(Path(path)).folder_name for path in (".", "../moved")] == ["moved", "moved"]


def test_a_run_without_curves_has_none(tmp_path):
    run = read_run(write_run(tmp_path, "bag", {"accuracy": 0.7}))
    assert run.curves == {} and run.last_step is None


def test_a_damaged_file_is_named(tmp_path):
    workdir = write_run(tmp_path, "run", {"loss": 1.0})
    for content in ("{", "[]", '{"metrics": {"validation": 3}}'):
        (workdir / "result.json").write_text(content)
        with pytest.raises(UserError, match=r"run/result\.json"):
            read_run(workdir)


def test_a_folder_gives_all_its_runs_with_runs_from_scratch_first(tmp_path):
    write_run(tmp_path, "a-finetuned-0", {"loss": 1.0}, fields={"init_from": "@pretrain"})
    write_run(tmp_path, "a-bag-0", {"accuracy": 1.0})
    write_run(tmp_path, "b-scratch-10", {"loss": 1.0}, seed=10)
    write_run(tmp_path, "b-scratch-9", {"loss": 1.0}, seed=9)
    write_run(tmp_path, "pretrain", {"loss": 1.0})
    (tmp_path / "configs").mkdir()
    result = find_workdirs([tmp_path, tmp_path / "pretrain"])
    assert [path.name for path in result] == ["b-scratch-9", "b-scratch-10", "pretrain", "a-bag-0", "a-finetuned-0"]


def test_a_folder_without_any_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=str(folder)):
            find_workdirs([folder])


def test_runs_that_differ_by_seed_and_watching_are_one_group(tmp_path):
    first = write_run(tmp_path, "x-0", {"loss": 1.0})
    second = write_run(tmp_path, "x-1", {"loss": 1.0}, seed=1, fields={"log_every_steps": 3, "eval.every_steps": 7})
    other = write_run(tmp_path, "wide-0", {"loss": 1.0}, fields={"model.d_model": 512})
    assert _groups([first, second, other]) == {"x": (0, 1), "wide": (0,)}


@pytest.mark.parametrize("change", [{"fields": {"eval.rows": 8}}, {"provenance": {"data": {"data.train": "other"}}}])
def test_other_rows_or_other_data_are_another_group(tmp_path, change):
    runs = [write_run(tmp_path, "x-0", {"loss": 1.0}), write_run(tmp_path, "x-1", {"loss": 1.0}, seed=1, **change)]
    assert len(_groups(runs)) == 2


def test_a_config_older_than_a_field_has_its_default(tmp_path):
    new = write_run(tmp_path, "x-0", {"loss": 1.0})
    old = write_run(tmp_path, "x-1", {"loss": 1.0}, seed=1)
    config = json.loads((old / "config.json").read_text())
    del config["loss"], config["model"]["remat"]
    (old / "config.json").write_text(json.dumps(config))
    assert _groups([new, old]) == {"x": (0, 1)}


def test_runs_from_repetitions_of_one_pre_training_are_one_group(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"pretrain-{seed}", {"loss": 1.0}, seed=seed)
    write_run(tmp_path, "long", {"loss": 1.0}, fields={"budget.steps": 9})
    same = [
        write_run(tmp_path, f"tuned-{seed}", {"loss": 1.0}, seed=seed, fields={"init_from": f"@pretrain-{seed}"})
        for seed in (0, 1)
    ]
    path = {"init_from": str(tmp_path / "pretrain-0")}
    by_path = write_run(tmp_path, "tuned-2", {"loss": 1.0}, seed=2, fields=path)
    other = write_run(tmp_path, "tuned_long-0", {"loss": 1.0}, fields={"init_from": "@long"})
    assert _groups([*same, by_path, other]) == {"tuned": (0, 1, 2), "tuned_long": (0,)}


def test_references_that_cannot_be_read_are_compared_as_text(tmp_path):
    runs = [
        write_run(tmp_path, f"x-{seed}", {"loss": 1.0}, seed=seed, fields={"init_from": f"@gone-{seed}"})
        for seed in (0, 1)
    ]
    assert len(_groups(runs)) == 2


def test_runs_that_refer_to_each_other_are_no_endless_loop(tmp_path):
    a = write_run(tmp_path, "a", {"loss": 1.0}, fields={"init_from": "@b"})
    write_run(tmp_path, "b", {"loss": 1.0}, fields={"init_from": "@a"})
    assert [run.folder_name for run in read_run(a).origins] == ["b"] and _groups([a]) == {"a": (0,)}


def test_groups_with_the_same_name_get_the_names_of_their_folders(tmp_path):
    runs = [
        write_run(tmp_path, f"{name}-{seed}", {"loss": 1.0}, name="t", seed=seed, fields={"model.d_model": width})
        for name, width in (("narrow", 64), ("wide", 512))
        for seed in (0, 1)
    ]
    assert _groups(runs) == {"narrow": (0, 1), "wide": (0, 1)}
    twins = [
        write_run(tmp_path / folder, "run", {"loss": 1.0}, name="t", fields={"model.d_model": width})
        for folder, width in (("a", 64), ("b", 512))
    ]
    assert _groups(twins) == {"a/run": (0,), "b/run": (0,)}


def test_a_cost_includes_the_runs_that_the_run_started_from(tmp_path):
    write_run(tmp_path, "general", {"loss": 1.0}, cost={"tokens": 5, "seconds": 50.0, "peak_bytes": 900})
    write_run(tmp_path, "domain", {"loss": 1.0}, fields={"init_from": "@general"}, cost={"tokens": 3, "seconds": 30.0})
    tuned = read_run(
        write_run(
            tmp_path,
            "tuned",
            {"loss": 1.0},
            fields={"init_from": "@domain"},
            cost={"tokens": 1, "seconds": 10.0, "peak_bytes": 700, "flops": None},
        )
    )
    total = read_cost_with_origins(tuned)
    assert (read_cost(tuned).tokens, total.tokens, total.seconds) == (1, 9, 90.0)
    assert total.peak_bytes == 230 * 2**20  # the maximum, not the sum
    assert mean_cost([read_cost(tuned), total]).tokens == 5


def test_a_cost_with_an_unknown_part_is_unknown(tmp_path):
    write_run(tmp_path, "general", {"loss": 1.0}, cost={"flops": None, "peak_bytes": None})
    tuned = read_run(write_run(tmp_path, "tuned", {"loss": 1.0}, fields={"init_from": "@general"}))
    total = read_cost_with_origins(tuned)
    assert total.flops is None and total.peak_bytes is None and total.tokens == 4_000_000
    write_run(tmp_path, "unfinished", None)
    started = read_run(write_run(tmp_path, "started", {"loss": 1.0}, fields={"init_from": "@unfinished"}))
    assert read_cost_with_origins(started) == Cost()
    assert mean_cost([read_cost(tuned), total]).flops is None

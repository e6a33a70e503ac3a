"""The study verb: from a file of configs to runs and a report, resumed, narrowed, repeated, and with failures told."""

import json
import re

import pytest

from t5lite import study
from t5lite.config import base_config
from t5lite.run.overrides import override
from t5lite.studies import repeat
from t5lite.system.errors import Interrupted, UserError
from t5lite.training.workdir import check_same_run, read_result
from tests.reporting.fakes import write_run
from tests.small import small_config, write_pairs, write_texts

BODY = """
from t5lite.studies import repeat
from tests.small import small_config

def get_study(arg=None):
    pretrain = small_config({text!r}, "span_corruption", "decoder")
    scratch = small_config({pairs!r}, "supervised", "decoder")
    scratch.eval.generate_rows = 0
    pretrained = scratch.copy_and_resolve_references()
    scratch.tokenizer.path = pretrained.init_from = "@pretrain"
    bag = scratch.copy_and_resolve_references()
    bag.model.architecture = "bag_of_words"
    tasks = dict(scratch=scratch, pretrained=pretrained, bag=bag)
    {more}
    return dict(pretrain=pretrain) | repeat(tasks, range(2))
"""


@pytest.fixture
def write(tmp_path):
    sources = {"text": write_texts(tmp_path / "text"), "pairs": write_pairs(tmp_path / "pairs.jsonl")}

    def write(more="pass"):
        path = tmp_path / "my_study.py"
        path.write_text(BODY.format(more=more, **sources))
        return ["--config", str(path), "--workdir", str(tmp_path / "out")]

    return write


def failure(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_study_ends_in_a_report_and_does_nothing_twice(write, tmp_path, capfd):
    study.main([*write(), "--parallel", "2"])
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert {(r["name"], r["seed"]) for r in report["runs"]} == {
        ("pretrain", 0), *((name, seed) for name in ("scratch", "pretrained", "bag") for seed in (0, 1)),
    }  # fmt: skip
    assert all(r["result"]["metrics"]["validation"] for r in report["runs"])
    delta = next(
        c for c in report["comparisons"]
        if {c["a"], c["b"]} == {"scratch", "pretrained"} and c["metric"] == "loss"
    )  # fmt: skip
    means = {g["name"]: g["metrics"]["validation"]["loss"]["mean"] for g in report["groups"] if g["name"] != "bag"}
    assert delta["delta"] == pytest.approx(means[delta["b"]] - means[delta["a"]])
    assert delta["n"] == 2 and delta["ci_low"] <= delta["delta"] <= delta["ci_high"]
    assert any({c["a"], c["b"]} == {"scratch", "bag"} and c["metric"] == "accuracy" for c in report["comparisons"])
    assert (out / "report.html").stat().st_size > 10_000 and "scratch" in (out / "report.md").read_text()
    assert json.loads((out / "pretrained-1/config.json").read_text())["init_from"] == "@pretrain"

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    capfd.readouterr()
    moved = tmp_path / "moved"  # the runs find each other wherever the folder lies
    out.rename(moved)
    arguments = write()
    arguments[-1] = str(moved)
    study.main(arguments)
    assert {path.relative_to(out): time for path, time in before.items()} == {
        path.relative_to(moved): path.stat().st_mtime_ns for path in moved.glob("*/result.json")
    }
    assert "training" not in capfd.readouterr().err


@pytest.mark.slow  # a fast test is test_the_same_config_gives_the_same_parameters in test_train.py
def test_a_run_has_the_same_bits_whatever_its_process_ran_before(tmp_path):
    last = small_config(write_texts(tmp_path / "text"), "span_corruption", "decoder")
    last.model.dropout = 0.1
    of_another_seed, of_another_size = last.copy_and_resolve_references(), last.copy_and_resolve_references()
    of_another_seed.seed, of_another_size.model.d_model = 1, 2 * last.model.d_model
    runs = {"another_size": of_another_size, "another_seed": of_another_seed, "last": last}
    study.run_and_report(runs, tmp_path / "after", "Mine")
    study.run_and_report({"last": last}, tmp_path / "alone", "Mine")
    after, alone = (read_result(tmp_path / folder / "last")["params_sha256"] for folder in ("after", "alone"))
    assert after == alone


@pytest.mark.slow  # in one process: test_a_study_in_one_process_ends_in_a_report_and_does_nothing_twice
def test_a_failed_run_is_told_and_the_rest_still_compared(write, tmp_path, capsys):
    more = "pretrained.model.architecture = 'encoder_decoder'; del tasks['bag']"
    error = failure(write(more), capsys)
    assert "2 runs have no result: pretrained-0 failed: " in error and "init_from" in error
    report = json.loads((tmp_path / "out/report.json").read_text())
    status = {r["run"]: r["status"] for r in report["runs"]}
    assert status["scratch-1"] == "complete" and "failed" in status["pretrained-0"]
    assert "failed" in (tmp_path / "out/report.md").read_text()


def test_one_run_by_name_and_what_it_needs(write, tmp_path):
    study.main([*write(), "--only", "bag-1"])
    assert sorted(path.parent.name for path in tmp_path.glob("out/*/result.json")) == ["bag-1", "pretrain"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {r["run"]: r["status"] for r in report["runs"]}["scratch-0"].startswith("not run")


@pytest.mark.parametrize(
    ("more", "flags", "message"),
    [
        ("pass", ["--only", "pretraind"], "no run 'pretraind'; did you mean 'pretrained'?"),
        ("scratch.init_from = '@missing'", [], "run scratch-0 needs @missing, which is not in the study"),
        ("scratch.init_from = '@pretrained'; pretrained.init_from = '@scratch'", [], "in a circle"),
        ("pass", ["--seeds", "3"], "--seeds: the study already repeats its runs over seeds (scratch-0)"),
        ("pass", ["--config.seed=7"], "--config.seed: the study already repeats its runs over seeds (scratch-0)"),
        ("pass", ["--config.name=x"], "--config.name: the study already repeats its runs over seeds (scratch-0)"),
        (
            "return dict(a=pretrain)",
            ["--seeds", "2", "--config.seed", "7"],
            "--seeds and --config.seed exclude each other",
        ),
        ("pass", ["--parallel", "0"], "--parallel: must be from 1"),
        ("pass", ["--config.batch_sise=4"], "did you mean 'batch_size'?"),
    ],
)
def test_mistakes_end_in_one_line_before_any_run(write, tmp_path, capsys, more, flags, message):
    error = failure([*write(more), *flags], capsys)
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_flags_override_a_field_of_every_run_and_seeds_repeat_them(write, tmp_path):
    more = "return dict(a=pretrain)"
    study.main([*write(more), "--seeds", "2", "--config.budget.steps=2"])
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("out/*/result.json")}
    assert set(results) == {"a-0", "a-1"} and all(result["step"] == 2 for result in results.values())
    assert results["a-0"]["params_sha256"] != results["a-1"]["params_sha256"]


def test_a_study_in_one_process_ends_in_a_report_and_does_nothing_twice(tmp_path, capsys):
    pretrain = small_config(write_texts(tmp_path / "text"))
    pretrain.name = "pretrain"
    broken = pretrain.copy_and_resolve_references()
    broken.init_from, broken.model.architecture = "@pretrain", "decoder"
    after = pretrain.copy_and_resolve_references()
    after.init_from = "@broken"
    runs = repeat({"after": after, "broken": broken}, [0]) | {"pretrain": pretrain}  # none where it can run
    out = tmp_path / "out"
    for _ in range(2):
        report = study.run_and_report(runs, out, "Mine", bases=["after"], parallel=None)
        status = {entry.folder_name: entry.status for entry in report.entries}
        assert status["pretrain"] == "complete" and re.match("failed: .*init_from", status["broken-0"])
        assert status["after-0"] == "not run: it needs broken-0, which has no result"
        assert json.loads((out / "report.json").read_text())["title"] == "Mine"
    said = capsys.readouterr().err
    assert said.count("pretrain is complete") == 1 and "== broken-0 (2 of 3)" in said


@pytest.fixture
def write_fake(monkeypatch):
    """Trainings that only leave a workdir; those of runs in the set that this returns raise what it holds for them."""
    failing = {}

    def train(config, workdir, flag_fields=()):
        check_same_run(config, workdir)
        if read_result(workdir) is not None:
            return
        if workdir.name in failing:
            raise failing[workdir.name]
        fields = {"model.d_model": config.model.d_model, "eval.rows": config.eval.rows}
        write_run(workdir.parent, workdir.name, {"loss": 1.0 + config.seed}, seed=config.seed, fields=fields)

    monkeypatch.setattr(study, "train", train)
    return failing


def fake_study(**changes):
    """Two seeds of a, and one of b, as the trainings above leave them."""
    made = base_config()
    made.data.train.source, made.objective.name = "pydocs/summary_general", "supervised"
    override(made, [f"--config.{field}={value}" for field, value in changes.items()])
    return repeat({"a": made}, range(2)) | repeat({"b": made}, [2])


def test_a_bug_in_one_run_leaves_the_others(write_fake, tmp_path, capsys):
    write_fake["a-0"] = ValueError("a bug")
    report = study.run_and_report(fake_study(), tmp_path, "Mine", parallel=None)
    assert {each.folder_name: each.status for each in report.entries} == {
        "a-0": "failed: ValueError: a bug",
        "a-1": "complete",
        "b-2": "complete",
    }
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    for stop in (KeyboardInterrupt(), Interrupted("stopped")):
        write_fake["a-0"] = stop
        with pytest.raises(type(stop)):
            study.run_and_report(fake_study(), tmp_path, "Mine", parallel=None)


def test_a_run_of_another_config_is_not_in_the_report(write_fake, tmp_path):
    study.run_and_report(fake_study(), tmp_path, "Mine", parallel=None)
    changed = {**fake_study(**{"model.d_model": 512}), "b-2": fake_study()["b-2"]}
    report = study.run_and_report(changed, tmp_path, "Mine", only=["b"], parallel=None)
    status = {each.folder_name: each.status for each in report.entries}
    assert status["b-2"] == "complete"
    for name in ("a-0", "a-1"):
        assert re.match("not run: not asked for; .* another config: model.d_model", status[name])
    failed = study.run_and_report(changed, tmp_path, "Mine", parallel=None)
    status = {each.folder_name: each.status for each in failed.entries}
    assert re.match("failed: .* another config: model.d_model", status["a-0"])


def test_runs_that_were_evaluated_in_another_way_are_named(write_fake, tmp_path):
    study.run_and_report(fake_study(), tmp_path, "Mine", parallel=None)
    report = study.run_and_report(
        fake_study(**{"eval.rows": 8, "eval.every_steps": 3}), tmp_path, "Mine", parallel=None
    )
    said = "a-0, a-1, b-2 were evaluated with eval.rows=None and not 8; delete their result.json to evaluate anew."
    assert said in report.notes


def test_without_its_result_a_run_is_evaluated_anew(tmp_path):
    config = small_config(write_texts(tmp_path / "text"))
    out = tmp_path / "out"

    def loss(rows):
        config.eval.rows = rows
        report = study.run_and_report({"a": config}, out, "Mine", parallel=None)
        stale = [note for note in report.notes if "delete its result.json" in note]
        return report.entries[0].run.metrics["validation"]["loss"], stale

    before, stale = loss(16)
    assert not stale
    assert loss(3) == (
        before,
        ["a was evaluated with eval.rows=16 and not 3; delete its result.json to evaluate anew."],
    )
    (out / "a" / "result.json").unlink()
    after, stale = loss(3)
    assert after != before and not stale
    lines = [json.loads(line) for line in (out / "a" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["split"] == "train" and line["step"] == 6 for line in lines) == 1  # not trained again


def test_what_failed_is_named_before_what_waits_for_it():
    absent = {"a": "not run: not asked for", "b": "not run: it needs c, which has no result", "c": "failed: no file"}
    said = study._describe_absent(absent)
    assert said == "2 runs have no result: c failed: no file; run the same command again to retry"


def test_a_study_without_any_result_says_why(tmp_path):
    with pytest.raises(UserError, match=r"1 run has no result: a failed: .*; run the same command again to retry"):
        study.run_and_report({"a": small_config("files:nowhere/*.txt")}, tmp_path, "Mine", parallel=None)

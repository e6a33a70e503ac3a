"""The verb compare: what it prints and writes, and how mistakes end."""

import json

import pytest

from t5lite import compare
from tests.reporting.fakes import write_run, write_seeds


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    write_seeds(folder, "scratch", [3.0, 3.2, 3.1])
    write_seeds(folder, "wide", [2.0, 2.1, 2.2], fields={"model.d_model": 512})
    return folder


def _mistake(capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        compare.main(list(map(str, argv)))
    said = capsys.readouterr()
    assert exit.value.code == 2 and said.err.count("\n") == 1 and not said.out
    return said.err


def test_a_folder_of_runs_is_compared_and_told(study, tmp_path, capsys):
    compare.main([str(study), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "wide against scratch, loss on validation: −1.00 nats (95 % interval −1.2" in said
    assert "3 seeds): better." in said and str(tmp_path / "out" / "report.html") in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


def test_what_has_to_be_known_is_printed_beside_verdicts(study, tmp_path, capsys):
    write_run(
        study, "wide-3", {"loss": None}, seed=3, fields={"model.d_model": 512}, provenance={"devices": ["TPU v5e"]}
    )
    write_run(study, "once-0", {"loss": 1.0}, fields={"model.d_model": 64})
    compare.main([str(study), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "not judged" in said
    for note in ("wide-3: loss on validation is not finite", "one seed: no interval", "costs are not comparable"):
        assert any(line.startswith("note: ") and note in line for line in said.splitlines()), note


def test_json_is_the_written_report_on_one_line(study, tmp_path, capsys):
    runs = [str(study / f"{name}-{seed}") for seed in range(2) for name in ("scratch", "wide")]
    compare.main([*runs, "--out", str(tmp_path), "--base", "wide", "--title", "Widths", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said == json.loads((tmp_path / "report.json").read_text()) and said["title"] == "Widths"
    (found,) = said["comparisons"]
    assert (found["a"], found["b"], found["n"]) == ("wide", "scratch", 2) and found["delta"] == pytest.approx(1.05)


def test_a_run_without_a_result_is_told_and_left_out(study, tmp_path, capsys):
    write_run(study, "wide-3", None, seed=3, lines=[{"step": 40, "split": "train", "loss": 2.0, "tokens": 9}])
    compare.main([str(study), "--out", str(tmp_path / "out")])
    assert "no result: wide-3: incomplete: last logged step 40" in capsys.readouterr().out


def test_mistakes_end_in_one_line(study, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "is not a run's workdir" in _mistake(capsys, tmp_path / "empty", *out)
    assert "no folder" in _mistake(capsys, tmp_path / "missing", *out)
    assert "did you mean 'scratch'" in _mistake(capsys, study, "--base", "scrach", *out)
    assert "no run is complete" in _mistake(capsys, write_run(tmp_path, "unfinished"), *out)
    (study / "wide-1" / "result.json").write_text("{")
    assert "wide-1/result.json" in _mistake(capsys, study, *out)
    assert not (tmp_path / "out").exists()


def test_what_failed_in_a_study_is_not_forgotten(tmp_path, capsys):
    write_run(tmp_path, "a-0", {"loss": 1.0})
    status = {"a-0": "complete", "b-0": "failed: no file matches 'x'"}
    entries = [{"run": run, "status": each} for run, each in status.items()]
    (tmp_path / "report.json").write_text(json.dumps({"runs": entries}))
    compare.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "no result: b-0: failed: no file matches 'x'" in capsys.readouterr().out


def _write_statuses(folder, statuses):
    entries = [{"run": name, "status": status} for name, status in statuses.items()]
    (folder / "report.json").write_text(json.dumps({"runs": entries}))


def test_a_run_that_failed_in_one_study_hides_no_complete_run_of_another_study(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    write_seeds(first, "scratch", [3.0, 3.2])
    write_seeds(second, "scratch", [3.1], first_seed=2)
    _write_statuses(first, {"scratch-0": "complete", "scratch-1": "complete"})
    _write_statuses(second, {"scratch-0": "failed: no file matches 'x'", "scratch-2": "complete"})
    for folders in ((first, second), (second, first)):
        compare.main([*map(str, folders), "--out", str(tmp_path / "out"), "--json"])
        report = json.loads(capsys.readouterr().out)
        (group,) = report["groups"]
        assert group["seeds"] == [0, 1, 2], folders
        assert "scratch-0: failed: no file matches 'x'" in report["notes"]
        statuses = sorted((entry["run"], entry["status"], bool(entry["workdir"])) for entry in report["runs"])
        assert statuses == [
            ("scratch-0", "complete", True),
            ("scratch-0", "failed: no file matches 'x'", False),
            ("scratch-1", "complete", True),
            ("scratch-2", "complete", True),
        ]


def test_a_second_report_has_the_present_state_of_an_incomplete_run(study, capsys):
    line = {"step": 40, "split": "train", "loss": 2.0, "tokens": 9}
    unfinished = write_run(study, "wide-3", None, seed=3, lines=[line])
    for step in (40, 80):
        (unfinished / "metrics.jsonl").write_text(json.dumps({**line, "step": step}) + "\n")
        compare.main([str(study), "--out", str(study)])
        assert f"no result: wide-3: incomplete: last logged step {step}" in capsys.readouterr().out

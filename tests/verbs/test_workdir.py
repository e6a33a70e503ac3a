"""The life of a workdir: what a kill leaves, what may change, what it says of its past, what others read of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from t5lite import evaluate
from t5lite import train as train_verb
from t5lite.config import load_json
from t5lite.reporting.runs import read_run
from t5lite.run import evaluation
from t5lite.system.errors import Interrupted, UserError
from t5lite.system.files import write_json
from t5lite.train import train
from t5lite.training import loop, reading, start
from t5lite.training.checkpoint import hash_params
from t5lite.training.reading import read_intact, read_scores, saved_steps, select_evaluated
from t5lite.training.record import read_record
from t5lite.training.workdir import check_same_run
from tests.small import small_config, write_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def _config(texts, **fields):
    """A decoder, the smallest network of all."""
    config = small_config(texts, "causal_lm", "decoder")
    config.model.num_encoder_layers = 0
    config.checkpoint.keep = 9
    for name, value in fields.items():
        group, _, field = name.replace("__", ".").rpartition(".")
        (config[group] if group else config)[field] = value
    return config


@pytest.fixture(scope="module")
def plain(texts, tmp_path_factory):
    """A run of six steps."""
    workdir = tmp_path_factory.mktemp("plain")
    train(_config(texts), workdir)
    return workdir


@pytest.fixture
def workdir(plain, tmp_path):
    return Path(shutil.copytree(plain, tmp_path / "run"))


def _history(workdir):
    return json.loads((workdir / "provenance.json").read_text())["history"]


# What a kill leaves


class Killed(BaseException):
    """SIGKILL, to what runs in this process."""


def _killed_after(monkeypatch, files, work):
    """Do `work`, killed once so many files have got their names; whether it was."""
    replace, left = Path.replace, [files]

    def counted(self, target):
        replace(self, target)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        try:
            work()
        except Killed:
            return True
    return False


def test_a_run_that_is_killed_after_any_of_its_files_is_gone_on_with(plain, texts, tmp_path, monkeypatch):
    files, killed = 0, True
    while killed:
        files += 1
        folder = tmp_path / str(files)
        killed = _killed_after(monkeypatch, files, lambda folder=folder: train(_config(texts), folder))
        train(_config(texts), folder)
        assert _result(folder)["params_sha256"] == _result(plain)["params_sha256"]
        assert _losses(folder) == _losses(plain)
    assert files > 5


# What it says when it was stopped in an evaluation


@pytest.fixture(scope="module")
def unbroken(texts, tmp_path_factory):
    """A run that is evaluated at every other step, and keeps the best of what it saves."""
    workdir = tmp_path_factory.mktemp("unbroken")
    train(_often_evaluated(texts), workdir)
    return workdir


def _often_evaluated(texts):
    return _config(texts, eval__every_steps=2, checkpoint__every_steps=2, checkpoint__keep_best=1, checkpoint__keep=9)


def _losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"], line["loss"]) for line in lines]


@pytest.mark.parametrize("step", [4, 6])
def test_a_run_that_is_stopped_in_an_evaluation_makes_it_when_it_goes_on(step, unbroken, texts, tmp_path, monkeypatch):
    evaluate, begun = evaluation.Evaluator._evaluate, []

    def stopped(self, *arguments):
        begun.append(arguments)
        if len(begun) == 1 + step // 2:  # the first was before the first step
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "_evaluate", stopped)
        with pytest.raises(Interrupted, match=f"after step {step}, which is saved"):
            train(_often_evaluated(texts), tmp_path)
    assert saved_steps(tmp_path)[-1] == step
    assert (step, "train") in [line[:2] for line in _losses(tmp_path)]
    assert (step, "validation") not in [line[:2] for line in _losses(tmp_path)]
    train(_often_evaluated(texts), tmp_path)
    assert _losses(tmp_path) == _losses(unbroken)
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path, unbroken))
    assert (ours["params_sha256"], ours["metrics"]) == (theirs["params_sha256"], theirs["metrics"])
    assert read_scores(tmp_path, "validation/loss") == pytest.approx(read_scores(unbroken, "validation/loss"), rel=1e-6)


# A disk that may not be written

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
can_mount = subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount, reason="no folder can be made read-only here for one process alone")
@pytest.mark.parametrize("left", ["", "9.orbax-checkpoint-tmp/params/d/0"], ids=["whole", "after a kill"])
def test_a_read_only_disk_is_told_in_a_line_and_leaves_the_last_good_checkpoint(workdir, texts, tmp_path, left):
    (workdir / "result.json").unlink()
    folder = workdir / "checkpoints"
    if left:
        (folder / left).parent.mkdir(parents=True)
        (folder / left).write_text("x")
    (tmp_path / "config.py").write_text(
        f"from tests.verbs.test_workdir import _config\ndef get_config(arg=None):\n"
        f"    return _config({texts!r}, budget__steps=12)\n"
    )
    train_it = [sys.executable, "-m", "t5lite.train", "--config", tmp_path / "config.py", "--workdir", workdir]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, folder, *train_it]
    process = subprocess.run(
        [*map(str, command), "--allow_changes=budget"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert re.match(r"t5lite: cannot write .*: Read-only file system; .*", process.stderr.splitlines()[-1])
    assert saved_steps(workdir) == [3, 6]
    assert train(_config(texts, budget__steps=12), workdir, ["budget"])["step"] == 12


# What may change


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other", "log_every_steps": 3, "eval__rows": 8, "checkpoint__keep": 1, "mesh__data": 2},
        {"deterministic": True, "model__remat": "full", "model__scan_layers": True, "model__attention": "xla"},
    ],
    ids=["watched", "computed"],
)
def test_what_changes_no_mathematics_is_free(workdir, texts, fields):
    assert check_same_run(_config(texts, **fields), workdir) == {}


def test_every_other_field_is_refused_by_name_with_the_way_to_allow_it(workdir, texts):
    config = _config(texts, schedule__rate=0.5, microbatches=2, ema_decay=0.9)
    with pytest.raises(UserError) as caught:
        check_same_run(config, workdir)
    said = str(caught.value)
    assert "ema_decay (was None, now 0.9), microbatches (was 1, now 2), schedule.rate (was 0.003, now 0.5)" in said
    assert "--allow_changes=ema_decay,microbatches,schedule.rate" in said
    with pytest.raises(UserError, match=r"config: ema_decay \(was None, now 0.9\), microbatches"):
        check_same_run(config, workdir, ["schedule"])
    with pytest.raises(UserError, match=r"schedule.rate"):
        check_same_run(config, workdir, ["ema_decay", "microbatches", "sched"])


def test_an_allowed_change_goes_on_and_is_on_record(workdir, texts, capsys):
    longer = _config(texts, budget__steps=9, schedule__rate=1e-3)
    with pytest.raises(UserError, match=r"budget.steps \(was 6, now 9\)"):
        train(longer, workdir)
    result = train(longer, workdir, ["budget", "schedule.rate"])
    assert result["step"] == 9 and saved_steps(workdir) == [3, 6, 9]
    assert json.loads((workdir / "result-6.json").read_text())["step"] == 6
    changes = {"budget.steps": {"was": 6, "now": 9}, "schedule.rate": {"was": 0.003, "now": 0.001}}
    assert [(each["step"], each["changes"]) for each in _history(workdir)] == [(0, {}), (6, changes)]
    assert load_json(workdir / "config.json").schedule.rate == 1e-3
    train(longer, workdir, ["budget"])
    assert "is complete" in capsys.readouterr().err and len(_history(workdir)) == 2


def test_a_budget_that_was_raised_ends_as_if_it_had_been_so_from_the_start(workdir, texts, tmp_path):
    longer = _config(texts, budget__steps=8)
    once = train(longer, tmp_path / "once")
    assert train(longer, workdir, ["budget.steps"])["params_sha256"] == once["params_sha256"]


def test_a_budget_below_what_is_done_is_refused_and_changes_nothing(workdir, texts):
    before = {path: path.read_bytes() for path in workdir.glob("*.json")}
    with pytest.raises(UserError, match=r"is already at step 6, but config.budget is 4 steps"):
        train(_config(texts, budget__steps=4), workdir, ["budget.steps"])
    assert {path: path.read_bytes() for path in workdir.glob("*.json")} == before


def test_a_change_that_the_checkpoint_does_not_fit_is_refused_and_changes_nothing(workdir, texts):
    before = {path: path.read_bytes() for path in workdir.glob("*.json")}
    with pytest.raises(UserError, match=r"checkpoints/6: .* is float32 .*, but this config needs float32"):
        train(_config(texts, model__d_ff=96), workdir, ["model"])
    assert saved_steps(workdir) == [3, 6]
    assert {path: path.read_bytes() for path in workdir.glob("*.json")} == before


def test_other_text_may_be_allowed_and_is_on_record(texts, tmp_path):
    source = write_texts(tmp_path / "texts")
    train(_config(source, budget__steps=2), tmp_path / "run")
    write_texts(tmp_path / "texts", seed=9)
    longer = _config(source, budget__steps=3)
    with pytest.raises(UserError, match=r"other data: data\.train changed since then; .*--allow_changes=data.train"):
        train(longer, tmp_path / "run", ["budget"])
    train(longer, tmp_path / "run", ["budget", "data.train"])
    assert set(_history(tmp_path / "run")[-1]["changes"]) == {"budget.steps", "data.train"}


def test_another_tokenizer_behind_the_same_path_is_refused_and_may_not_slip_in(texts, tmp_path):
    config = _config(texts, budget__steps=1)
    train(config, tmp_path / "first")
    config.tokenizer.path = str(shutil.copytree(tmp_path / "first" / "tokenizer", tmp_path / "given"))
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    other = _config(texts, budget__steps=1, tokenizer__vocab_size=280)
    train(other, tmp_path / "second")
    shutil.copytree(tmp_path / "second" / "tokenizer", tmp_path / "given", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"other data: data\.train, tokenizer changed since"):
        train(config, tmp_path / "run")


def test_an_unknown_field_to_allow_is_refused(workdir, texts):
    with pytest.raises(UserError, match=r"schedule.rat"):
        train(_config(texts), workdir, ["schedule.rat"])


# What it says of its past


def test_each_start_is_on_record_and_readers_find_the_facts_where_they_were(workdir, texts):
    (workdir / "result.json").unlink()
    train(_config(texts), workdir)
    first, second = _history(workdir)
    assert (first["step"], second["step"]) == (0, 6) and second["changes"] == {}
    assert {"python", "packages", "devices", "hosts", "git_commit"} <= set(second)
    run = read_run(workdir)
    assert {"packages", "devices", "data", "heldout"} <= set(run.provenance) and "format" not in run.config


def test_a_workdir_of_a_newer_format_is_refused_by_name(workdir, capsys):
    config = json.loads((workdir / "config.json").read_text())
    assert config["format"] == 1
    write_json(workdir / "config.json", config | {"format": 2, "field_of_the_future": 1})
    for read in (lambda: load_json(workdir / "config.json"), lambda: read_run(workdir)):
        with pytest.raises(UserError, match=r"run has format 2, made by a newer t5lite"):
            read()


# What later stages read of it


@pytest.fixture(scope="module")
def averaged(texts, tmp_path_factory):
    """The same run with an average, and evaluations."""
    workdir = tmp_path_factory.mktemp("averaged")
    train(_config(texts, ema_decay=0.9, eval__every_steps=3, checkpoint__keep_best=1), workdir)
    return workdir


def _result(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_an_average_leaves_the_training_as_it_is(plain, averaged):
    """Another program, so the same numbers but for rounding."""
    losses = [
        [
            line["loss"]
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if line["split"] == "train"
        ]
        for run in (averaged, plain)
    ]
    assert len(losses[0]) > 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert _result(averaged)["metrics"]["validation"]["loss"] != _result(plain)["metrics"]["validation"]["loss"]


def _evaluated(capsys, *arguments):
    evaluate.main(["--json", *map(str, arguments)])
    return json.loads(capsys.readouterr().out)


def test_evaluation_is_of_the_average_and_of_any_step(averaged, capsys):
    at_end = _result(averaged)["metrics"]["validation"]
    capsys.readouterr()
    said = _evaluated(capsys, "--checkpoint", averaged)
    assert said["step"] == 6 and said["metrics"]["validation"] == pytest.approx(at_end, rel=1e-5)
    lines = map(json.loads, (averaged / "metrics.jsonl").read_text().splitlines())
    (before,) = (line for line in lines if line["step"] == 3 and line["split"] == "validation")
    said = _evaluated(capsys, "--checkpoint", averaged, "--step", "3")
    assert said["step"] == 3 and said["metrics"]["validation"]["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert _evaluated(capsys, "--checkpoint", averaged, "--step", "best")["step"] == 6


def test_an_average_goes_on_over_restarts_as_if_never_interrupted(averaged, texts, tmp_path, monkeypatch):
    config, save = _config(texts, ema_decay=0.9, eval__every_steps=3), loop.Checkpoints.save

    def save_and_stop(self, state, progress):
        save(self, state, progress)
        self.wait()
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_and_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train(config, tmp_path)
    assert saved_steps(tmp_path) == [3]
    train(config, tmp_path)
    ours, theirs = (read_record(folder / "checkpoints" / "6").leaves for folder in (tmp_path, averaged))
    assert ours == theirs and any(path.startswith("average/") for path in ours)


def test_a_later_stage_starts_from_the_average_in_the_memory_of_one_copy(
    averaged, texts, tmp_path, monkeypatch, capsys
):
    live, begun = [], []

    def measured(folder, like):
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        return read_item(folder, like)

    read_item = reading._read_item

    hand_over = start.hand_over

    def hand_over_and_keep(state, trainer, *arguments):
        other = sum(x.nbytes for x in jax.live_arrays()) - sum(x.nbytes for x in jax.tree.leaves(state))
        begun.append((other, sum(x.nbytes for x in jax.tree.leaves(state.opt_state))))
        state, hand_off = hand_over(state, trainer, *arguments)
        begun.append(jax.device_get(state))
        return state, hand_off

    monkeypatch.setattr(reading, "_read_item", measured)
    monkeypatch.setattr(start, "hand_over", hand_over_and_keep)
    config = _config(texts, ema_decay=0.9, init_from=str(averaged), init_from_step="3", budget__steps=1)
    train(config, tmp_path / "run")
    (other, opt_state), state = begun
    assert live[0] - other <= opt_state + 8, "of parameters and average nothing was left while theirs were read"
    assert "at step 3" in capsys.readouterr().err
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        state.params,
    )
    _, items = next(read_intact(averaged, [3], select_evaluated(shapes)))
    assert hash_params(state.params) == hash_params(items["average"]) == hash_params(state.average)


def test_a_damaged_checkpoint_on_resuming_is_replaced_by_training_anew_from_the_one_before(workdir, texts, capsys):
    expected = _result(workdir)
    (workdir / "result.json").unlink()
    largest = max((workdir / "checkpoints" / "6" / "params").rglob("*/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    result = train(_config(texts), workdir)
    said = capsys.readouterr().err
    assert "checkpoints/6 is damaged" in said and "GOING BACK to the checkpoint of step 3" in said
    assert result["params_sha256"] == expected["params_sha256"]
    assert (workdir / "checkpoints" / "damaged-6").is_dir() and saved_steps(workdir) == [3, 6]
    steps = [
        (line["step"], line["split"]) for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    ]
    assert len(steps) == len(set(steps)) and max(steps)[0] == 6


def test_the_flag_names_fields(workdir, texts, tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        f"from tests.verbs.test_workdir import _config\ndef get_config(arg=None):\n    return _config({texts!r})\n"
    )
    command = ["--config", str(tmp_path / "config.py"), "--workdir", str(workdir), "--config.budget.steps=7"]
    with pytest.raises(SystemExit) as stop:
        train_verb.main(command)
    assert stop.value.code == 2 and "--allow_changes=budget.steps" in capsys.readouterr().err
    train_verb.main([*command, "--allow_changes=budget.steps,seed"])
    assert _result(workdir)["step"] == 7

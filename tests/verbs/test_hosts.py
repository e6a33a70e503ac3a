"""Runs on several hosts, with real processes, signals and sockets: they end as on one host, whatever comes between."""

import json
import re
import signal
import time

import pytest

from t5lite.train import train
from tests.hosts import config_of, start, wait
from tests.small import write_pairs, write_texts

CONFIG = """
from tests.hosts import config_of

def get_config(arg=None):
    return config_of({source!r}, *{mesh})
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def _config(folder, source, mesh=(-1, 1)):
    path = folder / "config.py"
    path.write_text(CONFIG.format(source=source, mesh=mesh))
    return path


def _train(config, workdir, **hosts):
    return start(["-m", "t5lite.train", "--config", config, "--workdir", workdir], **hosts)


def _wait_for_step(workdir, step, processes):
    path = workdir / "metrics.jsonl"
    while all(process.poll() is None for process in processes):
        if path.exists() and any(
            int(s) >= step for s in re.findall(r'"step": (\d+), "split": "train"', path.read_text())
        ):
            return
        time.sleep(0.01)


def _losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"], line["loss"]) for line in lines]


def _result(workdir):
    return json.loads((workdir / "result.json").read_text())


def _saved(workdir):
    return {int(folder.name) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit()}


def _stop_all_at_one_step(config, workdir, after, **hosts):
    """SIGTERM to the last host once a step beyond `after` is logged; returns the step that all saved."""
    processes = _train(config, workdir, **hosts)
    _wait_for_step(workdir, after + 8, processes)
    processes[-1].send_signal(signal.SIGTERM)
    before = time.monotonic()
    ends = wait(processes)
    assert {code for code, _, _ in ends} == {75}, ends
    assert time.monotonic() - before < 30
    steps = {int(re.search(r"stopped after step (\d+), which is saved", said)[1]) for _, _, said in ends}
    assert len(steps) == 1 and steps <= _saved(workdir)
    return steps.pop()


def _lose_one(config, workdir, lost, after):
    """SIGKILL `lost` once a step beyond `after` is logged: the other ends in bounded time, and says who is gone."""
    processes = _train(config, workdir)
    _wait_for_step(workdir, after + 8, processes)
    processes[lost].kill()
    before = time.monotonic()
    code, _, said = wait(processes)[1 - lost]
    assert code == 75 and time.monotonic() - before < 45
    assert re.match(rf"t5lite: host {lost} \(.+\) .*goes on from the last checkpoint", said.splitlines()[-1]), said
    assert _saved(workdir) and not (workdir / "result.json").exists()


@pytest.fixture(scope="module")
def on_two(source, tmp_path_factory):
    """A run that two hosts began and left at a signal to one of them, that one host with two devices went on with until
    a signal, that two took over again until one was lost, and that came to its end.
    """
    folder = tmp_path_factory.mktemp("two")
    config = _config(folder, source)
    step = _stop_all_at_one_step(config, folder / "run", 0)
    step = _stop_all_at_one_step(config, folder / "run", step, hosts=1, devices=2)
    _lose_one(config, folder / "run", 1, step)
    first, second = wait(_train(config, folder / "run"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].endswith(f"result: {folder / 'run' / 'result.json'}\n") and second[1] == ""
    return folder / "run"


@pytest.fixture(scope="module")
def on_one(source, tmp_path_factory):
    """The same run on one host with two devices, never interrupted."""
    workdir = tmp_path_factory.mktemp("one")
    train(config_of(source, 2, 1), workdir)
    return workdir


def test_a_run_on_two_hosts_ends_as_on_one_whatever_comes_between(on_two, on_one):
    assert _result(on_two)["params_sha256"] == _result(on_one)["params_sha256"]
    assert _result(on_two)["metrics"] == _result(on_one)["metrics"]
    assert _result(on_two)["cost"]["tokens"] == _result(on_one)["cost"]["tokens"]
    assert _losses(on_two) == _losses(on_one)
    history = json.loads((on_two / "provenance.json").read_text())["history"]
    assert [start["hosts"] for start in history] == [2, 1, 2, 2]


HOSTS = [2, pytest.param(4, marks=pytest.mark.slow)]


def _same_on_all(command, hosts):
    """What host 0 prints, and no other."""
    first, *others = wait(start(command, hosts=hosts))
    assert [code for code, _, _ in (first, *others)] == [0] * hosts, (first, *others)
    assert [out for _, out, _ in others] == [""] * (hosts - 1)
    return first[1]


@pytest.mark.parametrize("hosts", HOSTS)
def test_evaluate_on_several_hosts_says_once_what_one_host_says(on_two, hosts):
    said = json.loads(_same_on_all(["-m", "t5lite.evaluate", "--checkpoint", on_two, "--json"], hosts))["metrics"]
    expected = _result(on_two)["metrics"]
    assert said == expected if hosts == 2 else said["validation"] == pytest.approx(expected["validation"], rel=1e-5)


@pytest.mark.slow  # fast tests evaluate and generate on two hosts, and run/test_evaluation.py splits the weights
def test_pairs_are_scored_and_answered_on_two_hosts_that_share_the_weights_as_on_one(tmp_path):
    config = config_of(write_pairs(tmp_path / "pairs.jsonl"), 1, 2)
    config.objective.name, config.objective.targets_length = "supervised", 16
    config.budget.steps, config.eval.rows, config.eval.generate_rows = 60, 10, 7
    expected = train(config, tmp_path / "run")["metrics"]
    said = _same_on_all(["-m", "t5lite.evaluate", "--checkpoint", tmp_path / "run", "--json"], 2)
    assert {"accuracy", "macro_f1"} <= expected["validation"].keys() and expected["validation"]["exact_match"] > 0
    assert json.loads(said)["metrics"]["validation"] == pytest.approx(expected["validation"], rel=1e-5)


@pytest.mark.parametrize("hosts", HOSTS)
def test_generate_on_several_hosts_says_once_what_one_host_says(on_two, tmp_path, capsys, hosts):
    from t5lite.generate import main

    texts = tmp_path / "texts"
    texts.write_text("".join(f"the ship of {i}\n" for i in range(20)))
    arguments = ["--checkpoint", str(on_two), "--input_file", str(texts), "--max_new_tokens", "8", "--json"]
    said = _same_on_all(["-m", "t5lite.generate", *arguments], hosts)
    main(arguments)
    assert said == capsys.readouterr().out


@pytest.mark.slow
def test_a_split_model_goes_on_after_host_0_is_lost_also_with_caches_apart(source, tmp_path):
    config = _config(tmp_path, source, mesh=(1, -1))
    _lose_one(config, tmp_path / "run", 0, 0)
    ends = wait(_train(config, tmp_path / "run", caches=tmp_path))
    assert [code for code, _, _ in ends] == [0, 0], ends


@pytest.mark.slow
def test_four_hosts_stop_at_one_step_go_on_and_come_near_to_what_one_computes(source, on_one, tmp_path):
    config = _config(tmp_path, source)
    step = _stop_all_at_one_step(config, tmp_path / "run", 0, hosts=4)
    assert 0 < step < 80
    ends = wait(_train(config, tmp_path / "run", hosts=4))
    assert [code for code, _, _ in ends] == [0] * 4, ends
    assert [line[:2] for line in _losses(tmp_path / "run")] == [line[:2] for line in _losses(on_one)]
    theirs, ours = _result(tmp_path / "run")["metrics"], _result(on_one)["metrics"]
    assert theirs["validation"]["loss"] == pytest.approx(ours["validation"]["loss"], rel=1e-3)

"""The runner starts runs when it may, keeps going past failures, says why, and stops cleanly.

The runs here are little Python programs in place of trainings.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from t5lite.config import base_config
from t5lite.studies.runner import run_study, share_of_gpus
from t5lite.studies.study import in_order
from t5lite.system.errors import Interrupted, UserError


def study(**needs):
    """Runs by name, each with the run it needs or None."""
    made = {}
    for name, needed in needs.items():
        made[name] = base_config()
        made[name].init_from = None if needed is None else f"@{needed}"
    return in_order(made)


def program(text):
    """A command for runs: Python code with `workdir` and `name`."""

    def command(config, workdir):
        head = "import os, sys, time, signal, pathlib\nworkdir = pathlib.Path(sys.argv[1]); name = workdir.name\n"
        return [sys.executable, "-c", head + textwrap.dedent(text), str(workdir)]

    return command


DONE = "workdir.mkdir(); (workdir / 'done').touch()"


def times(folder):
    """{run: (start, end)} as the programs wrote them."""
    return {path.parent.name: tuple(json.loads(path.read_text())) for path in folder.glob("*/times.json")}


TIMED = """
import json
start = time.time(); time.sleep(0.3)
workdir.mkdir(); (workdir / 'times.json').write_text(json.dumps([start, time.time()]))
"""


def run(made, folder, text, parallel=1):
    return run_study(made, folder, lambda name: (folder / name / "done").exists(), parallel, program(text))


def test_every_run_runs_after_what_it_needs(tmp_path):
    assert run(study(c="b", a=None, b="a"), tmp_path, TIMED) == {}
    found = times(tmp_path)
    assert found["a"][1] <= found["b"][0] and found["b"][1] <= found["c"][0]


def test_a_run_gets_its_own_config_as_a_file(tmp_path):
    seen = []

    def command(config, workdir):
        seen.append((json.loads(config.read_text())["init_from"], workdir))
        return program(DONE)(config, workdir)

    made = study(a=None, b="a")
    assert run_study(made, tmp_path, lambda name: False, command=command) == {}
    assert seen == [(None, tmp_path / "a"), ("@a", tmp_path / "b")]


def test_lines_of_runs_side_by_side_say_whose_they_are(tmp_path, capfd):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "done").touch()
    text = "print('one'); print('two', end='', file=sys.stderr); " + DONE
    assert run(study(a=None, b=None, c=None), tmp_path, text, parallel=2) == {}
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == ["== a (1 of 3)", "== b (2 of 3)", "== c (3 of 3): complete"] + [
        f"{name}: {line}" for name in "ab" for line in ("one", "two")
    ]


def test_what_is_complete_is_not_run_again(tmp_path):
    made = study(a=None, b="a", c=None)
    run(study(a=None), tmp_path, DONE)
    started = []

    def command(config, workdir):
        started.append(workdir.name)
        return program(DONE)(config, workdir)

    run_study(made, tmp_path, lambda name: (tmp_path / name / "done").exists(), command=command)
    assert started == ["b", "c"]


def test_a_failure_stops_only_what_waits_for_it_and_says_why(tmp_path, capfd):
    text = """
    if name == "b":
        print("t5lite: no file here", file=sys.stderr); sys.exit(2)
    if name == "e":
        raise ValueError("a bug")
    if name == "f":
        os.kill(os.getpid(), signal.SIGKILL)
    workdir.mkdir()
    """
    absent = run(study(a=None, b="a", c="b", d="a", e=None, f=None), tmp_path, text)
    assert absent == {
        "b": "failed: no file here",
        "c": "not run: it needs b, which has no result",
        "e": "failed: ValueError: a bug",
        "f": "failed: killed by SIGKILL",
    }
    assert (tmp_path / "a").exists() and (tmp_path / "d").exists() and not (tmp_path / "c").exists()
    assert "no file here" in capfd.readouterr().err  # passed on


def test_an_error_inside_jax_is_told_by_its_own_line(tmp_path, capfd):
    """JAX ends such a traceback with a remark of its own, and an exception may have several lines."""
    text = """
    import jax, jax.numpy as jnp
    if name == "a":
        jax.jit(lambda x: x @ jnp.ones(3))(jnp.ones(2))
    raise ValueError("first\\nsecond")
    """
    absent = run(study(a=None, b=None), tmp_path, text)
    assert absent["a"].startswith("failed: TypeError: dot_general requires")
    assert absent["b"] == "failed: ValueError: first"
    assert "JAX has removed its internal frames" in capfd.readouterr().err.rstrip().partition("ValueError")[0]


def test_a_character_that_comes_in_two_parts_is_whole(tmp_path, capfd):
    text = """
    for half in (b"t5lite: caf\\xc3", b"\\xa9\\n"):
        sys.stderr.buffer.write(half); sys.stderr.flush(); time.sleep(0.3)
    sys.exit(2)
    """
    assert run(study(a=None), tmp_path, text) == {"a": "failed: café"}
    assert "café" in capfd.readouterr().err


def test_a_folder_that_holds_another_run_counts_as_a_failure(tmp_path):
    def is_complete(name):
        if name == "a":
            raise UserError("a belongs to another")
        return False

    absent = run_study(study(a=None, b="a", c=None), tmp_path, is_complete, command=program(DONE))
    assert absent["a"] == "failed: a belongs to another" and set(absent) == {"a", "b"}


def test_as_many_runs_at_a_time_as_asked_for_and_no_more(tmp_path):
    run(study(a=None, b=None, c=None, d="a"), tmp_path, TIMED, parallel=2)
    found = times(tmp_path)
    edges = sorted([(start, 1) for start, _ in found.values()] + [(end, -1) for _, end in found.values()])
    at_once, most = 0, 0
    for _, change in edges:
        at_once += change
        most = max(most, at_once)
    assert len(found) == 4 and most == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_runs_at_a_time_share_the_cores(tmp_path):
    text = "workdir.mkdir(); time.sleep(0.5)\n(workdir / 'cores').write_text(str(sorted(os.sched_getaffinity(0))))"
    run(study(a=None, b=None), tmp_path, text, parallel=2)
    a, b = (set(json.loads((tmp_path / name / "cores").read_text())) for name in "ab")
    assert a and b and not a & b


@pytest.mark.parametrize(
    ("gpus", "parallel", "shares"),
    [
        ([], 2, [{}, {}]),
        (["0"], 1, [{}]),
        (["0", "1", "2", "3"], 2, [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1,3"}]),
        (["a", "b"], 2, [{"CUDA_VISIBLE_DEVICES": "a"}, {"CUDA_VISIBLE_DEVICES": "b"}]),
        (["7"], 2, 2 * [{"CUDA_VISIBLE_DEVICES": "7", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}]),
    ],
)
def test_runs_at_a_time_share_the_gpus(gpus, parallel, shares):
    assert [share_of_gpus(gpus, slot, parallel) for slot in range(parallel)] == shares


def test_a_run_that_was_asked_to_stop_stops_the_study(tmp_path):
    with pytest.raises(Interrupted, match="a was stopped"):
        run(study(a=None, b=None), tmp_path, "sys.exit(75)")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_runs_save_and_exits_with_run_me_again(tmp_path, number):
    script = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parents[2])!r})
    from tests.test_runner import program, run, study
    from t5lite.system.errors import clean_exit
    text = '''
    def save(*_):
        (workdir / "saved").touch(); sys.exit(75)
    signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
    workdir.mkdir(); time.sleep(60)
    '''
    from pathlib import Path
    with clean_exit():
        run(study(a=None, b=None), Path({str(tmp_path)!r}), text)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 30
    while not (tmp_path / "a").exists() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert (tmp_path / "a" / "saved").exists() and not (tmp_path / "b").exists()
    assert "the same command goes on" in err

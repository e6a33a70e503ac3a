"""The runner starts runs when it may, keeps going past failures, says why, and stops cleanly.

The runs here are little Python programs in place of trainings (programs.py).
"""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from t5lite.config import base_config
from t5lite.studies.runner import run_study
from t5lite.studies.slots import Slot, share_gpus
from t5lite.studies.study import sort_by_needs
from t5lite.system.errors import Interrupted, UserError
from tests.studies import programs


def study(**needs):
    """Runs by name, each with the run it needs or None."""
    made = {}
    for name, needed in needs.items():
        made[name] = base_config()
        made[name].init_from = None if needed is None else f"@{needed}"
    return sort_by_needs(made)


def program(text):
    """The arguments of a run: those of programs.main, for the Python code `text`."""

    def arguments(config, workdir):
        path = config.with_suffix(".py")
        path.write_text(textwrap.dedent(text))
        return [str(path), str(workdir)]

    return arguments


DONE = "workdir.mkdir(); (workdir / 'done').touch()"


def times(folder):
    """{run: (start, end)} as the programs wrote them."""
    return {path.parent.name: tuple(json.loads(path.read_text())) for path in folder.glob("*/times.json")}


TIMED = """
start = time.time(); time.sleep(0.3)
workdir.mkdir(); (workdir / 'times.json').write_text(json.dumps([start, time.time()]))
"""


def run(made, folder, text, parallel=1):
    is_complete = lambda name: (folder / name / "done").exists()
    return run_study(made, folder, is_complete, parallel, program(text), programs.__name__)


def test_every_run_runs_after_what_it_needs(tmp_path):
    assert run(study(c="b", a=None, b="a"), tmp_path, TIMED) == {}
    found = times(tmp_path)
    assert found["a"][1] <= found["b"][0] and found["b"][1] <= found["c"][0]


def test_a_run_gets_its_own_config_as_a_file(tmp_path):
    seen = []

    def arguments(config, workdir):
        seen.append((json.loads(config.read_text())["init_from"], workdir))
        return program(DONE)(config, workdir)

    made = study(a=None, b="a")
    assert run_study(made, tmp_path, lambda name: False, 1, arguments, programs.__name__) == {}
    assert seen == [(None, tmp_path / "a"), ("@a", tmp_path / "b")]


def test_lines_of_runs_side_by_side_say_whose_they_are(tmp_path, capfd):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "done").touch()
    text = "print('one'); print('two', end='', file=sys.stderr); " + DONE
    assert run(study(a=None, b=None, c=None, d=None, e="d"), tmp_path, text, parallel=2) == {}
    said = capfd.readouterr().err.splitlines()
    headers = ["== a (1 of 5)", "== b (2 of 5)", "== c (3 of 5): complete", "== d (4 of 5)", "== e (5 of 5)"]
    assert sorted(said) == headers + [f"{name}: {line}" for name in "abde" for line in ("one", "two")]


def test_what_is_complete_is_not_run_again(tmp_path):
    made = study(a=None, b="a", c=None)
    run(study(a=None), tmp_path, DONE)
    run(made, tmp_path, "workdir.mkdir()")  # which fails where there is one
    assert {path.parent.name for path in tmp_path.glob("*/done")} == {"a"}
    assert (tmp_path / "b").exists() and (tmp_path / "c").exists()


def test_a_failure_stops_only_what_waits_for_it_and_says_why(tmp_path, capfd):
    text = """
    if name == "b":
        raise UserError("no file here")
    if name == "e":
        raise ValueError("a bug")
    if name == "f":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "g":
        os._exit(3)
    workdir.mkdir()
    """
    absent = run(study(a=None, b="a", c="b", d="a", e=None, f=None, g=None, h=None), tmp_path, text)
    assert absent == {
        "b": "failed: no file here",
        "c": "not run: it needs b, which has no result",
        "e": "failed: ValueError: a bug",
        "f": "failed: killed by SIGKILL",
        "g": "failed: exit code 3",
    }
    assert all((tmp_path / name).exists() for name in "adh") and not (tmp_path / "c").exists()
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
    for half in (b"caf\\xc3", b"\\xa9\\n"):
        sys.stderr.buffer.write(half); sys.stderr.flush(); time.sleep(0.3)
    raise UserError("no café")
    """
    assert run(study(a=None), tmp_path, text) == {"a": "failed: no café"}
    assert "café\nt5lite: no café\n" in capfd.readouterr().err


def test_a_folder_that_holds_another_run_counts_as_a_failure(tmp_path):
    def is_complete(name):
        if name == "a":
            raise UserError("a belongs to another")
        return False

    absent = run_study(study(a=None, b="a", c=None), tmp_path, is_complete, 1, program(DONE), programs.__name__)
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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_once_jax_has_counted_its_cores_a_run_may_use_all(tmp_path):
    text = """
    from t5lite.system.cores import use_all_cores
    use_all_cores()
    workdir.mkdir()
    (workdir / 'cores').write_text(str(sorted(os.sched_getaffinity(0))))
    """
    run(study(a=None, b=None), tmp_path, text, parallel=2)
    cores = [set(json.loads((tmp_path / name / "cores").read_text())) for name in "ab"]
    assert cores == 2 * [os.sched_getaffinity(0)]


@pytest.mark.parametrize("seconds", [0, 1])  # when Python itself starts, and when the worker waits
def test_a_worker_that_is_killed_before_its_run_starts_is_told(seconds, tmp_path):
    slot = Slot(0, 1, programs.__name__)
    arguments = program(DONE)(tmp_path / "a.json", tmp_path / "a")
    slot.start("a", arguments, False)
    if seconds:
        select.select([slot], [], [])
        assert slot.finish() == (0, "") and slot.can_run(False)
        os.kill(slot._process.pid, signal.SIGSTOP)  # a moment in which nothing tells that it will die
        slot.start("b", arguments, False)
    slot._process.kill()
    assert slot.finish() == (-signal.SIGKILL, "killed by SIGKILL") and slot.run is None
    assert not slot.can_run(False)
    slot.close()


def processes(folder):
    """{run: the id of the process that it ran in} as the programs wrote them."""
    return {path.parent.name: path.read_text() for path in folder.glob("*/process")}


IN_PROCESS = "workdir.mkdir(exist_ok=True); (workdir / 'process').write_text(str(os.getpid()))"


def test_a_slot_keeps_its_process_until_a_run_fails_in_it(tmp_path):
    text = f"""
    {IN_PROCESS}
    if name == "c":
        raise UserError("no file here")
    """
    assert set(run(study(a=None, b="a", c="b", d="b"), tmp_path, text)) == {"c"}
    found = processes(tmp_path)
    assert found["a"] == found["b"] == found["c"] != found["d"]
    run(study(e=None, f=None, g="e", h="f"), tmp_path, f"{IN_PROCESS}; time.sleep(0.3)", parallel=2)
    found = processes(tmp_path)
    assert found["e"] != found["f"] and {found["g"], found["h"]} == {found["e"], found["f"]}


def test_runs_for_which_jax_is_set_up_otherwise_have_another_process(tmp_path):
    made = study(a=None, b="a", c="b", d="c")
    made["b"].deterministic = made["c"].deterministic = True
    assert run(made, tmp_path, IN_PROCESS) == {}
    found = processes(tmp_path)
    assert found["b"] == found["c"] and found["a"] != found["b"] != found["d"]


def test_a_process_that_has_joined_hosts_takes_no_second_run(tmp_path):
    text = f"""
    import types
    sys.modules["t5lite.system.hosts"] = types.SimpleNamespace(count_hosts=lambda: 2)
    {IN_PROCESS}
    """
    assert run(study(a=None, b="a"), tmp_path, text) == {}
    assert len(set(processes(tmp_path).values())) == 2


def test_what_a_run_held_is_free_when_the_next_one_starts(tmp_path):
    text = """
    import weakref
    class Held: pass
    if name == "a":
        held = Held()
        held.itself = held  # as a closure does that knows its own name
        sys.held = weakref.ref(held)
    workdir.mkdir()
    (workdir / "is_free").write_text(str(sys.held() is None))
    """
    run(study(a=None, b="a"), tmp_path, text)
    assert [(tmp_path / name / "is_free").read_text() for name in "ab"] == ["False", "True"]


def test_a_run_that_needs_a_tokenizer_alone_starts_once_it_is_written(tmp_path):
    made = study(a=None, b="a", c=None)
    made["c"].tokenizer.path = "@a"
    old = tmp_path / "a" / "tokenizer" / "vocabulary.json"  # of an earlier start; this one may refuse it
    old.parent.mkdir(parents=True)
    old.touch()
    text = """
    start = time.time()
    if name == "a":
        time.sleep(0.5)
        start = time.time()
        (workdir / "tokenizer" / "vocabulary.json").touch()
        time.sleep(2)
    else:
        workdir.mkdir()
    (workdir / "times.json").write_text(json.dumps([start, time.time()]))
    """
    assert run(made, tmp_path, text, parallel=2) == {}
    found = times(tmp_path)
    written, ended = found["a"]
    assert written <= found["c"][0] < ended <= found["b"][0]


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
    assert [share_gpus(gpus, slot, parallel) for slot in range(parallel)] == shares


def test_a_run_that_was_asked_to_stop_stops_the_study(tmp_path):
    with pytest.raises(Interrupted, match="a was stopped"):
        run(study(a=None, b=None), tmp_path, "raise Interrupted('stopped')")
    assert not (tmp_path / "b").exists()


def start(folder, made, text, parallel=1, **options):
    """A process that runs the study `made`, source code for one, in `folder`."""
    script = f"""
    from pathlib import Path
    from tests.studies.test_runner import run, study
    from t5lite.system.errors import clean_exit
    with clean_exit():
        run({made}, Path({str(folder)!r}), {text!r}, {parallel})
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2], **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_runs_save_and_exits_with_run_me_again(tmp_path, number):
    text = """
    if name == "a":
        def save(*_):
            (workdir / "saved").touch()
            raise Interrupted("saved")
        signal.signal(signal.SIGTERM, save)
        workdir.mkdir()
        time.sleep(60)
    """
    # Beside a, whose slot b waits for, a process that has run z and waits too.
    process = start(tmp_path, "study(a=None, z=None, b='a')", text, 2, stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.time() + 30
    while not (tmp_path / "a").exists() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)  # until all have closed it
    assert process.returncode == 75
    assert (tmp_path / "a" / "saved").exists() and not (tmp_path / "b").exists()
    assert "run the same command again" in err and "Traceback" not in err


def test_on_a_terminal_every_run_has_one(tmp_path):
    ours, theirs = os.openpty()
    text = "print(name, sys.stderr.isatty(), file=sys.stderr)"
    process = start(tmp_path, "study(a=None, b=None)", text, stderr=theirs)
    os.close(theirs)
    assert process.wait(timeout=30) == 0
    with open(ours, "rb", buffering=0) as file:
        assert file.read(65536).split() == b"== a (1 of 2) a True == b (2 of 2) b True".split()

"""SIGTERM and Ctrl-C end a verb with one line and exit code 75, in any code. A second Ctrl-C ends it at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t5lite.system.signals import GRACE_SECONDS

VERB = """
import contextlib, hashlib, signal, time
from t5lite import cli
from t5lite.system.errors import Interrupted
from t5lite.system.signals import Stopping

@cli.verb
def main(argv):
    try:
        print("at work", flush=True)
        {work}
    finally:
        print("cleared up", flush=True)

main()
"""
IN_PYTHON = "time.sleep(60)"
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # takes minutes, in which Python cannot run a handler
IN_CODE_THAT_GOES_ON_AFTER_ERRORS = """
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)
"""
IN_A_LONG_CLEARING_UP = """
        with contextlib.ExitStack() as stack:
            stack.callback(time.sleep, 60)
            time.sleep(60)
"""
IN_A_CALLBACK = """
        import gc
        gc.callbacks.append(lambda phase, info: time.sleep(0.01))
        while True:
            gc.collect()
"""
UNTIL_A_LOOP_BEGINS = """
        with contextlib.suppress(KeyboardInterrupt):  # as in a callback
            time.sleep(60)
        with Stopping() as stop:
            while not stop.must_stop(at_once=True):
                time.sleep(0.01)
        raise Interrupted("saved")
"""
COMPILING = """
        import jax, jax.numpy as jnp
        def deep(x):
            for i in range(3000):
                x = jnp.sin(x @ x + i)
            return x
        lowered = jax.jit(deep).lower(jnp.ones((8, 8)))
        print("now", flush=True)
        lowered.compile()
"""


def _start(work):
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # the tests' flags make compilation quick
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    process = subprocess.Popen(
        [sys.executable, "-c", VERB.format(work=work)],
        cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "at work\n"
    return process


def _wait_for_end(process, within):
    """Return (exit code, stdout, stderr, seconds until the end), and check that it took at most `within` seconds."""
    before = time.monotonic()
    out, stderr = process.communicate(timeout=60)
    seconds = time.monotonic() - before
    assert seconds < within
    return process.returncode, out, stderr, seconds


PLACES = {
    "in Python": (IN_PYTHON, True),
    "in code that goes on after errors": (IN_CODE_THAT_GOES_ON_AFTER_ERRORS, True),
    "in C": (IN_C, False),
    "in a long clearing up": (IN_A_LONG_CLEARING_UP, False),
    "in a callback": (IN_A_CALLBACK, False),
}


@pytest.mark.parametrize(
    "place, number",
    [
        *((place, signal.SIGTERM) for place in PLACES),
        ("in Python", signal.SIGINT),
        pytest.param("in C", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_verb_in_any_code(place, number):
    work, clears_up = PLACES[place]
    process = _start(work)
    time.sleep(0.2)
    process.send_signal(number)
    code, out, stderr, seconds = _wait_for_end(process, GRACE_SECONDS + 5)
    assert code == 75 and stderr == f"t5lite: stopped by {number.name}; run the same command again\n"
    assert out == ("cleared up\n" if clears_up else "")
    assert clears_up or seconds >= GRACE_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_loop_receives_a_signal_that_other_code_caught(number):
    process = _start(UNTIL_A_LOOP_BEGINS)
    time.sleep(0.2)
    process.send_signal(number)
    code, _, stderr, _ = _wait_for_end(process, GRACE_SECONDS + 5)
    assert code == 75 and stderr == "t5lite: saved\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_verb_that_is_still_being_imported(number):
    command = [sys.executable, "-X", "importtime", "-m", "t5lite.train", "--config", "none.py", "--workdir", "none"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    while "t5lite.system.signals" not in process.stderr.readline():
        pass
    time.sleep(0.5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    lines = [line for line in stderr.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 75 and lines == [f"t5lite: stopped by {number.name}; run the same command again"]


def test_a_signal_ends_a_compilation():
    """JAX compiles in a thread. The normal end of Python would wait for this thread, and crash."""
    process = _start(COMPILING)
    assert process.stdout.readline() == "now\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, _, stderr, _ = _wait_for_end(process, GRACE_SECONDS + 5)
    assert code == 75 and stderr == "t5lite: stopped by SIGTERM; run the same command again\n"


@pytest.mark.parametrize("work", [IN_PYTHON, IN_C], ids=["in Python", "in C"])
def test_a_second_ctrl_c_ends_a_verb_that_is_still_saving(work):
    process = _start(f"with Stopping(): {work}")
    for _ in range(2):
        assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    code, _, stderr, _ = _wait_for_end(process, 3)
    assert code == 130 and stderr == "t5lite: interrupted\n"

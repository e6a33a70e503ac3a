"""SIGTERM ends a verb with one line and exit code 75, also where Python does not come to its handlers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from t5lite.signals import GRACE_SECONDS

VERB = """
import hashlib, os, signal, threading, time
from t5lite import cli

@cli.verb
def main(argv):
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        {work}
    finally:
        print("cleared up", flush=True)

main([])
"""
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes, in which no handler in Python runs


@pytest.mark.parametrize(
    "work, clears_up, seconds", [("time.sleep(60)", True, 0.0), (IN_C, False, GRACE_SECONDS)], ids=["in Python", "in C"]
)
def test_sigterm_ends_a_verb_wherever_it_is(work, clears_up, seconds):
    command = [sys.executable, "-c", VERB.format(work=work)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    before = time.monotonic()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 75 and said == "t5lite: stopped by SIGTERM; run the same command again\n"
    assert 1 + seconds <= time.monotonic() - before
    assert out == ("cleared up\n" if clears_up else "")

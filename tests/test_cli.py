"""A failed verb prints its error and ends, without waiting for its threads."""

import subprocess
import sys
from pathlib import Path

import pytest

VERB = """
import threading, time
from t5lite import cli
from t5lite.system.errors import UserError

@cli.verb
def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("half a line", end="")
    raise {error}

main()
"""


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [("UserError('no such file')", 2, "t5lite: no such file"), ("KeyError('x')", 1, "KeyError: 'x'")],
    ids=["a mistake", "a bug"],
)
def test_a_failed_verb_does_not_wait_for_its_threads(error, code, last):
    command = [sys.executable, "-c", VERB.format(error=error)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=30)
    assert ended.returncode == code and ended.stdout == "half a line"
    assert ended.stderr.splitlines()[-1] == last
    assert ("Traceback" in ended.stderr) == (code == 1)

"""Whose a workdir is."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from t5lite.system.errors import UserError
from t5lite.training.workdir import lock_workdir, make_workdir

ROOT = Path(__file__).parents[2]

OWNER = """
import sys, time
from pathlib import Path
from t5lite.training.workdir import lock_workdir
with lock_workdir(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_workdir_has_one_owner_whose_lock_dies_with_it(tmp_path):
    make_workdir(tmp_path)
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "mine\n"
        with (
            pytest.raises(UserError, match=rf"process {process.pid} on \S+ already trains in .*; wait until it ends"),
            lock_workdir(tmp_path),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lock_workdir(tmp_path):
        pass


def test_what_a_killed_owner_left_is_swept_away_but_not_under_a_living_one(tmp_path):
    make_workdir(tmp_path)
    left = ("result.json.tmp", "tokenizer/pieces.model.tmp", "checkpoints/6.orbax-checkpoint-tmp/params/d/0")
    kept = ("result.json", "checkpoints/3/params/d/0", "checkpoints/damaged-6/params/d/0", "notes.txt")
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with lock_workdir(tmp_path):
        assert [name for name in left if (tmp_path / name).exists()] == []
        assert [name for name in kept if not (tmp_path / name).exists()] == []
        (tmp_path / left[0]).write_text("being written")
        with pytest.raises(UserError), lock_workdir(tmp_path):
            pass
        assert (tmp_path / left[0]).exists()

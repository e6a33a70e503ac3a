"""Damage to a checkpoint: whatever happens to any of its files, what is read is what was saved, or it is noticed."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import Policy
from t5lite.training.sharding import make_mesh
from t5lite.training.step import TrainState
from tests.small import Spy

PROGRESS = {"tokens": 3.0, "seconds": 0.1}


def _state(step, seed):
    """Arrays of several types and shardings, and values that do not compress."""
    rng = np.random.default_rng(seed)
    mesh = make_mesh(2, 2, 2)

    def placed(value, *axes):
        return jax.device_put(value, NamedSharding(mesh, P(*axes)))

    params = {
        "wide": {"kernel": placed(rng.normal(size=(64, 96)).astype(np.float32), "fsdp", "tensor")},
        "half": placed(jnp.asarray(rng.normal(size=(7, 3)), jnp.bfloat16)),
    }
    opt_state = {
        "count": placed(np.int32(step)),
        "moment": placed(rng.normal(size=(32, 96)).astype(np.float32), None, "data"),
    }
    return TrainState(placed(np.int32(step)), params, opt_state)


def _shapes_and_shardings(state):
    return jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)


def _equal(a, b):
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


STATES = {step: (step, seed) for seed, step in enumerate((1, 2))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, Policy(keep=2))
    for arguments in STATES.values():
        checkpoints.save(_state(*arguments), PROGRESS)
        checkpoints.wait()
    checkpoints.close()
    return workdir


def _flip(path, rng):
    content = bytearray(path.read_bytes())
    for place in rng.choice(len(content), size=min(3, len(content)), replace=False):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


TRACE = Path(tempfile.gettempdir()) / f"t5lite-executed-{os.getpid()}"

DAMAGES = {
    "truncated": lambda path, rng: path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))]),
    "flipped": _flip,
    "deleted": lambda path, rng: path.unlink(),
    "a pickle": lambda path, rng: path.write_bytes(pickle.dumps(Spy(TRACE))),
}


def _restore(workdir):
    """(the state of the newest intact checkpoint, whether it is as saved)"""
    checkpoints = Checkpoints(workdir, Policy(keep=2))
    state, progress = checkpoints.restore(*_shapes_and_shardings(_state(2, 1)))
    assert progress == PROGRESS
    checkpoints.close()
    return int(state.step), _equal(state, _state(*STATES[int(state.step)]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of reads that nobody waits for
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file_may_be_damaged(saved, tmp_path, damage, capsys):
    files = sorted(path.relative_to(saved) for path in (saved / "checkpoints" / "2").rglob("*") if path.is_file())
    assert len(files) > 20
    noticed = []
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        DAMAGES[damage](workdir / file, np.random.default_rng(number))
        step, as_saved = _restore(workdir)
        assert as_saved, f"{file} {damage}: step {step} came back other than it was saved"
        said = capsys.readouterr().err
        if step == 1:
            noticed.append(str(file))
            assert "WARNING" in said and f"{workdir}/checkpoints/2 is damaged" in said and "of step 1" in said
            assert (workdir / "checkpoints" / "damaged-2").is_dir() and not (workdir / "checkpoints" / "2").exists()
        else:
            assert said == ""
        shutil.rmtree(workdir)
    assert len(noticed) >= 6, noticed
    assert not TRACE.exists(), "nothing of a checkpoint is executed"

"""Which checkpoint is read, and what is refused; tests/training/test_damage.py is about what is in it."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from t5lite.system.errors import Interrupted, UserError
from t5lite.training import start
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import Policy
from t5lite.training.reading import choose_steps, read_intact, saved_steps, select_evaluated
from t5lite.training.record import DamagedCheckpoint, _digest, read_record
from t5lite.training.step import TrainState

ROOT = Path(__file__).parents[2]


def _state(step, average=False):
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), "b": jnp.asarray(rng.normal(size=6), jnp.float32)}
    averaged = jax.tree.map(lambda x: x * 2, params) if average else None
    return TrainState(np.int32(step), params, {"count": jnp.int32(step)}, averaged)


def _like(tree):
    placed = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree)


def _saved(workdir, steps, average=False):
    checkpoints = Checkpoints(workdir, Policy(keep=99))
    for step in steps:
        checkpoints.save(_state(step, average), {"tokens": float(step)})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return _saved(tmp_path_factory.mktemp("made"), [1, 2, 3])


@pytest.fixture
def workdir(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def _read(workdir, step=None):
    record, items = next(read_intact(workdir, choose_steps(workdir, step), select_evaluated(_like(_state(1).params))))
    return record.step, items[record.params_item]


def _damage(workdir, *steps):
    for step in steps:
        path = workdir / "checkpoints" / str(step) / "params" / "manifest.ocdbt"
        path.write_bytes(path.read_bytes()[:-1])


def _restore(workdir, state):
    checkpoints = Checkpoints(workdir, Policy(keep=99))
    try:
        restored = checkpoints.restore(state, jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state))
    finally:
        checkpoints.close()
    return restored


def _equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_newest_intact_one_is_read_and_each_damaged_one_is_named(workdir, capsys):
    assert _read(workdir)[0] == 3 and capsys.readouterr().err == ""
    _damage(workdir, 2, 3)
    step, params = _read(workdir)
    assert step == 1 and _equal(params, _state(1).params)
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("t5lite: WARNING: ") for line in said] == [True, True]
    assert "checkpoints/3 is damaged" in said[0] and "GOING BACK to the checkpoint of step 2" in said[0]
    assert "manifest.ocdbt" in said[1] or "params" in said[1]
    assert saved_steps(workdir) == [1, 2, 3], "a reader moves nothing"


def test_a_step_that_was_asked_for_has_no_stand_in(workdir):
    _damage(workdir, 2)
    assert _read(workdir, "1")[0] == 1
    with pytest.raises(DamagedCheckpoint, match=r"checkpoints/2 is damaged"):
        _read(workdir, "2")


def test_where_all_are_damaged_the_run_does_not_start_over_and_nothing_is_moved(workdir):
    _damage(workdir, 1, 2, 3)
    with pytest.raises(UserError, match=r"none of the 3 checkpoints is intact: .*checkpoints/3 is damaged"):
        _restore(workdir, _state(3))
    assert saved_steps(workdir) == [1, 2, 3]


def test_going_back_twice_over_the_same_step_keeps_both(workdir):
    for _ in range(2):
        _damage(workdir, 3)
        state, progress = _restore(workdir, _state(3))
        assert int(state.step) == 2 and progress == {"tokens": 2.0}
        _saved(workdir, [3])
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"1", "2", "3", "damaged-3", "damaged-3-2"}


def test_another_network_is_no_damage(workdir):
    state = _state(3)
    other = {"wider": state.replace(params=state.params | {"w": jnp.zeros((8, 7))}),
             "more": state.replace(params=state.params | {"c": jnp.zeros(2)}),
             "less": state.replace(params={"w": state.params["w"]})}  # fmt: skip
    for name, expected in (
        ("wider", r"params/w is float32 \(8, 6\), but this config needs float32 \(8, 7\)"),
        ("more", r"params/c is missing, but this config needs float32 \(2,\)"),
        ("less", r"params/b has no place"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            _restore(workdir, other[name])
        assert not isinstance(caught.value, DamagedCheckpoint)
    assert saved_steps(workdir) == [1, 2, 3]


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(workdir, monkeypatch):
    def restore(self, *arguments, **named):
        raise Interrupted("as the handler of a signal does, wherever the program is")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    with pytest.raises(Interrupted):
        _restore(workdir, _state(3))
    assert saved_steps(workdir) == [1, 2, 3] and not list((workdir / "checkpoints").glob("damaged-*"))


def _rewrite(workdir, change, seal=True):
    path = workdir / "checkpoints" / "3" / "record" / "metadata"
    envelope = json.loads(path.read_text())
    change(envelope["record"])
    if seal:
        envelope["sha256"] = _digest(envelope["record"])
    path.write_text(json.dumps(envelope))


def test_a_newer_format_is_refused_by_name(workdir):
    _rewrite(workdir, lambda record: record.update(format=2))
    with pytest.raises(UserError, match="checkpoints/3 has format 2, made by a newer t5lite; this one reads"):
        _read(workdir)


def test_a_record_that_was_changed_is_noticed(workdir, capsys):
    _rewrite(workdir, lambda record: record["progress"].update(tokens=4.0), seal=False)
    assert _read(workdir)[0] == 2 and "record/metadata does not have the digest" in capsys.readouterr().err


def test_a_checkpoint_under_another_steps_name_is_noticed(workdir, capsys):
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "9")
    assert _read(workdir)[0] == 3 and "named 9, but it was saved at step 2" in capsys.readouterr().err


def test_a_checkpoint_from_before_formats_is_refused_and_not_called_damaged(workdir):
    shutil.rmtree(workdir / "checkpoints" / "3" / "record")
    (workdir / "checkpoints" / "3" / "progress").mkdir()
    with pytest.raises(UserError, match="format of an older t5lite") as caught:
        _read(workdir)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_where_there_is_an_average_it_is_what_is_read(tmp_path):
    _saved(tmp_path, [1], average=True)
    assert read_record(tmp_path / "checkpoints" / "1").params_item == "average"
    assert _equal(_read(tmp_path)[1], _state(1, average=True).average)


def test_the_mean_of_the_newest_checkpoints(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, Policy(keep=99))
    values = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    for step, value in enumerate(values, 1):
        params = {"final_norm": {"scale": jnp.asarray(value)}}
        checkpoints.save(TrainState(np.int32(step), params, {"count": jnp.int32(step)}), {})
    checkpoints.close()
    here = SingleDeviceSharding(jax.devices()[0])
    like = {"final_norm": {"scale": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=here)}}
    mean, step = start.load_params(tmp_path, like, average=3)
    np.testing.assert_allclose(mean["final_norm"]["scale"], values[1:].mean(axis=0), rtol=1e-6)
    assert step == 4 and "at the steps 2, 3, 4" in capsys.readouterr().err
    _damage(tmp_path, 3)
    mean, step = start.load_params(tmp_path, like, average=3)
    np.testing.assert_allclose(mean["final_norm"]["scale"], values[[0, 1, 3]].mean(axis=0), rtol=1e-6)
    assert "at the steps 1, 2, 4" in capsys.readouterr().err
    with pytest.raises(UserError, match="has 3 intact checkpoints, fewer than the 4"):
        start.load_params(tmp_path, like, average=4)


RESTORED = """
import ctypes, re, sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import Policy
from t5lite.training.sharding import make_mesh
from t5lite.training.step import TrainState

# What is freed is given back, as it is not where t5lite trains on a CPU (memory.py): only then is it what is used.
for parameter, value in ((-4, 65536), (-3, 1 << 17), (-1, 1 << 17)):
    ctypes.CDLL(None).mallopt(parameter, value)

def mebibytes(name):
    return int(re.search(name + r":\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) >> 10

work, workdir = sys.argv[1], Path(sys.argv[2])
mesh = make_mesh(1, 4, 1)
split, everywhere = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
shapes = {f"w{i}": jax.ShapeDtypeStruct((1024, 5120), np.float32) for i in range(10)}
checkpoints = Checkpoints(workdir, Policy())
count = jax.device_put(np.int32(1), everywhere)
if work == "save":
    rng = np.random.default_rng(0)
    params = {name: jax.device_put(rng.normal(size=s.shape).astype(s.dtype), split) for name, s in shapes.items()}
    checkpoints.save(TrainState(count, params, {"count": count}), {})
else:
    before = mebibytes("VmRSS")
    state = TrainState(count, shapes, {"count": count})
    shardings = TrainState(everywhere, {name: split for name in shapes}, {"count": everywhere})
    state, _ = checkpoints.restore(state, shardings)
    assert {part.data.shape for leaf in state.params.values() for part in leaf.addressable_shards} == {(256, 5120)}
    print(mebibytes("VmHWM") - before)
checkpoints.close()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_a_split_model_of_200_mib_is_restored_without_a_second_copy(tmp_path):
    """Each device holds its quarter; a copy of the whole on one of them would be 200 MiB more."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path),
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}  # fmt: skip
    for work in ("save", "restore"):
        command = [sys.executable, "-c", RESTORED, work, str(tmp_path)]
        process = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
        assert process.returncode == 0, process.stderr
    assert 200 <= int(process.stdout) < 350


@pytest.fixture
def unused_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


PROCESS = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
rank, port, workdir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
from jax.experimental import multihost_utils
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import Policy
from t5lite.training.sharding import make_mesh
from t5lite.training.step import TrainState

mesh = make_mesh(2, 2, 1)
value = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)

def placed(array, *axes):
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, P(*axes)), lambda index: array[index])

state = TrainState(placed(np.int32(0)), {"w": placed(value, "data", "fsdp")}, {"count": placed(np.int32(1))})
shardings = jax.tree.map(lambda x: x.sharding, state)
checkpoints = Checkpoints(workdir, Policy(keep=3))
for step in (1, 2, 3):
    checkpoints.save(state.replace(step=placed(np.int32(step))), {})
    checkpoints.wait()
if rank == 0:
    path = workdir / "checkpoints" / "2" / "record" / "metadata"
    path.write_bytes(path.read_bytes()[:-9])
    # Its half of the model, which host 1 alone will read.
    parts = (workdir / "checkpoints" / "3" / "params" / "ocdbt.process_1").rglob("d/*")
    max(parts, key=lambda path: path.stat().st_size).write_bytes(b"")
multihost_utils.sync_global_devices("damaged")
restored, _ = checkpoints.restore(state, shardings)
assert int(restored.step) == 1, restored.step
checkpoints.close()
print("restored")
"""


def test_several_processes_save_one_checksum_and_go_back_together(tmp_path, unused_port):
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path),
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}  # fmt: skip
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(unused_port), str(tmp_path)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "restored" in said, said
    assert saved_steps(tmp_path) == [1]
    assert {path.name for path in (tmp_path / "checkpoints").glob("damaged-*")} == {"damaged-2", "damaged-3"}
    value = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    _, items = next(read_intact(tmp_path, [1], select_evaluated(_like({"w": value}))))
    assert _equal(items["params"], {"w": value})

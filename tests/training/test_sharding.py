"""Sharded updates equal those of one device, and what should be split really is."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec as P

from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError
from t5lite.training.optimizer import make_optimizer
from t5lite.training.sharding import (
    batch_sharding,
    check_batch,
    local_rows,
    make_mesh,
    param_rules,
    params_shardings,
    place_batch,
    sharded_shapes,
    state_shardings,
)
from t5lite.training.tables import flatten_with_paths

N, D, HK, F, V, H = 3, 8, 16, 12, 32, 6
MODEL = ModelConfig(N, N, V, d_model=D, d_ff=F, num_heads=4, head_dim=HK // 4)
MATRICES = {"query": (N, D, HK), "key": (N, D, HK), "value": (N, D, HK), "output": (N, HK, D)}
MESHES = ((2, 4, 1), (1, 4, 2), (8, 1, 1))


def attention():
    return {"norm": {"scale": (N, D)}, **{name: {"kernel": shape} for name, shape in MATRICES.items()}}


def stack(cross):
    mlp = {"norm": {"scale": (N, D)}, "gate": {"kernel": (N, D, F)}, "up": {"kernel": (N, D, F)}}
    layers = {"self_attention": attention(), "mlp": {**mlp, "down": {"kernel": (N, F, D)}}}
    layers |= {"cross_attention": attention()} if cross else {}
    return {"relative_bias": {"embedding": (4, H)}, "layers": layers, "final_norm": {"scale": (D,)}}


def random_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"token_embedding": {"embedding": (V, D)}, "lm_head": {"kernel": (D, V)}}
    shapes |= {"encoder": stack(cross=False), "decoder": stack(cross=True)}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def one_of_each_kind(params):
    """The part of a tree that has one parameter for each kind of rule; compiling is what takes the time."""
    layers = params["encoder"]["layers"]
    kept = {"self_attention": {"query": layers["self_attention"]["query"]}}
    kept["mlp"] = {name: layers["mlp"][name] for name in ("norm", "down")}
    return {**{name: params[name] for name in ("token_embedding", "lm_head")}, "encoder": {"layers": kept}}


def specs(tree):
    return {path: sharding.spec for path, sharding in flatten_with_paths(tree)}


@pytest.fixture(scope="module")
def trees():
    assert jax.device_count() == 8, "these tests need --xla_force_host_platform_device_count=8"
    return random_params(0), random_params(1)


def updater(name, params):
    fields = {"name": name, "weight_decay": 0.1, "clip_norm": 1.0, "min_size_to_factor": 8}
    fields["trainable"] = ((r"lm_head/.*", False), (r".*", True))
    optimizer = make_optimizer(fields, params)

    def step(state, params, grads):
        updates, state = optimizer.update(grads, state, params, rate=0.01)
        return optax.apply_updates(params, updates), state

    return optimizer, step


@pytest.fixture(scope="module")
def on_one_device(trees):
    """Parameters and state after two steps of each optimizer, without a mesh."""
    params, grads = map(one_of_each_kind, trees)
    results = {}
    for name in ("adamw", "adafactor", "lion", "muon"):
        optimizer, step = updater(name, params)
        step, p, state = jax.jit(step), params, optimizer.init(params)
        for _ in range(2):
            p, state = step(state, p, grads)
        results[name] = jax.device_get((p, state))
    return results


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_sharded_update_equals_that_of_one_device(name, sizes, trees, on_one_device):
    params, grads = map(one_of_each_kind, trees)
    mesh = make_mesh(*sizes)
    optimizer, step = updater(name, params)
    of_params = params_shardings(params, mesh, MODEL)
    of_state = state_shardings(jax.eval_shape(optimizer.init, params), mesh, params, MODEL)
    state = jax.jit(optimizer.init, out_shardings=of_state)(params)
    step = jax.jit(step, in_shardings=(of_state, of_params, of_params), out_shardings=(of_params, of_state))
    for _ in range(2):
        params, state = step(state, params, grads)
    results = zip(flatten_with_paths((params, state)), flatten_with_paths(on_one_device[name]), strict=True)
    for (path, ours), (_, theirs) in results:
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=path)


def shard_shapes(name, sizes, params):
    mesh, optimizer = make_mesh(*sizes), updater(name, params)[0]
    shardings = state_shardings(jax.eval_shape(optimizer.init, params), mesh, params, MODEL)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    shapes = {path: leaf.addressable_shards[0].data.shape for path, leaf in flatten_with_paths(state)}
    return {path.split("inner_state/")[-1].split("/", 1)[-1]: shape for path, shape in shapes.items()}


def test_moments_are_split_like_their_parameters(trees):
    shapes = shard_shapes("adamw", (1, 4, 2), trees[0])
    for moment in ("mu", "nu"):
        assert shapes[f"{moment}/token_embedding/embedding"] == (V // 2, D // 4)
        assert shapes[f"{moment}/encoder/layers/self_attention/query/kernel"] == (N, D // 4, HK // 2)
        assert shapes[f"{moment}/decoder/layers/cross_attention/output/kernel"] == (N, HK // 2, D // 4)
        assert shapes[f"{moment}/decoder/layers/mlp/gate/kernel"] == (N, D // 4, F // 2)
        assert shapes[f"{moment}/decoder/layers/mlp/down/kernel"] == (N, F // 2, D // 4)
        assert shapes[f"{moment}/encoder/final_norm/scale"] == (D,)
    assert shapes["count"] == ()


def test_adafactors_factors_are_split_without_the_dimension_they_average_over(trees):
    shapes = shard_shapes("adafactor", (1, 4, 2), trees[0])
    assert shapes["v_row/decoder/layers/mlp/gate/kernel"] == (N, D // 4)
    assert shapes["v_col/decoder/layers/mlp/gate/kernel"] == (N, F // 2)
    assert shapes["v_row/decoder/layers/mlp/down/kernel"] == (N, F // 2)
    assert shapes["v_col/decoder/layers/mlp/down/kernel"] == (N, D // 4)
    assert shapes["v_row/token_embedding/embedding"] == (V // 2,)
    assert shapes["v_col/token_embedding/embedding"] == (D // 4,)
    assert shapes["v/decoder/layers/mlp/gate/kernel"] == (1,)


def test_factors_of_a_square_matrix_are_told_apart_by_name():
    mesh, params = make_mesh(1, 4, 2), {"lm_head": {"kernel": np.zeros((8, 8), np.float32)}}
    optimizer = make_optimizer({"name": "adafactor", "min_size_to_factor": 8, "clip_norm": 0.0}, params)
    found = specs(state_shardings(jax.eval_shape(optimizer.init, params), mesh, params, MODEL))
    found = {path.split("/0/")[-1]: spec for path, spec in found.items()}
    assert found["v_row/lm_head/kernel"] == P("fsdp") and found["v_col/lm_head/kernel"] == P("tensor")


def test_a_whole_train_state_gets_its_parameters_shardings(trees):
    mesh, params = make_mesh(2, 2, 2), trees[0]
    found = specs(state_shardings({"params": params, "step": np.int32(0)}, mesh, params, MODEL))
    assert found["step"] == P()
    expected = specs(params_shardings(params, mesh, MODEL))
    assert {path.removeprefix("params/"): spec for path, spec in found.items() if path != "step"} == expected


def test_every_default_row_is_used_by_an_encoder_decoder_or_an_encoders_heads(trees):
    kernels = {"mlm_transform/dense": (D, D), "pooler": (D, D), "next_sentence": (D, 2), "classifier": (D, 3)}
    heads = {f"{name}/kernel": np.zeros(shape) for name, shape in {**kernels, "tagger": (D, 5)}.items()}
    heads |= {"token_type_embedding/embedding": np.zeros((2, D)), "mlm_transform/norm/scale": np.zeros(D)}
    heads |= {
        "more/position_embedding/embedding": np.zeros((16, D)),
        "lm_head/kernel": np.zeros((D, 8)),
        "lm_head/bias": np.zeros(8),
        "pooler/bias": np.zeros(D),
    }
    heads |= {f"more/layers/{name}/bias": np.zeros((N, 8)) for name in ("self_attention/query", "mlp/up")}
    params = {**trees[0], **unflatten_dict(heads, sep="/")}
    found = specs(params_shardings(params, make_mesh(1, 4, 2), MODEL, param_rules()))
    assert {found[f"{name}/kernel"] for name in (*kernels, "tagger")} == {P("fsdp", None)}
    assert found["token_type_embedding/embedding"] == found["more/position_embedding/embedding"] == P(None, "fsdp")
    assert found["lm_head/bias"] == P("tensor") and found["pooler/bias"] == P(None)
    assert found["more/layers/self_attention/query/bias"] == found["more/layers/mlp/up/bias"] == P(None, "tensor")


def test_an_axis_that_does_not_divide_a_dimension_is_dropped_there_alone():
    mesh = make_mesh(1, 2, 4)
    params = {"decoder": {"layers": {"mlp": {"up": {"kernel": np.zeros((N, 8, 6))}}}}}
    assert specs(params_shardings(params, mesh, MODEL)) == {"decoder/layers/mlp/up/kernel": P(None, "fsdp", None)}
    both = {"kernel": np.zeros((4, 6))}
    rules = ((r".*", P(("tensor", "fsdp"), "data")),)
    assert specs(params_shardings(both, mesh, MODEL, rules)) == {"kernel": P("tensor", "data")}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "whole"),
    [
        (4, None, set()),
        (8, 4, set()),
        (6, None, {"query", "key", "value", "output"}),
        (6, 2, {"query", "key", "value", "output"}),
        (8, 2, {"key", "value"}),
        (4, 1, {"key", "value"}),
    ],
)
def test_no_head_is_split_and_all_else_is(heads, kv_heads, whole):
    """Over tensor=4, by which every width here can be divided: what stays whole does for the sake of its heads."""
    model = ModelConfig(1, 1, 32, d_model=16, d_ff=8, num_heads=heads, head_dim=8, num_kv_heads=kv_heads, biases="all")
    found = {path: leaf.sharding.spec for path, leaf in flatten_with_paths(sharded_shapes(model, make_mesh(1, 2, 4)))}
    split = {path for path, spec in found.items() if "tensor" in spec}
    kernels = {"query", "key", "value", "output"} - whole
    expected = {f"{block}/{name}/kernel" for block in ("self_attention", "cross_attention") for name in kernels}
    expected |= {path.replace("kernel", "bias") for path in expected if "output" not in path}
    expected |= {"mlp/up/kernel", "mlp/up/bias", "mlp/gate/kernel", "mlp/gate/bias", "mlp/down/kernel"}
    in_layers = {path.split("layers/")[1] for path in split if "layers/" in path}
    assert in_layers == expected
    assert "token_embedding/embedding" in split
    assert all("fsdp" in spec for path, spec in found.items() if path.endswith("/kernel"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r".*", P("fsdb")),), r"'kernel' names the mesh axis 'fsdb'.*'fsdp'"),
        (((r"lm_head/.*", P()), (r".*", P())), r"'lm_head/\.\*' matches no parameter"),
        (((r"kern", P()),), r"no row covers the parameter 'kernel'"),
        (((r".*", P(None, None, "fsdp")),), r"longer than its shape"),
        (((r".*", P("fsdp", "fsdp")),), r"names an axis twice"),
    ],
)
def test_a_wrong_rule_is_refused_never_dropped(rules, message):
    with pytest.raises(UserError, match=message):
        params_shardings({"kernel": np.zeros((8, 8))}, make_mesh(1, 4, 2), MODEL, rules)


def test_a_mesh_has_its_sizes_and_minus_one_takes_the_rest():
    assert dict(make_mesh(2, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(1, -1, 1, jax.devices()[:4]).shape) == {"data": 1, "fsdp": 4, "tensor": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in make_mesh(8, 1, 1).axis_types)
    assert list(make_mesh(2, 1, 1).devices.flat) == jax.devices()[:2], "a single process may use fewer"


@pytest.mark.parametrize("sizes", [(3, 3, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1), (-1, 16, 1), (-2, 1, 1)])
def test_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(UserError, match=r"mesh\.data=.*mesh\.fsdp=.*mesh\.tensor="):
        make_mesh(*sizes)


def test_a_batch_that_the_mesh_does_not_divide_names_one_that_it_does():
    mesh = make_mesh(2, 2, 2)
    check_batch(24, 2, mesh)
    with pytest.raises(UserError, match=r"batch_size=30 .*multiple of 8;.*batch_size=32"):
        check_batch(30, 2, mesh)
    with pytest.raises(UserError, match=r"the nearest multiple is batch_size=8"):
        check_batch(1, 2, mesh)
    with pytest.raises(UserError, match="at least 1"):
        check_batch(8, 0, mesh)


def test_a_batch_lies_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    rows = {"tokens": np.arange(32, dtype=np.int32).reshape(8, 4), "segment_ids": None}
    batch = place_batch({**rows, "tokens": rows["tokens"][local_rows(8, mesh)]}, mesh)
    assert batch["tokens"].sharding.is_equivalent_to(batch_sharding(mesh), 2) and batch["segment_ids"] is None
    assert batch["tokens"].addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(batch["tokens"], rows["tokens"])


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from t5lite.system.errors import UserError
from t5lite.model.config import ModelConfig
from t5lite.training.sharding import local_rows, make_mesh, place_batch
rows = np.arange(24, dtype=np.int32).reshape(8, 3)
for sizes in ((2, 2, 1), (2, 1, 2), (1, 1, 4)):
    mesh = make_mesh(*sizes)
    mine = local_rows(8, mesh)
    assert len(mine) == (8 if sizes[2] == 4 else 4), mine
    batch = place_batch(rows[mine], mesh)
    assert batch.shape == (8, 3)
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
try:
    make_mesh(2, 1, 1)
except UserError as error:
    print("refused:", error)
"""


def test_several_processes_put_their_own_rows_into_one_batch():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, address]
    processes = [
        subprocess.Popen([*command, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert "refused: mesh.data=2" in out and "several processes" in out
    finally:
        for process in processes:
            process.kill()

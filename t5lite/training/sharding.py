"""How arrays are split over devices: the mesh, a table of PartitionSpecs for the parameters, and the shardings from it.

    axis     splits                                            traffic
    data     the batch                                         gradients are summed over this axis
    fsdp     the batch, and the model dimension of matrices    parameters are gathered, gradients scattered
    tensor   heads, the feed-forward width, the vocabulary     activations are summed, once per block and pass

A block is an attention or a feed-forward block. A pass is forward or backward.

Sources: Zhao et al. 2023, PyTorch FSDP; Shoeybi et al. 2019, Megatron-LM.

A head is never split: kernels of heads are split over `tensor` only if the size of `tensor` divides the number of
heads.

The jitted step is written for one device, and XLA's partitioner inserts the traffic. Axis types are Auto. With
Explicit, the default of jax.make_mesh, with_sharding_constraint only asserts.

A parameter that is stacked over N layers is never split along N, because a scan over a split axis would gather the
whole parameter.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.model.config import ModelConfig
from t5lite.model.transformer import parameter_shapes
from t5lite.system.errors import UserError, nearest
from t5lite.training.tables import Table, flatten_with_paths, join_path, match_table

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with the axes data, fsdp and tensor. JAX chooses the order of devices that suits their network.

    Args:
        data, fsdp, tensor: the size of each axis. One of them may be -1: all remaining devices.
        devices: default: all devices. A single process may use fewer devices: the first ones of the list. Several
            processes must use all devices, because each process must own a part of every array.

    Raises:
        UserError: for sizes that do not fit the devices. The message names mesh.data, mesh.fsdp and mesh.tensor.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    settings = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"{settings}: each must be at least 1; one of them may be -1 (the remaining devices)")
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if len(devices) % known:
            raise UserError(
                f"{settings}: {known} does not divide {len(devices)}, the number of devices; choose other sizes"
            )
        sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    count = math.prod(sizes.values())
    one_process = len({device.process_index for device in devices}) == 1
    if count > len(devices) or (count < len(devices) and not one_process):
        raise UserError(
            f"{settings}: their product is {count}, but there are {len(devices)} devices"
            f"{'' if one_process else ' in several processes, and all must be used'}; set one size to -1"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raise UserError if data · fsdp does not divide the rows of a microbatch. The message names a size that fits."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatches < 1 or batch_size < 1:
        raise UserError(f"batch_size={batch_size}, microbatches={microbatches}: both must be at least 1")
    unit = microbatches * shards
    if batch_size % unit:
        fitting = max(1, round(batch_size / unit)) * unit
        raise UserError(
            f"batch_size={batch_size} does not split into microbatches={microbatches} over mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}: it must be a multiple of {unit};"
            f" the nearest multiple is batch_size={fitting}"
        )


def param_rules() -> Table:
    """Return the table of (regex, PartitionSpec), with one row for each kind of parameter of the three architectures.

    If activations are multiplied by two matrices in turn, the first matrix splits its columns over `tensor`, and the
    second its rows. So one device computes both products for a head, or for a slice of the feed-forward width.
    """
    return (
        (r".*norm/(scale|bias)", P()),
        (r".*relative_bias/embedding", P()),
        (r"token_embedding/embedding", P("tensor", "fsdp")),  # V, D
        (r"token_type_embedding/embedding", P(None, "fsdp")),  # types, D
        (r".*/position_embedding/embedding", P(None, "fsdp")),  # positions, D
        (r"lm_head/kernel", P("fsdp", "tensor")),  # D, V
        (r"lm_head/bias", P("tensor")),  # V
        (r"(mlm_transform/dense|pooler)/kernel", P("fsdp", None)),  # D, D
        (r".*_attention/(query|key|value)/kernel", P(None, "fsdp", "tensor")),  # N, D, H·K
        (r".*_attention/output/kernel", P(None, "tensor", "fsdp")),  # N, H·K, D
        (r".*_attention/(query|key|value)/bias", P(None, "tensor")),  # N, H·K
        (r".*mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),  # N, D, F
        (r".*mlp/(gate|up)/bias", P(None, "tensor")),  # N, F
        (r".*mlp/down/kernel", P(None, "tensor", "fsdp")),  # N, F, D
        (r".*/bias", P()),
        (r"[^/]+/kernel", P("fsdp", None)),  # D, the outputs of a task's head
    )


def _list_axes(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def head_counts(config: ModelConfig) -> Table:
    """Return the table of (regex, number of heads in the columns or rows of a parameter; 0: no heads).

    With grouped queries, keys and values have fewer heads than queries. So keys and values may be replicated although
    queries are split.
    """
    return (
        (r".*_attention/(query|output)/.*", config.num_heads),
        (r".*_attention/(key|value)/.*", config.kv_heads),
        (r".*", 0),
    )


def _fit(spec: P, path: str, shape: tuple[int, ...], mesh: Mesh, heads: int) -> P:
    """Return `spec` with one entry for each dimension, without the axes that do not divide their dimension.

    Raises UserError for an axis that does not exist or occurs twice, and for a `spec` that is longer than `shape`.

    heads: the number of heads in the parameter, or 0. The axis `tensor` is used only if its size divides this number.
    """
    axes = [axis for entry in spec for axis in _list_axes(entry)]
    for axis in axes:
        if axis not in mesh.axis_names:
            raise UserError(
                f"sharding rules: the row for {path!r} names the mesh axis {axis!r}, which does not exist;"
                f" {nearest(axis, mesh.axis_names)}"
            )
    if len(spec) > len(shape) or len(set(axes)) < len(axes):
        raise UserError(f"sharding rules: {spec} for {path!r} is longer than its shape {shape} or names an axis twice")
    fitted = []
    for size, entry in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        fitting = ()
        for axis in _list_axes(entry):
            splits_heads = axis == "tensor" and heads % mesh.shape[axis] != 0
            if not splits_heads and size % math.prod(mesh.shape[a] for a in (*fitting, axis)) == 0:
                fitting += (axis,)
        fitted.append(fitting[0] if len(fitting) == 1 else fitting or None)
    return P(*fitted)


def params_shardings(params: Any, mesh: Mesh, config: ModelConfig, rules: Table | None = None) -> Any:
    """Return a tree like `params`, with the NamedSharding of each parameter.

    A dimension that a mesh axis does not divide is not split over this axis. So the same rules also fit small models.

    Args:
        params: arrays or their shapes.
        config: gives the numbers of heads. 6 heads on tensor=4 are replicated, although 6 · 64 columns could be split.
        rules: a table of (regex, PartitionSpec); None: `param_rules`.

    Raises:
        UserError: for a parameter that no row covers, for a row of `rules` that covers no parameter, and for a row with
            an axis that the mesh does not have.
    """
    table = match_table(param_rules() if rules is None else rules, params, "sharding rules", allow_unused=rules is None)
    specs = dict(flatten_with_paths(table))
    heads = dict(flatten_with_paths(match_table(head_counts(config), params, "heads", allow_unused=True)))

    def make_sharding(keys, p):
        path = join_path(keys)
        return NamedSharding(mesh, _fit(specs[path], path, p.shape, mesh, heads[path]))

    return jax.tree_util.tree_map_with_path(make_sharding, params)


def add_shardings(params: Any, mesh: Mesh, config: ModelConfig) -> Any:
    """Return a tree like `params`, of jax.ShapeDtypeStruct with the shardings of `param_rules`.

    params: arrays or their shapes. They may include parameters that the model of `config` does not have, such as other
    heads.
    """
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, params, params_shardings(params, mesh, config))


def sharded_shapes(config: ModelConfig, mesh: Mesh) -> Any:
    """Return `add_shardings` for all parameters of a model."""
    return add_shardings(parameter_shapes(config), mesh, config)


def _find_owner(path: str, params: Iterable[str]) -> str | None:
    """Return the parameter to which a leaf of the state belongs: the longest suffix of `path` that is in `params`.

    mu/encoder/final_norm/scale → encoder/final_norm/scale
    """
    parts = path.split("/")
    return next((tail for i in range(len(parts)) if (tail := "/".join(parts[i:])) in params), None)


def state_shardings(state: Any, mesh: Mesh, params: Any, config: ModelConfig, rules: Table | None = None) -> Any:
    """Return a tree like `state`, with the NamedSharding of each leaf.

    A leaf belongs to the parameter whose path is the end of the leaf's path. A leaf with the parameter's shape gets the
    parameter's sharding. Adafactor's v_row [..., R] and v_col [..., C] get the sharding without the dimension over
    which they average. All other leaves, such as counters, are replicated.

    Args:
        state: the state of an optimizer, or a whole TrainState: arrays or their shapes.
        params: arrays or their shapes.
    """
    shapes = {path: p.shape for path, p in flatten_with_paths(params)}
    specs = {
        path: sharding.spec for path, sharding in flatten_with_paths(params_shardings(params, mesh, config, rules))
    }

    def make_sharding(keys, leaf):
        path = join_path(keys)
        owner = _find_owner(path, shapes)
        if owner is None:
            return NamedSharding(mesh, P())
        shape, spec = shapes[owner], tuple(specs[owner])
        moment = path.removesuffix(f"/{owner}").rsplit("/", 1)[-1]
        if leaf.shape == shape:
            return NamedSharding(mesh, P(*spec))
        if moment == "v_row" and leaf.shape == shape[:-1]:
            return NamedSharding(mesh, P(*spec[:-1]))
        if moment == "v_col" and leaf.shape == shape[:-2] + shape[-1:]:
            return NamedSharding(mesh, P(*spec[:-2], spec[-1]))
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(make_sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: the leading axis over data and fsdp, replicated over tensor."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the sorted int64 indices of the rows of a batch that this process passes to `place_batch`, in this order.

    A single process gets all rows. If `tensor` spans several processes, these processes get the same rows.
    """
    rows = np.arange(batch_size)
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([rows[index] for index in shards]))


def place_batch(rows: Any, mesh: Mesh) -> Any:
    """Return global arrays [B, ...], split over the mesh.

    rows: a tree of NumPy arrays [len(local_rows), ...] with the rows of this process.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)

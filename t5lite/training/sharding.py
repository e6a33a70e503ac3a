"""Where arrays live: the mesh, a table of PartitionSpecs for the parameters, and the shardings that follow from it.

    axis     splits                                            traffic
    data     the batch                                         gradients are summed over it
    fsdp     the batch, and each parameter's model dimension   parameters are gathered, gradients scattered
    tensor   heads, the feed-forward width, the vocabulary     activations are summed, twice a block

A head stays whole: its kernels are split over `tensor` only where the size of `tensor` divides the number of heads.

(Zhao et al. 2023, PyTorch FSDP; Shoeybi et al. 2019, Megatron-LM.) Computation follows data: the jitted step is written
for one device, and XLA's partitioner inserts the traffic. Axis types are Auto, because under jax.make_mesh's default,
Explicit, with_sharding_constraint only asserts.

A parameter stacked over N layers is never split along N: scanning over a sharded axis would gather all of it.
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
from t5lite.training.tables import Table, flatten_with_paths, match_table, path_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with axes data, fsdp and tensor over `devices` (default: all), laid out as their network suggests.

    One of the sizes may be -1: all devices that remain. A single process may use fewer devices than there are; these
    are the first ones. Several processes must use all devices, because each process must own a part of every array.
    Raises UserError, naming mesh.data, mesh.fsdp and mesh.tensor, for sizes that do not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"{given}: each must be at least 1, and at most one of them -1 (the rest of the devices)")
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if len(devices) % known:
            raise UserError(f"{given}: {known} does not divide the {len(devices)} devices, so nothing fits for -1")
        sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    count = math.prod(sizes.values())
    one_process = len({device.process_index for device in devices}) == 1
    if count > len(devices) or (count < len(devices) and not one_process):
        raise UserError(
            f"{given}: they multiply to {count}, but there are {len(devices)} devices"
            f"{'' if one_process else ' in several processes, which must all take part'}; set one of them to -1"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raise UserError, naming the nearest batch size that fits, where data·fsdp does not divide a microbatch's rows."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatches < 1 or batch_size < 1:
        raise UserError(f"batch_size={batch_size}, microbatches={microbatches}: both must be at least 1")
    unit = microbatches * shards
    if batch_size % unit:
        fitting = max(1, round(batch_size / unit)) * unit
        raise UserError(
            f"batch_size={batch_size} does not split into microbatches={microbatches} over mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}: it must be a multiple of {unit};"
            f" the nearest is batch_size={fitting}"
        )


def param_rules() -> Table:
    """Return the table of (regex, PartitionSpec), with one row for each kind of parameter of the three architectures.

    Where two matrices are multiplied in turn, the first splits its columns over `tensor`, and the second its rows. So a
    head, or a slice of the feed-forward, stays on one device through both.
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
        (r"[^/]+/kernel", P("fsdp", None)),  # D, the outputs of a head
    )


def _axes_of(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def head_counts(config: ModelConfig) -> Table:
    """Return the table of (regex, heads): how many heads the columns or rows of a parameter consist of; 0: no heads.

    With grouped queries, keys and values have fewer heads than queries. They may then be replicated while queries are
    split.
    """
    return (
        (r".*_attention/(query|output)/.*", config.num_heads),
        (r".*_attention/(key|value)/.*", config.kv_heads),
        (r".*", 0),
    )


def _fit(spec: P, path: str, shape: tuple[int, ...], mesh: Mesh, heads: int) -> P:
    """Return `spec` with one entry a dimension, without the axes that do not divide their dimension.

    Raises UserError for an axis that does not exist or occurs twice, and for a `spec` that is longer than `shape`.

    heads: the number of heads in the parameter, which `tensor` must divide; 0 for none.
    """
    axes = [axis for entry in spec for axis in _axes_of(entry)]
    for axis in axes:
        if axis not in mesh.axis_names:
            raise UserError(
                f"sharding rules: {path!r} names the mesh axis {axis!r}, which does not exist;"
                f" {nearest(axis, mesh.axis_names)}"
            )
    if len(spec) > len(shape) or len(set(axes)) < len(axes):
        raise UserError(f"sharding rules: {spec} for {path!r} is longer than its shape {shape} or names an axis twice")
    fitted = []
    for size, entry in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        kept = ()
        for axis in _axes_of(entry):
            splits_heads = axis == "tensor" and heads % mesh.shape[axis] != 0
            if not splits_heads and size % math.prod(mesh.shape[a] for a in (*kept, axis)) == 0:
                kept += (axis,)
        fitted.append(kept[0] if len(kept) == 1 else kept or None)
    return P(*fitted)


def params_shardings(params: Any, mesh: Mesh, config: ModelConfig, rules: Table | None = None) -> Any:
    """Return the tree of NamedShardings that `rules` (default: `param_rules`) give to `params`, arrays or their shapes.

    A dimension that a mesh axis does not divide is not split over that axis, so the same rules serve small models.
    `config` has the numbers of heads: 6 heads on tensor=4 are replicated, although 6 · 64 columns could be split.
    Raises UserError for a parameter that no row covers, for a row of given `rules` that covers no parameter, and for a
    row with an axis that the mesh does not have.
    """
    table = match_table(param_rules() if rules is None else rules, params, "sharding rules", allow_unused=rules is None)
    specs = dict(flatten_with_paths(table))
    heads = dict(flatten_with_paths(match_table(head_counts(config), params, "heads", allow_unused=True)))

    def sharding(keys, p):
        path = path_of(keys)
        return NamedSharding(mesh, _fit(specs[path], path, p.shape, mesh, heads[path]))

    return jax.tree_util.tree_map_with_path(sharding, params)


def add_shardings(params: Any, mesh: Mesh, config: ModelConfig) -> Any:
    """Return the shapes of `params`, arrays or their shapes, as jax.ShapeDtypeStruct with the shardings of the rules.

    config: the model's. `params` may hold further parameters, such as other heads.
    """
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, params, params_shardings(params, mesh, config))


def sharded_shapes(config: ModelConfig, mesh: Mesh) -> Any:
    """Return `add_shardings` for all parameters of a model."""
    return add_shardings(parameter_shapes(config), mesh, config)


def _find_owner(path: str, params: Iterable[str]) -> str | None:
    """Return the parameter that is the longest suffix of a state path: …/mu/encoder/final_norm/scale → encoder/…"""
    parts = path.split("/")
    return next((tail for i in range(len(parts)) if (tail := "/".join(parts[i:])) in params), None)


def state_shardings(state: Any, mesh: Mesh, params: Any, config: ModelConfig, rules: Table | None = None) -> Any:
    """Return the tree of NamedShardings for an optimizer's `state`, or for a whole train state around it.

    `state` and `params` are arrays or their shapes. A leaf belongs to the parameter whose path ends the leaf's path. A
    leaf with the parameter's shape gets the parameter's sharding. Adafactor's v_row [..., R] and v_col [..., C] get the
    sharding without the dimension that they average over. All other leaves, such as counters, are replicated.
    """
    shapes = {path: p.shape for path, p in flatten_with_paths(params)}
    specs = {
        path: sharding.spec for path, sharding in flatten_with_paths(params_shardings(params, mesh, config, rules))
    }

    def sharding(keys, leaf):
        path = path_of(keys)
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

    return jax.tree_util.tree_map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: the leading axis over data and fsdp, replicated over tensor."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return int64, sorted: the rows of a batch that this process hands to `put_batch`, in that order.

    A single process gets all rows. Processes that share rows, such as those joined by `tensor`, get the same ones.
    """
    rows = np.arange(batch_size)
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([rows[index] for index in shards]))


def put_batch(rows: Any, mesh: Mesh) -> Any:
    """Return global arrays [B, ...] from a tree of NumPy arrays [len(local_rows), ...], the rows of this process."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)

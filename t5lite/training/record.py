"""The record of a checkpoint: a file that describes all arrays of the checkpoint, so that damage is detected.

    checkpoints/60/record/metadata
    {"sha256": "5f2a…", "record": {
        "format": 1,
        "step": 60,
        "progress": {"tokens": 19200.0, "seconds": 31.5},
        "metrics": {"validation/loss": 3.21, …},          from the evaluation at this step; {} if there was none
        "leaves": {"params/encoder/final_norm/scale": {"shape": [32], "dtype": "float32", "checksum": 310249090}, …}}}

`sha256` is the digest of the record as JSON with sorted keys and no spaces. All future formats will have the keys
"sha256" and "record", but the content of the record may change.

The checksum of an array is computed on the device that holds the array:

    sum over all elements of mix(bits ^ mix(place))   mod 2³²

`place` is the index of the element in the whole array in C order. `mix` is a one-to-one map of 32 bits with outputs
that look random (MurmurHash3's finalizer, Appleby 2016). So a change of a single element is always detected. Any other
change is detected with probability 1 − 2⁻³². A sum of integers that wraps does not depend on the order, so the checksum
does not depend on the mesh or the number of hosts.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.system.errors import UserError
from t5lite.system.files import FORMAT, check_format, replace_non_finite
from t5lite.training.tables import flatten_with_paths

Array = jax.Array
ITEM = "record"
FILE = "metadata"  # Orbax's name for the file of a JSON item


class DamagedCheckpoint(UserError):
    """A checkpoint is damaged. An earlier checkpoint may be intact. The message names the damaged part."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of a checkpoint: shape, name of the dtype, checksum."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of one checkpoint; the module's docstring describes the fields."""

    step: int
    progress: dict[str, Any]
    metrics: dict[str, float | None]
    leaves: dict[str, Leaf]

    @property
    def params_item(self) -> str:
        """The item to read for any use except resuming: "average" if the checkpoint has one, else "params".

        Evaluation, generation, averages over checkpoints and later runs all follow this rule.
        """
        return "average" if any(path.startswith("average/") for path in self.leaves) else "params"

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Return {path: shape} for the arrays of an item."""
        return {
            path.removeprefix(f"{item}/"): leaf.shape
            for path, leaf in self.leaves.items()
            if path.startswith(f"{item}/")
        }


def describe_leaves(items: Any) -> dict[str, Leaf]:
    """Return {path: Leaf} for all arrays in `items`, a dict {item: tree}."""
    sums = compute_checksums(items)
    return {path: Leaf(tuple(x.shape), str(x.dtype), sums[path]) for path, x in flatten_with_paths(items)}


def seal(record: Record) -> dict[str, Any]:
    """Return the record and its digest as JSON values, as in the module's docstring."""
    content = replace_non_finite({"format": FORMAT, **dataclasses.asdict(record)})
    return {"sha256": _digest(content), "record": content}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_record(checkpoint: Path) -> Record:
    """Return the record of the checkpoint in the folder `checkpoint`.

    Raises:
        DamagedCheckpoint: if the file is missing, is not a record, does not match its digest, or is of another step.
        UserError: if reading is not permitted, or if another version of t5lite wrote another format.
    """
    path = checkpoint / ITEM / FILE
    try:
        envelope = json.loads(path.read_bytes())
        content = envelope["record"]
        intact = envelope["sha256"] == _digest(content)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (checkpoint / "progress").is_dir():
            raise UserError(
                f"{checkpoint} has the format of an older t5lite, without checksums; use that version, or train anew"
            ) from error
        raise DamagedCheckpoint(f"{ITEM}/{FILE}: {error!r}") from error
    if not intact:
        raise DamagedCheckpoint(f"{ITEM}/{FILE} does not have the digest that it was written with")
    check_format(content["format"], str(checkpoint))
    leaves = {
        path: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"]) for path, leaf in content["leaves"].items()
    }
    record = Record(content["step"], content["progress"], content["metrics"], leaves)
    if str(record.step) != checkpoint.name:
        raise DamagedCheckpoint(f"the folder is named {checkpoint.name}, but it was saved at step {record.step}")
    return record


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(x: Array) -> Array:
    """Return the bits of `x` as uint32, in the shape of `x`. An 8-byte element gives two numbers on a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)


@jax.jit
def compute_checksum(x: Array) -> Array:
    """Return the checksum of an array of numbers or booleans: a uint32 scalar."""
    bits, place, stride = _bits(x), jnp.uint32(0), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits ^ _mix(place)), dtype=jnp.uint32)


def compute_checksums(tree: Any) -> dict[str, int]:
    """Return {path: checksum} for the arrays of a tree. The device computes all of them before the host reads them."""
    computed = jax.device_get({path: compute_checksum(leaf) for path, leaf in flatten_with_paths(tree)})
    return {path: int(value) for path, value in computed.items()}

"""Read tensors one by one from a folder of safetensors files, and write tensors one by one to another folder.

    config.json
    model.safetensors                                     or model-00001-of-00002.safetensors … and
    model.safetensors.index.json                          {"weight_map": {tensor name: file}}

Nothing here holds more than one tensor at a time. A file is a header (8 bytes of length, then JSON: name -> dtype,
shape and offsets) and the tensors' little-endian bytes. Format: https://github.com/huggingface/safetensors. The
safetensors library reads the files. It holds all tensors when it writes, so this module has its own writer.
"""

import contextlib
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from t5lite.system.errors import UserError
from t5lite.system.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FILE_DTYPES = {name: short for short, name in NAMES.items()}
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt.index", "tf_model.h5", "flax_model.msgpack")
SHARD_BYTES = 5 * 10**9
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: the name of the dtype in the file, for example F32."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    def span(self, name: str) -> tuple[int, int]:
        """Return (first byte, byte after the last) of the tensor `name` in the file."""
        with self.file.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            return tuple(8 + length + offset for offset in json.loads(file.read(length))[name]["data_offsets"])

    def bytes(self, name: str) -> bytes:
        """Return the unchanged bytes of the tensor `name` in the file. Every dtype is possible."""
        start, end = self.span(name)
        with self.file.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


class TensorFolder:
    """The tensors of a folder of released weights. The folder is listed at once; `read` reads the values of a tensor.

    tensors: {name: place in a file}.
    other_names: {name: the stored tensor with the same values}, from the files' metadata.

    Raises UserError for a folder without weights, a damaged file, a file that lacks a tensor of the index, and weights
    in a pickle: reading a pickle can run code.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self.other_names: dict[str, str] = {}
        for file, names in _list_files(folder).items():
            with _open_tensors(file) as opened:
                present = set(opened.keys())
                self.other_names |= opened.metadata() or {}
                if names is not None and names - present:
                    raise UserError(
                        f"{file}: lacks {min(names - present)}, although {INDEX} lists it there; fetch it anew"
                    )
                for name in sorted(present if names is None else names):
                    view = opened.get_slice(name)
                    self.tensors[name] = StoredTensor(file, view.get_dtype(), tuple(view.get_shape()))
        tensors = self.tensors
        self.other_names = {a: b for a, b in self.other_names.items() if b in tensors and a not in tensors}

    def read(self, name: str) -> np.ndarray:
        """Return the tensor in its stored dtype. Raises UserError for a dtype that NAMES lacks, such as integers."""
        stored = self.tensors[name]
        if stored.dtype not in NAMES:
            raise UserError(
                f"{stored.file}: {name} has the dtype {stored.dtype}, which is not supported; known: {', '.join(NAMES)}"
            )
        with _open_tensors(stored.file) as opened:
            return opened.get_tensor(name)


def _list_files(folder: Path) -> dict[Path, set[str] | None]:
    """Return {file: names of its tensors in the index}. Without an index: {the only file: None}.

    Raises UserError for missing weights.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder with config.json and {SINGLE}")
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    index = read_json(folder / INDEX, "fetch it anew", {"weight_map": dict})
    if index is None:
        pickles = [name for name in PICKLES if (folder / name).exists()] or sorted(folder.glob("*.bin"))[:1]
        if pickles:
            raise UserError(
                f"{folder} holds weights only as {Path(pickles[0]).name}. This format is refused, because reading it "
                f"can run code. Make {SINGLE} from it, where transformers is installed: "
                "AutoModel.from_pretrained(…).save_pretrained(…)"
            )
        raise UserError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}; fetch the weights")
    files: dict[Path, set[str] | None] = {}
    for name, file in index["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{folder / INDEX} is damaged (it should hold names of files); fetch it anew")
        files.setdefault(folder / file, set()).add(name)
    return files


@contextlib.contextmanager
def _open_tensors(file: Path) -> Iterator[safetensors.safe_open]:
    if not file.is_file():
        raise UserError(f"{file} is missing; fetch it anew")
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            yield opened
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); fetch it anew") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error


@dataclasses.dataclass(frozen=True)
class TensorToWrite:
    """A tensor to write. make() returns the values, in any dtype, when they are needed.

    dtype: a name in DTYPES; None: the dtype of the other tensors.
    stored: the name of the dtype in the file, for example I64. Then make() returns bytes, and `size` is their number.
        None: make() returns an array.
    """

    shape: tuple[int, ...]
    make: Callable[[], Any]
    dtype: str | None = None
    stored: str | None = None
    size: int = 0

    def layout(self, default: str) -> tuple[str, int]:
        """Return (name of the dtype in the file, number of bytes). default: the dtype of the other tensors."""
        if self.stored is not None:
            return self.stored, self.size
        dtype = self.dtype or default
        return FILE_DTYPES[dtype], math.prod(self.shape) * DTYPES[dtype].itemsize


def write_tensors(
    folder: Path, tensors: Mapping[str, TensorToWrite], dtype: str, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write the tensors in their order, in files of about `shard_bytes`, and return the files.

    dtype: a name in DTYPES, for tensors without their own dtype. Several files get an index. The caller makes the
    folder before, and gives it its final name after.
    """
    sizes = {name: tensor.layout(dtype)[1] for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        _write_file(folder / SINGLE, tensors, shards[0], dtype)
        return [folder / SINGLE]
    files = [folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_file(file, tensors, names, dtype)
    weight_map = {name: file.name for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return files


def _write_file(file: Path, tensors: Mapping[str, TensorToWrite], names: Sequence[str], dtype: str) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        short, size = tensors[name].layout(dtype)
        header[name] = {"dtype": short, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(len(encoded) + 8) % ALIGNMENT)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            out.write(_make_bytes(name, tensors[name], dtype))


def _make_bytes(name: str, tensor: TensorToWrite, dtype: str) -> Any:
    """Return the bytes to write for a tensor."""
    content = tensor.make()
    if tensor.stored is not None:
        return content
    values = np.asarray(content)
    if values.shape != tensor.shape:
        raise ValueError(f"{name} has the shape {values.shape}, but the header says {tensor.shape}")
    values = np.ascontiguousarray(values.astype(DTYPES[tensor.dtype or dtype], copy=False))
    return values.reshape(-1).view(np.uint8).data  # as uint8, because bfloat16 has no buffer protocol

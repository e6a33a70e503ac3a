"""Write the parameters of a Transformer as a folder that transformers loads.

write_released(folder, config, params, "bfloat16")
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.interop.dropout import make_rates
from t5lite.interop.family import Entry, Family, Json, Shape, list_shapes, tensor_shape
from t5lite.interop.names import CONFIG
from t5lite.interop.released import ALL
from t5lite.interop.tensors import SHARD_BYTES, TensorToWrite, write_tensors
from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError


def describe(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """Return (the model's family, the fields of config.json). Raises UserError if no family has this shape."""
    reasons = []
    for family in ALL:
        try:
            return family, family.to_json(config) | make_rates(config.dropout_by_place, family.dropout)
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"no family of released models has the shape of config.model: {'; '.join(reasons)}")


def write_released(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    dtype: str = "float32",
    json_fields: Json | None = None,
    shard_bytes: int = SHARD_BYTES,
    fetch: Callable[[Any], np.ndarray] = np.asarray,
) -> None:
    """Write config.json and the weights into `folder`, so that transformers can load it.

    Args:
        params: {path: array}.
        dtype: the dtype of the tensors: "float32", "float16" or "bfloat16".
        json_fields: further fields of config.json, for example the ids of tokens.
        shard_bytes: the approximate size of a file.
        fetch: moves an array of `params` to the host.

    Raises UserError for a model that belongs to no family.
    """
    family, fields = describe(config)
    tensors = make_tensors(family.entries(config), list_shapes(config), params, fetch)
    fields |= {"dtype": dtype, **(json_fields or {})}
    if "id2label" in fields:
        fields["label2id"] = {name: int(i) for i, name in fields["id2label"].items()}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    write_tensors(folder, tensors, dtype, shard_bytes)


def make_tensors(
    entries: list[Entry],
    shapes: Mapping[str, Shape],
    params: Mapping[str, Any],
    fetch: Callable[[Any], np.ndarray] = np.asarray,
) -> dict[str, TensorToWrite]:
    """Return {name in the family's table: tensor} for the parameters in `entries`. shapes: {path: shape}."""
    fetch_cached = functools.lru_cache(4)(lambda path: fetch(params[path]))
    groups: dict[str, list[Entry]] = {}  # {tensor: the entries that share it}
    for entry in entries:
        groups.setdefault(entry.tensor, []).append(entry)
    tensors: dict[str, TensorToWrite] = {}
    for tensor, group in groups.items():
        shape = shapes[group[0].path]
        for layer in range(shape[0]) if group[0].stacked else (None,):
            make = functools.partial(_join, group, layer, fetch_cached)
            tensors[tensor.format(n=layer)] = TensorToWrite(tensor_shape(group[0], shape), make)
    return tensors


def _join(group: list[Entry], layer: int | None, fetch: Callable[[str], np.ndarray]) -> np.ndarray:
    """Return the values of a tensor, from the parameters that share it. layer: the layer; None: not stacked."""
    parts = [entry.to_tensor(fetch(entry.path) if layer is None else fetch(entry.path)[layer]) for entry in group]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

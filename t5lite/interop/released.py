"""Released weights, read and written: a folder as transformers writes it, and the parameters of a Transformer.

    released = open_released(Path("t5-small"))        config.json understood, every tensor accounted for
    released.model                                    the ModelConfig
    released.read("encoder/final_norm/scale")         one parameter, float32, on the host
    write_released(folder, config, params, "bfloat16")

No tensor is dropped or made up in silence: what has no place, does not fit, or is missing is an error that names it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.checks import RANGES
from t5lite.errors import UserError
from t5lite.files import read_json
from t5lite.interop.bart import BART
from t5lite.interop.bert import BERT
from t5lite.interop.dropout import rates_json, read_places, read_rates
from t5lite.interop.family import Entry, Family, Json
from t5lite.interop.gpt2 import GPT2
from t5lite.interop.llama import LLAMA
from t5lite.interop.t5 import T5
from t5lite.interop.tensors import NAMES, SHARD_BYTES, TensorFolder, ToWrite, write_tensors
from t5lite.model.config import ModelConfig
from t5lite.model.transformer import parameter_shapes

FAMILIES: dict[str, Family] = {
    model_type: family for family in (T5, BART, BERT, GPT2, LLAMA) for model_type in family.model_types
}
CONFIG = "config.json"
SCHEME = "hf:"


class Row(NamedTuple):
    """Where a parameter comes from: its path, and how each of its tensors is called in the files, layer by layer."""

    ours: str
    entry: Entry
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Released:
    """An opened folder of released weights. fields: values of a config's `model`. rows: {path: where it comes from}.

    repeated, ignored: names of tensors that hold what another does, or no parameters.
    """

    folder: Path
    json: Json
    family: Family
    fields: dict[str, Any]
    model: ModelConfig
    tensors: TensorFolder
    rows: dict[str, Row]
    repeated: tuple[str, ...]
    ignored: tuple[str, ...]

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        return _shapes(self.model)

    @property
    def dtype(self) -> str:
        """That of the stored tensors, of the widest where there are several."""
        stored = {self.tensors.tensors[name].dtype for row in self.rows.values() for name in row.names}
        return next(NAMES[short] for short in NAMES if short in stored)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes of its head for labels, in their order."""
        named = self.json.get("id2label")
        if not isinstance(named, Mapping) or not (self.model.heads.classifier or self.model.heads.tagger):
            return None
        try:
            return tuple(str(named[i]) for i in sorted(named, key=int))
        except ValueError as error:
            raise UserError(f"{self.folder / CONFIG}: id2label should have numbers for names ({error})") from error

    @property
    def dropout(self) -> dict[str, float]:
        """What config.json says of dropout, {field: rate}."""
        return read_rates(self.json, self.family.dropout)

    def read(self, path: str) -> np.ndarray:
        """A parameter, float32, with the layers stacked; one tensor beside it in memory."""
        row, values = self.rows[path], np.zeros(self.shapes[path], np.float32)
        for layer, name in enumerate(row.names):
            place = values[layer] if row.entry.stacked else values
            place[...] = row.entry.to_ours(self.tensors.read(name))
        return values


def is_released(place: str | Path) -> bool:
    """Whether it is `hf:DIR`, and no workdir."""
    return str(place).startswith(SCHEME)


def folder_of(place: str | Path) -> Path:
    """DIR of `hf:DIR`."""
    return Path(str(place).removeprefix(SCHEME))


def read_released_json(folder: Path) -> tuple[Json, Family]:
    """config.json and the family that it names. UserError where there is none, or an unknown one."""
    said = read_json(folder / CONFIG, "fetch it anew")
    if said is None:
        raise UserError(f"{folder} holds no {CONFIG}: it is no folder of released weights")
    model_type = said.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{folder / CONFIG}: model_type {model_type!r} is not supported; known: {known}")
    return said, FAMILIES[model_type]


def open_released(folder: Path) -> Released:
    """Read config.json and the names and shapes of all tensors; their values wait until they are asked for."""
    said, family = read_released_json(folder)
    tensors = TensorFolder(folder)
    names = {family.name_of(name): name for name in tensors.tensors}
    try:
        fields = family.fields(said, names) | {"dropout_places": read_places(said, family.dropout)}
        _check_ranges(fields)
        model = ModelConfig(**{name: value for name, value in fields.items() if name != "architecture"})
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    ignored = tuple(file for name, file in names.items() if family.ignores(name))
    left = {name: file for name, file in names.items() if not family.ignores(name)}
    rows = {}
    for entry in family.entries(model):
        layers = _shapes(model)[entry.ours][0] if entry.stacked else 1
        wanted = [entry.theirs.format(n=layer) if entry.stacked else entry.theirs for layer in range(layers)]
        lacking = next((name for name in wanted if name not in names), None)
        if lacking is not None and not entry.optional:
            raise UserError(f"{folder}: the weights lack {lacking}, which {CONFIG} asks for; fetch them anew")
        rows[entry.ours] = Row(entry.ours, entry, () if lacking else tuple(names[name] for name in wanted))
        for name in wanted:
            left.pop(name, None)
    released = Released(folder, said, family, fields, model, tensors, rows, (), ignored)
    _check_shapes(released)
    return dataclasses.replace(released, repeated=_repeated(released, names, left))


def _check_ranges(fields: Mapping[str, Any]) -> None:
    """UserError for a number that a config of ours could not have either."""
    for name, value in fields.items():
        least, most = RANGES.get(f"model.{name}", (None, None))
        if least is not None and value is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not least <= value <= most:
                shown = f"{value!r}"[:40]
                raise UserError(f"{CONFIG}: model.{name} would be {shown}, which is not from {least:,} to {most:,}")


@functools.lru_cache(8)
def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(parameter_shapes(model))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _their_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor that holds a parameter, or a layer of it, of this shape."""
    shape = shape[1:] if entry.stacked else shape
    shape = shape[::-1] if entry.transposed else shape
    if entry.part is not None:
        shape = (*shape[:-1], shape[-1] * entry.part[1])
    return (1, *shape) if entry.row else shape


def _check_shapes(released: Released) -> None:
    if missing := released.shapes.keys() - released.rows.keys():
        raise ValueError(f"the family's table has no row for {min(missing)}")
    for path, row in released.rows.items():
        expected = _their_shape(row.entry, released.shapes[path])
        for name in row.names:
            stored = released.tensors.tensors[name]
            if stored.shape != expected:
                raise UserError(
                    f"{stored.file}: {name} is {list(stored.shape)}, but by {CONFIG} it should be {list(expected)}"
                )


def _repeated(released: Released, names: Mapping[str, str], left: Mapping[str, str]) -> tuple[str, ...]:
    """The names of tensors that repeat another, as they must. UserError for any that has no place at all."""
    for name, file in left.items():
        original = names.get(released.family.twice.get(name, ""))
        if original is None:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UserError(f"{released.folder}: the tensor {file}{more} has no place in {released.json['model_type']}")
        if not np.array_equal(released.tensors.read(file), released.tensors.read(original)):
            raise UserError(
                f"{released.folder}: {file} should repeat {original}, which {CONFIG} ties it to, but differs"
            )
    return tuple(left.values())


def load_parameters(released: Released, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """{path: array} of the paths of `like`, placed by its shardings, one parameter at a time on the host."""
    arrays = {}
    for path, leaf in like.items():
        if leaf.shape != released.shapes[path]:
            raise UserError(f"{path} is {released.shapes[path]} in {released.folder}, wanted is {leaf.shape}")
        arrays[path] = jax.device_put(released.read(path), leaf.sharding)
    return arrays


def describe(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that a model belongs to and what config.json says of it. UserError where it belongs to none."""
    reasons = []
    for family in (T5, BART, BERT, GPT2, LLAMA):
        try:
            return family, family.to_json(config) | rates_json(config, family.dropout)
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"no family of released models has this shape: {'; '.join(reasons)}")


def write_released(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    dtype: str = "float32",
    more: Json | None = None,
    shard_bytes: int = SHARD_BYTES,
    fetch: Callable[[Any], np.ndarray] = np.asarray,
) -> None:
    """Write config.json and the weights into `folder`, which transformers then loads.

    params: {path: array}. more: further fields of config.json, the ids of tokens among them. fetch: from an array of
    `params` to the host. Raises UserError for a model that no family has.
    """
    family, said = describe(config)
    fetched = functools.lru_cache(4)(lambda path: fetch(params[path]))
    tensors: dict[str, ToWrite] = {}
    for theirs, group in _grouped(family.entries(config)):
        shape = _shapes(config)[group[0].ours]
        for layer in range(shape[0]) if group[0].stacked else (None,):
            name = theirs if layer is None else theirs.format(n=layer)
            make = functools.partial(_join, group, layer, fetched)
            tensors[name] = ToWrite(_their_shape(group[0], shape), make)
    (folder / CONFIG).write_text(json.dumps({**said, "dtype": dtype, **(more or {})}, indent=2) + "\n")
    write_tensors(folder, tensors, dtype, shard_bytes)


def _grouped(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """(name of a tensor, the entries that share it)."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.theirs, []).append(entry)
    yield from groups.items()


def _join(group: list[Entry], layer: int | None, fetched: Callable[[str], np.ndarray]) -> np.ndarray:
    parts = [entry.to_theirs(fetched(entry.ours) if layer is None else fetched(entry.ours)[layer]) for entry in group]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

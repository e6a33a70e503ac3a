"""Read released weights: turn a folder that transformers wrote into the parameters of a Transformer.

    released = open_released(Path("t5-small"))        reads config.json, and the names and shapes of all tensors
    released.model                                    the ModelConfig
    released.read("encoder/final_norm/scale")         one parameter, float32, on the host

Each tensor is one of these:

    parameter            it belongs to `released.model`, or to a part that another run can use (BERT's pooler)
    repetition           it repeats another tensor, such as a tied head; the two must be equal, and one may be missing
    kept                 it belongs to a head that no model here has (question answering), or is a computed buffer
    unknown              an error names it

A whole part may be missing if the class in config.json has no such part: T5EncoderModel has no decoder.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.checks import RANGES
from t5lite.interop.bart import BART
from t5lite.interop.bert import BERT
from t5lite.interop.dropout import read_fields, read_rates
from t5lite.interop.family import Entry, Family, Json, Shape, list_shapes, name_part, tensor_names, tensor_shape
from t5lite.interop.gpt2 import GPT2
from t5lite.interop.labels import read_label_names
from t5lite.interop.llama import LLAMA
from t5lite.interop.names import CONFIG, Names
from t5lite.interop.t5 import HEAD, T5
from t5lite.interop.tensors import NAMES, TensorFolder
from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError
from t5lite.system.files import read_json
from t5lite.tasks.table import TASKS

ALL = (T5, BART, BERT, GPT2, LLAMA)
FAMILIES: dict[str, Family] = {model_type: family for family in ALL for model_type in family.model_types}
SCHEME = "hf:"


class Row(NamedTuple):
    """The source of a parameter. names: its tensors in the files, one for each layer; () if the files lack them."""

    entry: Entry
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Released:
    """An opened folder of released weights.

    Args:
        kind: the end of the class name in config.json, such as "ForMaskedLM"; see `Family`.
        fields: values of a config's `model`.
        rows: {path: source}, for all parameters that the files hold, and for optional ones that they lack
            (read as 0).
        shapes: {path: shape}, for the same parameters.
        lacking: the parameters of `model` that the files do not hold.
        repeated: {name: name of the tensor with the same values}.
        heads: names of tensors of heads that no model here has.
        buffers: names of computed tensors.
    """

    folder: Path
    json: Json
    family: Family
    kind: str
    fields: dict[str, Any]
    model: ModelConfig
    tensors: TensorFolder
    rows: dict[str, Row]
    shapes: dict[str, Shape]
    lacking: tuple[str, ...] = ()
    repeated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The dtype of the stored tensors; the first one in NAMES if there are several."""
        stored = {self.tensors.tensors[name].dtype for row in self.rows.values() for name in row.names}
        return next(NAMES[short] for short in NAMES if short in stored)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the labels, by index, if the weights have a head with labels; else None."""
        rows = next((head.size for head in self.model.heads.others if TASKS[head.name].has_labels), 0)
        return read_label_names(self.json, rows) if rows else None

    @property
    def refusal(self) -> str | None:
        """The reason why no model here can use the weights' head; None if one can. Missing parts are not checked."""
        return self.family.refusal(self.kind, self.json)

    @property
    def dropout(self) -> dict[str, float]:
        """{field: rate}: config.json's rates of dropout."""
        return read_rates(self.json, self.family.dropout)

    def read(self, path: str) -> np.ndarray:
        """Return a parameter, float32, with its layers stacked. Tensors are read one at a time, to save memory."""
        row, values = self.rows[path], np.zeros(self.shapes[path], np.float32)
        for layer, name in enumerate(row.names):
            place = values[layer] if row.entry.stacked else values
            place[...] = row.entry.to_parameter(self.tensors.read(name))
        return values


def is_released(place: str | Path) -> bool:
    """Return whether `place` is `hf:DIR`, and not a workdir."""
    return str(place).startswith(SCHEME)


def get_folder(place: str | Path) -> Path:
    """Return DIR for `hf:DIR`."""
    return Path(str(place).removeprefix(SCHEME))


def read_released_json(folder: Path) -> tuple[Json, Family]:
    """Return config.json and its family. Raises UserError if there is no file, or an unknown family."""
    json = read_json(folder / CONFIG, "fetch it anew")
    if json is None:
        raise UserError(f"{folder} holds no {CONFIG}, so it is not a folder of released weights; give another folder")
    model_type = json.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{folder / CONFIG}: model_type {model_type!r} is not supported; known: {known}")
    return json, FAMILIES[model_type]


def open_released(folder: Path) -> Released:
    """Open a folder: read config.json, and the names and shapes of all tensors. Values are read later.

    Raises UserError for a folder that does not fit its config.json, and for unknown tensors.
    """
    json, family = read_released_json(folder)
    tensors = TensorFolder(folder)
    names = Names(family, tensors)
    try:
        kind = family.find_kind(json, names.stored_names)
        # T5's head does not count if it only repeats the embedding that config.json ties it to.
        is_tied = family.ties(json) and names.is_redundant(HEAD)
        fields = family.fields(json, names.shapes(exclude=HEAD if is_tied else None))
        fields |= read_fields(json, family.dropout)
        _check_ranges(fields)
        model = ModelConfig(**{name: value for name, value in fields.items() if name != "architecture"})
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    models = (model, *family.more_parts(model))
    names.resolve({name for each in models for entry in family.entries(each) for name in tensor_names(entry, each)})
    _check_kind(folder, family, kind, names)
    rows, lacking = _match_tensors(family, kind, models, names)
    released = Released(
        folder, json, family, kind, fields, model, tensors, rows, _find_shapes(models, rows, lacking), lacking
    )
    _check_shapes(released)
    names.check_repetitions()
    repeated = dict(names.repeated)
    heads, buffers = _sort_unused_tensors(
        released, {name for row in rows.values() for name in row.names} | repeated.keys()
    )
    return dataclasses.replace(released, repeated=repeated, heads=heads, buffers=buffers)


def _check_kind(folder: Path, family: Family, kind: str, names: Names) -> None:
    """Raise UserError for weights that lack a tensor of the class that config.json names."""
    lacking = next((name for name in family.needed_tensors.get(kind, ()) if name not in names.stored_names), None)
    if lacking is not None:
        raise UserError(
            f"{folder / CONFIG}: the field `architectures` says {kind}, but the weights lack {lacking}; correct the "
            "field, or fetch the weights anew"
        )


def _match_tensors(
    family: Family, kind: str, models: Sequence[ModelConfig], names: Names
) -> tuple[dict[str, Row], tuple[str, ...]]:
    """Return ({path: Row}, sorted paths of the parameters in missing parts).

    The second list has parameters of `models[0]` only. A parameter may be missing only if its whole part is missing, or
    if its entry is optional. A missing optional parameter gets a Row without names.

    Raises UserError if a part is incomplete, or if the kind needs a part that is missing.
    """
    rows: dict[str, Row] = {}
    missing: dict[str, dict[str, str]] = {}  # {part: {path: a tensor that it lacks}}
    for model in models:
        for entry in family.entries(model):
            wanted = tensor_names(entry, model)
            absent = next((name for name in wanted if name not in names.stored_names), None)
            if absent is None or entry.optional:
                rows[entry.path] = Row(entry, () if absent else tuple(map(names.stored_names.get, wanted)))
            elif any(name in names.stored_names for name in wanted):
                raise names.missing_error(absent)
            else:
                missing.setdefault(name_part(entry.path), {})[entry.path] = absent
    main_paths = {entry.path for entry in family.entries(models[0])}
    for part, paths in missing.items():
        is_absent = not any(name_part(path) == part for path, row in rows.items() if row.names)
        missing_main = [path for path in paths if path in main_paths]
        if not is_absent or (missing_main and part not in family.kinds.get(kind, ())):
            raise names.missing_error(next(iter(paths.values())))
        rows = {path: row for path, row in rows.items() if name_part(path) != part}
    return rows, tuple(sorted(path for paths in missing.values() for path in paths if path in main_paths))


def _sort_unused_tensors(released: Released, used: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (tensors of heads that no model here has, buffers). Raises UserError for any other unused tensor."""
    family, unused = released.family, [name for name in released.tensors.tensors if name not in used]
    buffers = tuple(name for name in unused if family.is_buffer(family.rename(name)))
    heads = tuple(name for name in unused if name not in buffers and family.kind_of_head(family.rename(name)))
    unknown = [name for name in unused if name not in buffers and name not in heads]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        model_type = released.json["model_type"]
        raise UserError(
            f"{released.folder}: the tensor {unknown[0]}{more} is unknown to {model_type}; remove it, or correct "
            f"{CONFIG}"
        )
    return heads, buffers


def _check_ranges(fields: Mapping[str, Any]) -> None:
    """Raise UserError for a number outside the range of its field in a config."""
    for name, value in fields.items():
        least, most = RANGES.get(f"model.{name}", (None, None))
        if least is not None and value is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not least <= value <= most:
                shown = f"{value!r}"[:40]
                raise UserError(
                    f"{CONFIG}: config.model.{name} would be {shown}, but it must be from {least:,} to {most:,}"
                )


def _find_shapes(models: Sequence[ModelConfig], rows: Mapping[str, Row], lacking: Collection[str]) -> dict[str, Shape]:
    """Return the shape of each parameter in `rows`. At least one of the models has that parameter."""
    known = {path: shape for model in reversed(models) for path, shape in list_shapes(model).items()}
    if missing := list_shapes(models[0]).keys() - rows.keys() - set(lacking):
        raise ValueError(f"the family's table has no row for {min(missing)}")
    return {path: known[path] for path in rows}


def _check_shapes(released: Released) -> None:
    for path, row in released.rows.items():
        expected = tensor_shape(row.entry, released.shapes[path])
        for name in row.names:
            stored = released.tensors.tensors[name]
            if stored.shape != expected:
                raise UserError(
                    f"{stored.file}: {name} has the shape {list(stored.shape)}, but by {CONFIG} it should be "
                    f"{list(expected)}; correct {CONFIG}, or fetch the weights anew"
                )


def load_parameters(released: Released, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return {path: array} for the paths of `like`, placed by their shardings. The host holds one parameter at a time.

    Raises UserError if a shape differs from the shape in `like`.
    """
    arrays = {}
    for path, leaf in like.items():
        if leaf.shape != released.shapes[path]:
            raise UserError(
                f"{released.folder}: {path} has the shape {released.shapes[path]}, but the run needs {leaf.shape}; "
                "set the fields of config.model to the values of these weights"
            )
        arrays[path] = jax.device_put(released.read(path), leaf.sharding)
    return arrays

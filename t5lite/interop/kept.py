"""Keep the files of a release in a converted workdir, so that an export has the same names, dtypes and bits again.

    released/config.json         unchanged; also generation_config.json, if the release has it
    released/tensors.json        {"tensors": {"lm_head.weight": {"dtype": "BF16", "shape": [9, 4],
                                                                 "of": "shared.weight"}, …}}
    released/model.safetensors   tensors that no model here has as a parameter: heads of other kinds, and buffers

"of" is the tensor in the family's table that has the same values. null: the tensor is in model.safetensors. A run that
starts from the workdir does not keep these files, because it trains its own parameters. Its export has only these
parameters.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5lite.interop.family import Family, Json
from t5lite.interop.names import CONFIG
from t5lite.interop.released import FAMILIES, Released
from t5lite.interop.tensors import NAMES, TensorFolder, TensorToWrite, write_tensors
from t5lite.interop.writing import make_tensors
from t5lite.model.config import ModelConfig
from t5lite.system.files import read_json

FOLDER, TENSORS = "released", "tensors.json"
GENERATION = "generation_config.json"
SHAPE = {"tensors": {str: {"dtype": str, "shape": [int], "of": (str, None)}}}


@dataclasses.dataclass(frozen=True)
class KeptRelease:
    """The release that a workdir keeps.

    kind: the end of the class name in config.json; see `Family`. tensors: {name: values as in tensors.json}.
    """

    folder: Path
    json: Json
    family: Family
    kind: str
    tensors: Mapping[str, Json]

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the tensors that belong to heads that no model here has."""
        rename, stored = self.family.rename, [name for name, each in self.tensors.items() if each["of"] is None]
        return tuple(name for name in stored if self.family.kind_of_head(rename(name)))

    @property
    def refusal(self) -> str | None:
        """The reason why the weights cannot answer; None if they can."""
        return self.family.refusal(self.kind, self.json)


def keep_release(released: Released, workdir: Path) -> None:
    """Write into `workdir` the facts of the release that the parameters do not hold."""
    folder = workdir / FOLDER
    folder.mkdir()
    stored = released.tensors.tensors
    sources = {
        file: row.entry.tensor.format(n=layer) for row in released.rows.values() for layer, file in enumerate(row.names)
    }
    sources |= {copy: sources[original] for copy, original in released.repeated.items()}
    tensors = {
        name: {"dtype": each.dtype, "shape": list(each.shape), "of": sources.get(name)} for name, each in stored.items()
    }
    for name in (CONFIG, GENERATION):
        if (released.folder / name).is_file():
            (folder / name).write_bytes((released.folder / name).read_bytes())
    (folder / TENSORS).write_text(json.dumps({"tensors": tensors}, indent=1) + "\n")
    unread = {name: _copy_unchanged(released.tensors, name) for name in (*released.heads, *released.buffers)}
    if unread:
        write_tensors(folder, unread, "float32")


def _copy_unchanged(tensors: TensorFolder, name: str) -> TensorToWrite:
    """Return a tensor to write with its stored bytes."""
    stored = tensors.tensors[name]
    start, end = stored.span(name)
    return TensorToWrite(stored.shape, lambda: stored.bytes(name), stored=stored.dtype, size=end - start)


def read_kept(workdir: Path) -> KeptRelease | None:
    """Return the release that a workdir keeps; None if the workdir does not come from a release."""
    folder = workdir / FOLDER
    tensors, config = read_json(folder / TENSORS, shape=SHAPE), read_json(folder / CONFIG, shape={"model_type": str})
    if tensors is None or config is None or config["model_type"] not in FAMILIES:
        return None
    family = FAMILIES[config["model_type"]]
    names = [family.rename(name) for name in tensors["tensors"]]
    return KeptRelease(folder, config, family, family.find_kind(config, names), tensors["tensors"])


def write_back(
    kept: KeptRelease, folder: Path, model: ModelConfig, params: Mapping[str, Any], dtype: str | None
) -> None:
    """Write the release into `folder` in its original form: config.json, and the tensors under their original names.

    Args:
        model: the workdir's model.
        params: {path: array} for all parameters in the workdir's checkpoint.
        dtype: the dtype of all tensors except buffers. None: each tensor keeps its own dtype.
    """
    entries = {
        entry.path: entry for each in (*kept.family.more_parts(model), model) for entry in kept.family.entries(each)
    }
    shapes = {path: array.shape for path, array in params.items()}
    from_params = make_tensors([entry for path, entry in entries.items() if path in params], shapes, params)
    unread = TensorFolder(kept.folder) if any(each["of"] is None for each in kept.tensors.values()) else None
    tensors = {}
    for name, each in kept.tensors.items():
        if each["of"] is not None:
            tensors[name] = dataclasses.replace(from_params[each["of"]], dtype=dtype or NAMES[each["dtype"]])
        elif dtype is not None and name in kept.heads and each["dtype"] in NAMES:
            tensors[name] = TensorToWrite(tuple(each["shape"]), lambda name=name: unread.read(name), dtype=dtype)
        else:
            tensors[name] = _copy_unchanged(unread, name)
    config = dict(kept.json)
    config |= {field: dtype for field in ("dtype", "torch_dtype") if dtype is not None and field in config}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if (kept.folder / GENERATION).is_file():
        (folder / GENERATION).write_bytes((kept.folder / GENERATION).read_bytes())
    write_tensors(folder, tensors, dtype or "float32")

"""Convert: make a workdir from released weights, or make a folder for transformers from a run.

python -m t5lite.convert --from hf:downloads/t5-small --to runs/t5_small
python -m t5lite.convert --from runs/tiny --to hf:exported --dtype bfloat16

hf:DIR is a local folder of released weights; nothing is downloaded. Weights are read only from safetensors files. A
table shows the parameter that belongs to each tensor.

Import and export do not change a value, unless --dtype asks for a smaller dtype. The workdir also keeps the tensors of
known heads that no model here has, and computed buffers. An export of the workdir writes them back.

If a tensor is unknown, or if a part of the model has only some of its tensors, an error names the tensor, and nothing
is written. A whole part may be missing if the class in config.json has no such part.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from t5lite import cli
from t5lite.data.tokenizers.export import export_tokenizer
from t5lite.data.tokenizers.generation_config import write_generation_config
from t5lite.data.tokenizers.release_files import CHAT_TEMPLATE_FILE
from t5lite.interop.dropout import find_lost_places
from t5lite.interop.kept import keep_release, read_kept, write_back
from t5lite.interop.released import Released, get_folder, is_released, load_parameters, open_released
from t5lite.interop.tensors import DTYPES
from t5lite.interop.writing import describe, write_released
from t5lite.model.config import ModelConfig
from t5lite.run.released import open_model
from t5lite.system.cache import atomic_folder
from t5lite.system.errors import UserError
from t5lite.system.progress import say
from t5lite.tasks.number import NUMBER, rescale
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import make_policy
from t5lite.training.reading import Items, choose_steps, read_intact
from t5lite.training.record import Record
from t5lite.training.sharding import add_shardings, make_mesh, sharded_shapes
from t5lite.training.start import load_params
from t5lite.training.step import TrainState
from t5lite.training.workdir import write_facts

ELSEWHERE = "choose another --to"


def import_released(place: str, workdir: Path) -> Released:
    """Make `workdir` from the released weights `hf:DIR`: a run that ended at step 0 with these weights."""
    _refuse_existing(workdir)
    released, opened = open_released(get_folder(place)), open_model(place)
    opened.config.tokenizer.path = None
    like = flatten_dict(_shapes_with_shardings(released.shapes, _make_one_device_mesh(), released.model), sep="/")
    with atomic_folder(workdir, ELSEWHERE) as temporary:
        opened.full_tokenizer.save(temporary / "tokenizer")
        provenance = {"data": {"tokenizer": opened.full_tokenizer.sha256}, "labels": opened.labels}
        provenance |= {"scale": opened.scale}
        write_facts(temporary, opened.config, provenance, 0, {})
        checkpoints = Checkpoints(temporary, make_policy(opened.config))
        params = unflatten_dict(load_parameters(released, like), sep="/")
        checkpoints.save(TrainState(np.int32(0), params, {}), {})
        checkpoints.close()
        keep_release(released, temporary)
    return released


def export_released(workdir: Path, folder: Path, dtype: str | None, step: str | None, average: int) -> None:
    """Make `folder`, which transformers can load, from the run in `workdir`.

    dtype: the dtype of the weights. None: float32; if the workdir was converted and not trained, each tensor keeps the
    dtype that it had in the release.
    """
    _refuse_existing(folder)
    kept = read_kept(workdir)
    if kept is not None and average > 1:
        raise UserError(
            f"--average={average}: {workdir} was converted and has only one checkpoint; leave --average out"
        )
    opened, mesh = open_model(workdir), _make_one_device_mesh()
    model = opened.model.config
    if kept is None:
        _note_lost_settings(model)  # reading the parameters takes long, so note or refuse first
        params, _ = load_params(workdir, sharded_shapes(model, mesh), step, average)
        if opened.scale is not None:  # releases have no scale: their heads give numbers in their own units
            params |= {NUMBER.head: rescale(params[NUMBER.head], opened.scale)}
    else:
        params = _read_all_params(workdir, mesh, model, step)
    with atomic_folder(folder, ELSEWHERE) as temporary:
        closes_inputs = opened.objective.closes_inputs
        json_fields = export_tokenizer(opened.full_tokenizer, temporary, model.architecture, closes_inputs)
        if opened.chat is not None:
            template = opened.chat.make_release_template(opened.tokenizer.vocabulary.eos if closes_inputs else None)
            (temporary / CHAT_TEMPLATE_FILE).write_text(template)
        if model.num_decoder_layers and kept is None:
            conventions = opened.conventions
            write_generation_config(temporary, json_fields, conventions.rules, conventions.allowed, model.vocab_size)
        if kept is not None:
            write_back(kept, temporary, model, params, dtype)
            return
        if opened.labels:
            json_fields["id2label"] = {str(i): name for i, name in enumerate(opened.labels)}
        write_released(temporary, model, flatten_dict(params, sep="/"), dtype or "float32", json_fields)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target} exists already; choose another --to, or remove {target}")


def _make_one_device_mesh() -> Mesh:
    return make_mesh(1, 1, 1, devices=jax.local_devices()[:1])


def _shapes_with_shardings(shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, model: ModelConfig) -> Any:
    """Return the tree of float32 parameters, as shapes with shardings. shapes: {path: shape}."""
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return add_shardings(unflatten_dict(leaves, sep="/"), mesh, model)


def _note_lost_settings(model: ModelConfig) -> None:
    """Print a note if config.json cannot express the model's dropout places or its max_positions.

    Raises UserError for a model that belongs to no family.
    """
    family, _ = describe(model)
    file = f"config.json of {family.model_types[0]}"
    if places := find_lost_places(model, family.dropout):
        say(f"note: {file} cannot express the run's dropout at these places: {', '.join(places)}")
    if model.max_positions is not None and model.positions != "learned":
        say(
            f"note: {file} has no field for config.model.max_positions={model.max_positions}, so transformers will "
            "read longer texts"
        )


def _read_all_params(workdir: Path, mesh: Mesh, model: ModelConfig, step: str | None) -> dict[str, jax.Array]:
    """Return {path: array} for all parameters in the checkpoint of a converted workdir."""

    def choose_items(record: Record) -> Items:
        return {"params": _shapes_with_shardings(record.shapes("params"), mesh, model)}

    _, items = next(read_intact(workdir, choose_steps(workdir, step), choose_items))
    return flatten_dict(items["params"], sep="/")


def _print_table(released: Released) -> None:
    """Print a line for each parameter: its tensor, or the tensors of its layers, its path and its shape."""
    lines = []
    for path, row in released.rows.items():
        layers = f" (n = 0 … {len(row.names) - 1})" if row.entry.stacked else ""
        tensor = row.entry.tensor if row.names else f"{row.entry.tensor}: not there, zeros"
        lines.append((tensor + layers, path, " × ".join(map(str, released.shapes[path]))))
    lines += [(name, "repeats another tensor", "") for name in released.repeated]
    lines += [(name, "is kept: no model here has this head", "") for name in released.heads]
    lines += [(name, "is kept: a computed buffer", "") for name in released.buffers]
    lines += [("", f"{path} is not there", "") for path in released.lacking]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{released.folder}: {released.json['model_type']}, {released.dtype}")
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Convert from --from to --to, and print a table of parameters and tensors."""
    parser = cli.parser("convert", __doc__)
    parser.add_argument(
        "--from", dest="source", required=True, help="the workdir of a run, or hf:DIR: released weights"
    )
    parser.add_argument("--to", dest="target", required=True, help="hf:DIR, or a workdir; the folder must not exist")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="the dtype of the weights written to hf:DIR (default: float32; unchanged if the workdir was converted)",
    )
    cli.add_which_checkpoint(parser)
    arguments = parser.parse_args(argv)
    if is_released(arguments.source) == is_released(arguments.target):
        raise UserError("one of --from and --to must be hf:DIR, and the other one a workdir; correct one")
    cli.start_jax()
    if is_released(arguments.source):
        _print_table(import_released(arguments.source, Path(arguments.target)))
    else:
        folder = get_folder(arguments.target)
        export_released(Path(arguments.source), folder, arguments.dtype, arguments.step, arguments.average)
        _print_table(open_released(folder))
    print(f"{arguments.source} → {arguments.target}")


if __name__ == "__main__":
    main()

"""Convert: released weights to the workdir of a run, or a run to a folder that transformers loads.

python -m t5lite.convert --from hf:t5-small --to runs/t5_small
python -m t5lite.convert --from runs/tiny --to hf:exported --dtype bfloat16

Both ways bit for bit in the stored dtype. A table says what went where. A tensor that no model here uses is kept in the
workdir, if it is of a known part, and goes back as it came. An unknown tensor, or one that is missing, is an error that
names it, and nothing is written. Weights are read as safetensors alone.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from t5lite import cli
from t5lite.data.tokenizers.generation_config import write_generation_config
from t5lite.data.tokenizers.release import write_release
from t5lite.interop.dropout import lost_places
from t5lite.interop.kept import keep_release, read_kept, write_back
from t5lite.interop.released import Released, folder_of, is_released, load_parameters, open_released
from t5lite.interop.tensors import DTYPES
from t5lite.interop.writing import describe, write_released
from t5lite.model.config import ModelConfig
from t5lite.run.released import open_model
from t5lite.system.cache import atomic_folder
from t5lite.system.errors import UserError
from t5lite.system.progress import say
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.policy import make_policy
from t5lite.training.reading import Items, chosen_steps, intact
from t5lite.training.record import Record
from t5lite.training.sharding import make_mesh, place_shapes, placed_shapes
from t5lite.training.start import load_params
from t5lite.training.step import TrainState
from t5lite.training.workdir import write_facts

ELSEWHERE = "choose another --to"


def import_released(place: str, workdir: Path) -> Released:
    """Make `workdir` of the released weights of `hf:DIR`: a run that ended at step 0 with them."""
    if workdir.exists():
        raise UserError(f"{workdir} exists already; choose another --to, or remove it")
    released, opened = open_released(folder_of(place)), open_model(place)
    opened.config.tokenizer.path, mesh = None, make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in released.shapes.items()}
    like = flatten_dict(place_shapes(unflatten_dict(shapes, sep="/"), mesh, released.model), sep="/")
    with atomic_folder(workdir, ELSEWHERE) as temporary:
        opened.whole.save(temporary / "tokenizer")
        provenance = {"data": {"tokenizer": opened.whole.sha256}, "labels": opened.labels}
        write_facts(temporary, opened.config, provenance, 0, {})
        checkpoints = Checkpoints(temporary, make_policy(opened.config))
        params = unflatten_dict(load_parameters(released, like), sep="/")
        checkpoints.save(TrainState(np.int32(0), params, {}), {})
        checkpoints.close()
        keep_release(released, temporary)
    return released


def export_released(workdir: Path, folder: Path, dtype: str | None, step: str | None, average: int) -> None:
    """Make `folder` of the run in `workdir`.

    dtype: of the weights; None: float32, or each tensor's own where the workdir was converted and not trained.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --to, or remove it")
    kept = read_kept(workdir)
    if kept is not None and average > 1:
        raise UserError(f"--average={average}: {workdir} was converted, and has one checkpoint; leave it out")
    opened, mesh = open_model(workdir), make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
    model = opened.model.config
    if kept is None:
        _say_what_is_lost(model)  # before anything is read
        params, _ = load_params(workdir, placed_shapes(model, mesh), step, average)
    else:
        params = _all_params(workdir, mesh, model, step)
    with atomic_folder(folder, ELSEWHERE) as temporary:
        more = write_release(opened.whole, temporary, model.architecture, opened.objective.closes_inputs)
        if model.num_decoder_layers and kept is None:
            conventions = opened.conventions
            write_generation_config(temporary, more, conventions.rules, conventions.allowed, model.vocab_size)
        if kept is not None:
            write_back(kept, temporary, model, params, dtype)
            return
        if opened.labels:
            more["id2label"] = {str(i): name for i, name in enumerate(opened.labels)}
        write_released(temporary, model, flatten_dict(params, sep="/"), dtype or "float32", more)


def _say_what_is_lost(model: ModelConfig) -> None:
    """Say what config.json of the model's family has no field for. UserError for a model that is of no family."""
    family, _ = describe(model)
    file = f"config.json of {family.model_types[0]}"
    if places := lost_places(model, family.dropout):
        say(f"{file} has no dropout at these places of the run: {', '.join(places)}")
    if model.max_positions is not None and model.positions != "learned":
        say(f"{file} has no field for model.max_positions={model.max_positions}: transformers will read longer texts")


def _all_params(workdir: Path, mesh: Mesh, model: ModelConfig, step: str | None) -> dict[str, jax.Array]:
    """{path: array} of all that the checkpoint of a converted workdir holds."""

    def wanted(record: Record) -> Items:
        shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in record.shapes("params").items()}
        return {"params": place_shapes(unflatten_dict(shapes, sep="/"), mesh, model)}

    _, items = next(intact(workdir, chosen_steps(workdir, step), wanted))
    return flatten_dict(items["params"], sep="/")


def _show(released: Released) -> None:
    """A line a parameter: its tensor, or those of its layers, and its shape."""
    lines = []
    for path, row in released.rows.items():
        layers = f" (n = 0 … {len(row.names) - 1})" if row.entry.stacked else ""
        tensor = row.entry.tensor if row.names else f"{row.entry.tensor}: not there, zeros"
        lines.append((tensor + layers, path, " × ".join(map(str, released.shapes[path]))))
    lines += [(name, "repeats another tensor", "") for name in released.repeated]
    lines += [(name, "is kept, no model here has this head", "") for name in released.heads]
    lines += [(name, "is kept, it is computed", "") for name in released.buffers]
    lines += [("", f"{path} is not there", "") for path in released.lacking]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{released.folder}: {released.json['model_type']}, {released.dtype}")
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Convert one into the other, and print a table of what went where."""
    parser = cli.parser("convert", __doc__)
    parser.add_argument(
        "--from", dest="source", required=True, help="the workdir of a run, or hf:DIR: released weights"
    )
    parser.add_argument("--to", dest="target", required=True, help="hf:DIR, or a workdir; it must not exist yet")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the written weights of hf:DIR (default: float32; as they came, where the workdir was converted)",
    )
    cli.add_which_checkpoint(parser)
    arguments = parser.parse_args(argv)
    if is_released(arguments.source) == is_released(arguments.target):
        raise UserError("one of --from and --to must be hf:DIR, the other a workdir")
    cli.start_jax()
    if is_released(arguments.source):
        _show(import_released(arguments.source, Path(arguments.target)))
    else:
        folder = folder_of(arguments.target)
        export_released(Path(arguments.source), folder, arguments.dtype, arguments.step, arguments.average)
        _show(open_released(folder))
    print(f"{arguments.source} → {arguments.target}")


if __name__ == "__main__":
    main()

"""The folder of a run: whether it can be written, whose it is, whether its run is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import flat, load_json, to_dict
from t5lite.errors import UserError
from t5lite.files import NUMBER, read_json

# What may differ when a workdir is gone on with: how a run is watched and where it runs, not what it computes.
MAY_CHANGE = ("name", "eval", "log_every_steps", "max_skipped_steps", "checkpoint", "mesh", "debug_nans")
# What the files that a run leaves hold, as files.has_shape has it. Reports take them with gaps.
PROVENANCE = {
    **dict.fromkeys(("data", "heldout", "packages"), ({str: str}, None)),
    **dict.fromkeys(("labels", "devices"), ([str], None)),
    **dict.fromkeys(("python", "git_commit"), (str, None)),
    "hosts": (int, None),
}
RESULT = {"step": (int, None), "metrics": {str: {str: NUMBER}}, "cost": ({str: NUMBER}, None)}


def make_workdir(workdir: Path) -> None:
    """Make the folder. Raises UserError where it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Refuse to go on in a workdir with a config that computes something else."""
    if not (workdir / "config.json").exists():
        return
    now, before = (flat(to_dict(c)) for c in (config, load_json(workdir / "config.json")))
    changed = sorted(name for name in now.keys() | before if now.get(name) != before.get(name))
    changed = [name for name in changed if name.split(".")[0] not in MAY_CHANGE]
    if changed:
        listed = ", ".join(f"{name} (was {before.get(name)}, now {now.get(name)})" for name in changed)
        raise UserError(f"{workdir} belongs to a run of another config: {listed}; choose another --workdir")


def check_same_data(identity: Mapping[str, str], workdir: Path) -> None:
    """Refuse to go on when the text or the tokenizer behind an unchanged config is not what it was."""
    said = read_json(workdir / "provenance.json", shape=PROVENANCE)
    if said is None:
        return
    before = said.get("data") or {}
    changed = sorted(name for name in identity.keys() | before if identity.get(name) != before.get(name))
    if changed:
        raise UserError(
            f"{workdir} was trained on other data: {', '.join(changed)} changed since; choose another --workdir"
        )


def read_labels(workdir: Path) -> list[str] | None:
    """The closed set of targets that a run was trained on; None where they were no such set."""
    said = read_json(workdir / "provenance.json", shape=PROVENANCE)
    if said is None:
        raise UserError(f"{workdir} has no provenance.json, which holds the labels; restore it")
    return said.get("labels")


def read_result(workdir: Path) -> dict[str, Any] | None:
    """The result of a complete run; None where the run is not complete."""
    return read_json(workdir / "result.json", "delete it to have the run end anew", RESULT)

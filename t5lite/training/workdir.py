"""The folder of a run: whether it can be written, whose it is, whether its run is complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import flat, load_json, to_dict
from t5lite.errors import UserError
from t5lite.training.hosts import is_primary, meet

# What may differ when a workdir is gone on with: how a run is watched and where it runs, not what it computes.
MAY_CHANGE = ("name", "eval", "log_every_steps", "checkpoint", "mesh")


def make_workdir(workdir: Path) -> None:
    """Make the folder. Raises UserError where it cannot be written, or where another host does not see it."""
    if is_primary():
        _make_workdir(workdir)
    meet()
    if not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is not on a file system that all hosts share: host 0 made it")


def _make_workdir(workdir: Path) -> None:
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
    path = workdir / "provenance.json"
    if not path.exists():
        return
    before = json.loads(path.read_text())["data"]
    changed = sorted(name for name in identity.keys() | before if identity.get(name) != before.get(name))
    if changed:
        raise UserError(
            f"{workdir} was trained on other data: {', '.join(changed)} changed since; choose another --workdir"
        )


def read_labels(workdir: Path) -> list[str] | None:
    """The closed set of targets that a run was trained on; None where they were no such set."""
    try:
        return json.loads((workdir / "provenance.json").read_text())["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the labels in {workdir / 'provenance.json'}: {error!r}") from error


def read_result(workdir: Path) -> dict[str, Any] | None:
    """The result of a complete run; None where the run is not complete."""
    try:
        return json.loads((workdir / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {workdir / 'result.json'}: {error}; delete it to have the run end anew"
        ) from error

"""The folder of a run: whether it can be written, which run owns it, its history, and whether its run is complete."""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import flatten_fields, load_json, to_dict
from t5lite.system.errors import UserError
from t5lite.system.files import FORMAT, NUMBER, read_json, write_json, writing
from t5lite.system.hosts import is_primary, wait_for_all
from t5lite.system.progress import warn

# Fields that may differ when a run is resumed. A change of any other field would make the rest another run:
# data, tokenizer, objective, batch_size, seed     what is learned from, in which order
# model, trainable, loss, optimizer, schedule      what is computed (model.dtype too: it changes rounding)
# budget, microbatches, ema_decay                  where schedules end; draws of dropout; the average
# init_from, init_from_step                        where the run came from, which is recorded
MAY_CHANGE = (
    "name",  # how the run is called
    "eval", "log_every_steps", "checkpoint",  # how the run is watched and kept
    "max_skipped_steps", "debug_nans",  # when numbers that are not finite end it
    "mesh", "deterministic",  # where the run runs, and whether it is reproducible
    "model.attention", "model.remat", "model.scan_layers",  # different programs for the same function
)  # fmt: skip
LOCK = ".lock"
# What a kill can leave: files of this package before their rename (files.py), and Orbax's folders before theirs.
LEFTOVERS = ("*.tmp", "tokenizer/*.tmp", "checkpoints/*.orbax-checkpoint-tmp*")
# The content of the files that a run leaves, in the notation of files.has_shape. Reports accept missing fields.
PROVENANCE = {
    **dict.fromkeys(("data", "heldout", "packages"), ({str: str}, None)),
    **dict.fromkeys(("labels", "devices"), ([str], None)),
    **dict.fromkeys(("python", "git_commit"), (str, None)),
    "hosts": (int, None),
    "history": ([{"step": int, "changes": ({str: dict}, None)}], None),
}
RESULT = {
    "step": (int, None),
    "skipped_steps": (int, None),
    "metrics": {str: {str: NUMBER}},
    "cost": ({str: NUMBER}, None),
    "rows": ({str: int}, None),
    "cut": (
        {
            str: dict.fromkeys(
                ("rows", "inputs", "targets", "tokens", "longest", "longest_inputs", "longest_targets"), int
            )
        },
        None,
    ),
    "evaluated": ({str: {"used": int, "of": int, "generated": (int, None)}}, None),
}

Changes = dict[str, dict[str, Any]]  # {field: {"was": …, "now": …}}


def make_workdir(workdir: Path) -> None:
    """Create the folder. Raises UserError where it cannot be written, or where another host does not see it."""
    if is_primary():
        _make_workdir(workdir)
    wait_for_all()
    if not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is not on a file system that all hosts share: host 0 made it")


def _make_workdir(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / LOCK).touch()
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Be the only process that trains in `workdir`, and remove unfinished files of a process that was killed.

    The lock is the kernel's (flock), so it ends when its process ends, in whatever way. Between machines it works if
    their file system shares locks, as NFS does unless mounted with local_lock. If there are no locks, a warning says
    so. Raises UserError, with the owner's process and host, where another process owns it, or where nothing can be
    written.
    """
    with (workdir / LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir} is being trained in by {file.read().strip() or 'another process'}; "
                "wait for it, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            warn(f"no lock on {workdir} ({error.strerror}): see to it yourself that nothing else trains there")
        with writing(workdir, "what is there is unharmed"):
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for pattern in LEFTOVERS:
                for path in workdir.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def check_same_run(config: ConfigDict, workdir: Path, allowed: Sequence[str] = ()) -> Changes:
    """Refuse to resume in a workdir with a config that computes something else, except for what `allowed` names.

    Returns the changes outside MAY_CHANGE.

    Args:
        allowed: fields or groups that may change.
    """
    if not (workdir / "config.json").exists():
        return {}
    now, before = (flatten_fields(to_dict(c)) for c in (config, load_json(workdir / "config.json")))
    changes = _changes(before, now, MAY_CHANGE)
    refused = _changes(before, now, (*MAY_CHANGE, *allowed))
    if refused:
        listed = ", ".join(f"{name} (was {each['was']}, now {each['now']})" for name, each in refused.items())
        raise UserError(
            f"{workdir} belongs to a run of another config: {listed}; choose another --workdir, or go on with the "
            f"change from here: train --allow_changes={','.join(refused)}"
        )
    return changes


def check_same_data(identity: Mapping[str, str], workdir: Path, allowed: Sequence[str] = ()) -> Changes:
    """Check that text and tokenizer are the same, by fingerprint: files can change although the config did not.

    Returns the changes, all in `allowed`.
    """
    before = read_provenance(workdir).get("data") or identity
    refused = _changes(before, identity, allowed)
    if refused:
        raise UserError(
            f"{workdir} was trained on other data: {', '.join(refused)} changed since; choose another --workdir, or go "
            f"on with what is there now: train --allow_changes={','.join(refused)}"
        )
    return _changes(before, identity, ())


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], but: Sequence[str]) -> Changes:
    """Return what differs outside the fields and groups in `but`."""
    names = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    names = [name for name in names if not any(f"{name}.".startswith(f"{free}.") for free in but)]
    return {name: {"was": before.get(name), "now": now.get(name)} for name in names}


def write_facts(workdir: Path, config: ConfigDict, provenance: Mapping[str, Any], step: int, changes: Changes) -> None:
    """Write config.json, and provenance.json with a history to which this start is appended.

    Args:
        step: where the run (re)starts.
        changes: changes of the config or the data since the last start, which hold from `step` on.
    """
    about_data = ("data", "heldout", "labels")  # the same for all starts, or else among the changes
    start = {"step": step, **{name: fact for name, fact in provenance.items() if name not in about_data}}
    history = [*(read_provenance(workdir).get("history") or []), start | {"changes": changes}]
    # In this order, a kill between the two means that a change must be allowed again; the other order loses its record.
    write_json(workdir / "provenance.json", {**provenance, "history": history})
    write_json(workdir / "config.json", {"format": FORMAT, **to_dict(config)})


def set_aside_result(workdir: Path) -> None:
    """Rename result.json to result-STEP.json, for a complete run that goes on."""
    result = read_result(workdir)
    if result is not None:
        (workdir / "result.json").replace(workdir / f"result-{result['step']}.json")


def read_provenance(workdir: Path) -> dict[str, Any]:
    """Return the content of provenance.json; {} where there is none."""
    return read_json(workdir / "provenance.json", shape=PROVENANCE) or {}


def read_labels(workdir: Path) -> list[str] | None:
    """Return the closed set of targets that a run was trained on; None where the targets were not a closed set.

    Raises UserError where there is no provenance.json.
    """
    said = read_json(workdir / "provenance.json", shape=PROVENANCE)
    if said is None:
        raise UserError(f"{workdir} has no provenance.json, which holds the labels; restore it")
    return said.get("labels")


def read_result(workdir: Path) -> dict[str, Any] | None:
    """Return the result of a complete run; None where the run is not complete."""
    return read_json(workdir / "result.json", "delete it to have the run end anew", RESULT)

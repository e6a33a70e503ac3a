"""The folder of a run: create and lock it, check that a resumed run is the same run, read and write its JSON files."""

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
from t5lite.system.files import FORMAT, NUMBER, explain_write_errors, read_json, write_json
from t5lite.system.hosts import is_primary, wait_for_all
from t5lite.system.progress import warn

# Fields that may differ when a run is resumed. All other fields must stay the same, because they decide:
# data, tokenizer, objective, batch_size, seed     the examples and their order
# model, trainable, loss, optimizer, schedule      the computation (also model.dtype: it changes rounding)
# budget, microbatches, ema_decay                  the end of schedules; the draws of dropout; the average
# init_from, init_from_step                        the origin of the run, which is recorded
MAY_CHANGE = (
    "name",  # the name of the run
    "eval", "log_every_steps", "checkpoint",  # how the run is watched and saved (eval: only without early stopping)
    "max_skipped_steps", "debug_nans",  # when NaN or infinite values end the run
    "mesh", "deterministic",  # the devices, and whether the run is reproducible
    "model.attention", "model.remat", "model.scan_layers",  # different programs for the same function
)  # fmt: skip
LOCK = ".lock"
# Unfinished files that a killed process can leave: temporary files of this package (files.py), and Orbax's folders.
LEFTOVERS = ("*.tmp", "tokenizer/*.tmp", "checkpoints/*.orbax-checkpoint-tmp*")
# The content of JSON files in a workdir, in the notation of files.has_shape. Reports accept missing fields.
PROVENANCE = {
    **dict.fromkeys(("data", "heldout", "packages"), ({str: str}, None)),
    **dict.fromkeys(("labels", "devices"), ([str], None)),
    "member_labels": ({str: ([str], None)}, None),
    "scale": ([NUMBER], None),
    **dict.fromkeys(("python", "git_commit"), (str, None)),
    "hosts": (int, None),
    "history": ([{"step": int, "changes": ({str: dict}, None)}], None),
}
RESULT = {
    "step": (int, None),
    "ended_at": (int, None),
    "ended_by": (str, None),
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
    "classes": ({str: {"labels": [str], "confusion": [[int]]}}, None),
    "evaluated": ({str: {"used": int, "of": int, "generated": (int, None)}}, None),
}

Changes = dict[str, dict[str, Any]]  # {field: {"was": …, "now": …}}


def make_workdir(workdir: Path) -> None:
    """Create the folder. Raises UserError if the folder cannot be written, or if another host does not see it."""
    if is_primary():
        _make_workdir(workdir)
    wait_for_all()
    if not workdir.is_dir():
        raise UserError(
            f"host 0 created the workdir {workdir}, but this host does not see it; choose a folder that all hosts share"
        )


def _make_workdir(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / LOCK).touch()
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Be the only process that trains in `workdir`, and remove unfinished files of a process that was killed.

    The kernel has the lock (flock) and drops it when the process ends, even by a kill. Between machines, the lock works
    if the file system shares locks. NFS does, unless it is mounted with local_lock. Without locks, print a warning.

    Raises:
        UserError: if another process owns the folder (the message names process and host), or if the folder is not
            writable.
    """
    with (workdir / LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{file.read().strip() or 'another process'} already trains in {workdir}; "
                "wait until it ends, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            warn(f"no lock on {workdir} ({error.strerror}): make sure that no other process trains there")
        with explain_write_errors(workdir, "existing files are unharmed"):
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for pattern in LEFTOVERS:
                for path in workdir.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def check_same_run(config: ConfigDict, workdir: Path, allowed: Sequence[str] = ()) -> Changes:
    """Raise UserError if `config` differs from the workdir's config in a field outside MAY_CHANGE and `allowed`.

    With early stopping, a change of `eval` is refused too, because it changes where the run ends. Returns the changes
    outside MAY_CHANGE; {} if the workdir has no config.

    Args:
        allowed: fields or groups of fields that may change.
    """
    if not (workdir / "config.json").exists():
        return {}
    now, before = (flatten_fields(to_dict(c)) for c in (config, load_json(workdir / "config.json")))
    may_change = tuple(name for name in MAY_CHANGE if name != "eval" or config.early_stopping.metric is None)
    changes = _list_changes(before, now, may_change)
    refused = _list_changes(before, now, (*may_change, *allowed))
    if refused:
        listed = ", ".join(f"{name} (was {each['was']}, now {each['now']})" for name, each in refused.items())
        raise UserError(
            f"{workdir} has a run with another config: {listed}; choose another --workdir, or go on with the "
            f"change: train --allow_changes={','.join(refused)}"
        )
    return changes


def check_same_data(identity: Mapping[str, str], workdir: Path, allowed: Sequence[str] = ()) -> Changes:
    """Check that text and tokenizer are the same, by fingerprint: files can change although the config did not.

    Returns the changes, which are all in `allowed`. Raises UserError for any other change.
    """
    before = read_provenance(workdir).get("data") or identity
    refused = _list_changes(before, identity, allowed)
    if refused:
        raise UserError(
            f"{workdir} was trained on other data: {', '.join(refused)} changed since then; choose another --workdir, "
            f"or go on with the present data: train --allow_changes={','.join(refused)}"
        )
    return _list_changes(before, identity, ())


def _list_changes(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str]) -> Changes:
    """Return the changed fields, without the fields and groups in `ignored`."""
    names = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    names = [name for name in names if not any(f"{name}.".startswith(f"{field}.") for field in ignored)]
    return {name: {"was": before.get(name), "now": now.get(name)} for name in names}


def write_facts(workdir: Path, config: ConfigDict, provenance: Mapping[str, Any], step: int, changes: Changes) -> None:
    """Write config.json and provenance.json. Append this start of the run to the history in provenance.json.

    Args:
        step: the step at which the run starts or goes on.
        changes: changes of the config or the data since the last start. They are valid from `step` on.
    """
    # Not stored for each start: if these facts change, the change is in `changes`.
    about_data = ("data", "heldout", "labels", "member_labels", "scale")
    start = {"step": step, **{name: fact for name, fact in provenance.items() if name not in about_data}}
    history = [*(read_provenance(workdir).get("history") or []), start | {"changes": changes}]
    # If the process is killed between these two lines, the user must allow the change again. In the reverse order, the
    # history would lose the change.
    write_json(workdir / "provenance.json", {**provenance, "history": history})
    write_json(workdir / "config.json", {"format": FORMAT, **to_dict(config)})


def set_aside_result(workdir: Path) -> None:
    """Rename result.json to result-STEP.json, because a complete run goes on."""
    result = read_result(workdir)
    if result is not None:
        (workdir / "result.json").replace(workdir / f"result-{result['step']}.json")


def read_provenance(workdir: Path) -> dict[str, Any]:
    """Return the content of provenance.json; {} if the file does not exist."""
    return read_json(workdir / "provenance.json", shape=PROVENANCE) or {}


def read_labels(workdir: Path) -> list[str] | None:
    """Return the labels that a run was trained on; None if its targets were not a closed set of labels.

    Raises UserError if provenance.json does not exist.
    """
    provenance = read_json(workdir / "provenance.json", shape=PROVENANCE)
    if provenance is None:
        raise UserError(f"{workdir} has no provenance.json, so the labels are unknown; restore this file")
    return provenance.get("labels")


def read_member_labels(workdir: Path) -> dict[str, list[str] | None]:
    """Return {member: the labels of its own} for a run on a mixture of pairs; {} if all members share their labels."""
    return read_provenance(workdir).get("member_labels") or {}


def read_scale(workdir: Path) -> list[float] | None:
    """Return the mean and the standard deviation of a run's training numbers; None if its targets are no numbers."""
    return read_provenance(workdir).get("scale")


def read_result(workdir: Path) -> dict[str, Any] | None:
    """Return the result of a complete run; None if the run is not complete."""
    return read_json(workdir / "result.json", "delete it, then give the train command again to write it anew", RESULT)

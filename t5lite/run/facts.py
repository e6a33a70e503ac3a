"""The facts that a run leaves of itself: versions, devices, code and data, with its tokenizer and config."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from t5lite.data.dataset import Dataset
from t5lite.system.hosts import check_agreement, is_primary
from t5lite.training.workdir import Changes, set_aside_result, write_facts


def leave_facts(config: ConfigDict, dataset: Dataset, workdir: Path, step: int, changes: Changes) -> None:
    """Write tokenizer, config and provenance, so that the folder is a workdir. Check that all hosts have the same.

    Args:
        step: where the run starts, or goes on.
        changes: what is not as it was when the run began.
    """
    facts = provenance(dataset)
    check_agreement(
        {"tokenizer": dataset.tokenizer.sha256, **dataset.identity, **facts["packages"], "code": facts["git_commit"]}
    )
    if is_primary():
        set_aside_result(workdir)
        dataset.tokenizer.save(workdir / "tokenizer")
        write_facts(workdir, config, facts, step, changes)


def provenance(dataset: Dataset) -> dict[str, Any]:
    """Return what a result depends on beside the config: versions, devices, code, data."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "git_commit": _git_commit(),
        "data": dataset.identity,
        "heldout": dataset.heldout,
        "labels": dataset.labels,
    }


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git here
        return None
    return said.stdout.strip() or None

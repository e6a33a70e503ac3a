"""Write the facts about a run into its workdir: versions, devices, code and data, and the tokenizer and config."""

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
    """Write tokenizer, config and provenance, so that the folder is a workdir. Check that all hosts have equal facts.

    Args:
        step: where the run starts or resumes.
        changes: the differences from the start of the run.
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
    """Return the facts that a result depends on besides the config: versions, devices, code, data."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "git_commit": _read_git_commit(),
        "data": dataset.identity,
        "heldout": dataset.heldout_fingerprints,
        "labels": dataset.labels,
        "member_labels": dataset.member_labels,
        "scale": dataset.scale,
    }


def _read_git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git here
        return None
    return result.stdout.strip() or None

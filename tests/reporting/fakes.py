"""Write workdirs as a run writes them, without training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.config import base_config, to_dict
from t5lite.run.overrides import override

COST = {"tokens": 2_000_000, "flops": 8e12, "seconds": 90.0, "device_seconds": 90.0, "peak_bytes": 230 * 2**20}
PROVENANCE = {
    "python": "3.11.7",
    "packages": {"jax": "0.10.2", "numpy": "2.4.6"},
    "devices": ["cpu"],
    "hosts": 1,
    "git_commit": "818413a",
    "data": {"tokenizer": "e3bc44964c085ae1", "data.train": "bd895bf48c6260a5"},
    "heldout": {"validation": "d7614c9255b5beb9"},
    "labels": None,
}


def write_run(
    folder: Path,
    run: str,
    metrics: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
    fields: Mapping[str, Any] = {},
    provenance: Mapping[str, Any] = {},
    cost: Mapping[str, Any] = {},
    lines: Sequence[Mapping[str, Any]] = (),
    splits: Mapping[str, Mapping[str, Any]] = {},
    classes: Mapping[str, Mapping[str, Any]] = {},
) -> Path:
    """Write the workdir folder/run, and return it.

    Args:
        metrics: the metrics of the validation split; None: the run is incomplete.
        name: the name in the config; None: the name of the folder without "-seed".
        lines: the lines of metrics.jsonl.
        splits: the metrics of further held-out sets.
        classes: {held-out set: {"labels", "confusion"}}.
    """
    workdir = folder / run
    workdir.mkdir(parents=True)
    config = base_config()
    config.name = run.removesuffix(f"-{seed}") if name is None else name
    config.seed = seed
    config.data.train.source = "pydocs/summary_general"
    config.objective.name = "supervised"
    override(config, [f"--config.{field}={value}" for field, value in fields.items()])
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    (workdir / "provenance.json").write_text(json.dumps({**PROVENANCE, **provenance}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if metrics is not None:
        result = {"step": 100, "metrics": {"validation": dict(metrics), **splits}, "params_sha256": "0" * 64}
        result |= {"classes": classes} if classes else {}
        (workdir / "result.json").write_text(json.dumps({**result, "cost": {**COST, **cost}}))
    return workdir


def write_seeds(folder: Path, name: str, losses: Sequence[float], first_seed: int = 0, **given: Any) -> list[Path]:
    """Write the runs name-0, name-1, … that ended with these losses, and return their workdirs."""
    return [
        write_run(folder, f"{name}-{seed}", {"loss": loss}, seed=seed, **given)
        for seed, loss in enumerate(losses, first_seed)
    ]

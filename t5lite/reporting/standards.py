"""Standards: the comparison of runs with different objectives, by the metrics of one objective that evaluated them all.

A run's metrics by a standard stand under the name of the split and the standard: "validation_span_corruption".
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from t5lite.config import lookup_field
from t5lite.objectives.catalogue import OBJECTIVES, STANDARDS, standard_names
from t5lite.reporting.runs import Run


def standard_split(split: str) -> tuple[str, str | None]:
    """Split the name of a split into (held-out text, standard). The standard is None for the run's own objective."""
    for standard in STANDARDS:
        if split.endswith(f"_{standard}"):
            return split.removesuffix(f"_{standard}"), standard
    return split, None


def evaluated_fields(fields: dict[str, Any], standard: str | None) -> dict[str, Any]:
    """Return the fields of an objective that decide how it was evaluated."""
    if standard is not None:
        return {"inputs_length": fields["inputs_length"]}
    return OBJECTIVES[fields["name"]].evaluated_as(fields) if fields["name"] in OBJECTIVES else fields


def with_standards(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with the metrics of each standard under the standard's name in all of them.

    Where some run was evaluated by a standard, a run with that standard as its own objective gets its metrics under the
    standard's name too.
    """
    used = {standard for run in runs for split in run.metrics if (standard := standard_split(split)[1])}
    return [_with_own_standard(run) if run.config["objective"]["name"] in used else run for run in runs]


def _with_own_standard(run: Run) -> Run:
    name = run.config["objective"]["name"]
    if name in standard_names(run.config["objective"], lookup_field(run.config, "model.architecture")):
        return run  # its own objective has the standard's name but other settings
    same = {f"{split}_{name}": metrics for split, metrics in run.metrics.items() if standard_split(split)[1] is None}
    return dataclasses.replace(run, result={**run.result, "metrics": {**run.metrics, **same}})

"""Write a report about runs: report.md, report.html and report.json in one folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.reporting import html, markdown
from t5lite.reporting.comparison import Comparison, Entry, Report, compare
from t5lite.reporting.document import document
from t5lite.reporting.groups import Group
from t5lite.reporting.runs import read_run
from t5lite.reporting.statistics import Estimate
from t5lite.system.errors import UserError
from t5lite.system.files import replace_non_finite, write_atomically, write_json


def write_report(
    workdirs: Sequence[Path],
    out: Path,
    title: str,
    bases: Sequence[str] = (),
    absent: Mapping[Path, str] | None = None,
    remarks: Sequence[str] = (),
) -> Report:
    """Compare the runs in `workdirs` and write the report to the folder `out`, which is created if it is missing.

    Args:
        bases: names of bases, as in `find_base`. In a task without a named base, the first group is the base.
        absent: {workdir: why the run has no result}.
        remarks: further notes.

    Raises:
        UserError: if a folder is not a workdir, no run is complete, or `out` cannot be written.
    """
    report = compare([read_run(workdir) for workdir in workdirs], title, bases, absent or {}, remarks)
    sections = document(report)
    files = {"report.md": markdown.render(sections), "report.html": html.render(sections)}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the report's folder {out}: {error.strerror}; choose another folder") from error
    for name, text in files.items():
        write_atomically(out / name, text)
    write_json(out / "report.json", to_json(report))
    return report


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values. A number that is not finite becomes None."""
    return replace_non_finite(
        {
            "title": report.title,
            "runs": [_entry_to_json(entry) for entry in report.entries],
            "groups": [_group_to_json(group, task.title) for task in report.tasks for group in task.groups],
            "comparisons": [
                _comparison_to_json(each, task.title) for task in report.tasks for each in task.comparisons
            ],
            "notes": [*report.missing, *report.notes],
            "method": report.method,
        }
    )


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    fields = {"run": entry.folder_name, "name": entry.name, "seed": entry.seed, "status": entry.status}
    if entry.run is None:
        return {**fields, "workdir": None, "result": None}
    return {**fields, "workdir": str(entry.run.workdir), "result": entry.run.result}


def _group_to_json(group: Group, task: str) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for (split, metric), estimate in group.estimates.items():
        metrics.setdefault(split, {})[metric] = {"mean": estimate.mean, **_interval_to_json(estimate)}
    return {
        "name": group.name,
        "task": task,
        "seeds": list(group.seeds),
        "runs": [run.folder_name for run in group.runs],
        "metrics": metrics,
        "cost": dataclasses.asdict(group.cost),
        "cost_with_origins": dataclasses.asdict(group.cost_with_origins) if group.origins else None,
    }


def _interval_to_json(estimate: Estimate) -> dict[str, Any]:
    return {"ci_low": estimate.low, "ci_high": estimate.high, "n": estimate.n}


def _comparison_to_json(comparison: Comparison, task: str) -> dict[str, Any]:
    names = {name: getattr(comparison, name) for name in ("a", "b", "metric", "split")}
    delta = comparison.delta
    return {**names, "task": task, "delta": delta.mean, **_interval_to_json(delta), "resolved": delta.resolved}

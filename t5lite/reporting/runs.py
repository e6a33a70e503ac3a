"""Read runs from their workdirs: config, provenance, result and curves.

runs/summary/scratch-0/config.json       the config of the run          required: a folder with this file is a workdir
                       provenance.json   the versions of code and data  may be missing
                       metrics.jsonl     the metrics during training    may be missing; the last line may be broken
                       result.json       the result of the run          missing until the run is complete
"""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from t5lite.config import base_config, lookup_field, to_dict
from t5lite.system.errors import UserError
from t5lite.system.files import FORMAT, NUMBER, check_format, read_json
from t5lite.training.metrics import read_log
from t5lite.training.workdir import read_provenance, read_result

Metrics = dict[str, dict[str, float | None]]  # {split: {metric: value}}


@dataclasses.dataclass(frozen=True)
class Curve:
    """The loss over training, with one entry for each logged step. Values that are not finite are left out.

    tokens: the number of training tokens up to each step; None if the run did not log tokens.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    tokens: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a workdir.

    folder_name: the name of the workdir. A study gives each of its runs another folder name.
    result: None if the run is not complete.
    """

    folder_name: str
    workdir: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    result: dict[str, Any] | None

    @functools.cached_property
    def curves(self) -> dict[str, Curve]:
        """{split: curve of the loss}"""
        return read_curves(self.workdir / "metrics.jsonl")

    @functools.cached_property
    def origins(self) -> list["Run"]:
        """The chain of origins: the run in `init_from`, then the run in that run's `init_from`, and so on.

        The chain ends before the first origin that is not a workdir, or that is already in the chain.
        """
        origins, seen, run = [], {self.workdir.resolve()}, self
        while (path := run.find_workdir("init_from")) is not None and path.resolve() not in seen:
            seen.add(path.resolve())
            run = read_run(path)
            origins.append(run)
        return origins

    @property
    def unread_origin(self) -> str | None:
        """The first origin that is not a workdir: the `init_from` of the last run in the chain of origins.

        None if that run started from scratch.
        """
        last = (self, *self.origins)[-1]
        text = last.config.get("init_from")
        return str(text) if text and last.find_workdir("init_from") is None else None

    @property
    def last_step(self) -> int | None:
        """The last logged step."""
        return max((line["step"] for _, line in read_log(self.workdir / "metrics.jsonl")), default=None)

    @property
    def name(self) -> str:
        """The name in the config. Runs of other seeds have the same name. "" if the config has no name."""
        return str(self.config.get("name") or "")

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def metrics(self) -> Metrics:
        return self.result["metrics"] if self.result else {}

    @property
    def skipped_steps(self) -> int:
        """The number of skipped updates, whose loss or gradient was not finite."""
        return (self.result or {}).get("skipped_steps") or 0

    def find_workdir(self, field: str) -> Path | None:
        """Return the workdir in the field `init_from` or `tokenizer.path`; None if there is no such workdir.

        "@name" in the field means the folder `name` beside this workdir.
        """
        text = lookup_field(self.config, field)
        if not isinstance(text, str):
            return None
        path = self.workdir.parent / text[1:] if text.startswith("@") else Path(text)
        return path if (path / "config.json").is_file() else None


def read_run(workdir: Path) -> Run:
    """Read a workdir.

    Raises UserError if the folder is not a workdir, or if a file in it is damaged.
    """
    config = read_json(workdir / "config.json", shape=_config_shape(base_config()))
    if config is None:
        raise UserError(f"{workdir} is not a run's workdir: it has no config.json; correct the path")
    check_format(config.pop("format", FORMAT), str(workdir))
    config = _add_defaults(config, to_dict(base_config()))
    # A study knows its runs by the names in its folder. So a link has its own name, not the name of its target.
    folder_name = Path(os.path.abspath(workdir)).name
    return Run(folder_name, workdir, config, read_provenance(workdir), read_result(workdir))


def _config_shape(group: ConfigDict) -> dict[str, Any]:
    """Return the shape of a config.json: each field has its type or is missing."""
    shapes: dict[str, Any] = {}
    for name, value in group.items():
        kind = {float: NUMBER, tuple: list}.get(group.get_type(name), group.get_type(name))
        shapes[name] = (
            dict if name == "mixture" else _config_shape(value) if isinstance(value, ConfigDict) else kind,
            None,
        )
    return shapes


def _add_defaults(written: Any, default: Any) -> Any:
    """Return `written`. A field that is missing or null gets its default: a field can be newer than the file."""
    if isinstance(default, dict) and isinstance(written, dict):
        return {name: _add_defaults(written.get(name), default.get(name)) for name in {**default, **written}}
    return default if written is None else written


def read_curves(path: Path) -> dict[str, Curve]:
    """Return {split: curve of the loss} of a metrics.jsonl. Broken lines are skipped.

    Training lines have the number of tokens so far. For the steps of other lines, the number is interpolated.
    """
    losses: dict[str, dict[int, float]] = {}
    tokens: dict[int, float] = {}
    for _, line in read_log(path):
        if is_number(line.get("loss")):
            losses.setdefault(line["split"], {})[line["step"]] = float(line["loss"])
        if line["split"] == "train" and is_number(line.get("tokens")):
            tokens[line["step"]] = float(line["tokens"])
    curves = {}
    for split, by_step in losses.items():
        steps = tuple(sorted(by_step))
        known = zip(*sorted({0: 0.0, **tokens}.items()), strict=True) if tokens else None
        counts = None if known is None else tuple(np.interp(steps, *known).tolist())
        curves[split] = Curve(steps, tuple(by_step[step] for step in steps), counts)
    return curves


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number. True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def find_workdirs(folders: Sequence[Path]) -> list[Path]:
    """Return the workdirs in `folders`, each once. A folder that is no workdir stands for the workdirs directly in it.

    If such a folder has a report, the workdirs have the order of the report. Without a report, runs from scratch come
    before runs that started from another run, and runs with a loss before runs without a loss. Raises UserError for a
    folder without any workdir.
    """
    workdirs: dict[Path, Path] = {}
    for folder in folders:
        for workdir in [folder] if (folder / "config.json").is_file() else _list_workdirs(folder):
            workdirs.setdefault(workdir.resolve(), workdir)
    return list(workdirs.values())


def _list_workdirs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; correct the path")
    runs = [read_run(path.parent) for path in folder.glob("*/config.json")]
    if not runs:
        raise UserError(
            f"{folder} is not a run's workdir, nor a folder of workdirs: there is no config.json; correct the path"
        )
    names = list(statuses_in_study(folder))

    def sort_key(run: Run) -> tuple[int, int, bool, list[tuple[float, str]]]:
        without_loss = all("loss" not in metrics for metrics in run.metrics.values())
        parts = re.findall(r"\d+(?:\.\d+)?|\D+", run.folder_name)
        by_number = [(float(part), "") if part[0].isdecimal() else (-1, part) for part in parts]
        place = names.index(run.folder_name) if run.folder_name in names else len(names)
        return place, len(run.origins), without_loss, by_number

    return [run.workdir for run in sorted(runs, key=sort_key)]


def statuses_in_study(folder: Path) -> dict[str, str]:
    """Return {folder name of a run: its status}, from the report in `folder`; {} without a report.

    A status is "complete", or the reason why the run has no result.
    """
    report = read_json(folder / "report.json", "delete it", {"runs": ([{"run": str, "status": str}], None)}) or {}
    return {entry["run"]: entry["status"] for entry in report.get("runs") or ()}

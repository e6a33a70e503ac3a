"""Groups: runs that repeat one experiment with other seeds. This module names groups and tells which are comparable.

Two runs belong to one group if their data have the same fingerprints and their configs are equal, except for the seed,
the name, and the other fields in FREE_IN_GROUP. A config may refer to another run, such as the run in `init_from`. Then
two runs are equal in this field if the runs that they refer to belong to one group. The names and seeds of those runs
do not count:

    finetune-0 from @pretrain-0, finetune-1 from @pretrain-1    one group, if the two pretrain runs are one group
    finetune-0 from @short, finetune-1 from @long               two groups

Runs with different objectives are compared by a standard: an objective that evaluated all of them. Its metrics have the
name of the split and the standard: "validation_span_corruption".
"""

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.config import flatten_fields, lookup_field
from t5lite.objectives.catalogue import OBJECTIVES, STANDARDS, standard_names
from t5lite.reporting.costs import Cost, mean_cost, read_cost, read_cost_with_origins
from t5lite.reporting.metrics import SplitMetric, sort_metrics
from t5lite.reporting.runs import Run, read_run
from t5lite.reporting.statistics import Estimate, estimate
from t5lite.run.siblings import REFERRING
from t5lite.tasks.metrics import find_metric

# Fields that may differ within a group: the name, the seed, and how a run is watched and where it runs. These fields do
# not change the experiment.
FREE_IN_GROUP = (
    "name",
    "seed",
    "log_every_steps",
    "checkpoint",
    "mesh",
    "deterministic",
    "eval.every_steps",
    "eval.batch_size",
)
# Fields that say how the network reads a pair. The evaluated pairs do not depend on these fields.
SAME_ROWS = ("pack", "texts_per_row", "prefix_attention")


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The complete runs of one experiment, in the order of their seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    @functools.cached_property
    def pairs(self) -> list[SplitMetric]:
        """(split, metric) for each metric that at least one run has, in the order of display."""
        return sort_metrics(
            (split, metric) for run in self.runs for split in run.metrics for metric in run.metrics[split]
        )

    def values(self, split: str, metric: str) -> dict[int, float | None]:
        """Return {seed: mean over runs with that seed}. The mean is None if a value is not finite."""
        by_seed = collections.defaultdict(list)
        for run in self.runs:
            if metric in run.metrics.get(split, {}):
                by_seed[run.seed].append(run.metrics[split][metric])
        return {seed: _mean_of_finite(values) for seed, values in sorted(by_seed.items())}

    @functools.cached_property
    def estimates(self) -> dict[SplitMetric, Estimate]:
        """{(split, metric): mean over seeds}. No interval goes beyond the range of its metric."""
        means = {pair: estimate(list(self.values(*pair).values())) for pair in self.pairs}
        return {pair: mean.clip(find_metric(pair[1]).low, find_metric(pair[1]).high) for pair, mean in means.items()}

    @property
    def origins(self) -> list[Run]:
        """The runs from which the runs of the group started."""
        return list({origin.workdir.resolve(): origin for run in self.runs for origin in run.origins}.values())

    @property
    def cost(self) -> Cost:
        """The mean cost of a run."""
        return mean_cost([read_cost(run) for run in self.runs])

    @property
    def cost_with_origins(self) -> Cost:
        """The mean cost of a run, including the runs from which it started."""
        return mean_cost([read_cost_with_origins(run) for run in self.runs])


def _mean_of_finite(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Sort runs into groups, in the order of each group's first run, and name the groups.

    A standard may have evaluated some runs. If another run was trained with this standard as its objective, the metrics
    of that run also appear under the name of the standard.
    """
    used = {standard for run in runs for split in run.metrics if (standard := split_standard(split)[1])}
    by_identity: dict[str, list[Run]] = {}
    for run in runs:
        by_identity.setdefault(fingerprint_run(run), []).append(_add_standard_metrics(run, used))
    runs_of_groups = list(by_identity.values())
    return [
        Group(name, tuple(sorted(group_runs, key=lambda run: (run.seed, run.folder_name))))
        for name, group_runs in zip(_name_groups(runs_of_groups), runs_of_groups, strict=True)
    ]


def split_standard(split: str) -> tuple[str, str | None]:
    """Split the name of a split into (held-out text, standard). The standard is None for the run's own objective."""
    standard = next((each for each in STANDARDS if split.endswith(f"_{each}")), None)
    return (split, None) if standard is None else (split.removesuffix(f"_{standard}"), standard)


def _add_standard_metrics(run: Run, used: set[str]) -> Run:
    """Return the run, with its metrics also under the name of a standard in `used` that is its objective."""
    objective = run.config["objective"]
    name = objective["name"]
    # If the standard is among the run's standards, the run's objective has the standard's name but other settings. Then
    # the standard has evaluated the run itself, and there is nothing to copy.
    if name not in used or name in standard_names(objective, lookup_field(run.config, "model.architecture")):
        return run
    copies = {f"{split}_{name}": metrics for split, metrics in run.metrics.items() if split_standard(split)[1] is None}
    return dataclasses.replace(run, result={**run.result, "metrics": {**run.metrics, **copies}})


def fingerprint_run(run: Run, seen: frozenset[Path] = frozenset()) -> str:
    """Return a fingerprint of a run's experiment. Runs of one group have the same fingerprint.

    seen: workdirs that the run refers to are not read again if they are in this set.
    """
    fields = flatten_fields(run.config)
    fields = {name: value for name, value in fields.items() if not is_free_in_group(name)}
    seen = seen | {run.workdir.resolve()}
    for field in REFERRING:
        path = run.find_workdir(field)
        if path is not None and path.resolve() not in seen:
            fields[field] = fingerprint_run(read_run(path), seen)
    facts = json.dumps([fields, run.provenance.get("data")], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def is_free_in_group(field: str) -> bool:
    """Return whether a config's field may differ within a group: FREE_IN_GROUP has the field, or a prefix of it."""
    return any(field == name or field.startswith(f"{name}.") for name in FREE_IN_GROUP)


def _name_groups(runs_of_groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for each group. The names differ if possible.

    The choices, in order: the name in the configs, the common name of the folders without the seed, the name of the
    first folder, its name with the parent folder, its whole path.
    """
    candidates = [list(dict.fromkeys(_candidate_names(runs))) for runs in runs_of_groups]
    used = collections.Counter(name for names in candidates for name in names)
    return [next((name for name in names if used[name] == 1), names[-1]) for names in candidates]


def _candidate_names(runs: Sequence[Run]) -> list[str]:
    first = runs[0]
    common = [{run.name for run in runs}, {re.sub(rf"[-_.]?{run.seed}$", "", run.folder_name) for run in runs}]
    names = [name for (name, *others) in common if name and not others]
    return [
        *names,
        first.folder_name,
        f"{first.workdir.resolve().parent.name}/{first.folder_name}",
        str(first.workdir.resolve()),
    ]


def find_different_rows(a: Group, b: Group, split: str, metric: str) -> str | None:
    """Return the name of a difference between the rows that `metric` on `split` measured in two groups.

    None: nothing differs, so the groups are comparable. Held-out rows are the same if the fingerprints of their tokens
    are equal. If a run lacks that fingerprint, the fingerprints of all its data are compared.
    """
    text, standard = split_standard(split)
    a_heldout, b_heldout = (lookup_field(group.runs[0].provenance, "heldout") or {} for group in (a, b))
    if text in a_heldout and text in b_heldout:
        if a_heldout[text] != b_heldout[text]:
            return "the held-out data"
    elif _data_fingerprints(a) != _data_fingerprints(b):
        return "the data"
    a_fields, b_fields = (_evaluated_fields(group.config["objective"], standard) for group in (a, b))
    changed = sorted(name for name in a_fields.keys() | b_fields if a_fields.get(name) != b_fields.get(name))
    changed = [name for name in changed if name not in SAME_ROWS]
    if changed:
        return "the objective" if "name" in changed else f"objective.{changed[0]}"
    counts = ("rows",) if find_metric(metric).compute is not None else ("rows", "generate_rows", "max_new_tokens")
    fields = (f"eval.{name}" for name in (*counts, *find_metric(metric).eval_fields))
    return next((field for field in fields if lookup_field(a.config, field) != lookup_field(b.config, field)), None)


def _evaluated_fields(objective: dict[str, Any], standard: str | None) -> dict[str, Any]:
    """Return the fields of an objective that change its evaluation."""
    if standard is not None:
        return {"inputs_length": objective["inputs_length"]}
    return OBJECTIVES[objective["name"]].evaluation_fields(objective) if objective["name"] in OBJECTIVES else objective


def _data_fingerprints(group: Group) -> Any:
    """Return the fingerprints of all data. Without provenance, return the fields of the config's `data`."""
    return group.runs[0].provenance.get("data") or group.config["data"]

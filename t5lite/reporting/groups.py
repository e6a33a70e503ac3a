"""Groups: the runs that repeat one experiment with other seeds, their names, and which groups are comparable.

Two runs belong to one group when their data have the same fingerprints and their configs are equal, except for the
seed, the name, and other fields in WATCHING. For a run that another run started from, the group compares what that run
computes, not its name:

    finetune-0 from @pretrain-0, finetune-1 from @pretrain-1    one group, because the two pretrain runs are one
    finetune-0 from @short, finetune-1 from @long               two groups

Runs with different objectives are compared by the metrics of one objective that evaluated them all, a standard. These
metrics stand under the name of the split and the standard: "validation_span_corruption".
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
from t5lite.tasks.metrics import metric_of

# Fields for how a run is watched and where it runs. They change neither the computation nor the evaluated rows.
WATCHING = (
    "name",
    "seed",
    "log_every_steps",
    "checkpoint",
    "mesh",
    "deterministic",
    "eval.every_steps",
    "eval.batch_size",
)
# Fields for how the network reads a pair. The evaluated pair is the same with any of their values.
SAME_ROWS = ("pack", "prefix_attention")


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
        """(split, metric) for every metric that at least one run has, in the order of display."""
        return sort_metrics(
            (split, metric) for run in self.runs for split in run.metrics for metric in run.metrics[split]
        )

    def values(self, split: str, metric: str) -> dict[int, float | None]:
        """Return {seed: value}, averaged over runs of the same seed; None where one of the values is not finite."""
        by_seed = collections.defaultdict(list)
        for run in self.runs:
            if metric in run.metrics.get(split, {}):
                by_seed[run.seed].append(run.metrics[split][metric])
        return {seed: _mean(values) for seed, values in sorted(by_seed.items())}

    @functools.cached_property
    def estimates(self) -> dict[SplitMetric, Estimate]:
        """{(split, metric): mean over seeds}. An interval ends where the range of the metric ends."""
        means = {pair: estimate(list(self.values(*pair).values())) for pair in self.pairs}
        return {pair: mean.within(metric_of(pair[1]).low, metric_of(pair[1]).high) for pair, mean in means.items()}

    @property
    def origins(self) -> list[Run]:
        """The runs that the runs of the group started from."""
        return list({origin.workdir.resolve(): origin for run in self.runs for origin in run.origins}.values())

    @property
    def cost(self) -> Cost:
        """The mean cost of a run."""
        return mean_cost([read_cost(run) for run in self.runs])

    @property
    def cost_with_origins(self) -> Cost:
        """The mean cost of a run together with the runs that it started from."""
        return mean_cost([read_cost_with_origins(run) for run in self.runs])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Sort runs into groups, in the order of each group's first run, and name them.

    If a standard evaluated some run, a run with that standard as its own objective gets its metrics under the
    standard's name too.
    """
    used = {standard for run in runs for split in run.metrics if (standard := split_standard(split)[1])}
    by_identity: dict[str, list[Run]] = {}
    for run in runs:
        by_identity.setdefault(identity(run), []).append(_with_own_standard(run, used))
    members = list(by_identity.values())
    return [
        Group(name, tuple(sorted(of_group, key=lambda run: (run.seed, run.run))))
        for name, of_group in zip(_names(members), members, strict=True)
    ]


def split_standard(split: str) -> tuple[str, str | None]:
    """Split the name of a split into (held-out text, standard). The standard is None for the run's own objective."""
    standard = next((each for each in STANDARDS if split.endswith(f"_{each}")), None)
    return (split, None) if standard is None else (split.removesuffix(f"_{standard}"), standard)


def _with_own_standard(run: Run, used: set[str]) -> Run:
    objective = run.config["objective"]
    name = objective["name"]
    # A run that has standard metrics under this name has an objective of the same name, but with other settings.
    if name not in used or name in standard_names(objective, lookup_field(run.config, "model.architecture")):
        return run
    same = {f"{split}_{name}": metrics for split, metrics in run.metrics.items() if split_standard(split)[1] is None}
    return dataclasses.replace(run, result={**run.result, "metrics": {**run.metrics, **same}})


def identity(run: Run, seen: frozenset[Path] = frozenset()) -> str:
    """Return a fingerprint of what a run computes. It is equal for runs that differ in nothing but the seed."""
    fields = flatten_fields(run.config)
    fields = {name: value for name, value in fields.items() if not is_for_watching(name)}
    seen = seen | {run.workdir.resolve()}
    for field in REFERRING:
        path = run.referred(field)
        if path is not None and path.resolve() not in seen:
            fields[field] = identity(read_run(path), seen)
    facts = json.dumps([fields, run.provenance.get("data")], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def is_for_watching(field: str) -> bool:
    """Return whether a config's field is in WATCHING, or inside a group of WATCHING."""
    return any(field == name or field.startswith(f"{name}.") for name in WATCHING)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for each group, different from the names of all other groups where possible.

    The choices, in order: the name in the configs, the folders' common name without the seed, the first folder's name.
    """
    candidates = [list(dict.fromkeys(_candidates(runs))) for runs in groups]
    used = collections.Counter(name for names in candidates for name in names)
    return [next((name for name in names if used[name] == 1), names[-1]) for names in candidates]


def _candidates(runs: Sequence[Run]) -> list[str]:
    first = runs[0]
    common = [{run.name for run in runs}, {re.sub(rf"[-_.]?{run.seed}$", "", run.run) for run in runs}]
    names = [name for (name, *others) in common if name and not others]
    return [*names, first.run, f"{first.workdir.resolve().parent.name}/{first.run}", str(first.workdir.resolve())]


def differing_rows(a: Group, b: Group, split: str, metric: str) -> str | None:
    """Return what differs between the rows on which two groups were evaluated by `metric` on `split`.

    None: nothing differs, so the groups are comparable. Held-out rows are the same where the fingerprints of their
    tokens are equal. Where a run lacks that fingerprint, the fingerprints of all its data are compared.
    """
    text, standard = split_standard(split)
    of_a, of_b = (lookup_field(group.runs[0].provenance, "heldout") or {} for group in (a, b))
    if text in of_a and text in of_b:
        if of_a[text] != of_b[text]:
            return "the held-out data"
    elif _data(a) != _data(b):
        return "the data"
    of_a, of_b = (_evaluated_fields(group.config["objective"], standard) for group in (a, b))
    changed = sorted(name for name in of_a.keys() | of_b if of_a.get(name) != of_b.get(name))
    changed = [name for name in changed if name not in SAME_ROWS]
    if changed:
        return "the objective" if "name" in changed else f"objective.{changed[0]}"
    counts = ("rows",) if metric_of(metric).uses_all_rows else ("rows", "generate_rows", "max_new_tokens")
    fields = (f"eval.{name}" for name in counts)
    return next((field for field in fields if lookup_field(a.config, field) != lookup_field(b.config, field)), None)


def _evaluated_fields(objective: dict[str, Any], standard: str | None) -> dict[str, Any]:
    """Return the fields of an objective that decide how it was evaluated."""
    if standard is not None:
        return {"inputs_length": objective["inputs_length"]}
    return OBJECTIVES[objective["name"]].evaluation_fields(objective) if objective["name"] in OBJECTIVES else objective


def _data(group: Group) -> Any:
    """Return the fingerprints of all data. For a run without provenance, return the config of its data."""
    return group.runs[0].provenance.get("data") or group.config["data"]

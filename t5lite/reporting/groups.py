"""Groups: the runs that repeat one experiment with other seeds, and the names of the groups.

Two runs belong to one group when their data have the same fingerprints and their configs are equal, except for the
seed, the name, and other fields in WATCHING. For a run that another run started from, the group compares what that run
computes, not its name:

    finetune-0 from @pretrain-0, finetune-1 from @pretrain-1    one group, because the two pretrain runs are one
    finetune-0 from @short, finetune-1 from @long               two groups
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.config import flatten_fields, lookup_field
from t5lite.reporting.runs import Run, read_run
from t5lite.reporting.standards import evaluated_fields, standard_split
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

    def metrics(self) -> dict[str, tuple[str, ...]]:
        """Return {split: names of its metrics}, for every metric that at least one run has."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for split, metrics in run.metrics.items():
                found.setdefault(split, {}).update(dict.fromkeys(metrics))
        return {split: tuple(names) for split, names in found.items()}

    def values(self, split: str, metric: str) -> dict[int, float | None]:
        """Return {seed: value}, averaged over runs of the same seed; None where one of the values is not finite."""
        by_seed = collections.defaultdict(list)
        for run in self.runs:
            if metric in run.metrics.get(split, {}):
                by_seed[run.seed].append(run.metrics[split][metric])
        return {seed: _mean(values) for seed, values in sorted(by_seed.items())}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Sort runs into groups, in the order of each group's first run, and name them."""
    by_identity: dict[str, list[Run]] = {}
    for run in runs:
        by_identity.setdefault(identity(run), []).append(run)
    members = list(by_identity.values())
    return [
        Group(name, tuple(sorted(of_group, key=lambda run: (run.seed, run.run))))
        for name, of_group in zip(_names(members), members, strict=True)
    ]


def identity(run: Run, seen: frozenset[Path] = frozenset()) -> str:
    """Return a fingerprint of what a run computes. It is equal for runs that differ in nothing but the seed."""
    fields = flatten_fields(run.config)
    fields = {name: value for name, value in fields.items() if not watches(name)}
    seen = seen | {run.workdir.resolve()}
    for field in REFERRING:
        path = run.referred(field)
        if path is not None and path.resolve() not in seen:
            fields[field] = identity(read_run(path), seen)
    facts = json.dumps([fields, run.provenance.get("data")], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def watches(field: str) -> bool:
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
    names = {run.name for run in runs}
    stems = {re.sub(rf"[-_.]?{run.seed}$", "", run.run) for run in runs}
    found = [names.pop()] if len(names) == 1 and "" not in names else []
    found += [stems.pop()] if len(stems) == 1 and "" not in stems else []
    return [*found, first.run, f"{first.workdir.resolve().parent.name}/{first.run}", str(first.workdir.resolve())]


def differing_rows(a: Group, b: Group, split: str, metric: str) -> str | None:
    """Return what differs in the evaluation of two groups by `metric` on `split`; None: nothing, so they are
    comparable.

    Held-out rows are the same where the fingerprints of their tokens are equal. Where a run lacks that fingerprint, the
    fingerprints of all its data are compared.
    """
    text, standard = standard_split(split)
    ours, theirs = (lookup_field(group.runs[0].provenance, "heldout") or {} for group in (a, b))
    if text in ours and text in theirs:
        if ours[text] != theirs[text]:
            return "the held-out data"
    elif _data(a) != _data(b):
        return "the data"
    ours, theirs = (
        {n: v for n, v in evaluated_fields(group.config["objective"], standard).items() if n not in SAME_ROWS}
        for group in (a, b)
    )
    if ours != theirs:
        changed = sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))
        return f"objective.{changed[0]}" if "name" not in changed else "the objective"
    counts = ("rows",) if metric_of(metric).of_all_rows else ("rows", "generate_rows", "max_new_tokens")
    for name in counts:
        if lookup_field(a.config, f"eval.{name}") != lookup_field(b.config, f"eval.{name}"):
            return f"eval.{name}"
    return None


def _data(group: Group) -> Any:
    """Return the fingerprints of all data. For a run without provenance, return the config of its data."""
    return group.runs[0].provenance.get("data") or group.config["data"]

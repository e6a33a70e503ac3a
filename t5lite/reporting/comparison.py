"""From runs to a Report: tasks, groups, differences with intervals, and what has to be said about them.

The Report is what all renderers read: document.py lays it out for markdown.py and html.py, report.py writes it as JSON.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.config import at
from t5lite.errors import UserError, nearest
from t5lite.reporting.groups import (
    Cost,
    Group,
    cost,
    cost_with_origins,
    differing_rows,
    make_groups,
    mean_cost,
    unread_origin,
)
from t5lite.reporting.runs import Run, origins
from t5lite.reporting.statistics import METHOD, Estimate, estimate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference b - a of a metric on a split, paired by seed. deltas: {seed: difference}."""

    task: str
    a: str
    b: str
    metric: str
    split: str
    delta: Estimate
    deltas: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A group with its means over seeds. with_origins: its cost and that of what it started from; None from scratch."""

    group: Group
    estimates: dict[str, dict[str, Estimate]]
    cost: Cost
    with_origins: Cost | None
    origins: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.group.name


@dataclasses.dataclass(frozen=True)
class Task:
    """Groups that were evaluated on the same rows. base: the name of the first, which the others are held against."""

    title: str
    base: str
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def against_base(self) -> tuple[Comparison, ...]:
        return tuple(each for each in self.comparisons if each.a == self.base)

    @property
    def among_others(self) -> tuple[Comparison, ...]:
        return tuple(each for each in self.comparisons if each.a != self.base)

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """(split, metric), each that any of the groups has."""
        found: dict[tuple[str, str], None] = {}
        for summary in self.summaries:
            for split, metrics in summary.estimates.items():
                found.update(dict.fromkeys((split, metric) for metric in metrics))
        return sorted(found, key=lambda pair: list(dict.fromkeys(split for split, _ in found)).index(pair[0]))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run as the report lists it. name: its group's, None for a run that is in none. run: what was read of it."""

    run: str
    name: str | None
    seed: int | None
    status: str
    read: Run | None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report says. missing: sentences about runs without a result; notes: what a reader must know."""

    title: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    method: str = METHOD

    @property
    def summaries(self) -> list[Summary]:
        return [summary for task in self.tasks for summary in task.summaries]

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for task in self.tasks for comparison in task.comparisons]


def compare(runs: Sequence[Run], title: str, base: str | None, absent: Mapping[str, str]) -> Report:
    """Compare what is complete among `runs`. Raises UserError where nothing is, or where no group is called `base`."""
    complete = [run for run in runs if run.result is not None and run.run not in absent]
    if not complete:
        raise UserError(_nothing(runs, absent))
    groups = make_groups(complete)
    if base is not None and base not in {group.name for group in groups}:
        names = [group.name for group in groups]
        raise UserError(f"there is no group of runs {base!r} to compare with; {nearest(base, names)}")
    notes: list[str] = []
    tasks = _tasks(groups, base, notes)
    entries = _entries(runs, groups, absent)
    missing = [f"{entry.run}: {entry.status}" for entry in entries if entry.status != "complete"]
    return Report(
        title=title,
        # What can be compared comes first; a task of one group has only its own values to show.
        tasks=tuple(sorted(tasks, key=lambda task: len(task.summaries) == 1)),
        entries=tuple(entries),
        missing=tuple(missing),
        notes=tuple(dict.fromkeys([*notes, *_cost_notes(groups), *_multiplicity(tasks)])),
    )


def _nothing(runs: Sequence[Run], absent: Mapping[str, str]) -> str:
    listed = [f"{name} ({why})" for name, why in absent.items()]
    listed += [f"{run.workdir} ({_progress(run)})" for run in runs if run.run not in absent]
    return f"no run is complete, so there is nothing to compare: {', '.join(listed) or 'none was given'}"


def _progress(run: Run) -> str:
    step = "nothing logged yet" if run.last_step is None else f"last logged step {run.last_step}"
    return f"incomplete: {step}, no result.json"


def _entries(runs: Sequence[Run], groups: Sequence[Group], absent: Mapping[str, str]) -> list[Entry]:
    group_of = {run.workdir: group.name for group in groups for run in group.runs}
    entries = []
    for run in runs:
        status = absent.get(run.run) or ("complete" if run.workdir in group_of else _progress(run))
        entries.append(Entry(run.run, group_of.get(run.workdir, run.name or None), run.seed, status, run))
    known = {run.run for run in runs}
    return entries + [Entry(name, None, None, why, None) for name, why in absent.items() if name not in known]


def _tasks(groups: Sequence[Group], base: str | None, notes: list[str]) -> list[Task]:
    """Sort groups into tasks and compare within each. What has to be said is appended to `notes`."""
    members: list[list[Group]] = []
    for group in groups:
        touching = [task for task in members if any(_comparable(group, other) for other in task)]
        merged = [other for task in touching for other in task]
        members = [task for task in members if task not in touching]
        members.append([*merged, group])
    order = list(groups)
    members = [sorted(task, key=order.index) for task in members]
    members.sort(key=lambda task: order.index(task[0]))
    titles = _titles(members)
    if len(members) > 1:
        notes.append(
            f"The runs are of {len(members)} tasks ({'; '.join(titles)}), which differ in what is predicted or held "
            "out. Differences are taken within a task and never between two."
        )
    return [_task(title, of_task, base, notes) for title, of_task in zip(titles, members, strict=True)]


def _comparable(a: Group, b: Group) -> bool:
    """Whether some metric on some split was measured on the same rows in both."""
    ours, theirs = a.metrics(), b.metrics()
    return any(
        metric in theirs.get(split, ()) and differing_rows(a, b, split, metric) is None
        for split, metrics in ours.items()
        for metric in metrics
    )


def _titles(members: Sequence[Sequence[Group]]) -> list[str]:
    titles = []
    for task in members:
        config = task[0].config
        mixture = at(config, "data.train.mixture") or {}
        source = at(config, "data.train.source") or " + ".join(sorted(mixture)) or "no source"
        titles.append(f"{at(config, 'objective.name')} · {source}")
    named = [
        f"{title} ({', '.join(group.name for group in task)})" for title, task in zip(titles, members, strict=True)
    ]
    return [name if titles.count(title) > 1 else title for title, name in zip(titles, named, strict=True)]


def _task(title: str, groups: Sequence[Group], base: str | None, notes: list[str]) -> Task:
    chosen = next((group for group in groups if group.name == base), groups[0])
    groups = [chosen, *(group for group in groups if group is not chosen)]
    comparisons: list[Comparison] = []
    for a, b in itertools.combinations(groups, 2):
        comparisons += _compare_pair(title, a, b, notes)
    for group in groups:
        notes += _group_notes(group)
    return Task(title, chosen.name, tuple(_summary(group) for group in groups), tuple(comparisons))


def _summary(group: Group) -> Summary:
    estimates = {
        split: {metric: estimate(list(group.values(split, metric).values())) for metric in metrics}
        for split, metrics in group.metrics().items()
    }
    names = dict.fromkeys(origin.run for run in group.runs for origin in origins(run))
    total = mean_cost([cost_with_origins(run) for run in group.runs]) if names else None
    return Summary(group, estimates, mean_cost([cost(run) for run in group.runs]), total, tuple(names))


def _compare_pair(task: str, a: Group, b: Group, notes: list[str]) -> list[Comparison]:
    """All differences b - a; why one is left out, or has no interval, is appended to `notes`."""
    pair = f"{b.name} against {a.name}"
    shared = sorted(set(a.seeds) & set(b.seeds))
    if not shared:
        notes.append(f"{pair}: not compared, the two share no seed ({_seeds(b)}; {_seeds(a)}).")
        return []
    if len(shared) == 1:
        notes.append(f"{pair}: one seed: no interval; repeat with more seeds.")
    if set(a.seeds) != set(b.seeds):
        notes.append(f"{pair}: compared on the seeds of both, {listed(shared)} ({_seeds(b)}; {_seeds(a)}).")
    ours, theirs = a.metrics(), b.metrics()
    found, reasons = [], {}
    for split in dict.fromkeys([*ours, *theirs]):
        for metric in dict.fromkeys([*ours.get(split, ()), *theirs.get(split, ())]):
            compared = _compare_metric(a, b, split, metric)
            if isinstance(compared, str | Group):
                reasons.setdefault((compared, split), []).append(metric)
            else:
                found.append(Comparison(task, a.name, b.name, metric, split, *compared))
    notes += [_left_out(pair, reason, split, metrics) for (reason, split), metrics in reasons.items()]
    return found


def _left_out(pair: str, reason: str | Group, split: str, metrics: Sequence[str]) -> str:
    """A note; what a group lacks is the same for each pair that it is in, and so is its text."""
    what = f"{listed(metrics)} on {split}"
    if isinstance(reason, Group):
        return f"{reason.name} has no {what}: left out of its comparisons."
    return f"{pair}: {what} left out: {reason}."


def _compare_metric(a: Group, b: Group, split: str, metric: str) -> tuple[Estimate, dict[int, float]] | str | Group:
    """The difference b - a and that of each seed; else the group that lacks the metric, or another reason."""
    ours, theirs = a.values(split, metric), b.values(split, metric)
    for group, values in ((a, ours), (b, theirs)):
        if not values:
            return group
    differs = differing_rows(a, b, split, metric)
    if differs is not None:
        return f"not measured on the same rows, {differs} is not the same"
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return "no seed has it on both sides"
    deltas = {}
    for seed in seeds:
        for group, value in ((a, ours[seed]), (b, theirs[seed])):
            # Dropping the seed would flatter the group whose training went wrong.
            if value is None:
                return f"{group.name} has a value that is not finite, with seed {seed}"
        deltas[seed] = theirs[seed] - ours[seed]
    return estimate(list(deltas.values())), deltas


def _seeds(group: Group) -> str:
    return f"{group.name} has {listed(group.seeds)}"


def listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items))


def _group_notes(group: Group) -> list[str]:
    notes = []
    repeated = sorted({run.seed for run in group.runs if sum(run.seed == other.seed for other in group.runs) > 1})
    if repeated:
        notes.append(f"{group.name} has several runs with seed {listed(repeated)}: they count as one, by their mean.")
    for run in group.runs:
        for split, metrics in run.metrics.items():
            broken = [metric for metric in metrics if _mean_of(group, split, metric, run.seed) is None]
            if broken:
                notes.append(
                    f"{run.run}: {listed(broken)} on {split} is not finite, so {group.name} has no mean of it."
                )
    return notes


def _mean_of(group: Group, split: str, metric: str, seed: int) -> float | None:
    return group.values(split, metric).get(seed)


def _cost_notes(groups: Sequence[Group]) -> list[str]:
    """Where costs do not compare, or are not all of it."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    for field, what in (
        ("devices", "devices"),
        ("hosts", "numbers of hosts"),
        ("python", "versions of Python"),
        ("packages", "versions of packages"),
        ("git_commit", "versions of t5lite"),
    ):
        found = {str(run.provenance[field]) for run in runs if field in run.provenance}
        if len(found) > 1:
            notes.append(f"The runs were made with different {what} (see Provenance): their costs do not compare.")
    unknown = [run.run for run in runs if not run.provenance]
    if unknown:
        notes.append(f"No provenance.json: {listed(unknown)}.")
    uncounted: dict[str, list[str]] = {}
    for run in runs:
        unread = unread_origin(run)
        if unread is not None:
            uncounted.setdefault(f"{unread}, which cannot be read", []).append(run.run)
        for origin in origins(run):
            if origin.result is None:
                uncounted.setdefault(f"{origin.run}, which is not complete", []).append(run.run)
    for origin, names in uncounted.items():
        notes.append(f"{listed(names)} started from {origin}: its cost is not counted.")
    return notes


def _multiplicity(tasks: Sequence[Task]) -> list[str]:
    count = sum(comparison.delta.low is not None for task in tasks for comparison in task.comparisons)
    if not count:
        return []
    return [
        f"Intervals of differences in this report: {count}. They are not adjusted for their number: of 20 "
        "differences that are none, about one is resolved by chance."
    ]

"""From runs to a Report: tasks, groups, differences with intervals, and the notes about them.

All renderers read the Report: document.py lays it out for markdown.py and html.py, and report.py writes it as JSON.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5lite.reporting import notes
from t5lite.reporting.bases import assign_bases, candidate_of, check_bases, find_base, subject_of
from t5lite.reporting.groups import Group, differing_rows, make_groups
from t5lite.reporting.metrics import SplitMetric, sort_metrics
from t5lite.reporting.notes import LeftOut
from t5lite.reporting.runs import Run
from t5lite.reporting.statistics import METHOD, Estimate, differences
from t5lite.system.errors import UserError
from t5lite.tasks.metrics import metric_of


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference b - a of a metric on a split, paired by seed.

    deltas: {seed: difference}.
    """

    a: str
    b: str
    metric: str
    split: str
    delta: Estimate
    deltas: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """Groups that were evaluated on the same rows. Each base stands before the groups that are compared with it.

    base_of: {name of a group that is not a base: name of its base}.
    """

    title: str
    base_of: Mapping[str, str]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def bases(self) -> tuple[str, ...]:
        """The names of the bases."""
        return tuple(group.name for group in self.groups if group.name not in self.base_of)

    @property
    def against_base(self) -> tuple[Comparison, ...]:
        """The comparisons of each group `b` with its base `a`."""
        return tuple(each for each in self.comparisons if self.base_of.get(each.b) == each.a)

    @property
    def among_others(self) -> tuple[Comparison, ...]:
        return tuple(each for each in self.comparisons if self.base_of.get(each.b) != each.a)

    @property
    def metrics(self) -> list[SplitMetric]:
        """(split, metric) for every metric that at least one group has, in the order of the columns."""
        return sort_metrics(pair for group in self.groups for pair in group.pairs)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run as the report lists it.

    name: the name of its group, or its config's own name; None where there is neither.
    read: the run, where its workdir was read.
    """

    run: str
    name: str | None
    seed: int | None
    status: str
    read: Run | None


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a report says.

    missing: a line for each reason why runs have no result, with the names of the runs.
    notes: what a reader must know.
    """

    title: str
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    method: str = METHOD

    @property
    def groups(self) -> list[Group]:
        return [group for task in self.tasks for group in task.groups]

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for task in self.tasks for comparison in task.comparisons]


def compare(
    runs: Sequence[Run], title: str, bases: Sequence[str], absent: Mapping[str, str], remarks: Sequence[str] = ()
) -> Report:
    """Compare the complete runs among `runs`.

    Args:
        bases: the groups that the others of their task are compared with: GROUP or TASK=GROUP, as in `find_base`. A
            task without one takes its first group.
        absent: {run: why it has no result}.
        remarks: further notes.

    Raises:
        UserError: where no run is complete, or where a base names no group.
    """
    complete = [run for run in runs if run.result is not None and run.run not in absent]
    if not complete:
        entries = _entries(runs, absent, {})
        listed = ", ".join(f"{each.read.workdir if each.read else each.run} ({each.status})" for each in entries)
        raise UserError(f"no run is complete, so there is nothing to compare: {listed or 'none was given'}")
    groups = make_groups(complete)
    candidates = [candidate_of(group) for group in groups]
    check_bases(bases, candidates)
    chosen = [groups[place] for place in dict.fromkeys(i for base in bases for i in find_base(base, candidates))]
    members = _members(groups)
    subjects = [subject_of(task[0].config) for task in members]
    titles = _titles(members, subjects)
    told = [*remarks, *notes.task_notes(members, titles, subjects)]
    tasks = [_task(title, of_task, chosen, told) for title, of_task in zip(titles, members, strict=True)]
    told += notes.provenance_notes(groups) + notes.change_notes(groups) + notes.cost_notes(members)
    told += notes.evaluated_notes(groups)
    told += notes.multiplicity_notes(sum(each.delta.low is not None for task in tasks for each in task.comparisons))
    entries = _entries(runs, absent, {run.workdir: group.name for group in groups for run in group.runs})
    missing = notes.collect((entry.status, entry.run) for entry in entries if entry.status != "complete")
    return Report(
        title=title,
        # Tasks with something to compare come first; a task of one group only shows its own values.
        tasks=tuple(sorted(tasks, key=lambda task: len(task.groups) == 1)),
        entries=tuple(entries),
        missing=tuple(f"{notes.shortened(names)}: {status}" for status, names in missing.items()),
        notes=tuple(dict.fromkeys(told)),
    )


def _entries(runs: Sequence[Run], absent: Mapping[str, str], group_of: Mapping[Path, str]) -> list[Entry]:
    """Return an entry for each run, then for each of the `absent` runs without a workdir.

    group_of: {workdir: name of the run's group}.
    """
    entries = []
    for run in runs:
        status = "complete"
        if run.result is None:
            step = "nothing logged yet" if run.last_step is None else f"last logged step {run.last_step}"
            status = f"incomplete: {step}, no result.json"
        name = group_of.get(run.workdir, run.name or None)
        entries.append(Entry(run.run, name, run.seed, absent.get(run.run) or status, run))
    known = {run.run for run in runs}
    return entries + [Entry(name, None, None, why, None) for name, why in absent.items() if name not in known]


def _members(groups: Sequence[Group]) -> list[list[Group]]:
    """Return the groups of each task.

    Two groups are of one task where they share a metric that was measured on the same rows. A chain of such pairs is
    one task too.
    """
    members: list[list[Group]] = []
    for group in groups:
        touching = [task for task in members if any(_comparable(group, other) for other in task)]
        members = [task for task in members if task not in touching] + [[*itertools.chain(*touching), group]]
    order = list(groups)
    return sorted((sorted(task, key=order.index) for task in members), key=lambda task: order.index(task[0]))


def _comparable(a: Group, b: Group) -> bool:
    """Return whether at least one metric on one split was measured on the same rows in both groups."""
    return any(pair in b.pairs and differing_rows(a, b, *pair) is None for pair in a.pairs)


def _titles(members: Sequence[Sequence[Group]], subjects: Sequence[str]) -> list[str]:
    return [
        f"{subject} ({notes.shortened([group.name for group in task])})" if subjects.count(subject) > 1 else subject
        for subject, task in zip(subjects, members, strict=True)
    ]


def _task(title: str, groups: Sequence[Group], chosen: Sequence[Group], told: list[str]) -> Task:
    """Compare the groups of a task, each with each, and append the notes about them to `told`.

    chosen: the bases that were asked for, in all tasks.
    """
    bases = [group for group in chosen if group in groups] or [groups[0]]
    base_of = assign_bases(groups, bases)
    groups = [each for base in bases for each in (base, *(g for g in groups if base_of.get(g.name) == base.name))]
    outcomes = [
        _compare_metric(a, b, *pair)
        for a, b in itertools.combinations(groups, 2)
        if set(a.seeds) & set(b.seeds)
        for pair in sort_metrics([*a.pairs, *b.pairs])
    ]
    told += notes.seed_notes(groups)
    told += notes.left_out_notes([each for each in outcomes if isinstance(each, LeftOut)])
    told += [note for group in groups for note in notes.group_notes(group)]
    told += notes.data_notes(groups, base_of)
    comparisons = tuple(each for each in outcomes if isinstance(each, Comparison))
    return Task(title, base_of, tuple(groups), comparisons)


def _compare_metric(a: Group, b: Group, split: str, metric: str) -> Comparison | LeftOut:
    """Return the difference b - a, paired by seed, or the reason why there is none."""

    def leave_out(reason: str, lacking: Group | None = None) -> LeftOut:
        return LeftOut(a.name, b.name, split, metric, reason, None if lacking is None else lacking.name)

    of_a, of_b = a.values(split, metric), b.values(split, metric)
    for group, values in ((a, of_a), (b, of_b)):
        if not values:
            return leave_out("no", group)
    differs = differing_rows(a, b, split, metric)
    if differs is not None:
        return leave_out(f"{differs} is not the same")
    seeds = sorted(of_a.keys() & of_b.keys())
    if not seeds:
        return leave_out("no seed has it on both sides")
    for group, values in ((a, of_a), (b, of_b)):
        # Dropping the seed would flatter the group whose training went wrong.
        broken = [seed for seed in seeds if values[seed] is None]
        if broken:
            return leave_out(f"a value that is not finite, with seed {notes.listed(broken)}, for", group)
    deltas, delta = differences([of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds])
    most = metric_of(metric).width
    by_seed = dict(zip(seeds, deltas, strict=True))
    return Comparison(a.name, b.name, metric, split, delta.within(-most, most), by_seed)

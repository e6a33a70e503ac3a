"""Make a Report from runs: tasks, groups, differences with intervals, and notes.

All renderers read the Report. document.py arranges it for markdown.py and html.py, and report.py writes it as JSON.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5lite.reporting import notes
from t5lite.reporting.bases import assign_bases, check_bases, find_base, find_subject, make_candidate
from t5lite.reporting.confusion import missing_matrix_notes
from t5lite.reporting.groups import Group, find_different_rows, make_groups
from t5lite.reporting.metrics import SplitMetric, sort_metrics
from t5lite.reporting.notes import LeftOut
from t5lite.reporting.runs import Run
from t5lite.reporting.statistics import METHOD, Estimate, differences
from t5lite.system.errors import UserError
from t5lite.tasks.metrics import find_metric

INCOMPLETE = "incomplete: "  # the beginning of the status of a run whose workdir has no result.json


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
    """Groups that are connected by metrics measured on the same rows, see `_sort_into_tasks`.

    Each base comes before the groups that are compared with it.

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
        """(split, metric) for each metric that at least one group has, in the order of the columns."""
        return sort_metrics(pair for group in self.groups for pair in group.pairs)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run in the list of the report.

    folder_name: the name of the run's workdir.
    name: the name of the run's group, else the name in its config; None if there is neither.
    status: "complete", or the reason why the run has no result.
    run: None if its workdir was not read.
    """

    folder_name: str
    name: str | None
    seed: int | None
    status: str
    run: Run | None


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report.

    missing: a line for each reason why runs have no result, with the names of at most three of the runs.
    notes: sentences that a reader must know before trusting the numbers.
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
    runs: Sequence[Run], title: str, bases: Sequence[str], absent: Mapping[Path, str], remarks: Sequence[str] = ()
) -> Report:
    """Compare the complete runs among `runs` that are not in `absent`.

    Args:
        bases: names of bases: GROUP or TASK=GROUP, as in `find_base`. In a task without a named base, the first group
            is the base.
        absent: {workdir: why the run has no result}. The workdir may be missing.
        remarks: further notes.

    Raises:
        UserError: if no run is complete, or if a name in `bases` names no group.
    """
    absent_workdirs = {workdir.resolve() for workdir in absent}
    complete = [run for run in runs if run.result is not None and run.workdir.resolve() not in absent_workdirs]
    if not complete:
        entries = _list_entries(runs, absent, {})
        listed = ", ".join(f"{each.run.workdir if each.run else each.folder_name} ({each.status})" for each in entries)
        raise UserError(f"no run is complete, so there is nothing to compare: {listed or 'no run was given'}")
    groups = make_groups(complete)
    candidates = [make_candidate(group) for group in groups]
    check_bases(bases, candidates)
    base_indices = dict.fromkeys(i for base in bases for i in find_base(base, candidates))
    chosen = [groups[i] for i in base_indices]
    groups_of_tasks = _sort_into_tasks(groups)
    subjects = [find_subject(task_groups[0].config) for task_groups in groups_of_tasks]
    titles = _make_titles(groups_of_tasks, subjects)
    all_notes = [*remarks, *notes.task_notes(groups_of_tasks, titles, subjects)]
    tasks = [
        _compare_task(task_title, task_groups, chosen, all_notes)
        for task_title, task_groups in zip(titles, groups_of_tasks, strict=True)
    ]
    all_notes += notes.provenance_notes(groups) + notes.change_notes(groups) + notes.cost_notes(groups_of_tasks)
    all_notes += notes.evaluated_notes(groups) + notes.weakness_notes(groups)
    all_notes += missing_matrix_notes(groups)
    all_notes += notes.multiplicity_notes(
        sum(each.delta.low is not None for task in tasks for each in task.comparisons)
    )
    entries = _list_entries(runs, absent, {run.workdir: group.name for group in groups for run in group.runs})
    missing = notes.collect((entry.status, entry.folder_name) for entry in entries if entry.status != "complete")
    return Report(
        title=title,
        # Tasks with one group come last, because they have no comparison.
        tasks=tuple(sorted(tasks, key=lambda task: len(task.groups) == 1)),
        entries=tuple(entries),
        missing=tuple(f"{notes.shortened(names)}: {status}" for status, names in missing.items()),
        notes=tuple(dict.fromkeys(all_notes)),
    )


def _list_entries(runs: Sequence[Run], absent: Mapping[Path, str], group_of: Mapping[Path, str]) -> list[Entry]:
    """Return an entry for each of `runs`, then for each of the `absent` runs that is not among `runs`.

    group_of: {workdir: name of the run's group}.
    """
    entries = []
    reasons = {workdir.resolve(): reason for workdir, reason in absent.items()}
    for run in runs:
        status = "complete"
        if run.result is None:
            step = "nothing logged yet" if run.last_step is None else f"last logged step {run.last_step}"
            status = f"{INCOMPLETE}{step}, no result.json"
        name = group_of.get(run.workdir, run.name or None)
        status = reasons.get(run.workdir.resolve(), status)
        entries.append(Entry(run.folder_name, name, run.seed, status, run))
    known = {run.workdir.resolve() for run in runs}
    others = {workdir.resolve(): workdir.name for workdir in absent if workdir.resolve() not in known}
    return entries + [Entry(name, None, None, reasons[workdir], None) for workdir, name in others.items()]


def _sort_into_tasks(groups: Sequence[Group]) -> list[list[Group]]:
    """Return the groups of each task.

    Two groups belong to one task if they share a metric that was measured on the same rows. A chain of such pairs is
    one task too.
    """
    tasks: list[list[Group]] = []
    for group in groups:
        related = [members for members in tasks if any(_are_comparable(group, other) for other in members)]
        tasks = [members for members in tasks if members not in related] + [[*itertools.chain(*related), group]]
    order = list(groups)
    in_order = [sorted(members, key=order.index) for members in tasks]
    return sorted(in_order, key=lambda members: order.index(members[0]))


def _are_comparable(a: Group, b: Group) -> bool:
    """Return whether at least one metric on one split was measured on the same rows in both groups."""
    return any(pair in b.pairs and find_different_rows(a, b, *pair) is None for pair in a.pairs)


def _make_titles(groups_of_tasks: Sequence[Sequence[Group]], subjects: Sequence[str]) -> list[str]:
    return [
        f"{subject} ({notes.shortened([group.name for group in groups])})" if subjects.count(subject) > 1 else subject
        for subject, groups in zip(subjects, groups_of_tasks, strict=True)
    ]


def _compare_task(title: str, groups: Sequence[Group], chosen: Sequence[Group], all_notes: list[str]) -> Task:
    """Compare each pair of a task's groups that have a seed in common. Append notes about the groups to `all_notes`.

    chosen: the bases that `--base` names, in all tasks.
    """
    bases = [group for group in chosen if group in groups] or [groups[0]]
    base_of = assign_bases(groups, bases)
    groups = [each for base in bases for each in (base, *(g for g in groups if base_of.get(g.name) == base.name))]
    outcomes = [
        _compare_metric(a, b, *pair)
        for a, b in itertools.combinations(groups, 2)
        if set(a.seeds) & set(b.seeds)
        for pair in sort_metrics([*a.pairs, *b.pairs])
        if find_metric(pair[1]).is_compared
    ]
    all_notes += notes.seed_notes(groups)
    all_notes += notes.left_out_notes([each for each in outcomes if isinstance(each, LeftOut)])
    all_notes += [note for group in groups for note in notes.group_notes(group)]
    all_notes += notes.data_notes(groups, base_of)
    comparisons = tuple(each for each in outcomes if isinstance(each, Comparison))
    return Task(title, base_of, tuple(groups), comparisons)


def _compare_metric(a: Group, b: Group, split: str, metric: str) -> Comparison | LeftOut:
    """Return the difference b - a, paired by seed, or the reason why it is left out."""

    def leave_out(reason: str, group_at_fault: Group | None = None) -> LeftOut:
        name = None if group_at_fault is None else group_at_fault.name
        return LeftOut(a.name, b.name, split, metric, reason, name)

    # With a group at fault, the note is a sentence that contains the reason: "GROUP has REASON METRIC on SPLIT".
    a_values, b_values = a.values(split, metric), b.values(split, metric)
    for group, values in ((a, a_values), (b, b_values)):
        if not values:
            return leave_out("no", group)
    differs = find_different_rows(a, b, split, metric)
    if differs is not None:
        return leave_out(f"{differs} is not the same")
    seeds = sorted(a_values.keys() & b_values.keys())
    if not seeds:
        return leave_out("no seed has it on both sides")
    for group, values in ((a, a_values), (b, b_values)):
        # Do not drop the seed: then a group whose training failed would look better than it is.
        broken = [seed for seed in seeds if values[seed] is None]
        if broken:
            return leave_out(f"a value that is not finite, with seed {notes.listed(broken)}, for", group)
    deltas, delta = differences([a_values[seed] for seed in seeds], [b_values[seed] for seed in seeds])
    width = find_metric(metric).width
    by_seed = dict(zip(seeds, deltas, strict=True))
    return Comparison(a.name, b.name, metric, split, delta.clip(-width, width), by_seed)

"""Notes: facts about runs and groups that a reader must know before trusting the numbers, one sentence each."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5lite.config import flatten_fields, lookup_field
from t5lite.data.cut import describe_cut, describe_share
from t5lite.reporting.groups import Group, find_different_rows, is_free_in_group
from t5lite.reporting.runs import Run
from t5lite.tasks.metrics import describe_weakness

# Differences in VERSIONS can change results and costs. Differences in MACHINES can change only costs.
VERSIONS = {"python": "versions of Python", "packages": "versions of packages", "git_commit": "versions of t5lite"}
MACHINES = {"devices": "devices", "hosts": "numbers of hosts"}
# These fields change only the time that a run takes.
TAKING_TIME = ("eval.every_steps", "checkpoint.every_steps")


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A metric on a split that is not compared between `a` and `b`, and the reason.

    reason: with `group_at_fault`, "no" or the fault of the group's values, as words before the name of the metric.
        Else the difference between the two groups.
    group_at_fault: the group that causes this in all its comparisons. None: the cause is this pair of groups.
    """

    a: str
    b: str
    split: str
    metric: str
    reason: str
    group_at_fault: str | None = None


def listed(items: Iterable[Any]) -> str:
    """Return the items as text, with commas between them."""
    return ", ".join(map(str, items))


def shortened(items: Sequence[Any], limit: int = 3) -> str:
    """Return the first `limit` of `items` as text, and the number of the others."""
    return listed(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def collect(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """Return {key: list of its values, each once} for pairs (key, value), in the order of the pairs."""
    values_of: dict[Any, dict[Any, None]] = {}
    for key, value in pairs:
        values_of.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in values_of.items()}


def _name_pair(a: str, b: str) -> str:
    return f"{b} against {a}"


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a note for each reason, with its metrics, and with the group or the pairs of groups."""
    group_causes = [each for each in left_out if each.group_at_fault]
    of_groups = collect(((each.group_at_fault, each.reason, each.split), each.metric) for each in group_causes)
    notes = [
        f"{group} has {reason} {listed(metrics)} on {split}: left out of its comparisons."
        for (group, reason, split), metrics in of_groups.items()
    ]
    pair_causes = [each for each in left_out if not each.group_at_fault]
    of_pairs = collect(((each.reason, each.split, _name_pair(each.a, each.b)), each.metric) for each in pair_causes)
    by_reason = collect(((listed(metrics), split, reason), pair) for (reason, split, pair), metrics in of_pairs.items())
    return notes + [
        f"{metrics} on {split}: not compared, because {reason}: {shortened(pairs)}."
        for (metrics, split, reason), pairs in by_reason.items()
    ]


def seed_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes if the groups of a task have different seeds, or too few seeds in common."""
    notes = []
    by_seeds = collect((group.seeds, group.name) for group in groups)
    if len(by_seeds) > 1:
        have = "; ".join(f"{listed(seeds)} of {shortened(names)}" for seeds, names in by_seeds.items())
        notes.append(f"Not all groups have the same seeds, so each pair is compared on the seeds of both: {have}.")
    pairs = list(itertools.combinations(groups, 2))
    shared = collect((len(set(a.seeds) & set(b.seeds)), _name_pair(a.name, b.name)) for a, b in pairs)
    if without := shared.get(0):
        notes.append(f"Not compared, because they share no seed: {shortened(without)}.")
    if single := shared.get(1):
        everything = f"all comparisons of {shortened([group.name for group in groups])}"
        who = everything if len(single) == len(pairs) > 1 else shortened(single)
        notes.append(f"Compared on one seed: no interval; repeat with more seeds: {who}.")
    return notes


def data_notes(groups: Sequence[Group], base_of: Mapping[str, str]) -> list[str]:
    """Return a note for each difference between the training data of a group and of its base.

    base_of: {name of a group: name of its base}.
    """
    fields = {group.name: flatten_fields({"data": {"train": group.config["data"]["train"]}}) for group in groups}

    def changes(name: str, base: str) -> str:
        of_group, of_base = fields[name], fields[base]
        differing = [field for field in {**of_base, **of_group} if of_group.get(field) != of_base.get(field)]
        return listed(f"{field}={of_group.get(field)} and not {of_base.get(field)}" for field in differing)

    changed = collect(((base, values), name) for name, base in base_of.items() if (values := changes(name, base)))
    return [
        f"{shortened(names)}: trained on other data than the base {base} ({values}); --base names another base."
        for (base, values), names in changed.items()
    ]


def task_notes(groups_of_tasks: Sequence[Sequence[Group]], titles: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Return notes that say why the runs belong to several tasks.

    subjects: objective and source of each task. Several tasks can have the same subject.
    """
    if len(groups_of_tasks) < 2:
        return []
    named = f"{'; '.join(titles[:6])}{'; …' if len(titles) > 6 else ''}"
    notes = [
        f"The runs belong to {len(groups_of_tasks)} tasks ({named}), which were not evaluated in the same way. Only "
        "groups of the same task are compared."
    ]
    for places in collect((subject, i) for i, subject in enumerate(subjects)).values():
        first, *others = (groups_of_tasks[i] for i in places)
        for reason, names in collect(
            (_explain_separation(first, groups), group.name) for groups in others for group in groups
        ).items():
            shown = shortened([group.name for group in first])
            notes.append(f"{shortened(names)}: not compared with {shown}, because {reason}.")
    return notes


def _explain_separation(a: Sequence[Group], b: Sequence[Group]) -> str:
    """Return the reason why groups of two tasks are not compared."""
    shared = [pair for pair in a[0].pairs if pair in b[0].pairs]
    if not shared:
        return "they share no metric"
    reasons = dict.fromkeys(find_different_rows(a[0], b[0], *pair) for pair in shared)
    return f"{listed(reasons)} {'is' if len(reasons) == 1 else 'are'} not the same"


def group_notes(group: Group) -> list[str]:
    """Return notes on seeds that occur twice, lack a metric or had non-finite numbers, and on shared origins."""
    notes = []
    repeated = [seed for seed in group.seeds if sum(run.seed == seed for run in group.runs) > 1]
    if repeated:
        notes.append(f"{group.name} has several runs with seed {listed(repeated)}: their mean counts as one value.")
    lacking = collect(
        ((split, tuple(seed for seed in group.seeds if seed not in group.values(split, metric))), metric)
        for split, metric in group.pairs
    )
    for (split, seeds), metrics in lacking.items():
        if seeds:
            what = f"{listed(metrics)} on {split} with seed {listed(seeds)}"
            notes.append(f"{group.name} lacks {what}: its mean is over the other seeds.")
    for run in group.runs:
        if run.skipped_steps:
            updates = "1 update" if run.skipped_steps == 1 else f"{run.skipped_steps} updates"
            notes.append(f"{run.folder_name} skipped {updates}, because a loss or gradient was not finite.")
        for split, metrics in run.metrics.items():
            broken = [metric for metric in metrics if group.values(split, metric)[run.seed] is None]
            if broken:
                what = f"{listed(broken)} on {split}"
                notes.append(f"{run.folder_name}: {what} is not finite, so {group.name} has no mean for it.")
    return notes + [f"{group.name}: {caveat}." for caveat in shared_origins(group)]


def shared_origins(group: Group) -> list[str]:
    """Return a caveat if several seeds started from the same parameters.

    The spread over these seeds does not include the effect of the parameters from which they started.
    """
    started = []
    for run in group.runs:
        for origin in run.origins:
            started.append(((origin.workdir.resolve(), f"{origin.folder_name} (seed {origin.seed})"), run.seed))
        if run.unread_origin is not None:
            started.append(((None, run.unread_origin), run.seed))
    nearest: dict[tuple[int, ...], str] = {}  # in a chain of origins, only the nearest is named
    for (_, name), seeds in collect(started).items():
        if len(seeds) > 1:
            nearest.setdefault(tuple(sorted(seeds)), name)
    return [
        f"{_name_seeds(seeds, len(group.seeds))} start from {name}: the interval does not cover another pre-training"
        for seeds, name in nearest.items()
    ]


def _name_seeds(seeds: Sequence[int], count: int) -> str:
    if len(seeds) < count:
        return f"seeds {listed(seeds)}"
    return "both seeds" if count == 2 else f"all {count} seeds"


def provenance_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes if versions or machines differ, because results or costs may then not be comparable."""
    runs = [run for group in groups for run in group.runs]
    with_origins = [*runs, *(origin for run in runs for origin in run.origins)]
    notes = []
    for field, what in (VERSIONS | MACHINES).items():
        if _differ(runs, field) and field in VERSIONS:
            pooled = [group.name for group in groups if _differ(group.runs, field)]
            within = f" Among runs of one group: {shortened(pooled, 8)}." if pooled else ""
            notes.append(
                f"The runs were made with different {what} (see Provenance): their results and costs may not be "
                f"comparable.{within}"
            )
        elif _differ(with_origins, field):
            whose = "The runs" if _differ(runs, field) else "The runs and the runs that they started from"
            notes.append(f"{whose} were made with different {what} (see Provenance): their costs are not comparable.")
    unknown = [run.folder_name for run in runs if not run.provenance]
    return notes + ([f"No provenance.json: {shortened(unknown, 8)}."] if unknown else [])


def _differ(runs: Sequence[Run], field: str) -> bool:
    return len({str(run.provenance[field]) for run in runs if field in run.provenance}) > 1


def change_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on runs whose config changed between their beginning and their end."""
    notes = [
        f"{each.folder_name}: {field} was changed at step {start['step']} ({change.get('was')} before, "
        f"{change.get('now')} after)."
        for group in groups
        for run in group.runs
        for each in (run, *run.origins)
        for start in each.provenance.get("history") or ()
        for field, change in (start.get("changes") or {}).items()
    ]
    return list(dict.fromkeys(notes))


def cost_notes(groups_of_tasks: Sequence[Sequence[Group]]) -> list[str]:
    """Return notes if times within a task are not comparable, or if a cost is incomplete."""
    runs_of = [[run for group in groups for run in group.runs] for groups in groups_of_tasks]
    notes = []
    for field, runs in itertools.product(TAKING_TIME, runs_of):
        by_value = collect((lookup_field(run.config, field), run.folder_name) for run in runs)
        if len(by_value) > 1:
            values = "; ".join(f"{value} of {shortened(names)}" for value, names in by_value.items())
            notes.append(f"{field} is not the same ({values}): their times are not comparable.")
    uncounted = []
    for run in itertools.chain(*runs_of):
        if run.unread_origin is not None:
            uncounted.append((f"{run.unread_origin}, which cannot be read: its cost is not counted", run.folder_name))
        incomplete = [origin.folder_name for origin in run.origins if origin.result is None]
        uncounted += [(f"{name}, which is not complete: its cost is not known", run.folder_name) for name in incomplete]
    return notes + [f"{shortened(names, 8)} started from {origin}." for origin, names in collect(uncounted).items()]


def evaluated_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on texts that were cut, and on held-out rows that were not evaluated."""
    facts = []
    for group in groups:
        for run in group.runs:
            cut, shares = ((run.result or {}).get(field) or {} for field in ("cut", "evaluated"))
            about = [(split, describe_cut(counts, run.config["objective"])) for split, counts in cut.items()]
            about += [(split, describe_share(counts)) for split, counts in shares.items()]
            facts += [(f"{split}: {note}", group.name) for split, note in about if note is not None]
    return [f"{shortened(names, 8)}, {note}." for note, names in collect(facts).items()]


def weakness_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on classifiers that have learned nothing, or that nearly always give the same answer."""
    found = (
        ((split, weakness), run.folder_name)
        for group in groups
        for run in group.runs
        for split, metrics in run.metrics.items()
        if (weakness := describe_weakness(metrics)) is not None
    )
    return [f"{listed(names)}, {split}: {weakness}." for (split, weakness), names in collect(found).items()]


def multiplicity_notes(intervals: int) -> list[str]:
    """Return a note that intervals are not adjusted for multiple comparisons; [] for a report without intervals.

    intervals: the number of differences in the report that have an interval.
    """
    if not intervals:
        return []
    return [
        f"Intervals of differences in this report: {intervals}. They are not adjusted for multiple comparisons: "
        "among 20 comparisons without a true difference, about one is resolved by chance."
    ]


def evaluation_notes(runs: Sequence[Run], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return notes on complete runs that were evaluated with settings that differ from the present configs.

    wanted: {run: the present config}.
    """
    stale = []
    for run in runs:
        before, now = (flatten_fields({"eval": config["eval"]}) for config in (run.config, wanted[run.folder_name]))
        fields = [name for name in now if not is_free_in_group(name) and before.get(name) != now[name]]
        if fields and run.result is not None:
            stale.append((listed(f"{name}={before.get(name)} and not {now[name]}" for name in fields), run.folder_name))
    return [
        f"{listed(names)} {'was' if len(names) == 1 else 'were'} evaluated with {changed}; delete "
        f"{'its' if len(names) == 1 else 'their'} result.json to evaluate anew."
        for changed, names in collect(stale).items()
    ]

"""Notes: what a reader must know about runs and groups before they trust the numbers. One sentence for each reason."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from t5lite.config import flatten_fields, lookup_field
from t5lite.data.cut import describe_cut, describe_share
from t5lite.reporting.costs import unread_origin
from t5lite.reporting.groups import Group, differing_rows, watches
from t5lite.reporting.runs import Run

# VERSIONS can change results and costs; MACHINES can change costs only.
VERSIONS = {"python": "versions of Python", "packages": "versions of packages", "git_commit": "versions of t5lite"}
MACHINES = {"devices": "devices", "hosts": "numbers of hosts"}
# These fields change the time that a run takes, and nothing else.
TAKING_TIME = ("eval.every_steps", "checkpoint.every_steps")


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A metric on a split that is not compared between `a` and `b`, and why.

    lacking: the group that is the cause, whatever it is compared with; None where the pair is the cause.
    reason: with `lacking`, it is "no" or says what is wrong with the group's values; else it says why the pair differs.
    """

    a: str
    b: str
    split: str
    metric: str
    reason: str
    lacking: str | None = None


def listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def shortened(items: Sequence[Any], limit: int = 3) -> str:
    """Return the first `limit` of `items` as text, and how many more there are."""
    return listed(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _named(groups: Sequence[Group]) -> str:
    return shortened([group.name for group in groups])


def _by(key: Callable[[Any], Any], items: Iterable[Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a note for each reason, with the metrics, and the pairs or the group that it concerns."""
    of_groups = _by(lambda each: (each.lacking, each.reason, each.split), [each for each in left_out if each.lacking])
    notes = [
        f"{group} has {reason} {listed(dict.fromkeys(each.metric for each in of_group))} on {split}: left out of its "
        "comparisons."
        for (group, reason, split), of_group in of_groups.items()
    ]
    others = [each for each in left_out if not each.lacking]
    of_pairs = _by(lambda each: (each.reason, each.split, each.a, each.b), others)
    metrics = {key: listed(each.metric for each in of_pair) for key, of_pair in of_pairs.items()}
    for (reason, split, names), keys in _by(lambda key: (*key[:2], metrics[key]), of_pairs).items():
        pairs = [f"{b} against {a}" for *_, a, b in keys]
        notes.append(f"{names} on {split}: not compared, because {reason}: {shortened(pairs)}.")
    return notes


def seed_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes where the groups of a task do not have the same seeds, or have too few seeds in common."""
    notes = []
    by_seeds = _by(lambda group: group.seeds, groups)
    if len(by_seeds) > 1:
        have = "; ".join(f"{listed(seeds)} of {_named(of_seeds)}" for seeds, of_seeds in by_seeds.items())
        notes.append(f"Not all groups have the same seeds, so each pair is compared on the seeds of both: {have}.")
    pairs = list(itertools.combinations(groups, 2))
    shared = _by(lambda pair: len(set(pair[0].seeds) & set(pair[1].seeds)), pairs)
    without, single = ([f"{b.name} against {a.name}" for a, b in shared.get(count, ())] for count in (0, 1))
    if without:
        notes.append(f"Not compared, as they share no seed: {shortened(without)}.")
    if single:
        who = f"all comparisons of {_named(groups)}" if len(single) == len(pairs) > 1 else shortened(single)
        notes.append(f"Compared on one seed: no interval; repeat with more seeds: {who}.")
    return notes


def data_notes(groups: Sequence[Group], base_of: Mapping[str, str]) -> list[str]:
    """Return a note for each difference between the training data of a group and the training data of its base.

    base_of: {name of a group: name of its base}.
    """
    by_name = {group.name: group for group in groups}
    found: dict[tuple[str, str], list[str]] = {}
    for name, base in base_of.items():
        ours, theirs = (
            flatten_fields({"data": {"train": by_name[each].config["data"]["train"]}}) for each in (name, base)
        )
        changed = [field for field in {**theirs, **ours} if ours.get(field) != theirs.get(field)]
        if changed:
            values = listed(f"{field}={ours.get(field)} and not {theirs.get(field)}" for field in changed)
            found.setdefault((base, values), []).append(name)
    return [
        f"{shortened(names)}: trained on other data than the base {base} ({values}); --base names another base."
        for (base, values), names in found.items()
    ]


def task_notes(members: Sequence[Sequence[Group]], titles: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Return notes that say why the runs belong to several tasks.

    subjects: objective and source of each task. Several tasks can have the same subject.
    """
    if len(members) < 2:
        return []
    notes = [
        f"The runs are of {len(members)} tasks ({'; '.join(titles[:6])}{'; …' if len(titles) > 6 else ''}), which were "
        "not evaluated alike. Differences are taken within a task and never between two."
    ]
    for alike in _by(lambda i: subjects[i], range(len(members))).values():
        first, *others = (members[i] for i in alike)
        for reason, tasks in _by(lambda task, first=first: _apart(first, task), others).items():
            names = _named([group for task in tasks for group in task])
            notes.append(f"{names}: not compared with {_named(first)}, because {reason}.")
    return notes


def _apart(a: Sequence[Group], b: Sequence[Group]) -> str:
    """Return why no group of one task is compared with a group of the other."""
    ours, theirs = a[0].metrics(), b[0].metrics()
    shared = [(split, metric) for split in ours for metric in ours[split] if metric in theirs.get(split, ())]
    reasons = dict.fromkeys(differing_rows(a[0], b[0], *pair) for pair in shared)
    if not shared:
        return "they share no metric"
    return f"{listed(reasons)} {'is' if len(reasons) == 1 else 'are'} not the same"


def group_notes(group: Group) -> list[str]:
    """Return notes on seeds that occur twice, lack a metric or went wrong, and on what all seeds depend on."""
    notes = []
    repeated = [seed for seed, runs in _by(lambda run: run.seed, group.runs).items() if len(runs) > 1]
    if repeated:
        notes.append(f"{group.name} has several runs with seed {listed(repeated)}: they count as one, by their mean.")
    lacking: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for split, metrics in group.metrics().items():
        for metric in metrics:
            seeds = tuple(seed for seed in group.seeds if seed not in group.values(split, metric))
            if seeds:
                lacking.setdefault((split, seeds), []).append(metric)
    for (split, seeds), metrics in lacking.items():
        what = f"{listed(metrics)} on {split} with seed {listed(seeds)}"
        notes.append(f"{group.name} lacks {what}: its mean is that of the other seeds.")
    for run in group.runs:
        if run.skipped_steps:
            updates = "1 update" if run.skipped_steps == 1 else f"{run.skipped_steps} updates"
            notes.append(f"{run.run} left out {updates}, as a loss or gradient was not finite.")
        for split, metrics in run.metrics.items():
            broken = [metric for metric in metrics if group.values(split, metric)[run.seed] is None]
            if broken:
                what = f"{listed(broken)} on {split}"
                notes.append(f"{run.run}: {what} is not finite, so {group.name} has no mean of it.")
    return notes + [f"{group.name}: {caveat}." for caveat in shared_origins(group)]


def shared_origins(group: Group) -> list[str]:
    """Return a caveat where several seeds started from the same parameters: their spread says nothing about those."""
    seeds_of: dict[str, set[int]] = {}
    names: dict[str, str] = {}
    for run in group.runs:
        for origin in run.origins:
            key = str(origin.workdir.resolve())
            seeds_of.setdefault(key, set()).add(run.seed)
            names[key] = f"{origin.run} (seed {origin.seed})"
        unread = unread_origin(run)
        if unread is not None:
            seeds_of.setdefault(unread, set()).add(run.seed)
            names[unread] = unread
    found: dict[frozenset[int], str] = {}  # in a chain of origins, the nearest is enough
    for key, seeds in seeds_of.items():
        if len(seeds) > 1:
            found.setdefault(frozenset(seeds), names[key])
    return [
        f"{_seeds(sorted(seeds), len(group.seeds))} start from {name}: the interval does not cover another pre-training"
        for seeds, name in found.items()
    ]


def _seeds(seeds: Sequence[int], count: int) -> str:
    if len(seeds) < count:
        return f"seeds {listed(seeds)}"
    return "both seeds" if count == 2 else f"all {count} seeds"


def provenance_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes where versions or machines differ, because results or costs may then not be comparable."""
    runs = [run for group in groups for run in group.runs]
    with_origins = [*runs, *(origin for run in runs for origin in run.origins)]
    notes = []
    for field, what in (VERSIONS | MACHINES).items():
        if _differ(runs, field) and field in VERSIONS:
            pooled = [group.name for group in groups if _differ(group.runs, field)]
            within = f" Among runs of one group: {shortened(pooled, 8)}." if pooled else ""
            notes.append(
                f"The runs were made with different {what} (see Provenance): their results and costs may not compare."
                f"{within}"
            )
        elif _differ(with_origins, field):
            whose = "The runs" if _differ(runs, field) else "The runs and what they started from"
            notes.append(f"{whose} were made with different {what} (see Provenance): their costs do not compare.")
    unknown = [run.run for run in runs if not run.provenance]
    if unknown:
        notes.append(f"No provenance.json: {shortened(unknown, 8)}.")
    return notes


def change_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on runs whose config changed between their beginning and their end."""
    runs = [each for group in groups for run in group.runs for each in (run, *run.origins)]
    found: dict[str, None] = {}
    for run in runs:
        for start in run.provenance.get("history") or ():
            for field, change in (start.get("changes") or {}).items():
                values = f"{change.get('was')} before, {change.get('now')} after"
                found[f"{run.run}: {field} was changed at step {start['step']} ({values})."] = None
    return list(found)


def _differ(runs: Sequence[Run], field: str) -> bool:
    return len({str(run.provenance[field]) for run in runs if field in run.provenance}) > 1


def cost_notes(members: Sequence[Sequence[Group]]) -> list[str]:
    """Return notes where times within a task are not comparable, or where a cost is incomplete."""
    notes = []
    for field in TAKING_TIME:
        for groups in members:
            runs = [run for group in groups for run in group.runs]
            by_value = _by(lambda run, field=field: lookup_field(run.config, field), runs)
            if len(by_value) > 1:
                values = "; ".join(f"{value} of {shortened([run.run for run in of])}" for value, of in by_value.items())
                notes.append(f"{field} is not the same ({values}): their times do not compare.")
    uncounted: dict[str, list[str]] = {}
    for run in (run for groups in members for group in groups for run in group.runs):
        unread = unread_origin(run)
        if unread is not None:
            uncounted.setdefault(f"{unread}, which cannot be read: its cost is not counted", []).append(run.run)
        for origin in run.origins:
            if origin.result is None:
                uncounted.setdefault(f"{origin.run}, which is not complete: its cost is not known", []).append(run.run)
    return notes + [f"{shortened(names, 8)} started from {origin}." for origin, names in uncounted.items()]


def evaluated_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on texts that were cut, and on held-out rows that were not evaluated."""
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.runs:
            result = run.result or {}
            said = {
                split: describe_cut(cut, run.config["objective"]) for split, cut in (result.get("cut") or {}).items()
            }
            shares = result.get("evaluated") or {}
            said |= {f"{split} ": describe_share(counts) for split, counts in shares.items()}
            for split, note in said.items():
                if note is not None:
                    found.setdefault(f"{split.strip()}: {note}", {})[group.name] = None
    return [f"{shortened(list(names), 8)}, {note}." for note, names in found.items()]


def multiplicity_notes(intervals: int) -> list[str]:
    """Return a note that intervals are not adjusted for their number; none for a report without intervals.

    intervals: the number of differences in the report that have an interval.
    """
    if not intervals:
        return []
    return [
        f"Intervals of differences in this report: {intervals}. They are not adjusted for their number: of 20 "
        "differences that are none, about one is resolved by chance."
    ]


def evaluation_notes(runs: Sequence[Run], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return notes on complete runs that were evaluated with other settings than their configs now ask for.

    wanted: {run: the config as it is now}.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        before, now = (flatten_fields({"eval": config["eval"]}) for config in (run.config, wanted[run.run]))
        fields = [name for name in now if not watches(name) and before.get(name) != now[name]]
        if fields and run.result is not None:
            changed = listed(f"{name}={before.get(name)} and not {now[name]}" for name in fields)
            found.setdefault(changed, []).append(run.run)
    return [
        f"{listed(names)} {'was' if len(names) == 1 else 'were'} evaluated with {changed}; delete "
        f"{'its' if len(names) == 1 else 'their'} result.json to evaluate anew."
        for changed, names in found.items()
    ]

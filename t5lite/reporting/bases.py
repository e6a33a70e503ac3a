"""Bases: the groups that other groups are compared with. A base is the first group of a task, or `--base` names it.

    --base scratch                  every group called scratch is a base of its task
    --base science_topic=scratch    only where the task's title contains science_topic
    --base small --base large       a task with several bases: each group takes the base with the most similar config

So runs on all labels can be compared with a run on all labels, and runs on 200 labels with a run on 200 labels.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.config import flatten_fields, lookup_field
from t5lite.reporting.groups import Group, is_free_in_group
from t5lite.system.errors import UserError, nearest


class Candidate(NamedTuple):
    """A group that may be a base.

    names: the names of the group that `--base` may use.
    subject: objective and source, as in the title of the group's task.
    """

    names: Collection[str]
    subject: str


def find_subject(config: Mapping[str, Any]) -> str:
    """Return a config's objective and source of training text, as in the title of its task."""
    mixture = lookup_field(config, "data.train.mixture") or {}
    source = lookup_field(config, "data.train.source") or " + ".join(sorted(mixture)) or "no source"
    return f"{lookup_field(config, 'objective.name')} · {source}"


def make_candidate(group: Group) -> Candidate:
    """Return the candidate for a group. Its names are the name in the report, and the names of its configs and runs."""
    names = (name for run in group.runs for name in (run.name, run.folder_name))
    return Candidate({group.name, *names}, find_subject(group.config))


def find_base(text: str, candidates: Sequence[Candidate]) -> list[int]:
    """Return the indices in `candidates` of the groups that `text` names.

    text: GROUP or TASK=GROUP. TASK is a part of a task's title.
    """
    exact = [i for i, each in enumerate(candidates) if text in each.names]
    task, _, name = text.rpartition("=")
    return exact or [i for i, each in enumerate(candidates) if name in each.names and task in each.subject]


def check_bases(bases: Sequence[str], candidates: Sequence[Candidate]) -> None:
    """Raise UserError for a text in `bases` that names no group."""
    for text in bases:
        if find_base(text, candidates):
            continue
        task, _, name = text.rpartition("=")
        subjects = dict.fromkeys(each.subject for each in candidates if name in each.names)
        if not subjects:
            names = {known for each in candidates for known in each.names if known}
            raise UserError(f"--base {text}: no group of runs is called {name!r}; {nearest(name, names)}")
        titles = ", ".join(map(repr, subjects))
        raise UserError(
            f"--base {text}: no task with {task!r} in its title has a group {name!r}; the group is in {titles}"
        )


def assign_bases(groups: Sequence[Group], bases: Sequence[Group]) -> dict[str, str]:
    """Return {name of a group: name of its base}, for all groups of a task except the bases."""
    distances = {
        group.name: [_count_differences(group, base) for base in bases] for group in groups if group not in bases
    }
    return {name: bases[each.index(min(each))].name for name, each in distances.items()}


def _count_differences(a: Group, b: Group) -> int:
    """Return the number of fields that differ between the configs of two groups, without those in FREE_IN_GROUP."""
    a_fields, b_fields = flatten_fields(a.config), flatten_fields(b.config)
    names = [name for name in a_fields.keys() | b_fields.keys() if not is_free_in_group(name)]
    return sum(a_fields.get(name) != b_fields.get(name) for name in names)

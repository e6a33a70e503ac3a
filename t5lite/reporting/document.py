"""The content of a report and its order, without markup: sections of texts, tables, verdicts and plots.

markdown.py and html.py turn these kinds of blocks into their languages. terminal.py prints verdicts and short tables.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from t5lite.config import flatten_fields
from t5lite.reporting import words
from t5lite.reporting.comparison import Comparison, Report, Task
from t5lite.reporting.groups import Group, is_free_in_group
from t5lite.reporting.metrics import main_metrics, sort_metrics
from t5lite.reporting.notes import listed, shared_origins, shortened
from t5lite.reporting.runs import Run
from t5lite.tasks.metrics import find_metric


class Code(str):
    """A cell with machine text: the value of a config field, or a fingerprint."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; cells are text.

    numeric: whether the columns after the first hold numbers, which are aligned to the right.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = False


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The sentences about one group `b` against another, `a`.

    caveats: what the intervals do not cover.
    """

    b: str
    a: str
    comparisons: tuple[Comparison, ...]
    caveats: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Missing:
    """The missing results: a sentence, and an item for each reason."""

    text: str
    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plots:
    """The pictures of a task. A renderer without pictures leaves them out."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of the document.

    level: the level of the title in the outline, 1 to 3.
    folded: whether the section is closed until a reader opens it, where the format can do that.
    """

    title: str
    level: int
    blocks: tuple["Block", ...]
    folded: bool = False


Block = Text | Bullets | Table | Verdicts | Missing | Plots | Section


def document(report: Report) -> Section:
    """Return the whole report as one section."""
    top: list[Block] = []
    if report.missing:
        count = sum(entry.status != "complete" for entry in report.entries)
        text = f"{count} of {len(report.entries)} runs {'has' if count == 1 else 'have'} no result:"
        top.append(Missing(text, report.missing))
    top += verdicts(report)
    tasks = tuple(task_section(task) for task in report.tasks)
    return Section(
        report.title,
        1,
        (
            *top,
            *tasks,
            Section("Cost", 2, (cost_table(report), Text(COST))),
            Section("Differences between configs", 2, tuple(_config_blocks(report))),
            Section("Runs", 2, (runs_table(report),)),
            Section("Provenance", 2, (provenance_table(report),)),
            Section("Method and notes", 2, (Text(report.method), *_notes(report))),
        ),
    )


COST = (
    "Values are means over seeds; for peak memory, the maximum. Tokens are training tokens without padding. Compute is "
    "calculated from the shape of the network. Time is the time of the training loop: steps, waiting for data, "
    "evaluations during training and at the end, and saving checkpoints. It does not include preparing data, compiling "
    "the training step, and the evaluation before the first step. For a bag of words, time is fitting and evaluation. "
    "Device time is time multiplied by the number of devices. Peak memory is the memory of one device: on a GPU or TPU "
    "the maximum since the process began, on a CPU the memory that the compiler planned for the training step. A row "
    "with + adds the runs from which the group started; its peak memory is the maximum over all these runs. – stands "
    "for a value that is not known or not counted."
)


def _notes(report: Report) -> list[Block]:
    return [Bullets(report.notes)] if report.notes else []


def verdicts(report: Report) -> list[Block]:
    """Return the verdicts on each group compared with its base. Without verdicts, return one text."""
    found: list[Block] = []
    for task in report.tasks:
        caveats = {group.name: [f"{group.name}: {text}" for text in shared_origins(group)] for group in task.groups}
        for group in task.groups:
            of_pair = {(each.split, each.metric): each for each in task.against_base if each.b == group.name}
            shown = tuple(of_pair[key] for key in main_metrics(of_pair))
            if shown:
                base = task.base_of[group.name]
                found.append(Verdicts(group.name, base, shown, tuple(caveats[group.name] + caveats[base])))
    return found or [Text("This report has no verdicts: see the notes at the end.")]


def task_section(task: Task) -> Section:
    """Return the section of a task: pictures, the metrics of each group, and the differences."""
    blocks: list[Block] = [Plots(task), Section("Each group", 3, (groups_table(task),))]
    for base in task.bases:
        to_base = [each for each in task.against_base if each.a == base]
        if to_base:
            blocks.append(Section(f"Differences to {base}", 3, (differences_table(to_base, base),)))
    if task.among_others:
        table = differences_table(task.among_others)
        blocks.append(Section("Differences among the others", 3, (table,), folded=True))
    return Section(task.title, 2, tuple(blocks))


def groups_table(task: Task, short: bool = False) -> Table:
    """Return a table with a row for each group: its seeds, and the mean of each metric with its interval.

    short: only the main metrics, without intervals.
    """
    columns = main_metrics(task.metrics) if short else task.metrics
    text = words.mean_text if short else words.estimate_text
    decimals = {
        (split, metric): max(
            words.count_decimals(estimate)
            for group in task.groups
            if (estimate := group.estimates.get((split, metric))) is not None
        )
        for split, metric in columns
    }
    several = len({split for split, _ in columns}) > 1
    labels = [find_metric(metric).label + (f", {split}" if several else "") for split, metric in columns]
    rows = []
    for group in task.groups:
        cells = []
        for split, metric in columns:
            estimate = group.estimates.get((split, metric))
            cells.append(words.NOTHING if estimate is None else text(estimate, decimals[split, metric]))
        rows.append((_marked(group, task), listed(group.seeds), *cells))
    return Table(("group", "seeds", *labels), tuple(rows), numeric=True)


def _marked(group: Group, task: Task) -> str:
    return f"{group.name} (base)" if group.name in task.bases and len(task.groups) > 1 else group.name


def differences_table(comparisons: Sequence[Comparison], base: str | None = None) -> Table:
    """Return a table with a row for each difference: its mean, interval and verdict.

    base: the group that the title above the table names. Rows then name the other group alone.
    """
    pairs = dict.fromkeys((each.a, each.b) for each in comparisons)
    found = {(each.a, each.b, each.split, each.metric): each for each in comparisons}
    keys = sort_metrics((each.split, each.metric) for each in comparisons)
    rows = [
        (
            b if a == base else f"{b} − {a}",
            find_metric(metric).label,
            split,
            words.delta_text(each),
            words.delta_range(each) or words.NOTHING,
            str(each.delta.n),
            words.verdict(each),
        )
        for a, b in pairs
        for split, metric in keys
        if (each := found.get((a, b, split, metric))) is not None
    ]
    return Table(("group", "metric", "held-out set", "mean", "95 % interval", "seeds", "verdict"), tuple(rows))


def cost_table(report: Report) -> Table:
    """Return a table with a row for each group. A group with origins has a second row, with their cost added."""
    rows = []
    for group in report.groups:
        rows.append((group.name, *words.cost_texts(group.cost), _devices(group.runs)))
        if group.origins:
            name = f"{group.name} + {shortened([origin.folder_name for origin in group.origins])}"
            devices = _devices([*group.runs, *group.origins])
            rows.append((name, *words.cost_texts(group.cost_with_origins), devices))
    return Table(("group", "tokens", "compute", "time", "device time", "peak memory", "devices"), tuple(rows), True)


def _devices(runs: Sequence[Run]) -> str:
    kinds = [_count_devices(run.provenance.get("devices") or []) for run in runs]
    return "; ".join(dict.fromkeys(kinds)) or words.NOTHING


def _count_devices(devices: Sequence[str]) -> str:
    counts = {kind: list(devices).count(kind) for kind in devices}
    return listed([f"{count} × {kind}" for kind, count in counts.items()]) or words.NOTHING


def _config_blocks(report: Report) -> list[Block]:
    """Return a table of the fields that differ, for each task with several groups."""
    blocks: list[Block] = []
    compared = [task for task in report.tasks if len(task.groups) > 1]
    for task in compared:
        if len(compared) > 1:
            blocks.append(Section(task.title, 3, (config_table(task),)))
        else:
            blocks.append(config_table(task))
    return blocks or [Text("No two groups are of one task.")]


def config_table(task: Task) -> Table:
    """Return a table with a row for each field that differs between groups."""
    fields = dict.fromkeys(name for group in task.groups for name in flatten_fields(group.config))
    rows = []
    for field in fields:
        if is_free_in_group(field):
            continue
        values = [_config_value(group, field) for group in task.groups]
        if len(set(values)) > 1:
            rows.append((Code(field), *map(Code, values)))
    return Table(("field", *(_marked(group, task) for group in task.groups)), tuple(rows))


def _config_value(group: Group, field: str) -> str:
    """Return the value of a field as JSON, a text without quotes. If the seeds have several values, return all."""
    values = dict.fromkeys(_plain(flatten_fields(run.config).get(field)) for run in group.runs)
    return shortened(list(values))


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def runs_table(report: Report) -> Table:
    """Return a table with a row for each run, the failed and unfinished ones too."""
    rows = []
    for entry in report.entries:
        result = entry.run.result if entry.run is not None and entry.status == "complete" else None
        hashed = str((result or {}).get("params_sha256") or "")[:12]
        rows.append(
            (
                entry.folder_name,
                entry.name or words.NOTHING,
                words.NOTHING if entry.seed is None else str(entry.seed),
                entry.status,
                str((result or {}).get("step") or words.NOTHING),
                Code(hashed) if hashed else words.NOTHING,
            )
        )
    return Table(("run", "group", "seed", "status", "steps", "parameters, SHA-256"), tuple(rows))


def provenance_table(report: Report) -> Table:
    """Return a table with a row for each fact. If the runs differ in a fact, it has a row for each value."""
    runs = [run for group in report.groups for run in group.runs]
    facts: dict[str, Callable[[Run], Any]] = {
        "python": lambda run: run.provenance.get("python"),
        "devices": lambda run: _count_devices(run.provenance.get("devices") or []),
        "hosts": lambda run: run.provenance.get("hosts"),
        "t5lite, git commit": lambda run: run.provenance.get("git_commit"),
    }
    for group in ("packages", "data", "heldout"):
        names = dict.fromkeys(name for run in runs for name in run.provenance.get(group) or {})
        for name in names:
            label = name if group == "packages" else f"{group}: {name.removeprefix('data.')}"
            facts[label] = lambda run, group=group, name=name: (run.provenance.get(group) or {}).get(name)
    rows = []
    for label, fact in facts.items():
        by_value: dict[str, list[str]] = {}
        for run in runs:
            value = fact(run)
            if value is not None:
                by_value.setdefault(_hash_shortened(str(value)), []).append(run.folder_name)
        for value, names in by_value.items():
            shared = len(names) == len(runs)
            rows.append((label, Code(value), "all" if shared else shortened(names, 8)))
    return Table(("what", "value", "runs"), tuple(rows))


def _hash_shortened(text: str) -> str:
    return f"{text[:16]}…" if len(text) == 64 else text

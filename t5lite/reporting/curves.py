"""Curves of loss over training, one a group: what the runs of a group logged, put together.

A held-out loss is shown where some group evaluated it during training. Where a group did so at the start and the end
alone, its training loss is shown instead.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5lite.reporting.comparison import Task
from t5lite.reporting.groups import Group
from t5lite.reporting.runs import Curve

SEVERAL = 3  # points from which on a curve is one
MOST_POINTS = 60  # of a training loss; beyond, neighbours are averaged, as single batches scatter


@dataclasses.dataclass(frozen=True)
class Line:
    """Points [n] of a curve: x, and the mean, the least and the greatest over seeds."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Series:
    """A group's curve. lines: one over all seeds; one a seed where the seeds logged no steps in common."""

    name: str
    by_tokens: bool
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves that share axes, with a title and a label that says what they show."""

    title: str
    label: str
    series: tuple[Series, ...]


def loss_panels(task: Task) -> list[Panel]:
    """The panels of a task: a held-out set each, and the training loss of groups without held-out curves."""
    groups = [summary.group for summary in task.summaries]
    splits = dict.fromkeys(split for group in groups for split in group.metrics())
    panels = []
    shown: set[str] = set()
    for split in splits:
        curved = [group for group in groups if len(_steps(group, split)) >= SEVERAL]
        if curved:
            shown |= {group.name for group in curved}
            panels.append(_panel(curved, split, f"loss on {split} during training"))
    others = [group for group in groups if group.name not in shown and len(_steps(group, "train")) >= SEVERAL]
    if others:
        panels.append(_panel(others, "train", "training loss"))
    return panels


def _curves(group: Group, split: str) -> list[Curve]:
    return [curves["loss"] for run in group.runs if "loss" in (curves := run.curves.get(split, {}))]


def _steps(group: Group, split: str) -> set[int]:
    return {step for curve in _curves(group, split) for step in curve.steps}


def _panel(groups: Sequence[Group], split: str, title: str) -> Panel:
    by_tokens = all(curve.tokens is not None for group in groups for curve in _curves(group, split))
    series = tuple(Series(group.name, by_tokens, tuple(_lines(group, split, by_tokens))) for group in groups)
    ends = [f"{each.name} from {each.lines[0].mean[0]:.3g} to {each.lines[0].mean[-1]:.3g}" for each in series]
    return Panel(title, f"{title}, by {'tokens' if by_tokens else 'steps'}: {'; '.join(ends)}", series)


def _lines(group: Group, split: str, by_tokens: bool) -> list[Line]:
    """The mean over the steps that all seeds logged; each seed's own line where those are too few."""
    curves = _curves(group, split)
    common = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    if len(common) < SEVERAL:
        return [_over_seeds([curve], curve.steps, by_tokens) for curve in curves]
    line = _over_seeds(curves, common, by_tokens)
    return [_thinned(line) if split == "train" else line]


def _over_seeds(curves: Sequence[Curve], steps: Sequence[int], by_tokens: bool) -> Line:
    x, values = [], []
    for curve in curves:
        place = {step: i for i, step in enumerate(curve.steps)}
        chosen = [place[step] for step in steps]
        x.append(np.array(curve.tokens if by_tokens else curve.steps, np.float64)[chosen])
        values.append(np.array(curve.values)[chosen])
    return Line(np.mean(x, axis=0), np.mean(values, axis=0), np.min(values, axis=0), np.max(values, axis=0))


def _thinned(line: Line) -> Line:
    def means(values: np.ndarray) -> np.ndarray:
        return np.array([part.mean() for part in np.array_split(values, min(MOST_POINTS, len(values)))])

    return Line(means(line.x), means(line.mean), means(line.low), means(line.high))

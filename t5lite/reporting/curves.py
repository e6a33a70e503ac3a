"""Curves of the loss over training, one for each group: the logs of a group's runs, combined.

A held-out loss is shown where at least one group evaluated it during training. For a group that evaluated only at the
start and at the end, the training loss is shown instead.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5lite.reporting.comparison import Task
from t5lite.reporting.groups import Group
from t5lite.reporting.runs import Curve

SEVERAL = 3  # a curve has at least this many points
MOST_POINTS = 60  # of a curve of training loss; neighbours in a longer curve are averaged, because batches scatter


@dataclasses.dataclass(frozen=True)
class Line:
    """The n points of a curve, as arrays [n]: x, and the mean, minimum and maximum over seeds."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Series:
    """The curve of a group.

    lines: one line over all seeds, or one line a seed where the seeds logged too few steps in common.
    """

    name: str
    by_tokens: bool
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves on the same axes.

    label: a sentence that says what the curves show.
    """

    title: str
    label: str
    series: tuple[Series, ...]


def loss_panels(task: Task) -> list[Panel]:
    """Return the panels of a task: one for each held-out set, and one for the groups without a held-out curve.

    The last panel shows the training loss.
    """
    splits = dict.fromkeys(split for group in task.groups for split, _ in group.pairs)
    panels = []
    shown: set[str] = set()
    for split in splits:
        curved = [group for group in task.groups if len(_steps(group, split)) >= SEVERAL]
        if curved:
            shown |= {group.name for group in curved}
            panels.append(_panel(curved, split, f"loss on {split} during training"))
    others = [group for group in task.groups if group.name not in shown and len(_steps(group, "train")) >= SEVERAL]
    if others:
        panels.append(_panel(others, "train", "training loss"))
    return panels


def _curves(group: Group, split: str) -> list[Curve]:
    return [run.curves[split] for run in group.runs if split in run.curves]


def _steps(group: Group, split: str) -> set[int]:
    return {step for curve in _curves(group, split) for step in curve.steps}


def _panel(groups: Sequence[Group], split: str, title: str) -> Panel:
    by_tokens = all(curve.tokens is not None for group in groups for curve in _curves(group, split))
    series = tuple(Series(group.name, by_tokens, tuple(_lines(group, split, by_tokens))) for group in groups)
    ends = [f"{each.name} from {each.lines[0].mean[0]:.3g} to {each.lines[0].mean[-1]:.3g}" for each in series]
    return Panel(title, f"{title}, by {'tokens' if by_tokens else 'steps'}: {'; '.join(ends)}", series)


def _lines(group: Group, split: str, by_tokens: bool) -> list[Line]:
    """Return one line: the mean at the steps that all seeds logged. With too few such steps: a line for each seed."""
    curves = _curves(group, split)
    common = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    if len(common) < SEVERAL:
        return [_over_seeds([curve], curve.steps, by_tokens) for curve in curves]
    line = _over_seeds(curves, common, by_tokens)
    return [_thinned(line) if split == "train" else line]


def _over_seeds(curves: Sequence[Curve], steps: Sequence[int], by_tokens: bool) -> Line:
    chosen = [np.isin(curve.steps, steps) for curve in curves]
    x = [
        np.array(c.tokens if by_tokens else c.steps, np.float64)[place] for c, place in zip(curves, chosen, strict=True)
    ]
    values = [np.array(curve.values)[place] for curve, place in zip(curves, chosen, strict=True)]
    return Line(np.mean(x, axis=0), np.mean(values, axis=0), np.min(values, axis=0), np.max(values, axis=0))


def _thinned(line: Line) -> Line:
    def means(values: np.ndarray) -> np.ndarray:
        return np.array([part.mean() for part in np.array_split(values, min(MOST_POINTS, len(values)))])

    return Line(means(line.x), means(line.mean), means(line.low), means(line.high))

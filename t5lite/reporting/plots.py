"""The pictures of a task, as SVG elements for a page.

metric     one picture for each metric. The upper part has a row for each group: the mean with its interval, and a small
           dot for each seed. The lower part has a row for each group: the difference to the base with its interval, and
           a line at 0.
curves     the loss by training tokens: the mean over seeds, in a band from the minimum to the maximum
matrices   the confusion matrix of each group; see matrices.py

Each group has its own colour and its own mark, so that a reader can recognise groups without colours. If a task has too
many groups for this, the base and the best group have their own look, and all other groups share one look.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from t5lite.reporting import matrices, words
from t5lite.reporting.comparison import Task
from t5lite.reporting.confusion import find_matrices
from t5lite.reporting.curves import Series, loss_panels
from t5lite.reporting.metrics import main_metrics
from t5lite.reporting.statistics import Estimate
from t5lite.reporting.svg import COLORS, FAINT, FOOT, INK, ROW, STYLE, WIDTH, Drawing, Picture, shorten, write_svg
from t5lite.tasks.metrics import find_metric

MARKED = 5  # marks on a curve


@dataclasses.dataclass(frozen=True)
class Look:
    """How a group is drawn in all pictures of its task.

    one_of_many: whether other groups have the same look.
    """

    color: str
    marker: str
    one_of_many: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A name with a number on the right; below them a mean with its interval, and the seeds."""

    name: str
    number: str
    look: Look
    estimate: Estimate
    seeds: list[float]


LOOKS = tuple(Look(COLORS[f"g{i}"], marker) for i, marker in enumerate("os^DvPX"))  # the first is for the base
REST = Look(COLORS["rest"], "d", one_of_many=True)

CAPTION = (
    "Large marks are means, small dots seeds, bars the 95 % interval of the mean. A difference whose bar crosses the "
    "dashed line is not resolved."
)
CURVES_CAPTION = "Lines are means over seeds; bands reach from the least to the greatest seed."


def draw(task: Task, name: str) -> tuple[list[Picture], str]:
    """Return the pictures of `task` and a caption that explains them.

    name: a prefix of all ids, so that they differ from the ids of other tasks.
    """
    looks, highlighted = _looks(task)
    pictures, captions = [], []
    # Both settings are global: they hold for the drawing alone. The page's font has the signs that matplotlib's lacks.
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if len(looks) > 1:
            pictures += [
                _metric(task, *pair, looks, f"{name}-{i}") for i, pair in enumerate(main_metrics(task.metrics))
            ]
            captions.append(CAPTION)
        panels = loss_panels(task)
        for i, panel in enumerate(panels):
            drawn = write_svg(_curves(panel.series, looks), f"{name}-c{i}")
            pictures.append(Picture(panel.title, panel.label, (Drawing("", drawn),)))
        if panels:
            captions.append(CURVES_CAPTION)
        drawn_matrices = [matrices.draw(each, f"{name}-m{i}") for i, each in enumerate(find_matrices(task.groups))]
        if drawn_matrices:
            pictures += drawn_matrices
            captions.append(matrices.CAPTION)
    return pictures, " ".join([*captions, highlighted] if highlighted else captions)


def _looks(task: Task) -> tuple[dict[str, Look], str]:
    """Return ({group: look}, sentence). If groups share a look, the sentence names the others; else it is empty."""
    base = task.bases[0]
    others = [group.name for group in task.groups if group.name != base]
    if len(others) < len(LOOKS):
        return {base: LOOKS[0], **dict(zip(others, LOOKS[1:], strict=False))}, ""
    looks = {base: LOOKS[0], **dict.fromkeys(others, REST)}
    for split, metric in main_metrics(task.metrics):
        better = find_metric(metric).better
        means = {
            group.name: better * estimate.mean
            for group in task.groups
            if group.name != base
            and (estimate := group.estimates.get((split, metric))) is not None
            and estimate.mean is not None
        }
        if better and means:
            best = max(means, key=means.__getitem__)
            looks[best] = LOOKS[1]
            about = f"{best}, the best of the others by {find_metric(metric).label} on {split}"
            return looks, f"{base} and {about}, have their own colours. The other groups share one colour."
    return looks, f"{base} has its own colour. The other groups share one colour."


def _metric(task: Task, split: str, metric: str, looks: dict[str, Look], name: str) -> Picture:
    """Return a picture of one metric: the values of the groups, and below them the differences to each base."""
    rows, said = [], []
    for group in task.groups:
        estimate = group.estimates.get((split, metric))
        if estimate is None:
            continue
        seeds = [value for value in group.values(split, metric).values() if value is not None]
        rows.append(Row(group.name, words.mean_text(estimate), looks[group.name], estimate, seeds))
        said.append(f"{group.name} {words.estimate_text(estimate)}, {words.seeds_text(estimate.n)}")
    about = find_metric(metric)
    title = f"{about.label} on {split}"
    parts = [Drawing("", write_svg(_rows(rows, about.unit), f"{name}-v"))]
    for number, base in enumerate(task.bases):
        differences = [each for each in task.against_base if (each.a, each.split, each.metric) == (base, split, metric)]
        if not differences:
            continue
        said += [words.sentence(each) for each in differences]
        unit = f" ({about.unit})" if about.unit else ""
        hint = {-1: f"← better{unit}", 1: f"better →{unit}", 0: about.unit}[about.better]
        rows = [
            Row(each.b, words.delta_number(each), looks[each.b], each.delta, list(each.deltas.values()))
            for each in differences
        ]
        parts.append(Drawing(f"difference to {base}", write_svg(_rows(rows, hint, zero=True), f"{name}-d{number}")))
    return Picture(title, f"{title}: {'; '.join(said)}", tuple(parts))


def _rows(rows: Sequence[Row], axis_label: str, zero: bool = False) -> Figure:
    """Return rows with the names above them, so that a long name can take the full width."""
    foot = FOOT if axis_label else FOOT - 0.2
    height = ROW * len(rows) + foot
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.04, foot / height, 0.92, 1 - foot / height))
    for i, row in enumerate(rows):
        _row(axes, -i, row, zero)
    axes.set_ylim(-len(rows) + 0.4, 0.55)
    axes.margins(x=0.04)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(axis_label, labelpad=2)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return figure


def _row(axes: Axes, y: float, row: Row, zero: bool) -> None:
    color, estimate = row.look.color, row.estimate
    across = axes.get_yaxis_transform()
    axes.plot([-0.015], [y + 0.24], row.look.marker, color=color, markersize=7, transform=across, clip_on=False)
    axes.text(0.015, y + 0.24, shorten(row.name), transform=across, va="center", fontweight="bold")
    axes.text(1.03, y + 0.24, row.number, transform=across, ha="right", va="center")
    if estimate.low is not None and estimate.high is not None:
        ends = [estimate.low, estimate.high]
        axes.plot(ends, [y - 0.1] * 2, color=color, linewidth=3, solid_capstyle="round", alpha=0.55)
    if estimate.mean is not None:
        axes.plot([estimate.mean], [y - 0.1], row.look.marker, color=color, markersize=8)
    axes.plot(row.seeds, [y - 0.33] * len(row.seeds), "o", color=color, markersize=4.5, alpha=0.7, markeredgewidth=0)
    if zero:  # only beside the dots, not through the text
        axes.plot([0, 0], [y + 0.02, y - 0.48], color=INK, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)


def _curves(series: Sequence[Series], looks: dict[str, Look]) -> Figure:
    """Return lines of loss with their names above them. Groups with the same look share one name."""
    named = [each.name for each in series if not looks[each.name].one_of_many]
    alike = [each.name for each in series if looks[each.name].one_of_many]
    legend = [(shorten(name), looks[name]) for name in named]
    if alike:
        legend.append((shorten(alike[0]) if len(alike) == 1 else f"{len(alike)} others", REST))
    top = 0.26 * len(legend) + 0.08
    height = top + 2.3 + FOOT
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.115, FOOT / height, 0.845, 2.3 / height))
    for i, (name, look) in enumerate(legend):
        y = 1 - (0.16 + 0.26 * i) / height
        mark = {"linewidth": 1} if look.one_of_many else {"linewidth": 2, "marker": look.marker, "markevery": [1]}
        figure.add_artist(Line2D([0.02, 0.05, 0.08], [y] * 3, color=look.color, **mark))
        figure.text(0.1, y, name, va="center")
    # Groups with their own look are drawn above the rest.
    for i, each in enumerate(sorted(series, key=lambda each: not looks[each.name].one_of_many)):
        _curve(axes, each, looks[each.name], i)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.tick_text(value)))
    axes.set_xlabel("training tokens" if series[0].by_tokens else "steps", labelpad=2)
    axes.grid(color=FAINT, linewidth=0.7, alpha=0.7)
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
    return figure


def _curve(axes: Axes, series: Series, look: Look, place: int) -> None:
    """Draw the lines of a group.

    place: the index of the group; it moves the marks along the line, so that the marks of close curves do not overlap.
    """
    for line in series.lines:
        if look.one_of_many:
            axes.plot(line.x, line.mean, color=look.color, linewidth=1)
            continue
        axes.fill_between(line.x, line.low, line.high, color=look.color, alpha=0.2, linewidth=0)
        step = max(len(line.x) // MARKED, 1)
        every = (place * step // len(LOOKS), step)
        axes.plot(line.x, line.mean, color=look.color, linewidth=2, marker=look.marker, markevery=every, markersize=6)

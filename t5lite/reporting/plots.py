"""The pictures of a task, as SVG to be set into a page.

a picture a metric   a row a group: each seed a small dot, the mean with its interval; below, a row a group: its
                     difference to the base with the interval, and the line of no difference
curves               loss by training tokens: the mean over seeds in a band from the least to the greatest

They are drawn by matplotlib, without a screen or a state of its own, and then made to fit the page: text stays text in
the page's font, colours become the page's variables, so that they follow its light or dark, and ids carry the picture's
name, so that two on one page do not take each other's. The same report gives the same bytes.
"""

import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from t5lite.reporting import words
from t5lite.reporting.comparison import Comparison, Task
from t5lite.reporting.curves import Series, loss_panels
from t5lite.reporting.statistics import Estimate

# What stands for the page's variables while matplotlib draws; html.py gives each its value, by light and by dark.
INK, FAINT = "#010203", "#d0d1d2"
GROUPS = ("#5c6670", "#0072b2", "#d55e00", "#00855f", "#a3498b", "#b07d00", "#2f95c9")
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {color: f"var(--g{i})" for i, color in enumerate(GROUPS)}
WIDTH, ROW, FOOT = 4.6, 0.56, 0.56  # inches; 72 of the picture's units each, and on a phone a unit is a CSS pixel
TEXT = 12.5  # of the picture's units
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """title: what stands over it; label: what it shows, for those who do not see it.

    parts: drawings one below the other, each with what stands over it.
    """

    title: str
    label: str
    parts: tuple[tuple[str, str], ...]


CAPTION = (
    "Large dots are means, small dots seeds, bars the 95 % interval of the mean. A difference whose bar crosses the "
    "dashed line is not resolved."
)
CURVES_CAPTION = "Lines are means over seeds; bands reach from the least to the greatest seed."


def draw(task: Task, name: str) -> tuple[list[Picture], str]:
    """The pictures of `task` and what has to be known to read them; `name` makes their ids differ from other tasks'."""
    colors = {summary.name: GROUPS[1 + i % (len(GROUPS) - 1)] for i, summary in enumerate(task.summaries[1:])}
    colors[task.base] = GROUPS[0]
    pictures, captions = [], []
    with matplotlib.rc_context(STYLE):  # of the process, so for the drawing alone
        if colors.keys() != {task.base}:
            pictures += [_metric(task, *pair, colors, f"{name}-{i}") for i, pair in enumerate(_of_interest(task))]
            captions.append(CAPTION)
        panels = loss_panels(task)
        for i, panel in enumerate(panels):
            drawn = _svg(_curves(panel.series, colors), f"{name}-c{i}")
            pictures.append(Picture(panel.title, panel.label, (("", drawn),)))
        if panels:
            captions.append(CURVES_CAPTION)
    return pictures, " ".join(captions)


def _of_interest(task: Task) -> list[tuple[str, str]]:
    telling = [pair for pair in task.metrics if pair[1] not in words.IN_TABLES_ONLY]
    splits = list(dict.fromkeys(split for split, _ in task.metrics))
    return sorted(telling or task.metrics, key=lambda pair: (splits.index(pair[0]), words.told(pair)))


def _metric(task: Task, split: str, metric: str, colors: dict[str, str], name: str) -> Picture:
    """The values of each group that has the metric, and below them the differences to the base."""
    rows, told = [], []
    for summary in task.summaries:
        of = summary.estimates.get(split, {}).get(metric)
        if of is None:
            continue
        seeds = [value for value in summary.group.values(split, metric).values() if value is not None]
        rows.append((summary.name, words.mean_text(of), colors[summary.name], of, seeds))
        told.append(f"{summary.name} {words.estimate_text(of)}, {words.seeds_text(of.n)}")
    about = words.metric_of(metric)
    title = f"{about.label} on {split}"
    parts = [("", _svg(_rows(rows, about.unit), f"{name}-v"))]
    differences = [each for each in task.against_base if (each.split, each.metric) == (split, metric)]
    if differences:
        told += [words.sentence(each) for each in differences]
        unit = f" ({about.unit})" if about.unit else ""
        hint = {-1: f"← better{unit}", 1: f"better →{unit}", 0: about.unit}[about.better]
        below = _rows([_difference(each, colors) for each in differences], hint, zero=True)
        parts.append((f"difference to {task.base}", _svg(below, f"{name}-d")))
    return Picture(title, f"{title}: {'; '.join(told)}", tuple(parts))


def _difference(comparison: Comparison, colors: dict[str, str]) -> "Row":
    delta = comparison.delta
    text = words.number(delta.mean or 0.0, words.decimals_of(delta), sign=True)
    return comparison.b, text, colors[comparison.b], delta, list(comparison.deltas.values())


Row = tuple[str, str, str, Estimate, list[float]]  # name, text on the right, colour, mean and interval, seeds


def _rows(rows: Sequence[Row], axis_label: str, zero: bool = False) -> Figure:
    """Rows with their names above them, so that long names have all of the width."""
    foot = FOOT if axis_label else FOOT - 0.2
    height = ROW * len(rows) + foot
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.04, foot / height, 0.92, 1 - foot / height))
    for i, (name, text, color, of, seeds) in enumerate(rows):
        across = axes.get_yaxis_transform()
        axes.text(-0.03, -i + 0.24, _shortened(name), transform=across, color=color, va="center", fontweight="bold")
        axes.text(1.03, -i + 0.24, text, transform=across, ha="right", va="center")
        if of.low is not None and of.high is not None:
            axes.plot([of.low, of.high], [-i - 0.1] * 2, color=color, linewidth=3, solid_capstyle="round", alpha=0.55)
        if of.mean is not None:
            axes.plot([of.mean], [-i - 0.1], "o", color=color, markersize=8)
        axes.plot(seeds, [-i - 0.33] * len(seeds), "o", color=color, markersize=4.5, alpha=0.7, markeredgewidth=0)
        if zero:  # beside the dots alone, not through the text
            axes.plot([0, 0], [-i + 0.02, -i - 0.48], color=INK, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
    axes.set_ylim(-len(rows) + 0.4, 0.55)
    axes.margins(x=0.04)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(axis_label, labelpad=2)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return figure


def _shortened(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"{name[: limit - 12]}…{name[-11:]}"


def _curves(series: Sequence[Series], colors: dict[str, str]) -> Figure:
    """Lines of loss, their names above."""
    legend = 0.26 * len(series) + 0.08
    height = legend + 2.3 + FOOT
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.115, FOOT / height, 0.845, 2.3 / height))
    for i, each in enumerate(series):
        color = colors[each.name]
        top = 1 - (0.16 + 0.26 * i) / height
        figure.text(0.02, top, "●", color=color, va="center")
        figure.text(0.07, top, _shortened(each.name), va="center")
        for x, mean, low, high in each.lines:
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(x, mean, color=color, linewidth=2)
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


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element for a page, `name` in its ids."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"<[^<>]+>", lambda tag: _fitted(tag[0], name), text).strip()


def _fitted(tag: str, name: str) -> str:
    """A tag with the page's colours and font, and ids of its own."""
    if tag.startswith("<svg"):
        box = re.search(r'viewBox="[^"]*"', tag)
        return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} aria-hidden="true">'
    tag = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*(; )?", "", tag)
    return re.sub(r": (#[0-9a-f]{6})", lambda color: f": {VARIABLES.get(color[1], color[1])}", tag)

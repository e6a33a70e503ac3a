"""Draw confusion matrices: a row for each true label, a column for each answer.

The colour of a cell is its share of the row, from the colour of the page (0 %) to one hue (100 %). So nobody needs to
tell hues apart. A classifier that always gives the same answer is one full column.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from t5lite.reporting import words
from t5lite.reporting.confusion import Matrix, describe
from t5lite.reporting.notes import listed
from t5lite.reporting.svg import (
    COLORS,
    FAINT,
    INK,
    LETTER,
    TEXT,
    UNIT,
    WIDTH,
    Drawing,
    Picture,
    count_letters,
    shorten,
    write_svg,
)

NUMBERED = 20  # with more labels, the cells have no numbers
LETTERS, MORE_LETTERS = 18, 26  # of a label's name, with numbers in the cells and without
LAST_LETTERS = 8  # of a name that is cut
TITLE, LEGEND = 18, 46  # the heights of the words above and below the matrix
LEGEND_WIDTH = 260
SHADES = 10  # different colours of a matrix without numbers, and of the legend

CAPTION = (
    "A row of a confusion matrix is a true label, a column is an answer. Colours are shares of the row. Numbers are "
    f"counts, added over the seeds; with more than {NUMBERED} labels only colours are drawn, and result.json of a run "
    'has the numbers, in "classes". A name that is cut is shown whole under the pointer.'
)


def draw(matrix: Matrix, name: str) -> Picture:
    """Return the picture of a matrix. name: a prefix of all ids."""
    numbered = len(matrix.labels) <= NUMBERED
    names = _name_labels(matrix.labels, LETTERS if numbered else MORE_LETTERS)
    size = 11 if numbered else 8.5
    margin = max(map(count_letters, names)) * size * LETTER + 10
    left = TITLE + margin
    across = _choose_cell_width(matrix, left, size) if numbered else size + 2.5
    down = min(across, 30) if numbered else across
    upright = max(map(count_letters, names)) * size * LETTER > across - 4
    top = TITLE + (margin if upright else size + 8)
    width, height = max(left + across * len(names) + 4, WIDTH * UNIT), top + down * len(names) + LEGEND
    figure = Figure(figsize=(width / UNIT, height / UNIT))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    place = (left, top, across, down)
    tooltips = _draw_names(axes, matrix.labels, names, place, size, upright)
    tooltips |= _draw_cells(axes, matrix, place, size) if numbered else _draw_shades(axes, matrix.shares, place)
    right, bottom = left + across * len(names), top + down * len(names)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor="none", edgecolor=FAINT))
    axes.text((left + right) / 2, 2, "answer", ha="center", va="top", fontsize=size)
    axes.text(2, (top + bottom) / 2, "true label", rotation=90, ha="left", va="center", fontsize=size)
    _draw_legend(axes, min(left, width - LEGEND_WIDTH), bottom + 16)
    seeds = f"seed{'s' if len(matrix.seeds) > 1 else ''} {listed(matrix.seeds)}"
    title, said = f"answers on {matrix.split}: {matrix.group}, {seeds}", describe(matrix)
    drawing = Drawing(said, write_svg(figure, name, tooltips))
    return Picture(title, f"{title}: {said}", (drawing,), width if width > WIDTH * UNIT else None)


def _name_labels(labels: Sequence[str], limit: int) -> list[str]:
    """Return names of at most `limit` letters. If two names are the same, all names have their number in front."""
    names = [shorten(label, limit, LAST_LETTERS) or "(empty)" for label in labels]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    return names


def _choose_cell_width(matrix: Matrix, left: float, size: float) -> float:
    """Return the width of a cell: as wide as the usual picture allows, but at least as wide as the longest number."""
    longest = count_letters(f"{matrix.counts.max(initial=0):,}") * size * LETTER + 8
    return max(longest, min((WIDTH * UNIT - left - 4) / len(matrix.labels), 76))


def _draw_names(
    axes: Axes, labels: Sequence[str], names: Sequence[str], place: Sequence[float], size: float, upright: bool
) -> dict[str, str]:
    """Draw the names of rows and columns. Return {gid: the whole name} for names that are cut.

    upright: whether the names of columns stand upright.
    """
    left, top, across, down = place
    for i, name in enumerate(names):
        axes.text(left - 5, top + (i + 0.5) * down, name, ha="right", va="center", fontsize=size, gid=f"r{i}")
        x = left + (i + 0.5) * across
        axes.text(x, top - 4, name, ha="center", va="bottom", fontsize=size, gid=f"c{i}", rotation=90 * upright)
    cut = [i for i, label in enumerate(labels) if names[i] != words.printable(label)]
    return {f"{side}{i}": labels[i] for i in cut for side in "rc"}


def _draw_cells(axes: Axes, matrix: Matrix, place: Sequence[float], size: float) -> dict[str, str]:
    """Draw each cell with its number. Return {gid: what the cell says}."""
    left, top, across, down = place
    tooltips = {}
    for (i, j), count in np.ndenumerate(matrix.counts):
        x, y, share = left + j * across, top + i * down, matrix.shares[i, j]
        gid = f"x{i}-{j}"
        axes.add_patch(Rectangle((x, y), across, down, facecolor=COLORS["heat"], alpha=share, gid=gid))
        axes.text(x + across / 2, y + down / 2, f"{count:,}", ha="center", va="center", fontsize=size, color=INK)
        true, answer = matrix.labels[i], matrix.labels[j]
        tooltips[gid] = f"true label {true}, answer {answer}: {count:,} ({100 * share:.1f} % of the row)"
    return tooltips


def _draw_shades(axes: Axes, shares: np.ndarray, place: Sequence[float]) -> dict[str, str]:
    """Draw the cells without numbers: one path for all cells of the same shade. Return no tooltips: {}."""
    left, top, across, down = place
    shades = np.ceil(shares * SHADES).astype(int)
    for shade in range(1, SHADES + 1):
        corners = [(left + j * across, top + i * down) for i, j in zip(*np.nonzero(shades == shade), strict=True)]
        if corners:
            cells = [Path([(x, y), (x + across, y), (x + across, y + down), (x, y + down), (x, y)]) for x, y in corners]
            path = Path.make_compound_path(*cells)
            axes.add_patch(PathPatch(path, facecolor=COLORS["heat"], edgecolor="none", alpha=shade / SHADES))
    return {}


def _draw_legend(axes: Axes, x: float, y: float) -> None:
    """Draw the colours from 0 % to 100 % beside each other."""
    step = 11
    axes.text(x, y + 6, "0 %", va="center", fontsize=TEXT - 2)
    start = x + 26
    for shade in range(SHADES + 1):
        corner = (start + shade * step, y)
        axes.add_patch(Rectangle(corner, step, 12, facecolor=COLORS["heat"], alpha=shade / SHADES, edgecolor="none"))
    end = start + (SHADES + 1) * step
    axes.add_patch(Rectangle((start, y), end - start, 12, facecolor="none", edgecolor=FAINT))
    axes.text(end + 6, y + 6, "100 % of the row", va="center", fontsize=TEXT - 2)

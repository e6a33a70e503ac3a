"""The pictures of a task as independent SVG files, for a notebook or a slide.

The title is inside the picture, the background is white, and nothing is inherited from a page.
"""

import html
import re
import textwrap

from t5lite.reporting import plots
from t5lite.reporting.comparison import Task
from t5lite.reporting.style import LIGHT
from t5lite.reporting.svg import LETTER, TEXT, UNIT, WIDTH, Picture
from t5lite.reporting.words import printable

MARGIN, LINE = 12.0, 22.0  # in the picture's units, like x and y below
SCALE = 1.3  # CSS pixels in one unit
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def figures(task: Task, name: str) -> list[str]:
    """Return the pictures of `task` as SVG texts, in the order of the report.

    name: a prefix of all ids, so that they differ from the ids of other figures on the same page.
    """
    return [_document(picture) for picture in plots.draw(task, name)[0]]


def _document(picture: Picture) -> str:
    """Return an SVG document: the title, and below it each part under its own title."""
    letters = int((picture.width or UNIT * WIDTH) / (LETTER * TEXT))
    parts, y, width = [], MARGIN, 0.0

    def write(text: str, weight: str) -> None:
        nonlocal y
        for line in textwrap.wrap(printable(text), letters):
            parts.append(_text(line, y, weight))
            y += LINE

    write(picture.title, "bold")
    for part in picture.parts:
        write(part.title, "normal")
        part_width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', part.svg).groups())
        place = f'<svg x="{MARGIN}" y="{y:g}" width="{part_width:g}" height="{height:g}"'
        parts.append(re.sub(r"var\(--(\w+)\)", lambda color: LIGHT[color[1]], part.svg.replace("<svg", place, 1)))
        y, width = y + height, max(width, part_width)
    width, height = width + 2 * MARGIN, y + MARGIN
    size = f'width="{SCALE * width:.0f}" height="{SCALE * height:.0f}" viewBox="0 0 {width:g} {height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" stroke-linejoin="round" role="img" '
        f'aria-label="{html.escape(printable(picture.label))}">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(text: str, y: float, weight: str) -> str:
    place = f'x="{MARGIN}" y="{y + 0.6 * LINE:g}" font-size="{TEXT}" font-weight="{weight}"'
    return f'<text {place} fill="{LIGHT["ink"]}">{html.escape(text)}</text>'

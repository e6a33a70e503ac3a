"""Figures of matplotlib as SVG elements for a page.

Matplotlib draws without a screen and without its global state. Then the figures are adapted to the page. Text stays
text, in the font of the page. Colours become variables of the page, which follow its light or dark mode. Ids contain
the name of the picture, so that two pictures on one page have different ids. Equal reports give equal bytes.
"""

import dataclasses
import html
import io
import re
import unicodedata
from collections.abc import Mapping

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from t5lite.reporting import words
from t5lite.reporting.style import LIGHT

# Placeholders for the page's colours while matplotlib draws.
COLORS = {name: f"#0102{i:02x}" for i, name in enumerate(LIGHT)}
NAMES = {color: name for name, color in COLORS.items()}
INK, FAINT = COLORS["ink"], COLORS["line"]
WIDTH, ROW, FOOT = 4.6, 0.56, 0.56  # inches; on a phone a unit is a CSS pixel
UNIT = 72  # picture units in an inch
TEXT = 12.5  # in the picture's units
LETTER = 0.56  # the width of a letter, relative to the size of the text
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
class Drawing:
    """An SVG element with its title, which may be empty."""

    title: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with one or more parts, one below the other.

    title: the text above the picture.
    label: a text for readers who do not see the picture.
    width: of a picture that is wider than WIDTH, in the picture's units; None: WIDTH.
    """

    title: str
    label: str
    parts: tuple[Drawing, ...]
    width: float | None = None


def shorten(name: str, limit: int = 32, end_width: int = 11) -> str:
    """Return `name` on one line, at most `limit` letters wide; a longer name is cut in the middle.

    end_width: the width of the end that is kept, in letters.
    """
    name = words.printable(name)
    if count_letters(name) <= limit:
        return name
    start, end = name, name
    while count_letters(start) > limit - end_width - 1:
        start = start[:-1]
    while count_letters(end) > end_width:
        end = end[1:]
    return f"{start}…{end}"


def count_letters(text: str) -> int:
    """Return the width of a text in letters. East Asian characters and emoji are two letters wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def write_svg(figure: Figure, name: str, tooltips: Mapping[str, str] | None = None) -> str:
    """Return the figure as an SVG element for a page, with `name` in its ids.

    tooltips: {gid of an artist: the text that a browser shows when the pointer is on it}.
    """
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^<>]+>", lambda tag: _fitted(tag[0], name), text).strip()
    for gid, tooltip in (tooltips or {}).items():
        group = f'<g id="{name}-{gid}">'
        text = text.replace(group, f"{group}<title>{html.escape(words.printable(tooltip))}</title>", 1)
    return text


def _fitted(tag: str, name: str) -> str:
    """Return a tag with the page's colours and font, and with `name` in its ids."""
    if tag.startswith("<svg"):
        box = re.search(r'viewBox="[^"]*"', tag)
        return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} aria-hidden="true">'
    tag = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*(; )?", "", tag)
    return re.sub(r": (#[0-9a-f]{6})", lambda color: f": {_variable(color[1])}", tag)


def _variable(color: str) -> str:
    return f"var(--{NAMES[color]})" if color in NAMES else color

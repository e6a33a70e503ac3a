"""The report as one page: text, tables and pictures in a single file that loads nothing from elsewhere.

The page can be read on a phone (tables scroll inside their own frame), in light and dark mode, and on paper.
"""

import html
import itertools
from collections.abc import Iterable, Sequence

from t5lite.reporting import plots, words
from t5lite.reporting.document import Block, Bullets, Code, Missing, Plots, Section, Table, Text, Verdicts
from t5lite.reporting.style import STYLE
from t5lite.reporting.svg import Drawing, Picture

CLASSES = {"better": "good", "worse": "bad"}  # by verdict; all other verdicts have none
LONG = 40  # characters; longer cells may break into lines


def _escaped(text: str) -> str:
    return html.escape(words.printable(text))


def render(section: Section) -> str:
    """Return the page of a document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(section.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_Page().section(section)}\n</main>\n</body>\n</html>\n"
    )


class _Page:
    """Turns blocks into HTML elements. It counts the tasks that it has drawn, to give their pictures different ids."""

    def __init__(self) -> None:
        self.names = (f"t{i}" for i in itertools.count())

    def section(self, section: Section) -> str:
        body = self._blocks(section.blocks)
        if section.folded:
            return f"<details><summary>{_escaped(section.title)}</summary>\n{body}\n</details>"
        return f"<section>\n<h{section.level}>{_escaped(section.title)}</h{section.level}>\n{body}\n</section>"

    def _blocks(self, blocks: tuple[Block, ...]) -> str:
        """Return the blocks one after the other. Verdicts in a row share a grid."""
        parts = []
        for of_verdicts, group in itertools.groupby(blocks, key=lambda block: isinstance(block, Verdicts)):
            made = [self._block(block) for block in group]
            parts.append(f'<div class="verdicts">\n{_lines(made)}\n</div>' if of_verdicts else _lines(made))
        return _lines(parts)

    def _block(self, block: Block) -> str:
        match block:
            case Section():
                return self.section(block)
            case Text():
                return f"<p>{_escaped(block.text)}</p>"
            case Bullets():
                return f"<ul>\n{_lines(f'<li>{_escaped(item)}</li>' for item in block.items)}\n</ul>"
            case Table():
                return _table(block)
            case Verdicts():
                return _verdicts(block)
            case Plots():
                return _pictures(*plots.draw(block.task, next(self.names)))
            case Missing():
                return (
                    f'<div class="missing">\n<p>{_escaped(block.text)}</p>\n{self._block(Bullets(block.items))}\n</div>'
                )


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _verdicts(block: Verdicts) -> str:
    lines = []
    for each in block.comparisons:
        parts = [_part(part) for part in words.sentence_parts(each)]
        lines.append(f"<li>{''.join(parts)}</li>")
    title = f"{_escaped(block.b)} <span>against</span> {_escaped(block.a)}"
    caveats = _lines(f'<p class="caveat">{_escaped(caveat)}.</p>' for caveat in block.caveats)
    return f'<div class="pair">\n<h3>{title}</h3>\n<ul>\n{_lines(lines)}\n</ul>\n{caveats}</div>'


def _part(part: words.Part) -> str:
    if not part.role:
        return _escaped(part.text)
    classes = f"verdict {CLASSES.get(part.text, 'open')}" if part.role == "verdict" else part.role
    return f'<span class="{classes}">{_escaped(part.text)}</span>'


def _pictures(pictures: Sequence[Picture], caption: str) -> str:
    if not pictures:
        return ""
    figures = []
    for picture in pictures:
        figures.append(
            f'<figure role="img" aria-label="{_escaped(picture.label)}"{_frame(picture.width)}>\n'
            f"<figcaption>{_escaped(picture.title)}</figcaption>\n{_lines(map(_drawing, picture.parts))}\n</figure>"
        )
    return f'<div class="plots">\n{_lines(figures)}\n</div>\n<p class="note">{_escaped(caption)}</p>'


def _frame(width: float | None) -> str:
    """Return the attributes of a figure with a picture of this width. On a narrow screen a broad figure scrolls."""
    if width is None:
        return ""
    return f' class="broad" tabindex="0" style="--natural: {width:.0f}px"'


def _drawing(part: Drawing) -> str:
    return f'<p class="part">{_escaped(part.title)}</p>\n{part.svg}' if part.title else part.svg


def _table(table: Table) -> str:
    if not table.rows:
        return "<p>None.</p>"
    head = "".join(_cell("th", name, ' scope="col"') for name in table.header)
    rows = [
        _lines(["<tr>", _cell("th", row[0], ' scope="row"'), *(_cell("td", cell) for cell in row[1:]), "</tr>"])
        for row in table.rows
    ]
    numeric = ' class="numeric"' if table.numeric else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{_escaped(table.header[0])} table">\n'
        f"<table{numeric}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{_lines(rows)}\n</tbody>\n</table>\n</div>"
    )


def _cell(tag: str, text: str, attributes: str = "") -> str:
    classes = [name for name, holds in (("long", len(text) > LONG), (CLASSES.get(text), text in CLASSES)) if holds]
    if classes:
        attributes += f' class="{" ".join(classes)}"'
    return f"<{tag}{attributes}>{_content(text)}</{tag}>"


def _content(text: str) -> str:
    return f"<code>{_escaped(text)}</code>" if isinstance(text, Code) else _escaped(text)

"""The report as GitHub-flavoured Markdown: the same sections as the HTML page, without plots."""

import re

from t5lite.reporting import words
from t5lite.reporting.document import Block, Bullets, Code, Missing, Plots, Section, Table, Text, Verdicts


def render(section: Section) -> str:
    """Return the document as one text."""
    return "\n\n".join(_render_section(section)) + "\n"


def _render_section(section: Section) -> list[str]:
    body = [part for block in section.blocks for part in _render_block(block)]
    if section.folded:
        return [f"<details><summary>{_escape(section.title)}</summary>", *body, "</details>"]
    return [f"{'#' * section.level} {_escape(section.title)}", *body]


def _render_block(block: Block) -> list[str]:
    match block:
        case Section():
            return _render_section(block)
        case Text():
            return [_escape(block.text)]
        case Bullets():
            return ["\n".join(f"- {_escape(item)}" for item in block.items)]
        case Table():
            return [_render_table(block)]
        case Verdicts():
            return ["\n".join(_verdict_lines(block))]
        case Missing():
            return [_escape(block.text), *_render_block(Bullets(block.items))]
        case Plots():
            return []


def _verdict_lines(block: Verdicts) -> list[str]:
    lines = [f"{_escape(f'{block.b} against {block.a}')}:", ""]
    for each in block.comparisons:
        parts = [(_escape(part.text), part.role) for part in words.sentence_parts(each)]
        lines.append("- " + "".join(f"**{text}**" if role == "verdict" else text for text, role in parts))
    for caveat in block.caveats:
        lines += ["", f"{_escape(caveat)}."]
    return lines


def _render_table(table: Table) -> str:
    marks = ["---"] + ["---:" if table.numeric else "---"] * (len(table.header) - 1)
    if not table.rows:
        return "None."
    lines = [
        [_escape(cell) for cell in table.header],
        marks,
        *([_render_cell(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _render_cell(text: str) -> str:
    if not isinstance(text, Code):
        return _escape(text)
    plain = " ".join(words.printable(text).replace("`", "'").split())
    return f"`{plain}`".replace("|", r"\|")


def _escape(text: str) -> str:
    """Return `text` such that Markdown shows it unchanged. An underscore inside a word needs no escape."""
    plain = re.sub(" +", " ", words.printable(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*\[\]|~#$])", r"\\\1", plain)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", plain)

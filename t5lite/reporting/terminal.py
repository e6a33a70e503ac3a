"""A short report for the terminal: the means of each task, the missing results, the verdicts and the notes."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5lite.reporting.comparison import Report
from t5lite.reporting.document import Verdicts, groups_table, verdicts
from t5lite.reporting.words import printable, sentence


def show(report: Report, folder: Path) -> None:
    """Print the report on stdout, and the path of its page. folder: the folder of the page."""
    console = Console(highlight=False)
    for task in report.tasks:
        content = groups_table(task, short=True)
        console.print(_make_text(task.title, "bold"), soft_wrap=True)
        table = Table()
        for index, name in enumerate(content.header):
            table.add_column(_make_text(name), justify="right" if index else "left")
        for row in content.rows:
            table.add_row(*map(_make_text, row))
        console.print(table)
    blocks = [block for block in verdicts(report) if isinstance(block, Verdicts)]
    lines = [f"no result: {line}" for line in report.missing]
    lines += [sentence(each) for block in blocks for each in block.comparisons]
    lines += [f"note: {note}" for note in report.notes]
    for line in [*lines, f"report: {folder / 'report.html'}"]:
        console.print(_make_text(line), soft_wrap=True)


def _make_text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)

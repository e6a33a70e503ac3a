"""Evaluate: print the metrics of a run's checkpoint, on the run's held-out text or on other text.

python -m t5lite.evaluate --checkpoint runs/tiny
python -m t5lite.evaluate --checkpoint runs/tiny --step best
python -m t5lite.evaluate --checkpoint hf:downloads/t5-small --config.data.validation.source='files:text/*.txt'
python -m t5lite.evaluate --checkpoint runs/tiny --config.data.validation.source='files:other/*.txt' --json
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5lite import cli
from t5lite.checks import STEPS, in_range
from t5lite.run.evaluation import Evaluator, load_evaluator
from t5lite.system.hosts import is_primary
from t5lite.system.progress import warn


def _show_examples(evaluator: Evaluator, params: Any, splits: Iterable[str], count: int) -> None:
    """Print held-out examples on stderr: inputs, target, and the model's output."""
    console = Console(stderr=True, highlight=False, quiet=not is_primary())
    for split in splits:
        for shown in evaluator.examples(params, split, count):
            console.rule(Text(split), align="left")
            for name, text in shown._asdict().items():
                console.print(Text(f"{name}: ", style="bold") + Text(_shorten(text)))


def _shorten(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"


def _evaluate(arguments: argparse.Namespace, config: ConfigDict) -> None:
    evaluator, params, step = load_evaluator(arguments.checkpoint, config, arguments.step, arguments.average)
    for note in evaluator.experiment.cut_notes():
        warn(note)
    metrics, rows = evaluator.evaluate_all(params), evaluator.count_rows()
    if arguments.examples:
        _show_examples(evaluator, params, evaluator.splits, arguments.examples)
    if arguments.json:
        result = {"checkpoint": str(arguments.checkpoint), "step": step, "metrics": metrics, "evaluated": rows}
        print(json.dumps(result))
        return
    table = Table(title=Text(f"{arguments.checkpoint}, step {step}"))
    names = sorted({name for values in metrics.values() for name in values})
    for column in ("split", "rows", *names):
        table.add_column(column, justify="left" if column == "split" else "right", overflow="fold")
    for split, values in metrics.items():
        used = f"{rows[split]['used']:,} of {rows[split]['of']:,}"
        table.add_row(split, used, *(f"{values[name]:.4f}" if name in values else "" for name in names))
    Console().print(table)


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print the metrics as a table, or as one JSON object."""
    parser = cli.parser("evaluate", __doc__)
    parser.add_argument("--json", action="store_true", help='print {"checkpoint", "step", "metrics", "evaluated"}')
    parser.add_argument(
        "--examples",
        type=in_range(int, 0, STEPS),
        default=0,
        help="also show this many held-out examples with the model's answers",
    )
    cli.add_hosts(parser)
    arguments, config = cli.parse_with_checkpoint(parser, argv)
    with cli.start_jax_on_hosts(arguments, config.deterministic):
        _evaluate(arguments, config)


if __name__ == "__main__":
    main()

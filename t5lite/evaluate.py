"""Evaluate: print the metrics of a run's checkpoint, on the run's held-out text or on other text.

python -m t5lite.evaluate --checkpoint runs/tiny
python -m t5lite.evaluate --checkpoint runs/tiny --step best
python -m t5lite.evaluate --checkpoint hf:downloads/t5-small --config.data.validation.source='files:text/*.txt'
python -m t5lite.evaluate --checkpoint runs/tiny --config.data.validation.source='files:other/*.txt' --json
python -m t5lite.evaluate --checkpoint runs/tiny_summary --predictions answers.jsonl
python -m t5lite.evaluate --score_file answers.jsonl        answers of any system, with columns target and output
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5lite import cli
from t5lite.checks import STEPS, in_range
from t5lite.run.evaluation import Evaluator, load_evaluator
from t5lite.run.overrides import override
from t5lite.run.released import read_run_config
from t5lite.run.score_file import score_file, write_predictions
from t5lite.system.errors import UserError
from t5lite.system.hosts import is_primary
from t5lite.system.progress import warn
from t5lite.tasks.texts import describe_corpus_metrics


def _show_examples(evaluator: Evaluator, params: Any, splits: Iterable[str], count: int) -> None:
    """Print held-out examples on stderr: inputs, target, and the model's output."""
    console = Console(stderr=True, highlight=False, quiet=not is_primary())
    for split in splits:
        for shown in evaluator.examples(params, split, count):
            console.rule(Text(split), align="left")
            scores = ", ".join(f"{name} {score:.3g}" for name, score in shown.scores.items())
            for name, text in (shown._asdict() | {"scores": scores}).items():
                if text or name != "scores":
                    console.print(Text(f"{name}: ", style="bold") + Text(_shorten(text)))


def _shorten(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"


def _evaluate(arguments: argparse.Namespace, config: ConfigDict) -> None:
    evaluator, params, step = load_evaluator(arguments.checkpoint, config, arguments.step, arguments.average)
    objective = evaluator.objective
    if arguments.predictions is not None and objective.rows == "windows":
        raise UserError(
            f"--predictions: {objective.name} has no answers to save, because it reads windows of text; leave it out, "
            "or see --examples"
        )
    for note in evaluator.experiment.cut_notes():
        warn(note)
    evaluator.with_details = True
    metrics, rows = evaluator.evaluate_all(params), evaluator.count_rows()
    if arguments.examples:
        _show_examples(evaluator, params, evaluator.splits, arguments.examples)
    if arguments.predictions is not None:
        predictions = evaluator.read_predictions(params)
        if is_primary():
            write_predictions(arguments.predictions, predictions)
    result = {"checkpoint": str(arguments.checkpoint), "step": step, "metrics": metrics, "evaluated": rows}
    result["intervals"] = evaluator.intervals
    _print(result, f"{arguments.checkpoint}, step {step}", arguments.json)


def _score(path: Path, as_json: bool) -> None:
    metrics, intervals, rows = score_file(path)
    counts = {"file": {"used": rows, "of": rows}}
    result = {"score_file": str(path), "metrics": {"file": metrics}, "evaluated": counts}
    _print({**result, "intervals": {"file": intervals}}, str(path), as_json)


def _print(result: dict[str, Any], title: str, as_json: bool) -> None:
    """Print a result as one JSON object, or as tables: one for each held-out set, with a line for each metric."""
    if any("bleu" in values for values in result["metrics"].values()):
        result["signatures"] = describe_corpus_metrics()
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    for split, values in result["metrics"].items():
        rows, intervals = result["evaluated"][split], result["intervals"].get(split, {})
        shown = f"{title}, {split}: {rows['used']:,} of {rows['of']:,} rows"
        if rows.get("generated", rows["used"]) != rows["used"]:
            shown += f", answers generated for {rows['generated']:,}"
        table = Table(title=Text(shown), title_justify="left")
        for column, justify in (("metric", "left"), ("value", "right"), ("95 % interval of the rows", "right")):
            table.add_column(column, justify=justify)
        for name, value in values.items():
            interval = " to ".join(f"{bound:.4f}" for bound in intervals.get(name, ()))
            table.add_row(name, f"{value:.4f}", interval)
        console.print(table)
    for name, signature in result.get("signatures", {}).items():
        console.print(Text(f"{name}: {signature}"))


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print the metrics as tables, or as one JSON object."""
    parser = cli.parser("evaluate", __doc__)
    parser.add_argument(
        "--json", action="store_true", help='print {"checkpoint", "step", "metrics", "evaluated", "intervals"}'
    )
    parser.add_argument(
        "--examples",
        type=in_range(int, 0, STEPS),
        default=0,
        help="also show this many held-out examples with the model's answers",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE.jsonl",
        help="write inputs, target, output and scores of each evaluated pair, as JSON lines",
    )
    cli.add_hosts(parser)
    group = cli.add_checkpoint(parser)
    group.add_argument(
        "--score_file",
        type=Path,
        metavar="FILE",
        help="score the answers in this file, with the columns target and output, instead of a run's answers",
    )
    arguments, rest = parser.parse_known_args(argv)
    if arguments.score_file is not None:
        if rest:
            parser.error(f"{rest[0]} has no meaning with --score_file; leave it out")
        return _score(arguments.score_file, arguments.json)
    config = override(read_run_config(arguments.checkpoint), rest)
    with cli.start_jax_on_hosts(arguments, config.deterministic):
        return _evaluate(arguments, config)


if __name__ == "__main__":
    main()

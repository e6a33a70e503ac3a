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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5lite import cli
from t5lite.checks import STEPS, in_range
from t5lite.decoding.score import SCORE_BY
from t5lite.run.evaluation import Evaluator, load_evaluator
from t5lite.run.held_out import warn_of_weakness
from t5lite.run.overrides import override
from t5lite.run.released import read_run_config
from t5lite.run.score_file import score_file, write_predictions
from t5lite.system.errors import UserError
from t5lite.system.hosts import is_primary
from t5lite.system.progress import say, warn
from t5lite.tasks.metrics import score_classes
from t5lite.tasks.texts import describe_corpus_metrics

MAX_COLUMNS = 12  # columns of a confusion matrix that fit on a terminal


def _show_examples(evaluator: Evaluator, params: Any, splits: Iterable[str], count: int) -> None:
    """Print held-out examples on stderr: inputs, target, and the model's output."""
    console = Console(stderr=True, highlight=False, quiet=not is_primary())
    for split in splits:
        for shown in evaluator.examples(params, split, count):
            console.rule(Text(split), align="left")
            scores = ", ".join(f"{name} {score:.3g}" for name, score in shown.scores.items())
            texts = shown._asdict() | {"scores": scores, "more_references": " | ".join(shown.more_references)}
            for name, text in texts.items():
                if text or name not in ("scores", "more_references"):
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
    if note := evaluator.experiment.describe_references():
        say(note)
    evaluator.with_details = True
    metrics, rows = evaluator.evaluate_all(params), evaluator.count_rows()
    if arguments.examples:
        _show_examples(evaluator, params, evaluator.splits, arguments.examples)
    if arguments.predictions is not None:
        predictions = evaluator.read_predictions(params)
        if is_primary():
            write_predictions(arguments.predictions, predictions)
    result = {"checkpoint": str(arguments.checkpoint), "step": step, "metrics": metrics, "evaluated": rows}
    result |= {"intervals": evaluator.intervals, "classes": evaluator.describe_classes()}
    if evaluator.score_by is not None:
        result["score_by"] = evaluator.score_by
    warn_of_weakness(metrics)
    _print(result, f"{arguments.checkpoint}, step {step}", arguments.json)


def _score(path: Path, as_json: bool) -> None:
    metrics, intervals, rows = score_file(path)
    counts = {"file": {"used": rows, "of": rows}}
    result = {"score_file": str(path), "metrics": {"file": metrics}, "evaluated": counts}
    _print({**result, "intervals": {"file": intervals}}, str(path), as_json)


def _print(result: dict[str, Any], title: str, as_json: bool) -> None:
    """Print a result as one JSON object, or as tables."""
    if any("bleu" in values for values in result["metrics"].values()):
        result["signatures"] = describe_corpus_metrics()
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    console.print(_make_metrics_table(result, title))
    for split, classes in result.get("classes", {}).items():
        console.print(_make_class_table(split, **classes))
    if "score_by" in result:
        console.print(Text(f"score of a label (eval.score_by={result['score_by']}): {SCORE_BY[result['score_by']]}"))
    for name, signature in result.get("signatures", {}).items():
        console.print(Text(f"{name}: {signature}"))


def _make_metrics_table(result: Mapping[str, Any], title: str) -> Table:
    """Return a table with a column for each held-out set, and a line for each metric with its interval."""
    table, metrics = Table(title=Text(title), title_justify="left"), result["metrics"]
    table.add_column("metric")
    for split in metrics:
        table.add_column(split, justify="right", overflow="fold")
    evaluated = [result["evaluated"][split] for split in metrics]
    table.add_row("rows", *(f"{each['used']:,} of {each['of']:,}" for each in evaluated))
    if any("generated" in each for each in evaluated):
        table.add_row("rows with generated answers", *(f"{each.get('generated', 0):,}" for each in evaluated))
    for name in dict.fromkeys(name for values in metrics.values() for name in values):
        cells = []
        for split, values in metrics.items():
            low_and_high = " to ".join(f"{bound:.4f}" for bound in result["intervals"].get(split, {}).get(name, ()))
            interval = f" ({low_and_high})" if low_and_high else ""
            cells.append(f"{values[name]:.4f}{interval}" if name in values else "")
        table.add_row(name, *cells)
    if any(result["intervals"].values()):
        table.caption = "in brackets: 95 % bootstrap intervals over the rows"
        table.caption_justify = "left"
    return table


def _make_class_table(split: str, labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    """Return a table with a line for each label: its scores, and how often each label was the answer.

    The columns of the answers are numbers of lines. With more than MAX_COLUMNS labels these columns are left out.
    """
    shown = ", and how often each was the answer" if len(labels) <= MAX_COLUMNS else ""
    table = Table(title=Text(f"{split}: labels{shown}"), title_justify="left")
    columns = [str(number) for number in range(1, len(labels) + 1)] if len(labels) <= MAX_COLUMNS else []
    for column in ("", "label", "precision", "recall", "F1", "rows", *columns):
        table.add_column(column, justify="left" if column == "label" else "right")
    for number, (label, scores) in enumerate(zip(labels, score_classes(np.array(confusion)), strict=True)):
        shares = (f"{scores[name]:.3f}" for name in ("precision", "recall", "f1"))
        answers = map(str, confusion[number]) if columns else ()
        table.add_row(str(number + 1), Text(label), *shares, f"{scores['rows']:.0f}", *answers)
    return table


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print the metrics as tables, or as one JSON object."""
    parser = cli.parser("evaluate", __doc__)
    parser.add_argument(
        "--json",
        action="store_true",
        help='print one JSON object, also with "intervals" and "classes"',
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

"""Read and write predictions in files, and score predictions that were made elsewhere.

{"split": "test", "inputs": "…", "target": "a dog", "output": "the dog", "scores": {"exact_match": 0.0, …}}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.data.readers import ColumnTypes, find_format, read_rows
from t5lite.run.predictions import Prediction
from t5lite.system.errors import UserError
from t5lite.system.files import replace_non_finite, write_atomically
from t5lite.tasks.intervals import Intervals, bootstrap_texts
from t5lite.tasks.metrics import Metrics, compute_text_metrics, score_text
from t5lite.tasks.number import NUMBER
from t5lite.tasks.numbers import is_number
from t5lite.tasks.text import TEXT_METRICS

TARGET, OUTPUT = "target", "output"


def write_predictions(path: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    """Write {split: predictions} as JSON lines. Raises UserError if the file cannot be written.

    If there are several references, the target is a list, as `score_file` reads it.
    """

    def format_line(split: str, prediction: Prediction) -> str:
        fields = {"split": split, **prediction._asdict()}
        if fields.pop("more_references"):
            fields[TARGET] = prediction.references
        return json.dumps(replace_non_finite(fields), ensure_ascii=False) + "\n"

    lines = [format_line(split, each) for split, of_split in predictions.items() for each in of_split]
    write_atomically(path, "".join(lines))


def score_file(path: Path) -> tuple[Metrics, Intervals, int]:
    """Return (metrics, bootstrap intervals, number of rows) of the predictions in a file.

    The file has the columns "target" and "output": .jsonl, .csv, .tsv (also with .gz), .parquet or .arrow. In a .jsonl,
    .parquet or .arrow, a target may be a list of references. If all targets and outputs are numbers, they are also
    compared as numbers. Raises UserError for any other file, and for a file without rows.
    """
    if find_format(path) == ".txt":
        raise UserError(
            f"{path} has no columns; give target and output in a .jsonl, .csv, .tsv, .parquet or .arrow file"
        )
    types, references, outputs = ColumnTypes(), [], []
    for place, row in read_rows(path, [TARGET, OUTPUT]):
        is_list = isinstance(row.get(TARGET), list)
        read = types.read_texts if is_list else lambda *arguments: [types.read_text(*arguments)]
        references.append(read(row, TARGET, place))
        outputs.append(types.read_text(row, OUTPUT, place))
    if not outputs:
        raise UserError(f"{path} has no rows; give rows with target and output")
    has_numbers = all(map(is_number, (*outputs, *(text for each in references for text in each))))
    names = (*TEXT_METRICS, *(NUMBER.text_metrics if has_numbers else ()))
    scores = [score_text(names, *each) for each in zip(references, outputs, strict=True)]
    texts: tuple[Any, ...] = (names, scores, references, outputs)
    return compute_text_metrics(*texts), bootstrap_texts(*texts), len(outputs)

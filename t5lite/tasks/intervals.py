"""Bootstrap intervals of metrics over the items of a held-out set (Efron 1979): the chance of which items it holds.

Items are drawn again with replacement, 1,000 times. An item is a whole text with all of its answers. An interval goes
from the 2.5 % to the 97.5 % quantile of the metric. It says nothing about other seeds of training: the report's
intervals do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.tasks.metrics import METRICS, Metrics
from t5lite.tasks.table import TASKS, sum_key
from t5lite.tasks.texts import SACREBLEU, References, bootstrap_corpus_metric

DRAWS, LEVELS = 1000, (2.5, 97.5)
Intervals = dict[str, tuple[float, float]]


def bootstrap_sums(sums: Mapping[str, Any]) -> Intervals:
    """Return the intervals of metrics of confusion matrices, for heads with one answer for each example.

    Answers for each token are left out: the tokens of a text depend on each other, so they are not the items.

    Args:
        sums: float64, with keys from `sum_key`.
    """
    intervals, rng = {}, np.random.default_rng(0)
    for head, task in TASKS.items():
        confusion = sums.get(sum_key(head, "confusion"))
        if confusion is None or task.each != "example" or not confusion.sum():
            continue
        positive = sums.get(sum_key(head, "positive"))
        facts = {} if positive is None else {"positive": positive}
        known = {"confusion", *facts}
        names = [name for name in task.metrics if METRICS[name].needs in known and METRICS[name].better]
        items = round(float(confusion.sum()))
        draws = rng.multinomial(items, confusion.ravel() / confusion.sum(), DRAWS).reshape(DRAWS, *confusion.shape)
        for name in names:
            intervals[name] = _take_quantiles([METRICS[name].compute({"confusion": draw, **facts}) for draw in draws])
    return intervals


def bootstrap_rows(names: Sequence[str], sums: Mapping[str, np.ndarray], facts: Mapping[str, Any] = {}) -> Intervals:
    """Return the intervals of metrics whose sums are known for each row.

    Args:
        names: metrics; those that `sums` and `facts` do not suffice for are left out, and those that are not compared.
        sums: {name: float [n, …]}, the sums of each of n rows.
        facts: {name: value} that is not added up, such as "positive".
    """
    names = [name for name in names if METRICS[name].needs in {*sums, *facts} and METRICS[name].better]
    flat = {name: np.asarray(value, np.float64).reshape(len(value), -1) for name, value in sums.items()}
    # Rows with equal sums are interchangeable, so a draw says how often each different row occurs.
    rows, counts = np.unique(np.concatenate(list(flat.values()), axis=1), axis=0, return_counts=True)
    ends = np.cumsum([value.shape[1] for value in flat.values()])
    rng, values = np.random.default_rng(0), {name: [] for name in names}
    for _ in range(DRAWS):
        total = rng.multinomial(counts.sum(), counts / counts.sum()) @ rows
        parts = zip(sums, np.split(total, ends[:-1]), strict=True)
        drawn = {name: part.reshape(np.shape(sums[name])[1:]) for name, part in parts}
        for name in names:
            values[name].append(METRICS[name].compute({**drawn, **facts}))
    return {name: _take_quantiles(each) for name, each in values.items()}


def bootstrap_texts(
    names: Sequence[str], scores: Sequence[Metrics], references: Sequence[References], outputs: Sequence[str]
) -> Intervals:
    """Return the intervals of metrics of texts. The arguments are those of `metrics.compute_text_metrics`."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(outputs), size=(DRAWS, len(outputs)))
    intervals = {}
    for name in names:
        if METRICS[name].score is not None:
            values = np.array([each[name] for each in scores])
            intervals[name] = _take_quantiles(values[chosen].mean(axis=1))
        elif name in SACREBLEU:
            intervals[name] = _take_quantiles(bootstrap_corpus_metric(name, references, outputs, chosen))
        else:
            draws = ([[texts[i] for i in draw] for texts in (references, outputs)] for draw in chosen.tolist())
            intervals[name] = _take_quantiles([METRICS[name].score_corpus(*texts) for texts in draws])
    return intervals


def _take_quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    return tuple(map(float, np.percentile(values, LEVELS)))

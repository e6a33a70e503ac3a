"""The order in which metrics are shown."""

from collections.abc import Iterable

from t5lite.tasks.metrics import METRICS, find_metric

SplitMetric = tuple[str, str]  # (split, metric)
_RANKS = {name: rank for rank, name in enumerate(METRICS)}


def sort_metrics(pairs: Iterable[SplitMetric]) -> list[SplitMetric]:
    """Return the (split, metric) pairs in the order of display, each once.

    Splits keep the order of `pairs`; the metrics of a split follow METRICS.
    """
    pairs = list(dict.fromkeys(pairs))
    splits = {split: rank for rank, split in enumerate(dict.fromkeys(split for split, _ in pairs))}
    return sorted(pairs, key=lambda pair: (splits[pair[0]], _RANKS.get(pair[1], len(_RANKS))))


def main_metrics(pairs: Iterable[SplitMetric]) -> list[SplitMetric]:
    """Return the pairs that are also shown outside tables; if there are none, all pairs."""
    ordered = sort_metrics(pairs)
    return [pair for pair in ordered if not find_metric(pair[1]).tables_only] or ordered

"""What is known of each metric, a line a metric: for a new one no other place has to change."""

import dataclasses
import math
from collections.abc import Iterable

SplitMetric = tuple[str, str]  # (split, metric)


@dataclasses.dataclass(frozen=True)
class Metric:
    """label: what people call it. better: the direction of improvement, -1 lower, 1 higher, 0 not known.

    low, high: the range of its values. of_all_rows: measured on `eval.rows` rows, else on `eval.generate_rows`.
    tables_only: it says what the loss says, so verdicts and pictures leave it to the tables.
    """

    label: str
    unit: str = ""
    better: int = 0
    low: float = -math.inf
    high: float = math.inf
    of_all_rows: bool = False
    tables_only: bool = False

    @property
    def width(self) -> float:
        """The greatest difference that two values can have."""
        return self.high - self.low


# In the order of columns and sentences; those unknown here come last.
METRICS = {
    "accuracy": Metric("accuracy", better=1, low=0, high=1, of_all_rows=True),
    "macro_f1": Metric("macro F1", better=1, low=0, high=1, of_all_rows=True),
    "entity_f1": Metric("F1 of entities", better=1, low=0, high=1, of_all_rows=True),
    "exact_match": Metric("exact match", better=1, low=0, high=1),
    "loss": Metric("loss", "nats", better=-1, low=0, of_all_rows=True),
    "mlm_loss": Metric("loss of masked tokens", "nats", better=-1, low=0, of_all_rows=True),
    "next_sentence_loss": Metric("loss of next sentences", "nats", better=-1, low=0, of_all_rows=True),
    "next_sentence_accuracy": Metric("accuracy of next sentences", better=1, low=0, high=1, of_all_rows=True),
    "bits_per_byte": Metric("bits per byte", "bits", better=-1, low=0, of_all_rows=True),
    "next_sentence_negatives": Metric("share of negatives", low=0, high=1, of_all_rows=True, tables_only=True),
    "token_accuracy": Metric("token accuracy", better=1, low=0, high=1, of_all_rows=True, tables_only=True),
    "perplexity": Metric("perplexity", better=-1, low=1, of_all_rows=True, tables_only=True),
}
_RANKS = {name: rank for rank, name in enumerate(METRICS)}


def metric_of(name: str) -> Metric:
    return METRICS.get(name) or Metric(name.replace("_", " "))


def in_order(pairs: Iterable[SplitMetric]) -> list[SplitMetric]:
    """(split, metric) pairs, each once: splits as they come, the metrics of one in the order of METRICS."""
    pairs = list(dict.fromkeys(pairs))
    splits = {split: rank for rank, split in enumerate(dict.fromkeys(split for split, _ in pairs))}
    return sorted(pairs, key=lambda pair: (splits[pair[0]], _RANKS.get(pair[1], len(_RANKS))))


def main_metrics(pairs: Iterable[SplitMetric]) -> list[SplitMetric]:
    """Those of `pairs` that are shown outside tables; all of them where none is."""
    ordered = in_order(pairs)
    return [pair for pair in ordered if not metric_of(pair[1]).tables_only] or ordered

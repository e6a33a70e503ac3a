"""All metrics. A line for each metric says its name, whether high or low values are better, and how it is measured.

    compute_metrics({"nll": 20.0, "weight": 10.0, "correct": 3.0})      {"loss": 2.0, "perplexity": 7.39, …}

The training loop, the choice of checkpoints, evaluation and the report read this table. To add a metric, add a line
here, and add the name to `metrics` of its task.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.tasks import numbers, texts
from t5lite.tasks.table import TASKS, sum_key
from t5lite.tasks.texts import References

Metrics = dict[str, float]
Sums = Mapping[str, Any]
ONE_CLASS = 0.95  # a classifier that chooses one class in this share of its answers nearly always chooses it


@dataclasses.dataclass(frozen=True)
class Metric:
    """The properties of a metric.

    label: the name that people read.
    better: -1: lower values are better; 1: higher values are better; 0: neither is better, or it is not known.
    low, high: the range of the values.
    compute: computes the metric from the sums of one head. None: the metric is made from texts.
    needs: the sum that `compute` needs; a head without this sum does not have the metric.
    eval_fields: fields of `config.eval` that change what is measured. Runs that differ in them are not compared.
    score: computes the metric of one text, from (references, output). The metric is the mean over all texts.
    score_corpus: computes the metric of all texts together, from (references of each text, outputs).
    tables_only: whether only tables show it, because it is less important than the others.
    is_compared: whether the report shows the differences of this metric between runs.
    baseline: the metric with the score of a system that always gives the same answer.
    """

    label: str
    unit: str = ""
    better: int = 0
    low: float = -math.inf
    high: float = math.inf
    compute: Callable[[Sums], float] | None = None
    needs: str = ""
    eval_fields: tuple[str, ...] = ()
    score: Callable[[References, str], float] | None = None
    score_corpus: Callable[[Sequence[References], Sequence[str]], float] | None = None
    tables_only: bool = False
    is_compared: bool = True
    baseline: str = ""

    @property
    def is_generated(self) -> bool:
        """Whether the metric compares answers as texts.

        If the answers are generated, it is measured on `eval.generate_rows` rows, not `eval.rows`.
        """
        return self.score is not None or self.score_corpus is not None

    @property
    def width(self) -> float:
        """The largest possible difference of two values."""
        return self.high - self.low


def loss(sums: Sums) -> float:
    """Return the loss in nats per target, from "nll" and "weight"."""
    return sums["nll"] / max(sums["weight"], 1e-9)


def token_accuracy(sums: Sums) -> float:
    """Return the share of correct target tokens.

    "lost": the number of targets that were cut off. They count as wrong.
    """
    return sums["correct"] / (max(sums["weight"], 1e-9) + sums.get("lost", 0.0))


def accuracy(sums: Sums) -> float:
    """Return the share of correct answers, from "confusion" [C, C].

    "missed" [C]: the number of answers that were cut off. They count as wrong.
    """
    confusion = sums["confusion"]
    hits, total = np.diagonal(confusion).sum(), confusion.sum() + np.sum(sums.get("missed", 0.0))
    return float(hits / max(total, 1e-9))


def macro_f1(sums: Sums) -> float:
    """Return the mean F1 over the classes that occur as true answers (rows) or as chosen answers (columns)."""
    confusion = sums["confusion"]
    counts = confusion.sum(axis=0) + confusion.sum(axis=1) + sums.get("missed", 0.0)
    f1 = 2 * np.diagonal(confusion)[counts > 0] / counts[counts > 0]
    return float(np.mean(f1)) if f1.size else 0.0


def matthews(sums: Sums) -> float:
    """Return the correlation of true and chosen classes (Matthews 1975; Gorodkin 2004 for several classes).

    It is 0 if all true answers, or all chosen answers, are of one class.
    """
    confusion = sums["confusion"]
    total, hits = confusion.sum(), np.diagonal(confusion).sum()
    true, chosen = confusion.sum(axis=1), confusion.sum(axis=0)
    spread = (total**2 - np.sum(chosen**2)) * (total**2 - np.sum(true**2))
    return float((hits * total - true @ chosen) / math.sqrt(spread)) if spread > 0 else 0.0


def majority_accuracy(sums: Sums) -> float:
    """Return the accuracy of a system that always chooses the class that is most frequent in this held-out set."""
    true = sums["confusion"].sum(axis=1) + sums.get("missed", 0.0)
    return float(true.max() / max(true.sum(), 1e-9))


def majority_macro_f1(sums: Sums) -> float:
    """Return the macro F1 of a system that always chooses the class that is most frequent in this held-out set."""
    true = sums["confusion"].sum(axis=1) + sums.get("missed", 0.0)
    return float(2 * true.max() / max(true.max() + true.sum(), 1e-9) / max(np.count_nonzero(true), 1))


def most_chosen(sums: Sums) -> float:
    """Return the share of the class that is chosen most often, among all chosen answers."""
    chosen = sums["confusion"].sum(axis=0)
    return float(chosen.max() / max(chosen.sum(), 1e-9))


def calibration_error(sums: Sums) -> float:
    """Return the expected calibration error with equal bins (Guo et al. 2017), from "calibration" [bins, 3].

    For each bin of the chosen answer's probability: the number of answers, the sum of their probabilities, and the
    number of correct ones.
    """
    number, probability, correct = sums["calibration"].T
    return float(np.abs(probability - correct).sum() / max(number.sum(), 1e-9))


def brier(sums: Sums) -> float:
    """Return the mean squared distance of the probabilities from the true class (Brier 1950), from 0 to 2."""
    return float(sums["brier"] / max(sums["confusion"].sum(), 1e-9))


def micro_f1(sums: Sums) -> float:
    """Return the F1 over all labels of all texts, from "label_counts" [C, 3]: true, chosen and correct labels."""
    true, chosen, correct = sums["label_counts"].sum(axis=0)
    return float(2 * correct / max(true + chosen, 1e-9))


def label_macro_f1(sums: Sums) -> float:
    """Return the mean F1 over the labels that some text has or got, from "label_counts" [C, 3]."""
    true, chosen, correct = sums["label_counts"].T
    counts = true + chosen
    f1 = 2 * correct[counts > 0] / counts[counts > 0]
    return float(np.mean(f1)) if f1.size else 0.0


def majority_micro_f1(sums: Sums) -> float:
    """Return the largest micro F1 of a system that gives all texts of this held-out set the same labels."""
    true = np.sort(sums["label_counts"][:, 0])[::-1]
    chosen = sums["weight"] * np.arange(1, len(true) + 1)
    return float(np.max(2 * np.cumsum(true) / np.maximum(true.sum() + chosen, 1e-9), initial=0.0))


def positive_f1(sums: Sums) -> float:
    """Return the F1 of one label, from "positive", its index, and from "confusion" [C, C] or "label_counts" [C, 3].

    It is 0 if no text has the label and no text got it. "missed" [C]: as in `accuracy`.
    """
    label = int(sums["positive"])
    if "label_counts" in sums:
        true, chosen, correct = sums["label_counts"][label]
    else:
        confusion, missed = sums["confusion"], sums.get("missed")
        true = confusion[label].sum() + (0.0 if missed is None else missed[label])
        chosen, correct = confusion[:, label].sum(), confusion[label, label]
    return float(2 * correct / max(true + chosen, 1e-9))


def entity_f1(sums: Sums) -> float:
    """Return the F1 of entities, from "entities" [3]: the numbers of true, predicted and correct entities."""
    gold, chosen, correct = map(float, sums["entities"])
    return 2 * correct / max(gold + chosen, 1e-9)


def share_of_last_class(sums: Sums) -> float:
    """Return the share of the second of two classes among the true answers."""
    return float(sums["confusion"][1].sum() / max(sums["confusion"].sum(), 1e-9))


def _make_share(label: str, **fields: Any) -> Metric:
    return Metric(label, **{"low": 0, "high": 1, "better": 1} | fields)


def _make_loss(label: str) -> Metric:
    return Metric(label, "nats", better=-1, low=0, compute=loss, needs="nll")


_FROM_CONFUSION = {"needs": "confusion"}
# Tables and sentences list metrics in this order. Metrics that are not in this table come last.
METRICS = {
    "accuracy": _make_share("accuracy", compute=accuracy, baseline="majority_accuracy", **_FROM_CONFUSION),
    "positive_f1": _make_share("F1 of the positive label", compute=positive_f1, needs="positive",
                               eval_fields=("positive_label",)),
    "macro_f1": _make_share("macro F1", compute=macro_f1, **_FROM_CONFUSION),
    "matthews": Metric("Matthews correlation", better=1, low=-1, high=1, compute=matthews, tables_only=True,
                       **_FROM_CONFUSION),
    "calibration_error": _make_share("calibration error", better=-1, compute=calibration_error, needs="calibration",
                                     tables_only=True),
    "brier": Metric("Brier score", better=-1, low=0, high=2, compute=brier, needs="brier", tables_only=True),
    "majority_accuracy": _make_share("accuracy of the most frequent class", better=0, compute=majority_accuracy,
                                     is_compared=False, tables_only=True, **_FROM_CONFUSION),
    "majority_macro_f1": _make_share("macro F1 of the most frequent class", better=0, compute=majority_macro_f1,
                                     is_compared=False, tables_only=True, **_FROM_CONFUSION),
    "most_chosen": _make_share("share of the class chosen most often", better=0, compute=most_chosen,
                               is_compared=False, tables_only=True, **_FROM_CONFUSION),
    "micro_f1": _make_share("micro F1", compute=micro_f1, needs="label_counts", baseline="majority_micro_f1"),
    "label_macro_f1": _make_share("macro F1 of labels", compute=label_macro_f1, needs="label_counts"),
    "equal_sets": _make_share("share of equal sets of labels", needs="equal_sets",
                              compute=lambda sums: float(sums["equal_sets"] / max(sums["weight"], 1e-9))),
    "majority_micro_f1": _make_share("micro F1 of always choosing the same labels", better=0, needs="label_counts",
                                     compute=majority_micro_f1, is_compared=False, tables_only=True),
    "pearson": Metric("Pearson correlation", better=1, low=-1, high=1, score_corpus=numbers.pearson),
    "spearman": Metric("Spearman correlation", better=1, low=-1, high=1, score_corpus=numbers.spearman),
    "rmse": Metric("root mean squared error", better=-1, low=0, score_corpus=numbers.rmse, baseline="mean_rmse"),
    "mean_rmse": Metric("root mean squared error of the mean", low=0, score_corpus=numbers.mean_rmse,
                        is_compared=False, tables_only=True),
    "not_numbers": _make_share("share of answers that are no number", better=-1, score=numbers.is_no_number,
                               is_compared=False, tables_only=True),
    "entity_f1": _make_share("F1 of entities", compute=entity_f1, needs="entities"),
    "exact_match": _make_share("exact match", score=texts.exact_match),
    "squad_exact_match": _make_share("exact match (SQuAD)", score=texts.squad_exact_match, tables_only=True,
                                     baseline="no_answer_exact_match"),
    "no_answer_exact_match": _make_share("exact match of never answering", better=0, score=texts.match_nothing,
                                         is_compared=False, tables_only=True),
    "token_f1": _make_share("token F1", score=texts.token_f1),
    "rouge1": _make_share("ROUGE-1", score=texts.make_rouge("rouge1"), tables_only=True),
    "rouge2": _make_share("ROUGE-2", score=texts.make_rouge("rouge2"), tables_only=True),
    "rougeL": _make_share("ROUGE-L", score=texts.make_rouge("rougeL"), tables_only=True),
    "rougeLsum": _make_share("ROUGE-Lsum", score=texts.make_rouge("rougeLsum")),
    "bleu": Metric("BLEU", better=1, low=0, high=100, score_corpus=texts.make_corpus_metric("bleu")),
    "chrf": Metric("chrF", better=1, low=0, high=100, score_corpus=texts.make_corpus_metric("chrf"), tables_only=True),
    "answers_with_sentinels": _make_share("share of answers with sentinels", better=-1, tables_only=True,
                                          is_compared=False, score=texts.has_foreign_sentinel),
    "loss": _make_loss("loss"),
    "mlm_loss": _make_loss("loss of masked tokens"),
    "next_sentence_loss": _make_loss("loss of next sentences"),
    "next_sentence_accuracy": _make_share("accuracy of next sentences", compute=accuracy, **_FROM_CONFUSION),
    "bits_per_byte": Metric("bits per byte", "bits", better=-1, low=0, needs="bytes",
                            compute=lambda sums: sums["nll"] / math.log(2) / sums["bytes"]),
    "next_sentence_negatives": _make_share("share of negatives", better=0, compute=share_of_last_class,
                                           tables_only=True, **_FROM_CONFUSION),
    "token_accuracy": _make_share("token accuracy", compute=token_accuracy, needs="correct",
                                  tables_only=True),
    "perplexity": Metric("perplexity", better=-1, low=1, needs="nll",
                         compute=lambda sums: math.exp(min(loss(sums), 700.0)), tables_only=True),
}  # fmt: skip


def find_metric(name: str) -> Metric:
    """Return the Metric for a name. For a name that is not in the table: a Metric with only a label."""
    return METRICS.get(name) or Metric(name.replace("_", " "))


def compute_metrics(sums: Sums) -> Metrics:
    """Return {name in METRICS: value} from the sums over all batches of a held-out set.

    "loss" is the sum of the losses of all heads. If there are several heads, each head also has a loss. Targets
    that were cut off ("lost", "missed") lower the accuracies, but do not change the losses.

    Args:
        sums: float64, with keys from `sum_key`.
    """
    by_head = {head: _select_sums(head, sums) for head in TASKS}
    by_head = {head: head_sums for head, head_sums in by_head.items() if "nll" in head_sums}
    metrics = {"loss": sum(loss(head_sums) for head_sums in by_head.values())}
    for head, head_sums in by_head.items():
        task = TASKS[head]
        for name in (task.loss_name, *task.metrics) if len(by_head) > 1 else task.metrics:
            metric = METRICS[name]
            if metric.needs in head_sums:
                metrics[name] = metric.compute(head_sums)
    return metrics


def score_classes(confusion: np.ndarray) -> list[dict[str, float]]:
    """Return precision, recall, F1 and the number of true answers of each class. 0 / 0 counts as 0.

    confusion: [C, C], true classes in rows, chosen classes in columns.
    """
    hits, true, chosen = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    values = {"precision": hits / np.maximum(chosen, 1), "recall": hits / np.maximum(true, 1)}
    values |= {"f1": 2 * hits / np.maximum(true + chosen, 1), "rows": true}
    return [{name: float(each[label]) for name, each in values.items()} for label in range(len(confusion))]


def describe_weakness(metrics: Metrics) -> str | None:
    """Return a sentence if a model has learned nothing, or nearly always gives the same answer; else None.

    metrics: the metrics of one held-out set.
    """
    parts = []
    for name, metric in METRICS.items():
        score, trivial = metrics.get(name), metrics.get(metric.baseline)
        if score is not None and trivial is not None and (score - trivial) * metric.better <= 0:
            parts.append(f"{metric.label} {score:.3f} is no better than {trivial:.3f}, the "
                         f"{METRICS[metric.baseline].label}")  # fmt: skip
    share, majority = metrics.get("most_chosen"), metrics.get("majority_accuracy")
    if share is not None and majority is not None and share >= ONE_CLASS and majority < ONE_CLASS:
        parts.append(f"{share:.1%} of the answers are of the same class")
    return "; ".join(parts) or None


def score_text(names: Sequence[str], references: References, output: str) -> Metrics:
    """Return {name: score} of one text, for the metrics in `names` that are means over texts."""
    return {name: METRICS[name].score(references, output) for name in names if METRICS[name].score is not None}


def compute_text_metrics(
    names: Sequence[str], scores: Sequence[Metrics], references: Sequence[References], outputs: Sequence[str]
) -> Metrics:
    """Return {name: value} of the metrics of texts in `names`.

    Args:
        scores: for each text, the result of `score_text`.
        references: for each text, the references; at least one.
        outputs: the texts to compare with the references.
    """
    metrics = {}
    for name in names:
        corpus = METRICS[name].score_corpus
        means = corpus is None
        metrics[name] = float(np.mean([each[name] for each in scores])) if means else corpus(references, outputs)
    return metrics


def _select_sums(head: str, sums: Sums) -> dict[str, Any]:
    """Return {name: value} of one head's sums. "bytes" is left out if it is 0: then the targets are not text."""
    prefix = sum_key(head, "")
    keys = [key for key in sums if key.startswith(prefix) and ("/" in key) == bool(prefix)]
    return {key[len(prefix) :]: sums[key] for key in keys if key != "bytes" or sums[key]}

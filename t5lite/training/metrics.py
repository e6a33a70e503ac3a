"""Metrics on disk: metrics.jsonl, one object a line, and TensorBoard; and what sums mean.

    {"step": 10, "split": "train", "loss": 7.31, "tokens": 50080, …}
    {"step": 60, "split": "validation", "loss": 6.02, "perplexity": 411.6, …}

A line is on disk before the checkpoint of its step is. On resuming, lines later than the checkpoint are cut, so every
line stands once.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from t5lite.files import write_atomically

Metrics = dict[str, float]


class MetricsLog:
    """Appends to workdir/metrics.jsonl and workdir/tensorboard/, whose entries beyond step `keep_until` are dropped."""

    def __init__(self, workdir: Path, keep_until: int):
        self.path = workdir / "metrics.jsonl"
        truncate(self.path, keep_until)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=keep_until + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append a line; it is in the operating system's hands when this returns."""
        line = {"step": step, "split": split, **{name: _short(value) for name, value in metrics.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Force all that was written to the disk."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog:
    """A MetricsLog that writes nothing: of the hosts that are not the first."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _short(value: float) -> float | None:
    """Seven digits of a float, which is what a float32 has; None for what JSON cannot hold."""
    if isinstance(value, int):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps beyond `step`, and a last line that a kill left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))


def from_sums(sums: Mapping[str, Any], predicts_text: bool) -> Metrics:
    """What the sums of all batches of a held-out set come to.

    Of the vocabulary: loss in nats a target token, its perplexity, token accuracy; bits per byte where the targets are
    plain text. Of classes and tags: loss, accuracy, macro F1, and the F1 of entities. Of a next sentence beside tokens:
    `loss` is the sum of `mlm_loss` and `next_sentence_loss`, and next_sentence_negatives the share of pairs that do not
    belong together.
    """
    losses = {of: sums[f"{of}nll"] / max(sums[f"{of}weight"], 1e-9) for of in ("", "label_") if f"{of}nll" in sums}
    metrics = {"loss": sum(losses.values())}
    if "correct" in sums:
        loss, weight = losses[""], max(sums["weight"], 1e-9)
        metrics |= {"perplexity": math.exp(min(loss, 700.0)), "token_accuracy": sums["correct"] / weight}
        if predicts_text and sums["bytes"]:
            metrics["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
    if "confusion" in sums:
        of_labels = of_confusion(sums["confusion"])
        if len(losses) == 2:
            metrics |= {"mlm_loss": losses[""], "next_sentence_loss": losses["label_"]}
            negatives = float(sums["confusion"][1].sum() / max(sums["confusion"].sum(), 1e-9))
            metrics |= {"next_sentence_accuracy": of_labels["accuracy"], "next_sentence_negatives": negatives}
        else:
            metrics |= of_labels
    if "entities" in sums:
        gold, chosen, both = map(float, sums["entities"])
        metrics["entity_f1"] = 2 * both / max(gold + chosen, 1e-9)
    return metrics


def of_confusion(confusion: np.ndarray) -> Metrics:
    """Accuracy, and macro F1: the mean of the F1 of each label that is true (rows) or chosen (columns) somewhere."""
    hits, either = np.diagonal(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = 2 * hits[either > 0] / either[either > 0]
    accuracy = hits.sum() / max(confusion.sum(), 1e-9)
    return {"accuracy": float(accuracy), "macro_f1": float(np.mean(f1)) if f1.size else 0.0}


def first_losses(path: Path) -> dict[str, float | None]:
    """The loss of each split at step 0 in a metrics.jsonl: on held-out text, of the weights that a run began with."""
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return {values["split"]: values["loss"] for values in lines if values["step"] == 0}

"""The confusion matrices of groups, from the results of their runs: how often each true label got each answer.

Runs keep these matrices in result.json, in "classes", if there are not too many labels. The seeds of a group are added.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from t5lite.data.dataset import TEST
from t5lite.reporting.groups import Group
from t5lite.reporting.notes import collect, listed, shortened
from t5lite.reporting.runs import Run
from t5lite.run.held_out import MAX_LABELS
from t5lite.tasks.label import LABEL

MOST_NAMED = 3  # confusions that a sentence names


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The confusion matrix of a group on a held-out set.

    seeds: the seeds of the runs that are added. labels: C names.
    counts: int64 [C, C], true labels in rows, answers in columns.
    """

    group: str
    split: str
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Float64 [C, C]: the shares of the answers to each true label. A row without true answers is 0."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)


def find_matrices(groups: Sequence[Group]) -> list[Matrix]:
    """Return the matrices of each group, in the order of the groups.

    A test set takes the place of the validation sets with the same labels.
    """
    return [matrix for group in groups for matrix in _find_of_group(group)]


def _find_of_group(group: Group) -> Iterator[Matrix]:
    by_split: dict[str, list[tuple[Run, tuple[str, ...], np.ndarray]]] = {}
    for run in group.runs:
        for split, each in (run.result or {}).get("classes", {}).items():
            labels, counts = tuple(each["labels"]), np.array(each["confusion"], np.int64)
            if labels and counts.shape == (len(labels), len(labels)):
                by_split.setdefault(split, []).append((run, labels, counts))
    tested = {labels for _, labels, _ in by_split.get(TEST, ())}
    for split, found in by_split.items():
        _, labels, _ = found[0]
        if split == TEST or labels not in tested:
            same = [(run, counts) for run, of_run, counts in found if of_run == labels]
            seeds = tuple(sorted({run.seed for run, _ in same}))
            yield Matrix(group.name, split, seeds, labels, sum(counts for _, counts in same))


def describe(matrix: Matrix) -> str:
    """Return a sentence: the most frequent answer, and the most frequent confusions."""
    counts, labels = matrix.counts, matrix.labels
    chosen = counts.sum(axis=0)
    most = int(np.argmax(chosen))
    parts = [f"{100 * chosen[most] / max(chosen.sum(), 1):.1f} % of the answers are {labels[most]}"]
    wrong = counts - np.diag(np.diagonal(counts))
    places = [np.unravel_index(place, wrong.shape) for place in np.argsort(-wrong, axis=None, kind="stable")]
    named = [f"{labels[i]} as {labels[j]} ({wrong[i, j]:,})" for i, j in places[:MOST_NAMED] if wrong[i, j]]
    return "; ".join([*parts, f"most frequent confusions: {listed(named)}"] if named else parts)


def missing_matrix_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on runs that chose among labels, but whose result has no confusion matrix."""
    missing = []
    for group in groups:
        for run in group.runs:
            kept = (run.result or {}).get("classes", {})
            for split, metrics in run.metrics.items():
                if LABEL.metrics[0] in metrics and split not in kept:
                    missing.append(((split, _explain_missing(run)), run.folder_name))
    return [
        f"{shortened(names, 8)}, {split}: no confusion matrix is drawn, because {reason}. `evaluate --json` of a run "
        "prints the matrix."
        for (split, reason), names in collect(missing).items()
    ]


def _explain_missing(run: Run) -> str:
    count = len(run.provenance.get("labels") or ())
    return f"there are {count} labels, more than {MAX_LABELS}" if count > MAX_LABELS else "result.json has none"

"""The baseline for a labelled task: a bag of words with the same labels and the same held-out pairs as a network.

The baseline is TF-IDF of words and word pairs with a linear support vector machine, by scikit-learn. It reads the whole
inputs, but a network reads only the first `objective.inputs_length` tokens. A config chooses the baseline with
`model.architecture = "bag_of_words"`. The other fields that have an effect are the data, the tokenizer, the seed and
`eval.rows`. The tokenizer is needed because the fingerprints of held-out pairs are made from tokens.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import confusion_matrix
from sklearn.svm import LinearSVC

from t5lite.config import require
from t5lite.data.closed_sets import check_positive_label
from t5lite.data.dataset import Dataset
from t5lite.data.packing import choose_pairs
from t5lite.data.rows import space_evenly
from t5lite.data.store import TokenStore
from t5lite.run.evaluation import find_positive
from t5lite.run.held_out import review_classes
from t5lite.tasks.label import LABEL
from t5lite.tasks.metrics import METRICS
from t5lite.training.checkpoint import hash_params


def train_bag_of_words(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """Train and evaluate. Return the result, with the metrics of labels of each held-out set.

    Tens of thousands of pairs take seconds. Costs that only networks have are None.
    """
    require(dataset.labels is not None, "model.architecture", "bag_of_words needs targets that are labels")
    check_positive_label(config.eval.positive_label, [dataset.labels])
    start = time.perf_counter()
    inputs, targets = [], []
    for span in dataset.train.values():
        order = choose_pairs(span.store, config.data.train.limit, config.data.train.limit_per_label, config.seed)
        inputs += _texts(dataset, span.store, 2 * order)
        targets += _texts(dataset, span.store, 2 * order + 1)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = LinearSVC(random_state=config.seed)
    classifier.fit(vectorizer.fit_transform(inputs), targets)
    metrics, evaluated, classes = {}, {}, {}
    for split, span in dataset.heldout.items():
        size = span.store.num_documents // 2
        pairs = space_evenly(size, config.eval.rows or size)
        gold = _texts(dataset, span.store, 2 * pairs + 1)
        evaluated[split] = {"used": len(pairs), "of": size}
        chosen = classifier.predict(vectorizer.transform(_texts(dataset, span.store, 2 * pairs)))
        matrix = confusion_matrix(gold, chosen, labels=dataset.labels)
        sums = {"confusion": matrix.astype(np.float64)} | find_positive(config, dataset.labels)
        metrics[split] = {name: METRICS[name].compute(sums) for name in LABEL.metrics if METRICS[name].needs in sums}
        classes[split] = {"labels": list(dataset.labels), "confusion": matrix.tolist()}
    seconds = time.perf_counter() - start
    weights = {"coefficients": np.asarray(classifier.coef_), "intercepts": np.asarray(classifier.intercept_)}
    return {
        "step": 0,
        "metrics": metrics,
        "evaluated": evaluated,
        **review_classes(metrics, classes),
        "params_sha256": hash_params(weights),
        "cost": {"tokens": None, "flops": None, "seconds": seconds, "device_seconds": seconds, "peak_bytes": None},
    }


def _texts(dataset: Dataset, store: TokenStore, documents: Sequence[int] | np.ndarray) -> list[str]:
    return [dataset.tokenizer.decode(store.document(int(index))) for index in documents]

"""Metrics that compare texts with references, each as the field computes it.

    token_f1(["The cat sat."], "the cat")                 0.667
    make_rouge("rouge1")(["The cat sat."], "the cat")     0.8

exact_match        the output is a reference, character for character; spaces at both ends do not count
squad_exact_match  the same after SQuAD's normalisation: see `normalise`
token_f1           F1 of the words of output and reference after this normalisation (Rajpurkar et al. 2016, SQuAD)
rouge1 … rougeLsum F-measures of rouge-score without stemming (Lin 2004). rougeLsum takes lines as sentences. The words
                   are runs of a-z and 0-9, so other scripts count as no words
bleu, chrf         sacrebleu with its defaults, from 0 to 100 (Papineni et al. 2002, Popović 2015)
answers_with_sentinels
                   whether the output holds a sentinel, such as <extra_id_0>, that no reference holds. A model that was
                   trained by span corruption alone writes sentinels in place of answers

Of several references, the best counts. BLEU counts the n-grams of all references.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

References = Sequence[str]
SACREBLEU = ("bleu", "chrf")  # the metrics that sacrebleu computes
SENTINEL = re.compile(r"<extra_id_\d+>")


def normalise(text: str) -> str:
    """Return the text as SQuAD compares it: lower case, no ASCII punctuation, no a, an, the, words by single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(references: References, output: str) -> float:
    """Return 1.0 if the output is a reference, else 0.0."""
    return float(any(output.strip() == reference.strip() for reference in references))


def squad_exact_match(references: References, output: str) -> float:
    """Return 1.0 if the output is a reference after SQuAD's normalisation, else 0.0."""
    return float(any(normalise(output) == normalise(reference) for reference in references))


def match_nothing(references: References, output: str) -> float:
    """Return 1.0 if an empty output is right, whatever the output is. The mean is the score of never answering."""
    del output
    return squad_exact_match(references, "")


def token_f1(references: References, output: str) -> float:
    """Return the best F1 of the words of output and reference. Two texts without words: 1; one: 0."""
    return max(_token_f1(normalise(reference).split(), normalise(output).split()) for reference in references)


def _token_f1(reference: list[str], output: list[str]) -> float:
    if not reference or not output:
        return float(reference == output)
    common = (collections.Counter(reference) & collections.Counter(output)).total()
    return 2 * common / (len(reference) + len(output))


def make_rouge(name: str) -> Callable[[References, str], float]:
    """Return the function (references, output) -> F-measure. name: "rouge1", "rouge2", "rougeL" or "rougeLsum"."""
    return lambda references, output: _compute_rouge(tuple(references), output)[name]


@functools.lru_cache(2)  # the four measures of one text are computed together
def _compute_rouge(references: tuple[str, ...], output: str) -> dict[str, float]:
    scores = _make_rouge_scorer().score_multi(references, output)
    return {name: float(score.fmeasure) for name, score in scores.items()}


@functools.cache
def _make_rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=False)


@functools.cache
def _make_sacrebleu(name: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    # force: do not warn of outputs that end in a period between spaces.
    return BLEU(force=True) if name == "bleu" else CHRF()


def _make_streams(references: Sequence[References]) -> list[list[str | None]]:
    """Return references as sacrebleu reads them: for each k, the k-th reference of all texts, or None."""
    most = max(map(len, references))
    return [[each[k] if k < len(each) else None for each in references] for k in range(most)]


def has_foreign_sentinel(references: References, output: str) -> float:
    """Return 1.0 if the output holds a sentinel that no reference holds, else 0.0."""
    return float(any(all(name not in reference for reference in references) for name in SENTINEL.findall(output)))


def make_corpus_metric(name: str) -> Callable[[Sequence[References], Sequence[str]], float]:
    """Return the function (references of all texts, outputs) -> score. name: "bleu" or "chrf"."""
    return lambda references, outputs: (
        _make_sacrebleu(name).corpus_score(list(outputs), _make_streams(references)).score if outputs else 0.0
    )


def describe_corpus_metrics() -> dict[str, str]:
    """Return {name: sacrebleu's signature of the last score, such as "nrefs:1|case:mixed|eff:no|tok:13a|…"}."""
    return {name: str(_make_sacrebleu(name).get_signature()) for name in SACREBLEU}


def bootstrap_corpus_metric(
    name: str, references: Sequence[References], outputs: Sequence[str], chosen: np.ndarray
) -> list[float]:
    """Return the metric of each draw. name: "bleu" or "chrf". chosen: int [draws, texts], the texts of each draw.

    sacrebleu's public bootstrap mixes types that Python's statistics refuses, so its counts for each text are added up
    here.
    """
    metric = _make_sacrebleu(name)
    counts = np.array(metric._extract_corpus_statistics(list(outputs), _make_streams(references)), np.float64)
    draws = (counts[texts].sum(axis=0) for texts in chosen)
    return [float(metric._compute_score_from_stats(total.tolist()).score) for total in draws]

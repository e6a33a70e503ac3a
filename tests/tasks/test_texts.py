"""Metrics of texts: their definitions on small texts, worked out by hand, and several references."""

import numpy as np
import pytest

from t5lite.tasks.intervals import bootstrap_sums, bootstrap_texts
from t5lite.tasks.metrics import METRICS, compute_text_metrics, score_text
from t5lite.tasks.text import TEXT_METRICS
from t5lite.tasks.texts import describe_corpus_metrics, exact_match, normalise, squad_exact_match, token_f1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("an apple a day", "apple day"),
        ("Ann's theatre", "anns theatre"),  # articles are whole words; punctuation leaves no space
        ("1,000-year", "1000year"),
        ("“Quoted”", "“quoted”"),  # only ASCII punctuation
        (" the ", ""),
    ],
)
def test_squad_normalisation(text, normalised):
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("references", "output", "plain", "squad", "f1"),
    [
        (["a dog"], " a dog\n", 1, 1, 1),
        (["The dog!"], "dog", 0, 1, 1),
        (["a big dog"], "big dogs", 0, 0, 1 / 2),
        (["cat cat dog"], "cat", 0, 0, 2 * 1 / 4),  # precision 1, recall 1/3
        (["one", "two three"], "three two", 0, 0, 1),
        (["the"], "a", 0, 1, 1),  # both empty
        (["the"], "dog", 0, 0, 0),
        (["dog"], "", 0, 0, 0),
    ],
)
def test_exact_match_and_token_f1(references, output, plain, squad, f1):
    assert (exact_match(references, output), squad_exact_match(references, output)) == (plain, squad)
    assert token_f1(references, output) == pytest.approx(f1)


def score(name, references, outputs):
    scores = [score_text(TEXT_METRICS, *each) for each in zip(references, outputs, strict=True)]
    return compute_text_metrics([name], scores, references, outputs)[name]


def test_rouge_compares_words_pairs_of_words_and_sequences():
    references, outputs = [["police killed the gunman"]], ["police kill the gunman"]
    assert score("rouge1", references, outputs) == pytest.approx(3 / 4)  # no stemming: kill is not killed
    assert score("rouge2", references, outputs) == pytest.approx(1 / 3)
    assert score("rougeL", references, outputs) == pytest.approx(3 / 4)
    assert score("rougeL", references, ["the gunman police killed"]) == pytest.approx(1 / 2)


def test_rougelsum_takes_lines_as_sentences():
    reference, output = "a b c\nd e f", "d e f\na b c"
    assert score("rougeLsum", [[reference]], [output]) == pytest.approx(1)
    assert score("rougeL", [[reference]], [output]) == pytest.approx(1 / 2)
    joined = output.replace("\n", " ")
    assert score("rougeLsum", [[reference.replace("\n", " ")]], [joined]) == pytest.approx(1 / 2)


def test_bleu_is_of_the_corpus_and_chrf_of_characters():
    references = [["the cat is on the mat"], ["there is a cat on the mat"]]
    outputs = ["the cat is on the mat", "there is a dog on the mat"]
    # 13 words; n-gram precisions 12/13, 9/11, 6/9, 3/7
    expected = 100 * np.exp(np.mean(np.log([12 / 13, 9 / 11, 6 / 9, 3 / 7])))
    assert score("bleu", references, outputs) == pytest.approx(expected)
    assert score("bleu", references, [texts[0] for texts in references]) == pytest.approx(100)
    assert score("chrf", references, [texts[0] for texts in references]) == pytest.approx(100)
    assert score("bleu", references, ["", ""]) == 0 == score("chrf", references, ["", ""])
    assert describe_corpus_metrics()["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_the_best_reference_counts_and_their_numbers_may_differ(name):
    references = [["nothing alike", "the white whale swims in the sea"], ["an old man went to the sea"]]
    outputs = ["the white whale swims in the sea", "an old man went to the sea"]
    best = METRICS[name].high if METRICS[name].better > 0 else METRICS[name].low
    assert score(name, references, outputs) == pytest.approx(best)


def test_sentinels_that_no_reference_holds_are_counted():
    references = [["a cat"], ["a cat", "the <extra_id_1> cat"], ["<extra_id_1>"], ["a cat"], ["a cat"]]
    outputs = ["<extra_id_0> a cat", "<extra_id_1>", "<extra_id_11>", "extra_id_0", "a<extra_id_99>cat"]
    assert score("answers_with_sentinels", references, outputs) == pytest.approx(3 / 5)


def test_bootstrap_intervals_of_texts_hold_the_metric_and_shrink_with_more_texts():
    rng = np.random.default_rng(0)
    words = np.array(["the", "sea", "ship", "captain", "whale", "white", "old", "man"])
    references = [[" ".join(rng.choice(words, 8))] for _ in range(80)]
    outputs = [" ".join([*rng.choice(words, 2), *each[0].split()[: rng.integers(1, 9)]]) for each in references]
    scores = [score_text(TEXT_METRICS, *each) for each in zip(references, outputs, strict=True)]
    value = compute_text_metrics(TEXT_METRICS, scores, references, outputs)
    few = bootstrap_texts(TEXT_METRICS, scores[:10], references[:10], outputs[:10])
    many = bootstrap_texts(TEXT_METRICS, scores, references, outputs)
    for name in ("token_f1", "rouge1", "rougeLsum", "bleu", "chrf"):
        assert many[name][0] < value[name] < many[name][1]
        assert many[name][1] - many[name][0] < few[name][1] - few[name][0]


def test_the_interval_of_an_accuracy_is_that_of_a_share():
    confusion = np.array([[120.0, 30.0], [30.0, 20.0]])  # 200 items, 70 % correct
    low, high = bootstrap_sums({"classifier/confusion": confusion})["accuracy"]
    width = 1.96 * np.sqrt(0.7 * 0.3 / 200)
    assert (low, high) == pytest.approx((0.7 - width, 0.7 + width), abs=0.015)
    assert "macro_f1" in bootstrap_sums({"classifier/confusion": confusion})
    assert bootstrap_sums({"tagger/confusion": confusion}) == {}  # words of a sentence are no independent items

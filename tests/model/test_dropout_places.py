"""Dropout is at the places of each family, and at no other place."""

import collections
import dataclasses

import pytest
from flax import linen as nn

from t5lite.model.attention import einsum
from t5lite.model.config import DROPOUT_PLACES
from t5lite.objectives.objective import VOCABULARY_ONLY
from t5lite.system.errors import UserError
from tests.heads import heads as made
from tests.model.dropped import LAYERS, count_dropped, small_model

N = LAYERS
CLASSIFIER, TAGGER, NEXT_SENTENCE = made(False, classifier=3), made(False, tagger=4), made(next_sentence=True)
T5 = {
    # embeddings, each block's output, the end of the stack
    "stream": 1 + 2 * N + 1, "decoder stream": 1 + 3 * N + 1,
    "hidden": N, "decoder hidden": N,
    "weights": N, "decoder weights": N, "cross weights": N,
}  # fmt: skip
BERT = {"stream": 1 + 2 * N, "weights": N}
# {(family, heads): {kind of activation: number of dropouts}}, from transformers' modules and the code of the papers.
EXPECTED = {
    ("t5_v1_0", VOCABULARY_ONLY): T5,
    ("t5_v1_1", VOCABULARY_ONLY): T5,
    ("ul2", VOCABULARY_ONLY): T5,
    ("bert", VOCABULARY_ONLY): BERT,
    ("bert", NEXT_SENTENCE): BERT,
    ("bert", CLASSIFIER): {**BERT, "pooled": 1},
    ("bert", TAGGER): {**BERT, "stream": BERT["stream"] + 1},
    ("gpt2", VOCABULARY_ONLY): {"stream": 1 + 2 * N, "weights": N},
    ("bart", VOCABULARY_ONLY): {**T5, "stream": 1 + 2 * N, "decoder stream": 1 + 3 * N},
    ("llama2", VOCABULARY_ONLY): {"weights": N},
    ("llama3", VOCABULARY_ONLY): {"weights": N},
}


@pytest.mark.parametrize(("family", "heads"), EXPECTED, ids=str)
def test_each_family_drops_in_its_places(family, heads, monkeypatch):
    config = small_model(family, heads)
    assert count_dropped(config, monkeypatch) == EXPECTED[family, heads]
    assert count_dropped(config, monkeypatch, deterministic=True) == {}
    assert count_dropped(dataclasses.replace(config, dropout=0.0), monkeypatch) == {}


@pytest.mark.parametrize("place", DROPOUT_PLACES)
def test_a_place_can_be_chosen_alone(place, monkeypatch):
    config = dataclasses.replace(small_model("bert", CLASSIFIER), dropout_places=(place,))
    alone = {"embedding": {"stream": 1}, "attention": {"weights": N}, "activation": {"hidden": N},
             "residual": {"stream": 2 * N}, "final": {"stream": 1}, "head": {"pooled": 1}}  # fmt: skip
    assert count_dropped(config, monkeypatch) == alone[place]


@pytest.mark.parametrize("place", DROPOUT_PLACES)
def test_a_place_with_its_own_rate_drops_with_this_rate(place, monkeypatch):
    """Attention reads its rate where it drops; the other places are flax modules with a rate."""
    rates = collections.Counter()

    def intercept(function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and not kwargs["deterministic"]:
            rates[context.module.rate] += 1
        return function(*args, **kwargs)

    plain = einsum.attend

    def attend(*args, dropout, **kwargs):
        rates[dropout] += bool(dropout)  # 0: the pass that makes the parameters
        return plain(*args, dropout=dropout, **kwargs)

    monkeypatch.setattr(einsum, "attend", attend)
    config = dataclasses.replace(small_model("t5_v1_1", CLASSIFIER), dropout_rates=((place, 0.4),))
    with nn.intercept_methods(intercept):
        count_dropped(config, monkeypatch)
    alone = {"embedding": 2, "attention": 3 * N, "activation": 2 * N, "residual": 5 * N, "final": 2, "head": 1}
    assert +rates == {0.4: alone[place], 0.1: sum(alone.values()) - alone[place]}


def test_a_rate_adds_a_place_and_zero_removes_one(monkeypatch):
    config = dataclasses.replace(small_model("bert", CLASSIFIER), dropout=0.0, dropout_rates=(("attention", 0.2),))
    assert count_dropped(config, monkeypatch) == {"weights": N}
    config = dataclasses.replace(small_model("bert", CLASSIFIER), dropout_rates=[["attention", 0], ["final", 0.1]])
    assert count_dropped(config, monkeypatch) == {"stream": BERT["stream"] + 1, "pooled": 1}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((("atention", 0.1),), r"model\.dropout_rates: unknown place 'atention'.*attention"),
        ((("head", 1.0),), "the rate of 'head' is 1.0; give a number of at least 0 and below 1"),
        ((("head", -0.1),), "the rate of 'head' is -0.1"),
        ((("head", "0.1"),), "the rate of 'head' is '0.1'"),
        ((("head", True),), "the rate of 'head' is True"),
        ((("head", 0.1), ("head", 0.2)), "'head' is there twice"),
        (("head", 0.1), r"'head' is not a pair \(place, rate\)"),
        (((("head",), 0.1),), "unknown place"),
    ],
)
def test_rates_that_no_place_can_have_are_refused(rates, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(small_model("bert"), dropout_rates=rates)


def test_an_unknown_place_is_named():
    with pytest.raises(UserError, match=r"model\.dropout_places: unknown place 'atention'.*attention"):
        dataclasses.replace(small_model("gpt2"), dropout_places=("atention",))

"""Dropout is at the places of each family, and at no other place."""

import dataclasses

import pytest

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


def test_an_unknown_place_is_named():
    with pytest.raises(UserError, match=r"model\.dropout_places: unknown place 'atention'.*attention"):
        dataclasses.replace(small_model("gpt2"), dropout_places=("atention",))

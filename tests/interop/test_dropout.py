"""Dropout of released models: rates become places and back, and the same activations drop as in transformers."""

import collections
import dataclasses
import json

import pytest

from t5lite.config import base_config
from t5lite.interop.dropout import find_lost_places, make_rates, read_fields, read_rates
from t5lite.interop.released import FAMILIES
from t5lite.interop.writing import describe
from t5lite.objectives.objective import VOCABULARY_ONLY
from t5lite.run.inherit import with_inherited_shape
from t5lite.run.released import dropout_note, moved_dropout_note
from t5lite.system.errors import UserError
from tests.heads import heads as make_heads
from tests.interop.places import make_place
from tests.model.dropped import BATCH, LENGTH, NAMES, TARGETS, count_dropped, small_model

MODELS = [
    *((name, VOCABULARY_ONLY) for name in ("t5_v1_0", "t5_v1_1", "bert", "gpt2", "bart", "llama2")),
    ("bert", make_heads(next_sentence=True)),
    ("bert", make_heads(False, classifier=3)),
    ("bert", make_heads(False, tagger=4)),
]


@pytest.mark.parametrize(("name", "heads"), MODELS, ids=str)
def test_what_is_written_reads_as_the_same_places(name, heads):
    model = small_model(name, heads)
    family, json = describe(model)
    assert not find_lost_places(model, family.dropout)
    again = dataclasses.replace(model, **read_fields(json, family.dropout))
    assert again.dropout_by_place == dict.fromkeys(again.dropout_places, 0.1) and again.dropout_rates is None
    assert read_rates(json, family.dropout) == make_rates(again.dropout_by_place, family.dropout)


@pytest.mark.parametrize(
    ("json", "dropout", "rates"),
    [
        ({"model_type": "bart"}, 0.1, None),
        ({"model_type": "bart", "attention_dropout": 0.3, "activation_dropout": 0.2}, 0.1,
         (("attention", 0.3), ("activation", 0.2))),
        ({"model_type": "bart", "dropout": 0, "attention_dropout": 0.3}, 0.3, None),
        ({"model_type": "bert", "classifier_dropout": 0.4}, 0.1, (("head", 0.4),)),
        ({"model_type": "bert", "hidden_dropout_prob": 0, "classifier_dropout": 0}, 0.1, None),
        ({"model_type": "gpt2", "embd_pdrop": 0.2, "attn_pdrop": 0}, 0.1, (("embedding", 0.2),)),
        ({"model_type": "t5", "dropout_rate": 0.05}, 0.05, None),
        ({"model_type": "llama"}, 0.0, None),
    ],
    ids=str,
)  # fmt: skip
def test_rates_of_a_release_are_written_back_as_they_were(json, dropout, rates):
    table = FAMILIES[json["model_type"]].dropout
    fields = read_fields(json, table)
    assert (fields["dropout"], fields["dropout_rates"]) == (dropout, rates)
    model = dataclasses.replace(small_model("bert"), **fields)
    assert make_rates(model.dropout_by_place, table) == read_rates(json, table)


def test_a_field_for_several_places_has_their_lowest_rate_and_the_others_are_named():
    model = dataclasses.replace(small_model("bert"), dropout_rates=(("residual", 0.3), ("attention", 0.2)))
    family, json = describe(model)
    assert (json["hidden_dropout_prob"], json["attention_probs_dropout_prob"]) == (0.1, 0.2)
    assert find_lost_places(model, family.dropout) == ["residual"]


@pytest.mark.parametrize(
    ("json", "places"),
    [
        ({"model_type": "bart"}, ("embedding", "residual")),  # transformers' default rates: only `dropout` is above 0
        ({"model_type": "bart", "activation_dropout": 0.1}, ("embedding", "activation", "residual")),
        ({"model_type": "bart", "dropout": 0}, ("embedding", "attention", "activation", "residual")),
        ({"model_type": "bert"}, ("embedding", "attention", "residual", "head")),
        ({"model_type": "bert", "classifier_dropout": 0.0}, ("embedding", "attention", "residual")),
        ({"model_type": "bert", "attention_probs_dropout_prob": 0.0}, ("embedding", "residual", "head")),
        ({"model_type": "gpt2", "embd_pdrop": 0.0}, ("attention", "residual")),
        ({"model_type": "llama"}, ("attention",)),
        ({"model_type": "qwen2", "attention_dropout": 0.2}, ("attention",)),
    ],
    ids=str,
)
def test_places_are_those_with_a_rate_or_all_where_there_is_none(json, places):
    assert read_fields(json, FAMILIES[json["model_type"]].dropout)["dropout_places"] == places


@pytest.mark.parametrize("rate", [1.0, -0.1, "0.1", True, float("nan")])
def test_what_is_no_rate_is_named(rate):
    with pytest.raises(UserError, match="resid_pdrop should be a rate"):
        read_rates({"resid_pdrop": rate}, FAMILIES["gpt2"].dropout)


@pytest.mark.parametrize(
    ("name", "rates", "dropout", "places", "expected_note"),
    [
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, 0.1, None, None),
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0}, 0.1, None, None),
        ("gpt2", {"resid_pdrop": 0.1}, 0.0, None, "resid_pdrop=0.1; this run has model.dropout=0"),
        ("gpt2", {"resid_pdrop": 0.1}, 0.2, None, "model.dropout=0.2 at residual"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.1, None, "dropout: as in config.json"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.2, None, "model.dropout=0.2 at attention, residual"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.3, None, "model.dropout=0.3 at attention, residual"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.0, None, "this run has model.dropout=0"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.3}, 0.1, ("attention",), "model.dropout=0.1 at attention"),
        ("gpt2", {"resid_pdrop": 0.1}, 0.1, ("attention", "residual"), "at attention, residual"),
        ("bart", {"dropout": 0.1, "encoder_layerdrop": 0.1}, 0.1, None, "encoder_layerdrop=0.1"),
        ("llama", {}, 0.0, None, None),
        ("llama", {}, 0.1, None, "attention_dropout=0; this run has model.dropout=0.1 at attention"),
    ],
)
def test_a_run_that_drops_otherwise_than_its_release_is_said(name, rates, dropout, places, expected_note, tmp_path):
    config = base_config()
    config.init_from = f"hf:{make_place(tmp_path, name, **rates)}"
    config.model.architecture = "encoder_decoder" if name == "bart" else "decoder"
    config.objective.name = "supervised" if name == "bart" else "causal_lm"
    config.model.dropout, config.model.dropout_places = dropout, places
    config = with_inherited_shape(config)
    note = dropout_note(config)
    assert note is None if expected_note is None else expected_note in note
    assert places is None or config.model.dropout_places == places, "the run's own places stay"


def test_places_that_a_family_cannot_say_are_known():
    model = dataclasses.replace(small_model("llama2"), dropout_places=("embedding", "attention", "residual"))
    assert find_lost_places(model, FAMILIES["llama"].dropout) == ["embedding", "residual"]


@pytest.mark.parametrize(("name", "heads"), MODELS, ids=str)
def test_transformers_drops_the_same_activations(name, heads, monkeypatch):
    """In train mode, count the shapes of the arrays that go through dropout. Needs torch and transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = small_model(name, heads)
    _, json = describe(model)
    config = transformers.AutoConfig.for_model(**json, attn_implementation="eager")
    reference_model = getattr(transformers, json["architectures"][0])(config).train()
    counts, plain = collections.Counter(), torch.nn.functional.dropout

    def dropout(x, p=0.5, training=True, inplace=False):
        counts[tuple(x.shape)] += bool(training and p)
        return plain(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    ids = {"input_ids": torch.ones(BATCH, LENGTH, dtype=torch.long)}
    if model.architecture == "encoder_decoder":
        ids["decoder_input_ids"] = torch.ones(BATCH, TARGETS, dtype=torch.long)
    reference_model(**ids)
    assert {NAMES[shape]: count for shape, count in counts.items() if count} == count_dropped(model, monkeypatch)


def test_a_run_that_began_before_dropout_had_places_is_told_where_it_drops_now(tmp_path):
    file = tmp_path / "config.json"
    gpt2, t5 = (small_model(name, VOCABULARY_ONLY) for name in ("gpt2", "t5_v1_1"))
    file.write_text(json.dumps({"model": {"dropout": 0.1}}))
    assert "now drops at embedding, attention, residual, head," in moved_dropout_note(tmp_path, gpt2)
    assert moved_dropout_note(tmp_path, t5) is None, "it drops where it did"
    assert moved_dropout_note(tmp_path, dataclasses.replace(gpt2, dropout=0.0)) is None
    file.write_text(json.dumps({"model": {"dropout": 0.1, "dropout_places": None}}))
    assert moved_dropout_note(tmp_path, gpt2) is None

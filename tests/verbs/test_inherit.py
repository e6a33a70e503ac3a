"""A run that starts from another has its shape and tokenizer, and what cannot fit is refused before it costs time."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from t5lite import preview, study
from t5lite import train as train_verb
from t5lite.config import base_config, load_json, to_dict
from t5lite.data.tokenizers.text_tokenizer import extends
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.interop.released import is_released
from t5lite.model.config import ModelConfig
from t5lite.run.inherit import NOT_INHERITED, with_inherited_shape
from t5lite.run.overrides import override
from t5lite.studies import repeat
from t5lite.system.errors import UserError
from t5lite.system.files import write_json
from t5lite.train import train
from t5lite.training.reading import read_intact, saved_steps
from tests.interop.places import make_place
from tests.small import small_config, write_pairs, write_texts

NOWHERE = "files:nowhere/*.txt"  # what is read before the refusal would be refused itself


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"), documents=20, sentences=8)


def made(source, objective, architecture, **fields):
    config = small_config(source, objective, architecture)
    config.budget.steps, config.eval.rows, config.eval.generate_rows = 1, 8, 0
    config.schedule.rate = 0.0  # what is taken over stays as it is
    return override(config, [f"--config.{name}={value}" for name, value in fields.items()])


def trained(workdir, *args, **fields):
    train(made(*args, **fields), workdir)
    return workdir


@pytest.fixture(scope="module")
def denoiser(texts, tmp_path_factory):
    """An encoder-decoder of widths that are not those of the config files here."""
    fields = {"model.d_model": 16, "model.d_ff": 24, "model.norm_epsilon": 1e-5, "model.relative_buckets": 16}
    return trained(tmp_path_factory.mktemp("denoiser"), texts, "span_corruption", "encoder_decoder", **fields)


@pytest.fixture(scope="module")
def language_model(texts, tmp_path_factory):
    """A decoder without sentinels."""
    return trained(tmp_path_factory.mktemp("lm"), texts, "causal_lm", "decoder", **{"tokenizer.sentinels": 0})


def params_of(workdir):
    """{path: array} of the newest checkpoint."""
    import jax
    from flax.traverse_util import unflatten_dict

    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def wanted(record):
        shapes = record.shapes("params").items()
        like = {path: jax.ShapeDtypeStruct(shape, "float32", sharding=placed) for path, shape in shapes}
        return {"params": unflatten_dict(like, sep="/")}

    _, items = next(read_intact(workdir, saved_steps(workdir)[::-1], wanted))
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(items["params"], sep="/").items()}


# The shape


def test_every_field_of_a_model_is_inherited_but_those_that_are_named(denoiser, tmp_path):
    """The source has another value than the config in every field that a config of its kind can have."""
    values = dict(num_encoder_layers=3, num_decoder_layers=5, vocab_size=640, d_model=48, d_ff=56, num_heads=6,
                  head_dim=10, num_kv_heads=3, positions="learned", relative_buckets=8, relative_max_distance=32,
                  rotary_base=5e4, rotary_scaling=("linear", 2.0), max_positions=64, position_offset=2, norm="layer",
                  norm_position="post", norm_epsilon=1e-5, embedding_norm=True, scale_embeddings=True,
                  activation="gelu", biases="all", qk_norm=True, scale_scores=False, tie_embeddings=False,
                  scale_logits=True, logits_soft_cap=3.0, logits_bias=True, initialisation="t5", token_types=0,
                  mlm_transform=False)  # fmt: skip
    own = dict(architecture="encoder_decoder", dropout=0.25, dropout_places=("attention",),
               dropout_rates=(("head", 0.5),), dtype="bfloat16", attention="einsum", remat="full",
               scan_layers=True)  # fmt: skip
    names = {field.name for field in dataclasses.fields(ModelConfig)} - {"heads"} | {"architecture"}
    assert names == set(base_config().model) == values.keys() | own.keys() and own.keys() == set(NOT_INHERITED)
    shutil.copytree(denoiser / "tokenizer", tmp_path / "source" / "tokenizer")
    source, config = load_json(denoiser / "config.json"), made(NOWHERE, "supervised", "encoder_decoder")
    source.model.update(values | {"dropout": 0.5, "scan_layers": False})
    write_json(tmp_path / "source" / "config.json", to_dict(source))
    assert all(config.model[name] != value for name, value in values.items())
    config.model.update(own)
    config.init_from = str(tmp_path / "source")
    inherited = with_inherited_shape(config)
    assert inherited.model.to_dict() == values | own
    assert config.model.d_model == 32, "the config itself is left alone"


def test_another_runs_rates_of_dropout_are_not_inherited_but_a_resumed_run_keeps_its_own(denoiser, tmp_path):
    shutil.copytree(denoiser / "tokenizer", tmp_path / "source" / "tokenizer")
    source, config = load_json(denoiser / "config.json"), made(NOWHERE, "supervised", "encoder_decoder")
    source.model.update({"dropout": 0.1, "dropout_rates": (("head", 0.3),)})
    config.model.dropout, config.init_from = 0.1, str(tmp_path / "source")
    write_json(tmp_path / "source" / "config.json", to_dict(source))
    begun = with_inherited_shape(config)
    assert begun.model.dropout_rates is None
    begun.model.dropout_rates = (("residual", 0.2),)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", to_dict(begun))
    assert with_inherited_shape(config, tmp_path / "run").model.dropout_rates == (("residual", 0.2),)


def test_fine_tuning_takes_the_shape_says_so_and_goes_on_without_its_source(denoiser, tmp_path, capsys):
    source = shutil.copytree(denoiser, tmp_path / "source")
    config = made(write_pairs(tmp_path / "pairs.jsonl"), "supervised", "encoder_decoder", **{"model.d_model": 48})
    config.init_from = str(source)
    result = train(config, tmp_path / "run")
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "the shape comes from" in line)
    assert said.startswith(f"the shape comes from init_from={source}: ") and "config.model.d_model 48 → 16" in said
    changed = ("d_model", "d_ff", "norm_epsilon", "relative_buckets")
    assert said.count("→") == len(changed) and all(f"config.model.{name} " in said for name in changed)
    before, after = params_of(source), params_of(tmp_path / "run")
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])
    kept = load_json(tmp_path / "run" / "config.json").model
    assert (kept.d_model, kept.d_ff, kept.norm_epsilon, kept.vocab_size) == (16, 24, 1e-5, None)
    shutil.rmtree(source)
    (tmp_path / "run" / "result.json").unlink()
    assert train(config, tmp_path / "run")["params_sha256"] == result["params_sha256"]
    preview.main(["--config", str(tmp_path / "run" / "config.json"), "--config.init_from=None", "--n", "1"])


FILE = """
from tests.small import small_config

def get_config(arg=None):
    return small_config({source!r}, {objective!r}, {architecture!r})
"""


@pytest.fixture
def command(tmp_path):
    """A function that trains by the command line, and returns the one line in which it ends."""

    def run(capsys, source, *flags, objective="supervised", architecture="encoder_decoder", data=NOWHERE):
        (tmp_path / "c.py").write_text(FILE.format(source=data, objective=objective, architecture=architecture))
        arguments = ["--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "run")]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train_verb.main([*arguments, f"--config.init_from={source}", *flags])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "compiling" not in said, said
        return said.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("model.d_model=32", ["config.model.d_model=32", "has 16", "leave --config.model.d_model out"]),
        ("model.norm_epsilon=1e-3", ["config.model.norm_epsilon=0.001", "has 1e-05"]),
        ("model.positions=rotary", ["config.model.positions=rotary", "has relative_bias"]),
        ("model.scale_scores=true", ["config.model.scale_scores=True", "has False"]),
        ("model.vocab_size=1024", ["config.model.vocab_size=1024", "has 384"]),
        ("tokenizer.sentinels=50", ["config.tokenizer.sentinels=50", "has 20 sentinels", "leave it out"]),
        ("model.architecture=decoder", ["config.model.architecture: it is decoder", "has encoder_decoder"]),
        ("model.architecture=bag_of_words", ["config.init_from", "bag of words", "leave it unset"]),
        ("objective.name=mass_style", None),
        ("init_from_step=77", ["has no checkpoint of step '77'"]),
    ],
)
def test_what_differs_on_the_command_line_is_refused_before_anything_is_read(denoiser, command, capsys, flag, parts):
    said = command(capsys, denoiser, f"--config.{flag}")
    if parts is None:
        assert "nowhere" in said, "what concerns no shape goes on to the data"
        return
    assert all(part in said for part in parts), said


def test_sentinels_that_the_command_line_asks_for_are_there(language_model, texts, tmp_path):
    config = made(texts, "causal_lm", "decoder", init_from=str(language_model), **{"tokenizer.sentinels": 10})
    train(config, tmp_path / "more", flag_fields=["tokenizer.sentinels"])
    saved = json.loads((tmp_path / "more" / "tokenizer" / "vocabulary.json").read_text())
    assert (
        saved["sentinels"]
        == json.loads((tmp_path / "more" / "config.json").read_text())["tokenizer"]["sentinels"]
        == 10
    )
    again = made(texts, "causal_lm", "decoder", init_from=str(language_model), **{"tokenizer.sentinels": 7})
    with pytest.raises(UserError, match=r"config\.tokenizer\.sentinels=7: .*more has 10"):
        train(again, tmp_path / "more", flag_fields=["tokenizer.sentinels"])
    given = made(texts, "causal_lm", "decoder", **{"tokenizer.path": str(tmp_path / "more"), "tokenizer.sentinels": 5})
    with pytest.raises(UserError, match=r"config\.tokenizer\.sentinels=5: the tokenizer has 10 sentinels"):
        train(given, tmp_path / "other", flag_fields=["tokenizer.sentinels"])


def test_what_agrees_on_the_command_line_is_taken(denoiser, command, capsys):
    fields = ("model.d_model=16", "model.positions=relative_bias", "model.scale_scores=false", "model.dropout=0.1",
              "model.vocab_size=384", "tokenizer.sentinels=20")  # fmt: skip
    assert "nowhere" in command(capsys, denoiser, *(f"--config.{field}" for field in fields))


@pytest.mark.parametrize("objective, architecture", [("causal_lm", "decoder"), ("mlm", "encoder")])
def test_another_architecture_is_refused_before_anything_is_read(denoiser, command, capsys, objective, architecture):
    said = command(capsys, denoiser, objective=objective, architecture=architecture)
    assert f"config.model.architecture: it is {architecture}, but init_from={denoiser} has encoder_decoder" in said
    assert "set --config.model.architecture=encoder_decoder" in said


def test_released_weights_of_another_architecture_or_shape_are_refused_so_too(tmp_path, command, capsys):
    place = f"hf:{make_place(tmp_path / 'gpt2', 'gpt2')}"
    assert is_released(place) and "has decoder" in command(capsys, place)
    given = {"objective": "causal_lm", "architecture": "decoder"}
    assert "config.model.d_ff=7" in command(capsys, place, "--config.model.d_ff=7", **given)
    assert "nowhere" in command(capsys, place, **given)


def test_a_source_without_a_network_or_a_checkpoint_is_refused_at_once(denoiser, tmp_path, command, capsys):
    source = tmp_path / "source"
    shutil.copytree(denoiser, source, ignore=shutil.ignore_patterns("checkpoints"))
    assert "has no complete checkpoint" in command(capsys, source)
    config = json.loads((denoiser / "config.json").read_text())
    config["model"]["architecture"] = "bag_of_words"
    write_json(source / "config.json", config)
    assert "is a bag of words" in command(capsys, source)
    assert "is not a run's workdir" in command(capsys, tmp_path / "none")


def test_a_checkpoint_that_is_not_of_its_config_is_refused_before_compiling(denoiser, tmp_path, command, capsys):
    source = shutil.copytree(denoiser, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["model"]["d_ff"] = 40
    write_json(source / "config.json", config)
    said = command(capsys, source, data=write_pairs(tmp_path / "pairs.jsonl"))
    assert "mlp/down/kernel has shape (1, 24, 16)" in said and "do not go together" in said


# The tokenizer


def test_tokens_that_an_objective_needs_get_new_rows_and_all_others_keep_theirs(
    language_model, texts, tmp_path, capsys
):
    """Fill in the middle from a plain language model, then spans, whose sentinels are new too."""
    before = language_model
    for name, objective, lacked in (
        ("fim", "fill_in_the_middle", ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]),
        ("spans", "span_corruption", [f"<extra_id_{k}>" for k in range(20)]),
    ):
        config = made(texts, objective, "decoder", seed=len(lacked))  # with other fresh parameters
        config.init_from = str(before)
        capsys.readouterr()
        train(config, tmp_path / name)
        assert "1 with new rows (token_embedding/embedding)" in capsys.readouterr().err
        old, new = (load_tokenizer(str(place), 0, ()) for place in (before, tmp_path / name))
        assert extends(new, old) and set(new.names.values()) - set(old.names.values()) == set(lacked)
        rows, known = old.vocabulary.rows, params_of(before)["token_embedding/embedding"]
        table = params_of(tmp_path / name)["token_embedding/embedding"]
        np.testing.assert_array_equal(table[:rows], known[:rows])
        assert (table[rows : new.vocabulary.rows] != known[rows : new.vocabulary.rows]).any(axis=-1).all()
        before = tmp_path / name


@pytest.mark.slow  # new tokens have the fast test above, and new heads have those of test_encoder.py
def test_a_classifier_gives_a_masked_language_model(tmp_path, texts, capsys):
    """An encoder that never had [MASK]."""
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    source = trained(tmp_path / "labels", pairs, "supervised", "encoder", **{"model.d_model": 16})
    assert "[MASK]" not in load_tokenizer(str(source), 0, ()).vocabulary.specials
    config = made(texts, "mlm", "encoder")
    config.init_from = str(source)
    train(config, tmp_path / "mlm")
    said = capsys.readouterr().err
    assert (
        "1 with new rows (token_embedding/embedding)" in said and "left out (classifier/kernel, pooler/kernel)" in said
    )
    assert "[MASK]" in load_tokenizer(str(tmp_path / "mlm"), 0, ()).vocabulary.specials


def test_sentinels_that_are_too_few_cannot_become_more(denoiser, command, capsys):
    said = command(capsys, denoiser, "--config.objective.inputs_length=400", objective="span_corruption")
    assert "config.objective.inputs_length: the tokenizer of" in said and "has 20 sentinels" in said


def test_a_tokenizer_that_has_grown_from_that_of_the_source_is_taken_and_another_refused(
    language_model, texts, tmp_path
):
    grown = load_tokenizer(str(language_model), 0, ()).grow(0, ("[NLU]",))
    grown.save(tmp_path / "grown" / "tokenizer")
    config = made(texts, "causal_lm", "decoder")
    config.init_from, config.tokenizer.path = str(language_model), str(tmp_path / "grown")
    train(config, tmp_path / "run")
    assert load_tokenizer(str(tmp_path / "run"), 0, ()).sha256 == grown.sha256
    config.init_from, config.tokenizer.path = str(tmp_path / "run"), str(language_model)
    with pytest.raises(UserError, match=r"config\.tokenizer\.path: this tokenizer gives ids other meanings"):
        train(config, tmp_path / "other")


# Studies


def test_a_study_knows_its_runs_again_and_passes_the_shape_of_the_command_line_on(denoiser, tmp_path, capsys):
    tuned = made(write_pairs(tmp_path / "pairs.jsonl"), "supervised", "encoder_decoder", **{"model.d_model": 48})
    pretrain = load_json(denoiser / "config.json")
    tuned.init_from = "@pretrain"
    shutil.copytree(denoiser, tmp_path / "out" / "pretrain")
    runs = {"pretrain": pretrain} | repeat({"tuned": tuned}, [0])
    for _ in range(2):
        report = study.run_and_report(runs, tmp_path / "out", "Mine", parallel=None)
        assert {entry.folder_name: entry.status for entry in report.entries} == dict.fromkeys(runs, "complete")
    arguments = study._make_arguments(
        runs, ("model.d_model", "budget.steps"), Path("c.json"), tmp_path / "out" / "tuned-0"
    )
    assert arguments[-1] == "--config.model.d_model=48"
    shutil.rmtree(tmp_path / "out" / "tuned-0")
    report = study.run_and_report(runs, tmp_path / "out", "Mine", parallel=None, flag_fields=("model.d_model",))
    assert "config.model.d_model=48" in {entry.folder_name: entry.status for entry in report.entries}["tuned-0"]

"""A user's mistake ends in one line on stderr and exit code 2, and leaves what was there as it was."""

import pickle

import pytest

from t5lite import bench as bench_verb
from t5lite import evaluate, generate, prepare, preview, train
from tests.small import Spy, write_pairs, write_texts

CONFIG = """
from t5lite.config import parse_arg
from tests.small import small_config

def get_config(arg=None):
    arg = parse_arg(arg, source="", objective="span_corruption", architecture="encoder_decoder")
    return small_config(arg.source, arg.objective, arg.architecture)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


def _fails(verb, arguments, capsys):
    """The one line that a verb says before it exits with code 2."""
    with pytest.raises(SystemExit) as stop:
        verb.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert stop.value.code == 2
    lines = [line for line in said.err.splitlines() if line.startswith("t5lite: ")]
    assert len(lines) == 1 and "Traceback" not in said.err
    assert said.out == ""
    return lines[0]


def _train(config, tmp_path, capsys, *overrides):
    return _fails(train, ["--config", config, "--workdir", tmp_path / "run", *overrides], capsys)


def test_a_missing_file(config, tmp_path, capsys):
    said = _train(f"{config}:source=files:nowhere/*.txt", tmp_path, capsys)
    assert "nowhere/*.txt" in said


def test_an_empty_corpus(config, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert "no text" in _train(f"{config}:source=files:{tmp_path}/empty.txt", tmp_path, capsys)


def test_bytes_that_are_not_utf8_with_file_and_offset(config, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"abc \xff def")
    said = _train(f"{config}:source=files:{tmp_path}/bad.txt", tmp_path, capsys)
    assert "bad.txt" in said and "4" in said


def test_a_line_that_is_not_json_with_file_and_line(config, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnot json\n')
    said = _train(f"{config}:source=files:{tmp_path}/bad.jsonl", tmp_path, capsys)
    assert "bad.jsonl" in said and "2" in said


def test_a_missing_column_with_those_present(config, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("body,title\nx,y\n")
    said = _train(f"{config}:source=files:{tmp_path}/rows.csv", tmp_path, capsys)
    assert "body" in said and "title" in said and "text" in said


def test_labels_outside_those_of_training(config, tmp_path, capsys):
    source = write_pairs(tmp_path / "train.jsonl")
    (tmp_path / "validation.jsonl").write_text('{"inputs": "a whale", "targets": "about rivers"}\n')
    said = _train(f"{config}:source={source},objective=supervised", tmp_path, capsys,
                  f"--config.data.validation.source=files:{tmp_path}/validation.jsonl")  # fmt: skip
    assert "about rivers" in said


def test_a_batch_that_the_mesh_does_not_divide(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    said = _train(f"{config}:source={source}", tmp_path, capsys, "--config.mesh.data=8", "--config.batch_size=12")
    assert "batch_size" in said and "12" in said


def test_an_unknown_field_names_the_nearest(config, tmp_path, capsys):
    assert "batch_size" in _train(f"{config}:source=x", tmp_path, capsys, "--config.batchsize=3")


def test_an_unknown_argument_of_the_config(config, tmp_path, capsys):
    assert "objective" in _train(f"{config}:objectiv=causal_lm", tmp_path, capsys)


def test_an_unwritable_workdir(config, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    source = write_texts(tmp_path / "texts")
    arguments = ["--config", f"{config}:source={source}", "--workdir", tmp_path / "file" / "run"]
    assert "workdir" in _fails(train, arguments, capsys)
    assert (tmp_path / "file").read_text() == "in the way"


def test_text_shorter_than_a_row(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts", documents=1, sentences=40)
    said = _train(f"{config}:source={source}", tmp_path, capsys, "--config.objective.inputs_length=256",
                  "--config.tokenizer.sentinels=50")  # fmt: skip
    assert "shorter than one row" in said


def test_too_many_spans_for_the_sentinels(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    said = _train(f"{config}:source={source}", tmp_path, capsys, "--config.tokenizer.sentinels=1")
    assert "sentinels" in said


@pytest.mark.parametrize("verb", [train, prepare, preview, bench_verb])
def test_a_missing_config_file(verb, capsys, tmp_path):
    more = ["--workdir", tmp_path / "run"] if verb is train else []
    assert "no config file" in _fails(verb, ["--config", tmp_path / "none.py", *more], capsys)


@pytest.mark.parametrize("verb", [evaluate, generate])
def test_a_folder_that_is_no_workdir(verb, capsys, tmp_path):
    more = ["--input", "x"] if verb is generate else []
    assert "not a run's workdir" in _fails(verb, ["--checkpoint", tmp_path, *more], capsys)


def test_an_init_from_that_is_no_workdir(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    said = _train(f"{config}:source={source}", tmp_path, capsys, f"--config.init_from={tmp_path}/none")
    assert "none" in said


def test_several_budgets_or_none(config, tmp_path, capsys):
    both = ["--config.budget.tokens=100", "--config.budget.steps=9"]
    assert "set exactly one" in _train(f"{config}:source=x", tmp_path, capsys, *both)
    assert "budget" in _train(f"{config}:source=x", tmp_path, capsys, "--config.budget.steps=None")


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    said = _train(f"{config}:source={source}", tmp_path, capsys, "--config.model.d_model=1048576",
                  "--config.model.d_ff=1048576")  # fmt: skip
    assert "GiB" in said and "make the model smaller" in said


@pytest.mark.parametrize("verb", [train, prepare, preview, bench_verb])
def test_a_number_out_of_its_range_is_refused_by_every_verb(config, tmp_path, capsys, verb):
    source = write_texts(tmp_path / "texts")
    more = ["--workdir", tmp_path / "run"] if verb is train else []
    wide = "--config.objective.inputs_length=1000000000000"
    said = _fails(verb, ["--config", f"{config}:source={source}", wide, *more], capsys)
    assert "config.objective.inputs_length" in said


@pytest.mark.parametrize("suffix", [".pkl", ".yaml", ".json"])
def test_a_config_that_is_no_program_is_not_executed(tmp_path, capsys, suffix):
    path = tmp_path / f"config{suffix}"
    path.write_bytes(pickle.dumps(Spy(tmp_path / "trace")))
    _fails(prepare, ["--config", path], capsys)
    path.write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path}/trace]")
    _fails(prepare, ["--config", path], capsys)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("verb", "flag"),
    [(preview, "--step=-1"), (preview, "--step=99999999999999"), (preview, "--n=-1"), (evaluate, "--examples=-1"),
     (generate, "--max_new_tokens=0"), (generate, "--temperature=nan"), (generate, "--temperature=-1"),
     (generate, "--top_p=2"), (generate, "--top_k=-1"), (generate, "--seed=99999999999999")],
)  # fmt: skip
def test_a_verbs_own_number_out_of_its_range(verb, flag, config, tmp_path, capsys):
    arguments = ["--config", config] if verb is preview else ["--checkpoint", tmp_path]
    assert flag.partition("=")[0] in _fails(verb, [*arguments, flag], capsys)


def test_more_steps_than_a_run_can_count(config, tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    flags = ["--config.budget.steps=None", "--config.budget.tokens=1e20"]
    assert "lower the budget" in _train(f"{config}:source={source}", tmp_path, capsys, *flags)

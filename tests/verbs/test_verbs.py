"""The verbs that read: what they print, on one small run of each kind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t5lite import bench, evaluate, generate, prepare, preview
from t5lite.train import train
from tests.small import small_config, write_pairs, write_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def texts(folder):
    return write_texts(folder / "texts")


@pytest.fixture(scope="module")
def spans(folder, texts):
    train(small_config(texts), folder / "spans")
    return folder / "spans"


# Another fast test of a decoder that learns pairs and answers is in tests/test_sayable.py.
@pytest.fixture(scope="module", params=["encoder_decoder", pytest.param("decoder", marks=pytest.mark.slow)])
def task(request, folder):
    config = small_config(write_pairs(folder / "pairs.jsonl", 400), "supervised", request.param)
    config.budget.steps = 60
    config.schedule.rate = 1e-2
    train(config, folder / request.param)
    return folder / request.param


@pytest.fixture
def config(tmp_path, texts):
    path = tmp_path / "config.py"
    path.write_text(
        "from t5lite.config import parse_arg\nfrom tests.small import small_config\n"
        "def get_config(arg=None):\n"
        "    arg = parse_arg(arg, objective='span_corruption', architecture='encoder_decoder')\n"
        f"    return small_config({texts!r}, arg.objective, arg.architecture)\n"
    )
    return str(path)


def _json(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_evaluate_gives_what_the_run_ended_with(task, capsys):
    evaluate.main(["--checkpoint", str(task), "--json"])
    (said,) = _json(capsys)
    result = json.loads((task / "result.json").read_text())
    assert said["step"] == 60 and said["checkpoint"] == str(task)
    assert said["metrics"]["validation"] == pytest.approx(result["metrics"]["validation"], rel=1e-4)


def test_a_fine_tuned_network_beats_the_majority(task):
    metrics = json.loads((task / "result.json").read_text())["metrics"]["validation"]
    assert metrics["loss"] < 0.5 and metrics["accuracy"] > 0.5 and metrics["exact_match"] > 0.5


def test_evaluate_reads_other_text_and_prints_a_table(spans, folder, capsys):
    other = write_texts(folder / "other", documents=3, seed=7)
    evaluate.main(["--workdir", str(spans), f"--config.data.validation.source={other}", "--examples", "1"])
    said = capsys.readouterr()
    assert "perplexity" in said.out and "<extra_id_0>" in said.err
    assert re.search(r"metric .* validation .*\n.*\n.*rows .* 16 of [\d,]+ ", said.out)


def test_evaluate_shows_examples_of_the_held_out_text_where_standards_stand_beside_it(
    folder, texts, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    config = small_config(texts, "span_corruption", "decoder")
    config.budget.steps = 1
    train(config, folder / "spans_of_a_decoder")
    evaluate.main(["--checkpoint", str(folder / "spans_of_a_decoder"), "--examples", "2"])
    said = capsys.readouterr()
    assert said.err.count("target: ") == 2
    assert "validation_c" in said.out and "…" not in said.out


def test_evaluate_of_other_text_does_not_need_the_training_text(tmp_path, capsys):
    source = write_texts(tmp_path / "texts")
    other = write_texts(tmp_path / "other", documents=3, seed=7)
    train(small_config(source), tmp_path / "run")
    (tmp_path / "texts").rename(tmp_path / "moved")
    evaluate.main(["--workdir", str(tmp_path / "run"), f"--config.data.validation.source={other}", "--json"])
    assert _json(capsys)[0]["metrics"]["validation"]["loss"] > 0


def test_generate_answers_in_order_and_repeats_itself(task, capsys, tmp_path):
    lines = ["the whale went.", "old man said.", "the sea."] * 7
    (tmp_path / "questions.txt").write_text("\n".join(lines) + "\n")
    command = ["--checkpoint", str(task), "--input_file", str(tmp_path / "questions.txt"), "--max_new_tokens", "8"]
    generate.main([*command, "--json"])
    answers = _json(capsys)
    assert [answer["input"] for answer in answers] == lines
    assert all(answer["logprob"] < 0 for answer in answers)
    assert answers[0]["tokens"] == answers[3]["tokens"] == answers[18]["tokens"]
    generate.main(command)
    assert capsys.readouterr().out.splitlines() == [answer["output"] for answer in answers]


def test_a_pair_model_never_generates_sentinels(task, capsys):
    for seed in range(3):
        generate.main(["--checkpoint", str(task), "--input", "the sea", "--temperature", "5", "--seed", str(seed)])
        assert "extra_id" not in capsys.readouterr().out


def test_sampling_depends_on_the_seed(spans, capsys):
    outputs = []
    for seed in (1, 1, 2):
        generate.main(["--checkpoint", str(spans), "--input", "x", "--temperature", "2", "--seed", str(seed)])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_preview_shows_the_batch_that_training_sees(config, capsys):
    preview.main(["--config", config, "--step", "2", "--n", "10", "--json"])
    examples = _json(capsys)
    assert [example["index"] for example in examples] == list(range(16, 26))
    for example in examples:
        assert len(example["window"]) == 34 and len(example["inputs"]) == 32
        assert sum(example["spans"]) == round(34 * example["mask_rate"])
        assert example["inputs"][-1] == example["targets"][-1] == 1
        assert set(example["weights"]) == {1.0}


def test_preview_shifts_a_decoders_inputs_by_one(config, capsys):
    preview.main(["--config", f"{config}:objective=causal_lm,architecture=decoder", "--n", "2", "--json"])
    for example in _json(capsys):
        assert example["targets"] == example["window"]
        shifted = [0, *example["targets"][:-1]]
        assert all(i in (s, 0) for i, s in zip(example["inputs"], shifted, strict=True))


def test_preview_decodes_for_people(config, capsys):
    preview.main(["--config", config, "--n", "1"])
    said = capsys.readouterr().out
    assert "<extra_id_0>" in said and "masked" in said and "sentinels" in said


def test_prepare_says_what_it_built(config, capsys):
    prepare.main(["--config", config])
    assert "290 pieces, 20 sentinels" in capsys.readouterr().out
    prepare.main(["--config", config, "--json"])
    (said,) = _json(capsys)
    assert said["tokenizer"]["size"] == 310 and said["parts"]["train"]["tokens"] > 1000


def test_bench_measures_the_step(config, capsys, monkeypatch):
    monkeypatch.setattr("t5lite.training.budget.PROBE_SECONDS", 0.0)
    bench.main(["--config", config, "--json"])
    (said,) = _json(capsys)
    assert said["tokens_per_second"] == pytest.approx(8 * (32 + 8) / said["step_seconds"])
    assert said["peak_bytes"] > 0 and said["mfu"] is None


def test_bench_needs_neither_grain_nor_tfds():
    program = (
        "import sys\n"
        "for name in ('grain', 'tensorflow_datasets', 'array_record', 'sentencepiece', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "import t5lite.bench\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)

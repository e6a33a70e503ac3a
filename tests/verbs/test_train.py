"""A run: what it leaves behind, how it goes on after a kill, what it refuses."""

import gc
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from t5lite.config import load_json
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.reading import saved_steps
from t5lite.training.record import read_record
from t5lite.training.trainer import measure_peak_bytes, peak_bytes
from tests.data.tokenizers.test_tokenizer import OWN
from tests.small import small_config, write_pairs, write_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pretrained(texts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    train(small_config(texts), workdir)
    return workdir


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _losses(workdir):
    return [(line["step"], line["split"], line["loss"]) for line in _lines(workdir)]


def test_a_run_leaves_what_the_design_says(pretrained):
    for name in ("config.json", "provenance.json", "metrics.jsonl", "checkpoints", "tokenizer", "tensorboard"):
        assert (pretrained / name).exists(), name
    result = json.loads((pretrained / "result.json").read_text())
    assert result["step"] == 6
    assert set(result["cost"]) == {"tokens", "flops", "seconds", "device_seconds", "peak_bytes"}
    assert all(value > 0 for value in result["cost"].values())
    assert len(result["params_sha256"]) == 64
    assert {"loss", "perplexity", "token_accuracy"} <= set(result["metrics"]["validation"])
    assert load_json(pretrained / "config.json").batch_size == 8


def test_metrics_have_a_line_for_each_log_step_and_evaluation(pretrained):
    steps = [(line["step"], line["split"]) for line in _lines(pretrained)]
    expected = [(0, "validation"), (1, "train"), (2, "train"), (4, "train"), (6, "train"), (6, "validation")]
    assert steps == expected
    line = _lines(pretrained)[2]
    assert {"tokens", "tokens_per_second", "step_ms", "input_wait", "padding", "learning_rate"} <= set(line)
    assert line["tokens"] == 2 * 8 * (32 + 8) and line["padding"] == 0


def test_a_complete_run_is_not_run_again(pretrained, texts):
    before = (pretrained / "result.json").stat().st_mtime_ns
    result = train(small_config(texts), pretrained)
    assert result["step"] == 6 and (pretrained / "result.json").stat().st_mtime_ns == before


def test_another_config_in_the_same_workdir_is_refused(pretrained, texts):
    config = small_config(texts)
    config.batch_size, config.seed = 16, 5
    with pytest.raises(UserError, match=r"batch_size \(was 8, now 16\), seed \(was 0, now 5\)"):
        train(config, pretrained)


def test_other_text_behind_the_same_config_is_refused(tmp_path):
    config = small_config(write_texts(tmp_path / "texts"))
    config.budget.steps = 1
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for text in (tmp_path / "texts").iterdir():
        text.write_text(text.read_text())  # written anew, but the same: no reason to refuse
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    write_texts(tmp_path / "texts", seed=9)
    with pytest.raises(UserError, match=r"other data: data\.train changed"):
        train(config, tmp_path / "run")


def test_the_same_config_gives_the_same_parameters(pretrained, texts, tmp_path):
    first = json.loads((pretrained / "result.json").read_text())
    config = small_config(texts)
    config.mesh.data = 1
    assert train(config, tmp_path)["params_sha256"] == first["params_sha256"]
    assert _losses(tmp_path) == _losses(pretrained)


def test_no_array_of_a_run_outlives_it(texts, tmp_path):
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    train(small_config(texts), tmp_path)
    gc.collect()
    assert not [array.shape for array in jax.live_arrays() if id(array) not in before]


def test_the_peak_of_an_earlier_run_of_the_process_is_not_this_runs(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    class Trainer:
        memory_bytes = 70  # as the compiler planned

    device = Device()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    device.peak = 100
    before = measure_peak_bytes()
    assert peak_bytes(Trainer, before) == 70
    device.peak = 130
    assert peak_bytes(Trainer, before) == 130


def test_fine_tuning_starts_from_the_parameters_of_another_run(pretrained, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    config = small_config(pairs, "supervised")
    config.init_from = str(pretrained)
    config.budget.steps = 40
    config.schedule.rate = 1e-2
    result = train(config, tmp_path / "run")
    assert f"from {pretrained} at step 6: 28 parameters restored" in capsys.readouterr().err
    metrics = result["metrics"]["validation"]
    assert {"accuracy", "macro_f1", "exact_match", "token_accuracy"} <= set(metrics)
    assert metrics["loss"] < _lines(tmp_path / "run")[0]["loss"] / 2


def test_another_tokenizer_than_the_checkpoints_is_refused(pretrained, tmp_path):
    OWN.save(tmp_path / "other" / "tokenizer")
    config = small_config(write_pairs(tmp_path / "pairs.jsonl"), "supervised")
    config.init_from = str(pretrained)
    config.tokenizer.path = str(tmp_path / "other")
    with pytest.raises(UserError, match="gives ids other meanings"):
        train(config, tmp_path / "run")


def test_a_language_model_reports_bits_per_byte(texts, tmp_path):
    config = small_config(texts, "causal_lm", "decoder")
    config.model.num_encoder_layers = 0
    metrics = train(config, tmp_path)["metrics"]["validation"]
    assert 0 < metrics["bits_per_byte"] < 8


def test_a_checkpoint_holds_every_parameter(pretrained):
    assert saved_steps(pretrained) == [3, 6]
    shapes = read_record(pretrained / "checkpoints" / "6").shapes("params")
    assert shapes["token_embedding/embedding"] == (384, 32)
    assert len(shapes) == 28


CONFIG = """
from tests.small import small_config

def get_config(arg=None):
    config = small_config({source!r}, "span_corruption", "decoder")
    config.budget.steps = 60
    config.checkpoint.every_steps = 7
    config.model.dropout = 0.1
    config.eval.every_steps = 20
    return config
"""


def _start(config, workdir):
    command = [sys.executable, "-m", "t5lite.train", "--config", str(config), "--workdir", str(workdir)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_step(workdir, step, process):
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and any(f'"step": {s}, "split": "train"' in path.read_text() for s in range(step, step + 30)):
            return
        time.sleep(0.01)


def _full_disk(process):
    """No file of the process may grow beyond what metrics need from now on: a full disk, to who writes checkpoints."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))


INTERRUPTIONS = {
    "SIGINT": (lambda process: process.send_signal(signal.SIGINT), 75, "run the same command again"),
    "SIGKILL": (lambda process: process.send_signal(signal.SIGKILL), -9, ""),
    "full disk": (_full_disk, 2, "run/checkpoints: File too large; earlier checkpoints are intact"),
}


# test_signals has SIGINT everywhere, but not the run after it. test_workdir.py kills a run after any of its files.
SLOW = {"SIGINT", "SIGKILL"}


@pytest.mark.parametrize(
    "interrupt, code, line",
    [pytest.param(*each, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name, each in INTERRUPTIONS.items()],
)
def test_an_interrupted_run_ends_as_if_never_interrupted(texts, tmp_path, interrupt, code, line, uninterrupted):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source=texts))
    process = _start(config, tmp_path / "run")
    _wait_for_step(tmp_path / "run", 10, process)
    interrupt(process)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code and line in said and "Traceback" not in said, said
    assert not (tmp_path / "run" / "result.json").exists(), (
        "the run was over before the signal; the test needs a longer one"
    )
    again = _start(config, tmp_path / "run")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    expected = json.loads((uninterrupted / "result.json").read_text())
    assert result["params_sha256"] == expected["params_sha256"]
    assert result["cost"]["tokens"] == expected["cost"]["tokens"]
    assert _losses(tmp_path / "run") == _losses(uninterrupted)
    assert not list((tmp_path / "run").rglob("*tmp*")), "what was half-written is swept away"


@pytest.fixture(scope="module")
def uninterrupted(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "config.py").write_text(CONFIG.format(source=texts))
    process = _start(folder / "config.py", folder / "run")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder / "run"


def test_jax_is_on_cpu_with_eight_devices():
    assert len(jax.devices()) == 8

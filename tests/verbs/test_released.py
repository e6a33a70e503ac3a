"""Runs with the tokenizers of released models: trained, evaluated and asked like any other."""

import json

import pytest

from t5lite import evaluate, generate, preview
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.train import train
from tests.data import released
from tests.small import small_config, write_pairs, write_texts

RUNS = {
    "neox": (released.neox, "causal_lm", "decoder"),
    "bart": (released.bart, "supervised", "encoder_decoder"),
    "bert": (released.bert, "mlm", "encoder"),
}


# Another fast test of a run with BART's tokenizer is in tests/test_sayable.py.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "bart")) for name in RUNS]
)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    family, objective, architecture = RUNS[request.param]
    pairs = objective == "supervised"
    source = write_pairs(folder / "pairs.jsonl") if pairs else write_texts(folder / "texts", documents=20)
    config = small_config(source, objective, architecture)
    config.tokenizer.path = f"hf:{family(folder / 'released')}"
    config.model.num_decoder_layers = 0 if architecture == "encoder" else 1
    train(config, folder / "run")
    return request.param, folder / "run"


def test_a_run_keeps_its_tokenizer_and_is_evaluated_with_it(run, capsys):
    name, workdir = run
    assert (workdir / "tokenizer" / "tokenizer.json").is_file()
    assert load_tokenizer(str(workdir), 0, ()).begins_with_start, "as in training"
    evaluate.main(["--checkpoint", str(workdir), "--json", "--examples", "2"])
    said = json.loads(capsys.readouterr().out)
    result = json.loads((workdir / "result.json").read_text())
    assert said["metrics"]["validation"] == pytest.approx(result["metrics"]["validation"], rel=1e-4), name


def test_it_answers_without_padding_or_eos_in_the_text(run, capsys):
    name, workdir = run
    text = ["the sea [MASK] cold."] if name == "bert" else ["the sea", "--max_new_tokens", "6"]
    generate.main(["--checkpoint", str(workdir), "--json", "--input", *text])
    answer = json.loads(capsys.readouterr().out)
    vocabulary = load_tokenizer(str(workdir), 0, ()).vocabulary
    assert answer["tokens"] and vocabulary.eos not in answer["tokens"][:-1]
    assert not any(special in answer["output"] for special in ("</s>", "<s>", "<|endoftext|>", "[MASK]", "[SEP]"))


def test_preview_shows_its_rows(run, tmp_path, capsys):
    name, workdir = run
    (tmp_path / "config.py").write_text(
        "import json\nfrom t5lite.config import load_json\nfrom pathlib import Path\n"
        f"def get_config(arg=None):\n    return load_json(Path({str(workdir / 'config.json')!r}))\n"
    )
    preview.main(["--config", str(tmp_path / "config.py"), "--n", "40"])
    shown = capsys.readouterr().out
    assert {"neox": "<|endoftext|>", "bart": "<s>", "bert": "[SEP]"}[name] in shown

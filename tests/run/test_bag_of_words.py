"""The bag of words learns a task that words decide, from the same labels and on the same pairs as a network."""

import json

import numpy as np
import pytest

from t5lite import evaluate, generate
from t5lite.data.dataset import open_dataset
from t5lite.data.packing import pair_plan
from t5lite.reporting.document import cost_table
from t5lite.reporting.report import write_report
from t5lite.run import bag_of_words as baselines
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.small import small_config, write_pairs, write_texts


@pytest.fixture
def config(tmp_path):
    made = small_config(write_pairs(tmp_path / "pairs.jsonl"), "supervised")
    made.model.architecture = "bag_of_words"
    return made


def test_it_learns_which_word_decides(config, tmp_path):
    result = train(config, tmp_path / "run")
    metrics = result["metrics"]["validation"]
    names = {"accuracy", "macro_f1", "matthews", "majority_accuracy", "majority_macro_f1", "most_chosen"}
    assert set(metrics) == names
    matrix = np.array(result["classes"]["validation"]["confusion"])
    assert metrics["accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    assert metrics["accuracy"] > 0.85  # "whale" is in it, or is not
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert train(config, tmp_path / "run") == result  # complete


def test_it_reads_the_labels_that_a_network_of_the_same_seed_reads(config, tmp_path):
    """The seed says which pairs a limit keeps."""
    config.data.train.limit = 12
    before = train(config, tmp_path / "a")["params_sha256"]
    assert train(config, tmp_path / "b")["params_sha256"] == before
    config.seed = 1
    assert train(config, tmp_path / "c")["params_sha256"] != before


@pytest.mark.parametrize("packed", [False, True])
def test_it_reads_the_pairs_of_a_networks_plan(config, tmp_path, monkeypatch, packed):
    config.data.train.limit, config.seed = 12, 3
    read = []
    texts = baselines._texts

    def noted(dataset, store, documents):
        read.append((store, np.asarray(documents)))
        return texts(dataset, store, documents)

    monkeypatch.setattr(baselines, "_texts", noted)
    train(config, tmp_path / "run")
    (store, inputs), (_, targets), *_ = read
    plan = pair_plan(store, 64, 16, packed, limit=12, seed=3)
    pairs = np.concatenate([plan.pairs(row) for row in range(len(plan))])
    assert len(pairs) == 12 and sorted(pairs) == sorted(inputs // 2)
    assert (inputs % 2 == 0).all() and (targets == inputs + 1).all()


def test_what_it_does_not_count_is_not_known(config, tmp_path):
    cost = train(config, tmp_path / "run")["cost"]
    assert cost["seconds"] > 0 and cost["peak_bytes"] is None and cost["tokens"] is None and cost["flops"] is None
    report = write_report([tmp_path / "run"], tmp_path / "report", "t")
    ((_, tokens, compute, _, _, memory, _),) = cost_table(report).rows
    assert (tokens, compute, memory) == ("–", "–", "–")


def test_there_is_no_network_to_open(config, tmp_path, capsys):
    train(config, tmp_path / "bag")
    for verb, *flags in ((evaluate,), (generate, "--input", "a")):
        with pytest.raises(SystemExit) as stop:
            verb.main(["--checkpoint", str(tmp_path / "bag"), *flags])
        assert stop.value.code == 2 and "is a bag of words and has no network" in capsys.readouterr().err


def test_its_held_out_pairs_are_a_networks(config, tmp_path):
    train(config, tmp_path / "bag")
    config.model.architecture = "encoder_decoder"
    config.eval.generate_rows = 0
    train(config, tmp_path / "net")
    facts = [json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("bag", "net")]
    assert facts[0]["heldout"] == facts[1]["heldout"]
    assert list(facts[0]["heldout"]) == ["validation"]


def test_free_text_and_running_text_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    lines = [json.dumps({"inputs": "a b c", "targets": f"answer {rng.integers(10**9)}"}) for _ in range(200)]
    (tmp_path / "free.jsonl").write_text("\n".join(lines))
    config = small_config(f"files:{tmp_path}/free.jsonl", "supervised")
    config.model.architecture = "bag_of_words"
    with pytest.raises(UserError, match="needs targets that are labels"):
        train(config, tmp_path / "run")
    config = small_config(write_texts(tmp_path / "texts"))
    config.model.architecture = "bag_of_words"
    with pytest.raises(UserError, match="must be supervised for a bag of words"):
        train(config, tmp_path / "other")


def test_held_out_text_is_known_by_its_tokens(tmp_path):
    config = small_config(write_texts(tmp_path / "a"))
    first = open_dataset(config, "text").heldout_fingerprints
    config.data.train.source = write_texts(tmp_path / "copy")
    assert open_dataset(config, "text").heldout_fingerprints == first
    config.data.train.source = write_texts(tmp_path / "other", seed=1)
    assert open_dataset(config, "text").heldout_fingerprints != first

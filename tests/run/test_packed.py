"""Packed rows of a run: their sides fit the data, and a resumed run keeps the packing of its beginning."""

import json

import numpy as np
import pytest

from t5lite.run import packed
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.small import sentence, small_config

pytestmark = pytest.mark.usefixtures("cache")


def make_config(folder, architecture, words):
    """A config of pairs whose targets have up to `words` words, and whose inputs have up to 9."""
    rng = np.random.default_rng(0)
    rows = [{"inputs": sentence(rng, 1 + i % 9), "targets": sentence(rng, 1 + i * 7 % words)} for i in range(100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(f"files:{folder}/rows.jsonl", "supervised", architecture)
    config.objective.inputs_length, config.objective.targets_length = 64, 64
    config.data.labels = False
    config.tokenizer.vocab_size, config.tokenizer.sentinels = 285, 0
    return config


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("words", [2, 30])
def test_rows_of_training_fit_the_data_and_lose_no_more_tokens_than_rows_of_evaluation(tmp_path, architecture, words):
    experiment = open_experiment(make_config(tmp_path, architecture, words))
    objective, evaluated = experiment.objective, experiment.evaluated
    assert (evaluated.inputs_length, evaluated.targets_length) == (64, 64)
    (source,) = experiment.train_rows().members
    rows = source.fetch(np.arange(len(source)))
    structs = objective.row_structs(len(source))
    assert {name: (each.shape, each.dtype) for name, each in structs.items()} == {
        name: (each.shape, each.dtype) for name, each in rows.items()
    }
    side = rows["targets" if words == 2 else "inputs"]
    assert side.shape[1] < 64
    lengths = np.minimum(source.store.pair_lengths(), 64)
    assert (rows["inputs_segment_ids"] > 0).sum() == lengths[:, 0].sum()
    assert (rows["targets_segment_ids"] > 0).sum() == lengths[:, 1].sum()


def test_a_run_with_rows_of_another_packing_is_refused_unless_the_change_is_allowed(tmp_path, monkeypatch):
    config = make_config(tmp_path, "encoder_decoder", 5)
    config.budget.steps = 2
    config.eval.generate_rows = 0
    monkeypatch.setattr(packed, "PACKING", "earlier")
    train(config, tmp_path / "run")
    monkeypatch.undo()
    config.budget.steps = 3
    with pytest.raises(UserError, match=r"other data: objective\.pack changed .* --allow_changes=objective\.pack"):
        train(config, tmp_path / "run", ["budget.steps"])
    assert train(config, tmp_path / "run", ["budget.steps", "objective.pack"])["step"] == 3


def test_a_run_without_packing_keeps_its_identity(tmp_path):
    config = make_config(tmp_path, "encoder_decoder", 5)
    config.objective.pack = False
    experiment = open_experiment(config)
    assert "objective.pack" not in experiment.dataset.identity
    assert experiment.objective.row_structs(2) == experiment.evaluated.row_structs(2)

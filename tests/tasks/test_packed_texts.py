"""Several texts in a row, for a head that answers for whole texts: the answers are those of the texts alone."""

import json

import jax
import numpy as np
import pytest

from t5lite.objectives.objective import make_batch
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, SEP, Vocabulary
from t5lite.tasks.table import loss_sums, make_objective
from t5lite.train import train
from tests.small import sentence, small_config

pytestmark = pytest.mark.usefixtures("cache")
TEXTS = 40
TARGETS = {
    "label": lambda number: ("sea", "land", "sky")[number % 3],
    "labels": lambda number: [name for place, name in enumerate(("sea", "land", "sky")) if number >> place & 1],
    "number": lambda number: number / 7,
}


def make_config(folder, answer, architecture, texts_per_row):
    rng = np.random.default_rng(0)
    rows = [{"inputs": sentence(rng, 1 + number % 9), "targets": TARGETS[answer](number)} for number in range(TEXTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(f"files:{folder}/rows.jsonl", "supervised", architecture)
    config.data.validation.source = config.data.train.source
    config.objective.update({"answer": answer, "targets_length": None, "inputs_length": 64})
    config.objective.texts_per_row = texts_per_row
    config.tokenizer.vocab_size, config.tokenizer.sentinels = 285, 0
    if architecture == "encoder":
        config.model.positions, config.model.max_positions = "learned", 64
    return config


def make_epoch(experiment):
    """Return the Batch of all training rows."""
    (source,) = experiment.train_rows().members
    rows = source.fetch(np.arange(len(source)))
    keys = jax.random.split(jax.random.key(0), len(source))
    return rows, jax.jit(lambda rows: make_batch(experiment.objective, keys, rows, experiment.vocabulary.table))(rows)


@pytest.mark.parametrize(
    ("answer", "architecture"),
    [("label", "encoder"), ("number", "encoder"), ("label", "encoder_decoder"), ("labels", "decoder")],
)
def test_a_packed_epoch_has_the_answers_the_loss_and_the_gradient_of_an_unpacked_epoch(tmp_path, answer, architecture):
    alone, packed = (open_experiment(make_config(tmp_path, answer, architecture, n)) for n in (1, 4))
    (rows, batch), (packed_rows, packed_batch) = make_epoch(alone), make_epoch(packed)
    segments = packed_rows["inputs_segment_ids"]
    assert len(rows["inputs"]) == TEXTS == segments.max(axis=1).sum() and len(segments) < TEXTS / 2
    assert alone.model == packed.model and packed.evaluated.row_structs(2) == alone.evaluated.row_structs(2)
    params = jax.jit(alone.model.init)(jax.random.key(1), jax.tree.map(lambda x: x[:1], batch))["params"]
    (head,) = batch.answers

    def compute_loss(params, batch):
        outputs = packed.model.apply({"params": params}, batch, method="outputs")
        sums = loss_sums(outputs, batch)
        return sums[f"{head}/nll"], (outputs[head], sums)

    compute = jax.jit(jax.value_and_grad(compute_loss, has_aux=True))
    (loss, (logits, sums)), gradient = jax.device_get(compute(params, batch))
    (packed_loss, (packed_logits, packed_sums)), packed_gradient = jax.device_get(compute(params, packed_batch))
    # Texts are recognised by their tokens; equal texts have equal logits.
    found = {}
    for row, ids in enumerate(segments):
        for place in range(ids.max()):
            text = packed_rows["inputs"][row][ids == place + 1][packed.objective.front_length :]
            found.setdefault(text.tobytes(), []).append((packed_logits[row, place], packed_rows["answers"][row, place]))
    for row, ids in enumerate(rows["inputs_segment_ids"]):
        candidates = found[rows["inputs"][row][ids > 0].tobytes()]
        np.testing.assert_allclose(candidates[0][0], logits[row], atol=2e-5)
        assert any(np.array_equal(answer, rows["answers"][row]) for _, answer in candidates)
    assert packed_sums[f"{head}/weight"] == sums[f"{head}/weight"] == TEXTS
    assert packed_loss == pytest.approx(float(loss), rel=1e-5)
    for ours, expected in zip(*map(jax.tree.leaves, (packed_gradient, gradient)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-4 * max(1, np.abs(expected).max()))


def test_a_run_with_packed_texts_trains_and_its_metrics_count_texts(tmp_path):
    config = make_config(tmp_path, "label", "encoder", 8)
    config.eval.rows = None
    experiment = open_experiment(config)
    rows = [experiment.train_rows()(0) for _ in range(2)]
    assert all((rows[0][name] == rows[1][name]).all() for name in rows[0])  # a function of the step
    result = train(config, tmp_path / "run")
    assert result["evaluated"]["validation"] == {"used": TEXTS, "of": TEXTS}
    assert sum(map(sum, result["classes"]["validation"]["confusion"])) == TEXTS
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["split"] == "validation" or lines[-1]["padding"] < 0.3


@pytest.mark.parametrize("answer", ["tags", "span"])
def test_rows_of_words_and_spans_have_one_text(answer):
    config = small_config("files:unread.jsonl", "supervised", "encoder")
    config.objective.update({"answer": answer, "texts_per_row": 2})
    vocabulary = Vocabulary.synthetic(100, 0, (CLS, SEP))
    with pytest.raises(UserError, match=r"objective.texts_per_row: words and spans have one text in a row"):
        make_objective(config.objective, "encoder", vocabulary, ("O", "B-X"))

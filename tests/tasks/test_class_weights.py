"""Weights of classes: what they do to the loss, where they come from, and where they are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.objectives.batch import Batch
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.tasks.cross_entropy import LossSettings
from t5lite.tasks.table import loss_sums
from t5lite.train import train
from tests.small import small_config


def test_the_objective_is_weighted_and_the_likelihood_is_not():
    rng = np.random.default_rng(0)
    logits, gold = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 2, -1, 0])
    batch = Batch(jnp.zeros((6, 2), int), jnp.ones((6, 2)), answers={"classifier": jnp.asarray(gold)})
    weights = np.array([0.5, 2.0, 3.0], np.float32)
    outputs = {"classifier": jnp.asarray(logits)}
    plain = loss_sums(outputs, batch)
    weighted = loss_sums(outputs, batch, LossSettings(class_weights=tuple(weights.tolist())))
    answered = gold >= 0
    losses = -np.asarray(jax.nn.log_softmax(logits))[answered, gold[answered]]
    assert weighted["classifier/objective"] == pytest.approx((losses * weights[gold[answered]]).sum(), rel=1e-5)
    assert weighted["classifier/nll"] == pytest.approx(losses.sum(), rel=1e-5) == plain["classifier/nll"]
    assert weighted["classifier/weight"] == 5 == plain["classifier/weight"]


def test_tokens_and_next_sentences_have_no_class_weights():
    batch = Batch(jnp.zeros((2, 3), int), jnp.ones((2, 3)), answers={"next_sentence": jnp.array([0, 1])})
    outputs = {"vocabulary": jnp.ones((2, 3, 4)), "next_sentence": jnp.ones((2, 2))}
    weighted = loss_sums(outputs, batch, LossSettings(class_weights=(5.0, 7.0)))
    assert jax.tree.map(float, weighted) == jax.tree.map(float, loss_sums(outputs, batch))


def make_config(source, objective, pieces):
    config = small_config(source, objective, "encoder")
    config.tokenizer.vocab_size = pieces  # there is little text
    return config


@pytest.fixture
def config(tmp_path):
    """An encoder on 80 pairs, of which every fourth has the label "b", the others "a"."""
    rows = [{"inputs": f"text {i} of the sea", "targets": "a" if i % 4 else "b"} for i in range(80)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(f"files:{tmp_path}/pairs.jsonl", "supervised", 285)


def test_balanced_weights_are_inverse_to_the_numbers_in_training(config):
    config.loss.balance_classes = True
    experiment = open_experiment(config)
    counts = experiment.count_labels()["train"]
    weights = dict(zip(experiment.dataset.labels, experiment.choose_class_weights(), strict=True))
    assert sum(counts.values()) == 76 and counts["a"] * weights["a"] == pytest.approx(counts["b"] * weights["b"])
    assert sum(counts[label] * weights[label] for label in counts) == pytest.approx(76)


def test_given_weights_are_those_of_their_labels(config):
    config.loss.class_weights = (("b", 3),)
    experiment = open_experiment(config)
    assert experiment.dataset.labels == ("a", "b") and experiment.choose_class_weights() == (1.0, 3.0)
    config.loss.class_weights = None
    assert open_experiment(config).choose_class_weights() is None


def test_a_run_with_weights_leans_towards_the_heavy_class(config, tmp_path):
    config.budget.steps, config.schedule.rate = 12, 1e-2
    chosen = {}
    for name, weight in (("light", 0.01), ("heavy", 100.0)):
        config.loss.class_weights = (("b", weight),)
        matrix = np.array(train(config, tmp_path / name)["classes"]["validation"]["confusion"])
        chosen[name] = matrix[:, 1].sum()
    assert chosen["light"] == 0 and chosen["heavy"] == 4


def test_tags_are_balanced_by_their_words(tmp_path):
    rows = [{"inputs": ["the", "old", "sea"], "targets": ["O", "O", "B-x"]}] * 40
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(f"files:{tmp_path}/tags.jsonl", "tagging", 270)
    config.loss.balance_classes = True
    experiment = open_experiment(config)
    assert experiment.dataset.labels == ("B-x", "O")
    assert experiment.choose_class_weights() == pytest.approx((3 / 2, 3 / 4))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("encoder", {"class_weights": (("c", 1.0),)}, r"loss\.class_weights: unknown label 'c'"),
        ("encoder", {"class_weights": (("a", 0),)}, "the weight of 'a' is 0; give a number above 0"),
        ("encoder", {"class_weights": ("a",)}, r"'a' is not a pair \(label, weight\)"),
        ("decoder", {"balance_classes": True}, r"loss\.balance_classes: needs a head that chooses labels"),
        ("encoder", {"balance_classes": True, "class_weights": (("a", 2.0),)}, "balance_classes or class_weights"),
    ],
)
def test_weights_that_mean_nothing_are_refused(config, architecture, fields, message):
    config.model.architecture = architecture
    config.loss.update(fields)
    with pytest.raises(UserError, match=message):
        open_experiment(config).choose_class_weights()

"""Two losses in one step, and the metrics of predicted labels and tags."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from t5lite.model.build import make_model
from t5lite.objectives.batch import Batch
from t5lite.objectives.catalogue import special_tokens
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.metrics import compute_metrics, macro_f1
from t5lite.tasks.table import loss_sums, make_objective
from t5lite.tasks.tags import entity_counts, entity_kinds, sum_missed
from t5lite.tasks.task import confusion
from t5lite.training.loss import sum_heads, sum_weights
from t5lite.training.sharding import place_batch
from t5lite.training.trainer import make_trainer
from tests.small import small_config

TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def train(objective, steps=2, every_place=False, **fields):
    """Train an encoder for a few steps on random rows. Return (losses, metrics of the last step, parameters).

    every_place: compute logits for all tokens, not only for the tokens to predict.
    """
    config = small_config("", objective, "encoder")
    config.optimizer.epsilon, config.schedule.rate = 1.0, 1.0  # plain gradient descent: parameters show gradients
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    specials = special_tokens(config.tokenizer, config.objective, "encoder")
    vocabulary = Vocabulary.synthetic(290, 20, specials)
    made = make_objective(config.objective, "encoder", vocabulary, TAGS)
    if every_place:
        made = dataclasses.replace(made, predicted=None)
    trainer = make_trainer(config, make_model(config.model, vocabulary, made.heads), made, vocabulary.table, 10)
    state, losses, rng = trainer.init(), [], np.random.default_rng(0)
    for _ in range(steps):
        rows = {name: rng.integers(3, 290, each.shape, dtype=np.int32) for name, each in made.row_structs(8).items()}
        for name in rows.keys() & {"answers"}:
            rows[name] = (rows[name] % (len(TAGS) + 3) - 3).clip(-1).astype(np.int32)  # many tokens have no answer
        if "inputs" in rows:
            ends = rng.integers(2, rows["inputs"].shape[1], (8, 1))
            rows["inputs_segment_ids"] = (np.arange(rows["inputs"].shape[1]) <= ends).astype(np.int32)
        state, metrics = trainer.step(state, place_batch(rows, trainer.mesh))
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(metrics), jax.device_get(state.params)


def difference(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def whole():
    return {name: train(name) for name in ("mlm_nsp", "supervised")}


@pytest.mark.parametrize("objective", ["mlm_nsp", "supervised"])
def test_microbatches_equal_the_whole_batch(objective, whole):
    losses, _, params = train(objective, microbatches=4)
    np.testing.assert_allclose(losses, whole[objective][0], rtol=1e-5)
    assert difference(params, whole[objective][2]) < 2e-5


def test_logits_of_the_places_to_predict_alone_train_as_those_of_all_do(whole):
    losses, metrics, params = train("mlm_nsp", every_place=True)
    np.testing.assert_allclose(losses, whole["mlm_nsp"][0], rtol=1e-5)
    assert metrics["weight"] == whole["mlm_nsp"][1]["weight"] > 0
    assert difference(params, whole["mlm_nsp"][2]) < 2e-5


def test_two_losses_on_eight_devices_are_those_on_one(whole):
    losses, _, params = train("mlm_nsp", **{f"mesh.{axis}": 2 for axis in ("data", "fsdp", "tensor")})
    np.testing.assert_allclose(losses, whole["mlm_nsp"][0], rtol=1e-5)
    assert difference(params, whole["mlm_nsp"][2]) < 2e-5


def test_the_logged_loss_is_the_sum_of_both_means(whole):
    losses, metrics, _ = whole["mlm_nsp"]
    parts = metrics["nll"] / metrics["weight"], metrics["next_sentence/nll"] / metrics["next_sentence/weight"]
    assert losses[-1] == pytest.approx(sum(parts), rel=1e-6) and metrics["next_sentence/weight"] == 8
    _, metrics, _ = whole["supervised"]
    assert metrics["loss"] == pytest.approx(metrics["classifier/nll"] / metrics["classifier/weight"])
    assert 0 < metrics["classifier/weight"] < 8 and "nll" not in metrics


def test_sums_against_numpy():
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(4, 3, 7)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    targets, weights = rng.integers(0, 7, (4, 3)), rng.random((4, 3)).astype(np.float32)
    batch = Batch(jnp.asarray(targets), jnp.asarray(weights), answers={"classifier": jnp.array([2, -1, 0, 4])})
    nll = lambda logits, at: np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, at[..., None], -1)[..., 0]
    of_tokens = (nll(tokens, targets) * weights).sum() / weights.sum()
    of_labels = nll(labels[[0, 2, 3]], np.array([2, 0, 4])).mean()
    for outputs, expected in (
        ({"vocabulary": jnp.asarray(tokens), "classifier": jnp.asarray(labels)}, of_tokens + of_labels),
        ({"classifier": jnp.asarray(labels)}, of_labels),
    ):
        loss, weight = sum_heads(loss_sums(outputs, batch), "nll", sum_weights(batch, [*outputs]))
        assert loss / weight == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_a_label_adds_nothing():
    batch = Batch(jnp.zeros((2, 3), int), jnp.ones((2, 3)), answers={"classifier": jnp.full(2, -1)})
    outputs = {"vocabulary": jnp.zeros((2, 3, 4)), "classifier": jnp.ones((2, 2))}
    loss, weight = sum_heads(loss_sums(outputs, batch), "objective", sum_weights(batch, [*outputs]))
    assert loss / weight == pytest.approx(np.log(4), rel=1e-6)


def test_confusion_and_macro_f1_are_scikit_learns():
    rng = np.random.default_rng(1)
    gold, chosen, counted = rng.integers(0, 4, (5, 9)), rng.integers(0, 6, (5, 9)), rng.random((5, 9)) < 0.7
    found = np.asarray(confusion(jax.nn.one_hot(chosen, 6), jnp.asarray(gold), jnp.asarray(counted * 1.0)))
    np.testing.assert_array_equal(found, confusion_matrix(gold[counted], chosen[counted], labels=range(6)))
    assert macro_f1({"confusion": found}) == pytest.approx(f1_score(gold[counted], chosen[counted], average="macro"))


def entities(gold, chosen):
    """Count entities (true, predicted, both) in two sentences of tags. Each word has a second piece, without a tag."""
    sides = [np.array([tag for name in text.split() for tag in (TAGS.index(name), 3)]) for text in (gold, chosen)]
    counted = np.arange(len(sides[0])) % 2 == 0
    counts = entity_counts(*map(jnp.asarray, sides), jnp.asarray(counted), jnp.int32(-1), *entity_kinds(TAGS))
    return tuple(int(n) for n in counts)


@pytest.mark.parametrize(
    ("gold", "chosen", "counts"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (2, 2, 2)),
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", (2, 2, 1)),  # ends too early
        ("B-PER I-PER I-PER O", "O B-PER I-PER O", (1, 1, 0)),  # begins too late
        ("B-PER I-PER O O", "B-LOC I-LOC O O", (1, 1, 0)),  # another type
        ("B-PER B-PER O O", "B-PER I-PER O O", (2, 1, 0)),  # one entity instead of two
        ("B-PER I-PER O O", "I-PER I-PER O O", (1, 1, 1)),  # an I after no entity begins an entity
        ("B-PER I-LOC O O", "B-PER B-LOC O O", (2, 2, 2)),  # an I with another type begins an entity too
        ("O O O B-PER", "O O O B-PER", (1, 1, 1)),  # up to the end
        ("O O O O", "O O O O", (0, 0, 0)),
    ],
)
def test_entities_by_hand(gold, chosen, counts):
    assert entities(gold, chosen) == counts


@jax.jit
def compiled_entity_counts(*sides):
    return entity_counts(*sides, *entity_kinds(TAGS))


def plain_entities(tags):
    """Return {(type, begin, end)} of all entities, with a plain loop."""
    entities, begin = set(), None
    for place, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        goes_on = begin is not None and part == "I" and kind == tags[begin].partition("-")[2]
        if begin is not None and not goes_on:
            entities.add((tags[begin].partition("-")[2], begin, place))
            begin = None
        if part != "O" and not goes_on:
            begin = place
    return entities


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=7), st.lists(st.sampled_from(TAGS), max_size=7))
def test_entities_that_are_cut_off_or_in_two_are_missed(kept, after):
    length, guessed = 8, [*kept[:-1], TAGS[len(after) % len(TAGS)]]
    row, guess = (np.array([*map(TAGS.index, tags), *[0] * (length - len(kept))]) for tags in (kept, guessed))
    for chosen, names in ((row, kept), (guess, guessed)):
        next_tag = TAGS.index(after[0]) if after else -1
        sides = (jnp.asarray(row), jnp.asarray(chosen), jnp.arange(length) < len(kept), jnp.int32(next_tag))
        cut = [(TAGS.index(kept[-1]), np.array([*map(TAGS.index, after)], int))]
        found = np.asarray(compiled_entity_counts(*sides)) + sum_missed(cut, TAGS)["entities"]
        true, said = plain_entities([*kept, *after]), plain_entities(names)
        assert found.tolist() == [len(true), len(said), len(true & said)]
    assert sum_missed(cut, TAGS)["missed"].tolist() == [after.count(tag) for tag in TAGS]


def test_tags_that_were_cut_off_count_as_missed():
    sums = {"nll": 1.0, "weight": 4.0, "confusion": np.array([[3.0, 1.0], [0.0, 0.0]]), "missed": np.array([2.0, 2.0])}
    metrics = compute_metrics({f"tagger/{name}": value for name, value in sums.items()})
    assert metrics["accuracy"] == 3 / 8
    assert metrics["macro_f1"] == pytest.approx(
        f1_score([0] * 4 + [0, 0, 1, 1], [0, 0, 0, 1] + [2] * 4, average=None)[:2].mean()
    )
    texts = {"nll": 1.0, "weight": 4.0, "correct": 4.0}
    assert (
        compute_metrics(texts)["token_accuracy"] == 1 and compute_metrics({**texts, "lost": 4})["token_accuracy"] == 0.5
    )


def test_only_begin_inside_outside_tags_have_entities():
    assert entity_kinds(TAGS) is not None
    for tags in (("NOUN", "VERB"), ("B-PER", "X"), ("O",)):
        assert entity_kinds(tags) is None


def test_metrics_by_hand():
    tokens = {"nll": 12.0, "weight": 4.0, "correct": 1.0}
    both = compute_metrics({**tokens, "next_sentence/nll": 6.0, "next_sentence/weight": 10.0,
                      "next_sentence/confusion": np.array([[3.0, 1.0], [2.0, 4.0]])})  # fmt: skip
    assert (both["loss"], both["mlm_loss"], both["next_sentence_loss"]) == pytest.approx((3.6, 3.0, 0.6))
    assert (both["next_sentence_accuracy"], both["next_sentence_negatives"]) == pytest.approx((0.7, 0.6))
    assert both["perplexity"] == pytest.approx(np.exp(3)) and "accuracy" not in both
    tagger = compute_metrics({"tagger/nll": 5.0, "tagger/weight": 10.0, 
                        "tagger/confusion": np.array([[6.0, 0.0], [2.0, 2.0]]),
                        "tagger/entities": np.array([4.0, 6.0, 3.0])})  # fmt: skip
    assert tagger["loss"] == 0.5 and tagger["accuracy"] == pytest.approx(0.8)
    assert tagger["entity_f1"] == pytest.approx(2 * 0.5 * 0.75 / 1.25)

"""R-Drop: two passes with different dropout, and a loss that pulls their answers together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.build import make_model
from t5lite.objectives.batch import Batch
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.objective import Heads, example_keys, make_batch
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.cross_entropy import LossSettings
from t5lite.tasks.table import TASKS, loss_sums, sum_key, two_pass_sums
from t5lite.training.loss import check_loss
from t5lite.training.sharding import place_batch
from t5lite.training.step import noise_key
from t5lite.training.trainer import count_step_flops, make_trainer
from tests.model.dropped import small_model
from tests.small import small_config, write_pairs

VOCABULARY = Vocabulary.synthetic(290, 20)
ROWS, CLASSES, LENGTH = 6, 3, 5


def kl(p, q):
    """Return KL(p || q), summed over the last axis, in float64."""
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def softmax(logits):
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def both_ways(logits, others):
    p, q = softmax(logits), softmax(others)
    return kl(p, q) + kl(q, p)


def bernoulli(logits):
    """Return the distributions over (no, yes), [..., 2]."""
    yes = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return np.stack([1 - yes, yes], axis=-1)


def make_case(head):
    """Return (logits, other logits, batch, weight of each answer, its divergence) for a head, by NumPy."""
    rng = np.random.default_rng(0)
    shape = {"vocabulary": (ROWS, LENGTH, 9), "tagger": (ROWS, LENGTH, CLASSES), "span": (ROWS, LENGTH, 2),
             "regressor": (ROWS, 1), "next_sentence": (ROWS, 2)}.get(head, (ROWS, CLASSES))  # fmt: skip
    pair = tuple(rng.normal(size=shape).astype(np.float32) for _ in range(2))
    answered = np.arange(ROWS) != 2  # one row has no answer
    weights = np.array([1.0, 0.5, 2.0])
    fields = {"targets": jnp.zeros((ROWS, LENGTH), int), "weights": jnp.ones((ROWS, LENGTH))}
    if head == "vocabulary":
        weight = rng.random((ROWS, LENGTH)).astype(np.float32)
        return *pair, Batch(**fields | {"weights": jnp.asarray(weight)}), weight, both_ways(*pair)
    if head == "regressor":
        answers, weight, divergence = np.where(answered, 0.3, np.nan), answered, (pair[0] - pair[1])[:, 0] ** 2
    elif head == "labeller":
        answers = np.where(answered[:, None], rng.integers(0, 2, shape), -1)
        p, q = map(bernoulli, pair)
        weight, divergence = answered[:, None] * weights, kl(p, q) + kl(q, p)
    elif head == "span":
        answers, weight = np.where(answered[:, None], 1, -1) * np.ones((ROWS, 2), int), answered[:, None]
        segments = np.ones((ROWS, LENGTH), int)
        segments[:, -1] = 0  # padding is no place
        fields["inputs_segment_ids"] = jnp.asarray(segments)
        divergence = both_ways(*(each[:, :-1].swapaxes(1, 2) for each in pair))
    else:
        answers = np.where(answered.reshape(-1, *(1,) * (len(shape) - 2)), rng.integers(0, shape[-1], shape[:-1]), -1)
        weight = (answers >= 0) * (weights[answers] if TASKS[head].has_labels else 1.0)
        divergence = both_ways(*pair)
    dtype = np.float32 if head == "regressor" else np.int32
    return *pair, Batch(**fields, answers={head: jnp.asarray(answers.astype(dtype))}), weight, divergence


@pytest.mark.parametrize("head", TASKS)
def test_the_objective_is_the_mean_of_both_passes_and_a_quarter_of_alpha_times_the_divergence(head):
    logits, others, batch, weight, divergence = make_case(head)
    fields = dict(class_weights=(1.0, 0.5, 2.0), label_smoothing=0.1, z_loss=0.01)
    sums = two_pass_sums({head: logits}, {head: others}, batch, LossSettings(**fields, r_drop=3.0))
    one, other = (loss_sums({head: each}, batch, LossSettings(**fields)) for each in (logits, others))
    name = sum_key(head, "objective")
    expected = (one[name] + other[name]) / 2 + 3.0 / 4 * np.sum(divergence * weight)
    assert np.sum(divergence * weight) > 0.1 and float(sums[name]) == pytest.approx(float(expected), rel=1e-5)
    for name in (sum_key(head, "nll"), sum_key(head, "weight")):
        assert float(sums[name]) == pytest.approx((float(one[name]) + float(other[name])) / 2, rel=1e-6)


def test_twice_the_objective_is_the_loss_of_the_paper():
    """Liang et al. 2021: L = -log p(y) - log q(y) + α · ½ (KL(p || q) + KL(q || p)), summed over the answers."""
    alpha, rng = 4.0, np.random.default_rng(1)
    logits, others = rng.normal(size=(2, ROWS, CLASSES)).astype(np.float32)
    answers = rng.integers(0, CLASSES, ROWS)
    p, q, rows = softmax(logits), softmax(others), np.arange(ROWS)
    likelihood = -np.log(p[rows, answers]) - np.log(q[rows, answers])
    divergence = 0.5 * ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1))
    batch = Batch(targets=None, weights=None, answers={"classifier": jnp.asarray(answers, jnp.int32)})
    sums = two_pass_sums({"classifier": logits}, {"classifier": others}, batch, LossSettings(r_drop=alpha))
    assert 2 * float(sums["classifier/objective"]) == pytest.approx(np.sum(likelihood + alpha * divergence), rel=1e-5)


@pytest.mark.parametrize("head", TASKS)
def test_the_sums_of_parts_are_the_sums_of_the_batch_and_equal_passes_add_nothing(head):
    logits, others, batch, *_ = make_case(head)
    settings = LossSettings(class_weights=(1.0, 0.5, 2.0), r_drop=3.0)

    def sums(part, other):
        return two_pass_sums(
            {head: logits[part]}, {head: other[part]}, jax.tree.map(lambda x: x[part], batch), settings
        )

    parts = [sums(slice(start, start + 2), others) for start in range(0, ROWS, 2)]
    for name, value in sums(slice(None), others).items():
        assert float(value) == pytest.approx(sum(float(part[name]) for part in parts), rel=1e-5)
    plain = loss_sums({head: logits}, batch, settings)
    assert jax.tree.map(float, sums(slice(None), logits)) == jax.tree.map(float, plain)


def make_config(**fields):
    config = small_config("", "causal_lm", "decoder")
    config.optimizer.epsilon, config.schedule.rate, config.optimizer.clip_norm = 1.0, 1.0, 0.0
    config.objective.inputs_length, config.model.d_model, config.model.head_dim = 8, 8, 4
    config.model.scan_layers, config.batch_size = True, 4  # fast to compile
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def step(config):
    """Return (metrics, parameters before, parameters after, rows) of one step."""
    objective = make_objective(config.objective, "decoder", VOCABULARY)
    model = make_model(config.model, VOCABULARY)
    trainer = make_trainer(config, model, objective, VOCABULARY.table, 10)
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(3, 290, each.shape, dtype=np.int32) for name, each in objective.row_structs(4).items()}
    state = trainer.init()
    before = jax.device_get(state.params)
    state, metrics = trainer.step(state, place_batch(rows, trainer.mesh))
    return metrics, before, jax.device_get(state.params), rows


FROZEN = ((r"token_embedding/.*", False), (r".*", True))


@pytest.mark.parametrize(("microbatches", "trainable"), [(1, None), (2, FROZEN)])
def test_a_step_has_two_passes_whose_keys_follow_from_seed_and_step(microbatches, trainable):
    """The losses that the step reports are computed again here, pass by pass."""
    config = make_config(**{"loss.r_drop": 1000.0, "model.dropout": 0.3, "microbatches": microbatches})
    config.trainable = trainable
    metrics, params, after, rows = step(config)
    is_frozen = np.array_equal(params["token_embedding"]["embedding"], after["token_embedding"]["embedding"])
    assert is_frozen == (trainable is not None)
    objective, model = (
        make_objective(config.objective, "decoder", VOCABULARY),
        make_model(config.model, VOCABULARY),
    )
    apply = jax.jit(lambda params, part, key: model.apply({"params": params}, part, deterministic=False,
                                                          rngs={"dropout": key}))  # fmt: skip
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
    batch = make_batch(objective, example_keys(noise_key(0), jnp.int32(0), 4), rows, VOCABULARY.table)
    objective_sum = likelihood = 0.0
    for index in range(microbatches):
        part = jax.tree.map(lambda x, index=index: x[index::microbatches], batch)
        keys = jax.random.split(key if microbatches == 1 else jax.random.fold_in(key, index))
        pair = [np.asarray(apply(params, part, each)) for each in keys]
        weights = np.asarray(part.weights)
        nll = [
            -np.log(np.take_along_axis(softmax(each), np.asarray(part.targets)[..., None], -1))[..., 0] for each in pair
        ]
        likelihood += np.sum((nll[0] + nll[1]) / 2 * weights)
        objective_sum += np.sum(((nll[0] + nll[1]) / 2 + 1000.0 / 4 * both_ways(*pair)) * weights)
    assert float(metrics["objective"]) == pytest.approx(objective_sum, rel=1e-4)
    assert float(metrics["nll"]) == pytest.approx(likelihood, rel=1e-4) and objective_sum > likelihood * 1.01


def test_without_dropout_two_passes_train_as_one():
    """The divergence is then exactly 0, and so is its gradient."""
    one, two = step(make_config()), step(make_config(**{"loss.r_drop": 5.0}))
    assert float(one[0]["objective"]) == float(two[0]["objective"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[2], two[2])


def test_both_passes_count_as_work():
    one, two = make_config(), make_config(**{"loss.r_drop": 1.0})
    objective, model = make_objective(one.objective, "decoder", VOCABULARY), make_model(one.model, VOCABULARY)
    assert count_step_flops(two, model, objective) == 2 * count_step_flops(one, model, objective)


FIELDS = {"label_smoothing": 0.0, "z_loss": 0.0, "r_drop": 0.0}


@pytest.mark.parametrize("fields", [{"label_smoothing": 0.1}, {"z_loss": 1e-4}])
def test_settings_that_a_number_does_not_use_are_refused(fields):
    model = small_model("bert", Heads(False, (TASKS["regressor"].make_head(),)))
    (name,) = fields
    with pytest.raises(UserError, match=rf"config\.loss\.{name}: is .*, but answers of the kind number do not use it"):
        check_loss(FIELDS | fields, model)


@pytest.mark.parametrize("head", TASKS)
def test_a_setting_is_refused_if_and_only_if_it_changes_nothing(head):
    logits, _, batch, *_ = make_case(head)
    for name in ("label_smoothing", "z_loss"):
        losses = [loss_sums({head: logits}, batch, LossSettings(**{name: value})) for value in (0.0, 0.2)]
        changes = len({float(sums[sum_key(head, "objective")]) for sums in losses}) == 2
        assert changes == (name in TASKS[head].loss_fields), name


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({"dropout": 0.1}, True),
        ({"dropout": 0.0}, False),
        ({"dropout": 0.0, "dropout_rates": (("head", 0.1),)}, False),  # the vocabulary's head has no dropout
        ({"dropout": 0.0, "dropout_rates": (("residual", 0.1),)}, True),
        ({"dropout": 0.1, "dropout_places": ()}, False),
    ],
)
def test_without_dropout_there_is_nothing_to_regularise(tmp_path, fields, accepted):
    config = small_config(write_pairs(tmp_path / "pairs.jsonl"), "supervised", "encoder_decoder")
    config.loss.r_drop, config.objective.answer = 1.0, "text"
    config.model.update(fields)
    if accepted:
        assert open_experiment(config)
    else:
        with pytest.raises(UserError, match=r"config\.loss\.r_drop: both passes are equal without dropout"):
            open_experiment(config)

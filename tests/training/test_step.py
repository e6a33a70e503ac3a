"""The train step: the same update however the batch is cut, sharded or rematerialised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.build import make_model
from t5lite.objectives.batch import Batch
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.objective import example_keys, make_batch
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.cross_entropy import cross_entropy_sums
from t5lite.training.loss import count_tokens
from t5lite.training.sharding import make_mesh, place_batch
from t5lite.training.step import noise_key
from t5lite.training.trainer import make_trainer
from tests.small import small_config

VOCABULARY = Vocabulary.synthetic(290, 20)


def _config(**fields):
    config = small_config("", fields.pop("objective", "span_corruption"), fields.pop("architecture", "encoder_decoder"))
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def _rows(config, steps=3, seed=0):
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = {}
        for name, struct in objective.row_structs(config.batch_size).items():
            shape = struct.shape
            rows[name] = rng.integers(3, 290, shape, dtype=np.int32)
            if name.endswith("segment_ids"):
                # Ragged: two segments of random lengths, then padding.
                cuts = np.sort(rng.integers(1, shape[1] + 1, (shape[0], 2)), axis=1)
                at = np.arange(shape[1])
                rows[name] = np.where(at < cuts[:, :1], 1, np.where(at < cuts[:, 1:], 2, 0)).astype(np.int32)
        for name in [name for name in rows if f"{name}_segment_ids" in rows]:
            rows[name] = np.where(rows[f"{name}_segment_ids"] > 0, rows[name], 0)
        yield rows


def _train(config, steps=3):
    """(losses, parameters) of a few steps."""
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY)
    model = make_model(config.model, VOCABULARY)
    trainer = make_trainer(config, model, objective, VOCABULARY.table, 10)
    state, losses = trainer.init(), []
    for rows in _rows(config, steps):
        state, metrics = trainer.step(state, place_batch(rows, trainer.mesh))
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state.params)


@functools.cache
def _train_once(fields):
    return _train(_config(**dict(fields)))


def _largest_difference(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Plain gradient descent, so that parameters show the gradient itself and not its sign.
PLAIN = {"optimizer.name": "adamw", "optimizer.epsilon": 1.0, "schedule.rate": 1.0}


@pytest.mark.parametrize("objective", [pytest.param("span_corruption", marks=pytest.mark.slow), "supervised"])
@pytest.mark.parametrize("microbatches", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_microbatches_equal_the_whole_batch_on_ragged_weighted_data(objective, microbatches):
    fields = {"objective": objective, **PLAIN}
    whole = _train_once(tuple(fields.items()))
    cut = _train(_config(**fields, microbatches=microbatches))
    np.testing.assert_allclose(cut[0], whole[0], rtol=1e-5)
    assert _largest_difference(cut[1], whole[1]) < 2e-5


MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=2, fsdp=4), dict(data=1, fsdp=8)]
QUICK = [("span_corruption", MESHES[1]), ("causal_lm", MESHES[0])]


@pytest.mark.parametrize(
    ("objective", "mesh"),
    [
        pytest.param(
            objective, mesh, marks=[pytest.mark.slow] * ((objective, mesh) not in QUICK), id=f"{objective}-{mesh}"
        )
        for objective in ("span_corruption", "causal_lm")
        for mesh in MESHES
    ],
)
def test_losses_on_eight_devices_are_those_on_one(objective, mesh):
    architecture = "decoder" if objective == "causal_lm" else "encoder_decoder"
    fields = {
        "objective": objective,
        "architecture": architecture,
        "model.dropout": 0.1,
        "model.dropout_places": ("attention",),
        **PLAIN,
    }
    one = _train_once(tuple(fields.items()))
    many = _train(_config(**fields, **{f"mesh.{axis}": size for axis, size in mesh.items()}))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    assert _largest_difference(many[1], one[1]) < 2e-5


# Another fast test of heads that no axis divides is test_a_mesh_changes_nothing in tests/model/test_transformer.py.
@pytest.mark.parametrize(("heads", "kv_heads"), [pytest.param(6, None, marks=pytest.mark.slow), (8, 2)])
def test_heads_that_the_mesh_does_not_divide_change_nothing(heads, kv_heads):
    fields = {"objective": "causal_lm", "architecture": "decoder", "model.num_heads": heads, "model.head_dim": 8,
              "model.num_kv_heads": kv_heads, "model.dropout": 0.1,
              "model.dropout_places": ("attention",), **PLAIN}  # fmt: skip
    one, many = _train(_config(**fields)), _train(_config(**fields, **{"mesh.data": 2, "mesh.tensor": 4}))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    assert _largest_difference(many[1], one[1]) < 2e-5


def test_examples_depend_on_place_and_seed_but_not_on_mesh_or_microbatches():
    config = _config()
    objective = make_objective(config.objective, "encoder_decoder", VOCABULARY)
    rows = next(_rows(config))

    def make(rows, step, seed=0):
        keys = example_keys(noise_key(seed), step, config.batch_size)
        return make_batch(objective, keys, rows, VOCABULARY.table)

    here = jax.jit(make)(rows, jnp.int32(5))
    spread = jax.jit(make)(place_batch(rows, make_mesh(8, 1, 1)), jnp.int32(5))
    assert (spread.inputs == here.inputs).all() and (spread.targets == here.targets).all()
    assert (jax.jit(make)(rows, jnp.int32(6)).inputs != here.inputs).any()
    assert (jax.jit(make, static_argnums=2)(rows, jnp.int32(5), 1).inputs != here.inputs).any()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_lowers_the_loss(name):
    rate = {"adamw": 1e-2, "adafactor": 1e-1, "lion": 1e-3, "muon": 1e-2}[name]
    fields = {"optimizer.name": name, "schedule.rate": rate, "optimizer.min_size_to_factor": 8}
    config = _config(architecture="decoder", **fields)
    losses, _ = _train(config, steps=30)
    assert losses[-3:].mean() < losses[:3].mean() - 0.2


def test_bfloat16_compute_keeps_float32_parameters_and_nearly_the_loss():
    exact, _ = _train(_config(architecture="decoder"))
    rough, rough_params = _train(_config(architecture="decoder", **{"model.dtype": "bfloat16"}))
    assert {leaf.dtype for leaf in jax.tree.leaves(rough_params)} == {np.dtype("float32")}
    assert 0 < np.max(np.abs(exact - rough)) < 0.05


def test_dropout_is_a_function_of_seed_and_step():
    # A language model has no other noise, and with a rate of 0 the parameters stay what they were.
    def losses(**more):
        fields = {"objective": "causal_lm", "architecture": "decoder", "model.dropout": 0.3, "schedule.rate": 0.0}
        return _train(_config(**fields, **more), steps=2)[0]

    first = losses()
    assert (losses() == first).all()
    assert losses(**{"optimizer.name": "lion"})[0] == first[0]


@pytest.mark.slow  # a fast test is in test_frozen.py
def test_frozen_parameters_keep_their_bits():
    config = _config(trainable=((".*embedding.*", False), (".*", True)))
    _, params = _train(config)
    objective = make_objective(config.objective, "encoder_decoder", VOCABULARY)
    trainer = make_trainer(config, make_model(config.model, VOCABULARY), objective, VOCABULARY.table, 10)
    before = jax.device_get(trainer.init().params)
    assert (before["token_embedding"]["embedding"] == params["token_embedding"]["embedding"]).all()
    kernel = ("encoder", "layers", "mlp", "up", "kernel")
    for name in kernel:
        before, params = before[name], params[name]
    assert (before != params).any()


def test_the_step_is_compiled_once_and_refuses_rows_of_another_shape():
    config = _config(architecture="decoder")
    objective = make_objective(config.objective, "decoder", VOCABULARY)
    trainer = make_trainer(config, make_model(config.model, VOCABULARY), objective, VOCABULARY.table, 10)
    state = trainer.init()
    with pytest.raises(TypeError):
        trainer.step(state, {"tokens": jnp.zeros((8, 5), jnp.int32)})


def test_seeds_and_schedules_share_one_program_and_seeds_draw_numbers_of_their_own():
    fields = {"architecture": "decoder", "model.dropout": 0.1}
    objective = make_objective(_config(**fields).objective, "decoder", VOCABULARY)
    model = make_model(_config(**fields).model, VOCABULARY)
    # Another table of the same contents, as a second run reads it from disk.
    tables = VOCABULARY.table, Vocabulary.synthetic(290, 20).table

    def trainer(seed, table=tables[0], steps=10, **more):
        return make_trainer(_config(seed=seed, **fields, **more), model, objective, table, steps)

    def program(trainer):
        return trainer.step.args[0]

    first, second, third = trainer(0), trainer(1, tables[1]), trainer(0, **{"loss.z_loss": 1e-4})
    assert program(first) is program(second) and first.init.func is second.init.func
    assert program(third) is not program(first)
    other = {"schedule.name": "warmup_stable_decay", "schedule.rate": 0.02, "schedule.warmup_steps": 3}
    assert program(trainer(0, steps=30, **other)) is program(first)
    rows = place_batch(next(_rows(_config(**fields))), first.mesh)
    made = {seed: jax.device_get(each.step(each.init(), rows)) for seed, each in enumerate((first, second))}
    assert _largest_difference(made[0][0].params, made[1][0].params) > 0.01
    state = first.init()  # from the same parameters the noise still differs
    kept = jax.device_get(state)
    losses = [float(each.step(jax.device_put(kept, first.shardings), rows)[1]["loss"]) for each in (first, second)]
    assert losses[0] != losses[1]


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch_size"):
        _train(_config(**{"mesh.data": 8, "batch_size": 12}))


def test_loss_sums_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)).astype(np.float32) * 3
    targets, weights = rng.integers(0, 7, (2, 3)), rng.random((2, 3)).astype(np.float32)
    batch = Batch(targets=jnp.asarray(targets), weights=jnp.asarray(weights), decoder_inputs=jnp.asarray(targets))
    sums = cross_entropy_sums(jnp.asarray(logits), batch.targets, batch.weights, label_smoothing=0.1, z_loss=0.01)
    log_z = np.log(np.exp(logits).sum(-1))
    log_probs = logits - log_z[..., None]
    nll = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(sums["nll"], (nll * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], weights.sum(), rtol=1e-6)
    smooth = 0.9 * nll + 0.1 * -log_probs.mean(-1)
    np.testing.assert_allclose(sums["objective"], ((smooth + 0.01 * log_z**2) * weights).sum(), rtol=1e-5)


def test_padding_is_counted_out_of_the_tokens():
    ids = jnp.array([[1, 1, 0], [1, 2, 2]])
    batch = Batch(targets=ids, weights=ids * 1.0, inputs=ids, inputs_segment_ids=ids, decoder_inputs=ids)
    counts = count_tokens(batch)
    assert (float(counts["tokens"]), float(counts["places"])) == (5 + 6, 12)

"""Frozen parameters: they stay what they are, and cost a step nothing but the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.build import make_model
from t5lite.model.transformer import parameter_shapes
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.cross_entropy import LossSettings
from t5lite.tasks.table import make_objective
from t5lite.training.checkpoint import Checkpoints
from t5lite.training.optimizer import make_optimizer, trainable_mask
from t5lite.training.policy import Policy
from t5lite.training.sharding import place_batch
from t5lite.training.step import StepSettings, TrainState, make_train_step
from t5lite.training.tables import flatten_with_paths
from t5lite.training.trainer import make_trainer
from tests.small import small_config

VOCABULARY = Vocabulary.synthetic(290, 20, specials=("[CLS]", "[SEP]"))
ENCODER_FROZEN = ((r"encoder/.*|token_embedding/.*", False), (r".*", True))
HEAD = ((r"(classifier|pooler|lm_head)/.*", True), (r".*", False))


def _config(objective="span_corruption", architecture="encoder_decoder", **fields):
    config = small_config("", objective, architecture)
    config.model.tie_embeddings = False
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def _flops(config):
    """Of a step, counted by XLA."""
    labels = ("yes", "no") if config.model.architecture == "encoder" else None
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY, labels)
    model = make_model(config.model, VOCABULARY, objective.heads)
    params = parameter_shapes(model.config)
    optimizer = make_optimizer({"name": "adamw", "trainable": config.trainable}, params)
    mask = trainable_mask(config.trainable, params)
    settings = StepSettings(config.batch_size, config.microbatches, LossSettings(), ema_decay=None, mixout=0.0)
    step = make_train_step(model, objective, VOCABULARY.table, optimizer, settings, mask)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params))
    rows = objective.row_structs(config.batch_size)
    scalars = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(step).lower(state, rows, *scalars).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("objective", "architecture", "trainable", "most", "more"),
    [
        ("supervised", "encoder", HEAD, 0.45, {}),
        ("supervised", "encoder", HEAD, 0.45, {"model.remat": "full"}),
        ("causal_lm", "decoder", HEAD, 0.45, {}),
        ("span_corruption", "encoder_decoder", HEAD, 0.45, {}),
        ("span_corruption", "encoder_decoder", ENCODER_FROZEN, 0.75, {}),
        ("causal_lm", "decoder", ((r"token_embedding/.*", True), (r".*", False)), 0.75, {}),
    ],
)
def test_what_is_frozen_costs_no_backward_pass(objective, architecture, trainable, most, more):
    fields = {"model.d_model": 64, "model.d_ff": 256, "objective.inputs_length": 64, **more}
    all_of_it, part = (
        _flops(_config(objective, architecture, trainable=table, **fields)) for table in (None, trainable)
    )
    assert part < most * all_of_it


def _trained(trainable, state=None, **fields):
    """(trainer, state after a step, metrics) from `state`, default: a fresh one."""
    config = _config(trainable=trainable, **fields)
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY)
    trainer = make_trainer(config, make_model(config.model, VOCABULARY), objective, VOCABULARY.table, 10)
    rows = np.random.default_rng(0).integers(3, 290, (config.batch_size, objective.window), dtype=np.int32)
    before = trainer.init()
    with_zeros = before.params["encoder"]["final_norm"]["scale"].at[:3].set(-0.0)
    before.params["encoder"]["final_norm"]["scale"] = with_zeros
    params = jax.device_get(before.params)
    state, metrics = trainer.step(before, place_batch({"tokens": rows}, trainer.mesh))
    return trainer, state, metrics, params


FIELDS = {"microbatches": 2, "ema_decay": 0.9, "optimizer.weight_decay": 0.3}  # the tests share their programs


def test_frozen_parameters_keep_their_bits_and_have_no_state_and_no_average():
    _, state, metrics, before = _trained(ENCODER_FROZEN, **FIELDS)
    _, everything, metrics_of_all, _ = _trained(None, **FIELDS)
    others = tuple((pattern, not value) for pattern, value in ENCODER_FROZEN)
    _, _, metrics_of_others, _ = _trained(others, **FIELDS)
    before, after = dict(flatten_with_paths(before)), dict(flatten_with_paths(jax.device_get(state.params)))
    expected, averaged = (dict(flatten_with_paths(tree)) for tree in (everything.params, state.average))
    for path in before:
        is_frozen = path.startswith(("encoder/", "token_embedding/"))
        assert (before[path].tobytes() == after[path].tobytes()) == is_frozen, path
        assert (path in averaged) != is_frozen
        assert any(path in each for each, _ in flatten_with_paths(state.opt_state)) != is_frozen
        if not is_frozen:  # Adam's update of a parameter does not depend on the others
            np.testing.assert_allclose(after[path], expected[path], rtol=1e-5, atol=2e-5)
    evaluated = dict(flatten_with_paths(state.evaluated_params))
    assert evaluated.keys() == before.keys()
    norms = [float(each["grad_norm"]) for each in (metrics, metrics_of_others, metrics_of_all)]
    assert norms[0] ** 2 + norms[1] ** 2 == pytest.approx(norms[2] ** 2, rel=1e-5) and min(norms[:2]) > 0.01


def test_a_checkpoint_holds_a_whole_average_and_is_read_with_or_without_frozen_parameters(tmp_path):
    trainer, state, _, _ = _trained(ENCODER_FROZEN, **FIELDS)
    checkpoints = Checkpoints(tmp_path, Policy())
    # As a run saved it whose average held the frozen parameters as well.
    whole = state.replace(average=jax.tree.map(lambda x: x + 1, state.params))
    checkpoints.save(whole, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(trainer.shapes, trainer.shardings)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, new), (_, old) in zip(
        flatten_with_paths(restored.average), flatten_with_paths(state.average), strict=True
    ):
        assert not path.startswith("encoder/") and new.shape == old.shape
    np.testing.assert_array_equal(
        restored.average["decoder"]["final_norm"]["scale"], 1 + state.params["decoder"]["final_norm"]["scale"]
    )
    checkpoints.close()

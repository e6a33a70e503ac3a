"""Mixout: weights of layers have their pre-trained values by chance, in training only."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from t5lite.checks import check
from t5lite.model.build import make_model
from t5lite.objectives.catalogue import make_objective
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from t5lite.train import train
from t5lite.training.mixout import mix, select_mixed
from t5lite.training.reading import read_intact, saved_steps
from t5lite.training.sharding import place_batch
from t5lite.training.trainer import make_trainer
from tests.small import small_config, write_texts

VOCABULARY = Vocabulary.synthetic(290, 20)
KERNELS = {f"decoder/layers/self_attention/{name}/kernel" for name in ("query", "key", "value", "output")} | {
    f"decoder/layers/mlp/{name}/kernel" for name in ("gate", "up", "down")
}


def test_mixed_weights_follow_the_papers_equation_and_gradients_are_those_of_the_kept_weights():
    rate, (w, u) = 0.3, np.random.default_rng(0).normal(size=(2, 2, 10_000, 3)).astype(np.float32)
    mixed, pull_back = mix({"layer": {"kernel": w, "bias": u}, "frozen": None}, {"layer": {"kernel": u}}, rate,
                           jax.random.key(0))  # fmt: skip
    kernel = np.asarray(mixed["layer"]["kernel"])
    kept = kernel != u
    assert np.all(kept == kept[..., :1]), "all weights from an input neuron are kept, or all are replaced"
    assert 0.4 < np.mean(kept[0] == kept[1]) < 0.7, "0.58: each layer has its own neurons"
    np.testing.assert_allclose(kernel, (kept * w + (1 - kept) * u - rate * u) / (1 - rate), rtol=1e-4, atol=1e-5)
    assert abs(kept.mean() - 0.7) < 0.015, "20,000 neurons"
    np.testing.assert_array_equal(mixed["layer"]["bias"], u)
    assert mixed["frozen"] is None
    gradient = pull_back({"layer": {"kernel": jnp.asarray(w), "bias": jnp.asarray(w)}, "frozen": None})
    np.testing.assert_allclose(gradient["layer"]["kernel"], kept * w / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(gradient["layer"]["bias"], w)


def make_config(source="", **fields):
    config = small_config(source, "causal_lm", "decoder")
    config.optimizer.epsilon, config.schedule.rate = 1.0, 1.0
    config.objective.inputs_length, config.model.d_model, config.model.head_dim = 8, 8, 4
    config.model.scan_layers, config.batch_size = True, 4  # fast to compile
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def step(config):
    """Return (loss, parameters, pre-trained values) after a step from parameters that are not the pre-trained ones."""
    objective, model = make_objective(config.objective, "decoder", VOCABULARY), make_model(config.model, VOCABULARY)
    trainer = make_trainer(config, model, objective, VOCABULARY.table, 10)
    rng, state = np.random.default_rng(0), trainer.init()
    rows = {name: rng.integers(3, 290, each.shape, dtype=np.int32) for name, each in objective.row_structs(4).items()}
    rows = {name: np.ones_like(row) if name.endswith("ids") else row for name, row in rows.items()}
    if state.pretrained is not None:
        state = state.replace(pretrained=jax.tree.map(lambda x: x * 0 + 0.2, state.pretrained))
        assert {path: leaf.sharding for path, leaf in flatten_dict(state.pretrained, sep="/").items()} == {
            path: leaf.sharding for path, leaf in flatten_dict(state.params, sep="/").items() if path in KERNELS
        }
    state, metrics = trainer.step(state, place_batch(rows, trainer.mesh))
    return float(metrics["loss"]), jax.device_get(state.params), jax.device_get(state.pretrained)


def test_microbatches_and_a_mesh_mix_the_same_weights():
    whole = step(make_config(mixout=0.4))
    cut = step(make_config(mixout=0.4, microbatches=2, **{"mesh.fsdp": 2}))
    assert flatten_dict(whole[2], sep="/").keys() == KERNELS
    assert all(np.all(leaf == np.float32(0.2)) for leaf in jax.tree.leaves((whole[2], cut[2])))
    assert whole[0] == pytest.approx(cut[0], rel=1e-5) and abs(whole[0] - step(make_config())[0]) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole[1], cut[1])


def test_only_trained_kernels_of_layers_are_mixed():
    params = {"decoder": {"layers": {"mlp": {"up": {"kernel": 1, "bias": 2}}}}, "classifier": {"kernel": 3}}
    trainable = jax.tree.map(lambda _: True, params)
    assert select_mixed(params, trainable) == {"decoder": {"layers": {"mlp": {"up": {"kernel": 1}}}}}
    trainable["decoder"]["layers"]["mlp"]["up"]["kernel"] = False
    with pytest.raises(UserError, match=r"config\.mixout: no kernel of a layer is trained"):
        select_mixed(params, trainable)


def read_item(workdir, item):
    """Return {path: array} of an item of the newest checkpoint."""
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def select(record):
        shapes = record.shapes(item).items()
        like = {path: jax.ShapeDtypeStruct(shape, "float32", sharding=placed) for path, shape in shapes}
        return {item: unflatten_dict(like, sep="/")}

    _, items = next(read_intact(workdir, saved_steps(workdir)[::-1], select))
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(items[item], sep="/").items()}


def test_a_resumed_run_ends_with_the_same_bits_without_its_source(tmp_path):
    text = write_texts(tmp_path / "texts", documents=12)
    base = make_config(text, **{"budget.steps": 2, "checkpoint.every_steps": 2, "eval.rows": 4})
    train(base, tmp_path / "source")
    assert not (tmp_path / "source" / "checkpoints" / "2" / "pretrained").exists()
    config = base.copy_and_resolve_references()
    config.init_from, config.mixout, config.budget.steps = str(tmp_path / "source"), 0.5, 4
    result = train(config, tmp_path / "run")
    source, pretrained = read_item(tmp_path / "source", "params"), read_item(tmp_path / "run", "pretrained")
    assert pretrained.keys() == KERNELS
    for path, value in pretrained.items():
        np.testing.assert_array_equal(value, source[path])
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert train(config, tmp_path / "run")["params_sha256"] == result["params_sha256"]
    config.mixout = 0.0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match=r"pretrained/.* has no place in a run of this config"):
        train(config, tmp_path / "run", allow_changes=["mixout"])


def test_mixout_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.mixout: mixes parameters with those of config\.init_from"):
        train(make_config("files:no.txt", mixout=0.5), tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.mixout: must be below 1"):
        check(make_config(mixout=1.0))

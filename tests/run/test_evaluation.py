"""Evaluation: the same metrics and answers on every mesh and in batches of every size, and none larger than need be."""

import functools

import jax
import numpy as np
import pytest

from t5lite.model.transformer import parameter_shapes
from t5lite.run import predictions
from t5lite.run.evaluation import Evaluator
from t5lite.run.experiment import open_experiment
from t5lite.training.sharding import make_mesh, params_shardings
from tests.small import small_config, write_pairs, write_texts

ROWS = 20  # in batches of 4 on one device, with the last one full; in batches of 8 on eight
MESHES = {
    ("encoder_decoder", "supervised"): dict(data=4, fsdp=1, tensor=2),
    ("decoder", "supervised"): dict(data=1, fsdp=8, tensor=1),
    ("encoder", "mlm"): dict(data=8, fsdp=1, tensor=1),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return {True: write_pairs(folder / "pairs.jsonl", pairs=500), False: write_texts(folder / "texts", documents=120)}


def _config(source, architecture, objective, **fields):
    config = small_config(source, objective, architecture)
    config.batch_size, config.microbatches = 8, 2
    config.eval.rows, config.eval.generate_rows, config.eval.max_new_tokens = ROWS, 12, 4
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def _params(experiment, seed=0):
    """Random parameters of a size at which answers differ from row to row."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(experiment.model.config)
    return jax.tree.map(lambda x: rng.normal(0.0 if len(x.shape) > 1 else 1.0, 0.3, x.shape).astype(np.float32), shapes)


def _evaluated(experiment, mesh, examples=6):
    """(metrics, the texts of so many examples) on a mesh."""
    mesh, params = make_mesh(**mesh), _params(experiment)
    params = jax.device_put(params, params_shardings(params, mesh, experiment.model.config))
    evaluator = Evaluator(experiment, mesh)
    metrics = evaluator.evaluate_all(params)
    return metrics, [tuple(shown[:3]) for shown in evaluator.examples(params, "validation", examples)]


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] == "decoder")) for each in MESHES],
)
def test_metrics_and_answers_depend_neither_on_the_mesh_nor_on_the_batch(sources, architecture, objective):
    source = sources[objective == "supervised"]
    experiment = open_experiment(_config(source, architecture, objective))
    metrics, examples = _evaluated(experiment, dict(data=1, fsdp=1, tensor=1))
    assert len({output for *_, output in examples}) > 1 or architecture == "encoder"
    experiment.config.eval.batch_size = 64  # all rows in one batch
    many, many_examples = _evaluated(experiment, MESHES[architecture, objective])
    assert many.keys() == metrics.keys() and many_examples == examples
    for split, values in metrics.items():
        assert many[split] == pytest.approx(values, rel=1e-4)


def test_answers_are_generated_under_the_mesh_so_that_kernels_stay_split(sources, monkeypatch):
    experiment = open_experiment(_config(sources[True], "decoder", "supervised"))
    handed, meshes, generate = [], [], predictions.generate

    def spy(*arguments, weights, **options):
        handed.append(weights)
        meshes.append(jax.sharding.get_abstract_mesh().shape)
        return generate(*arguments, weights=weights, **options)

    score = predictions.score_candidates

    @functools.wraps(score)
    def spy_on_scores(*arguments, **options):
        meshes.append(jax.sharding.get_abstract_mesh().shape)
        return score(*arguments, **options)

    monkeypatch.setattr(predictions, "generate", spy)
    monkeypatch.setattr(predictions, "score_candidates", spy_on_scores)
    _evaluated(experiment, dict(data=1, fsdp=1, tensor=2), examples=0)
    assert meshes and all(shape["tensor"] == 2 for shape in meshes)
    for weights in handed:  # joined, as on one device, no device's share of the whole is its share of the parts
        assert "query" in weights.layers[0]["self_attention"]
        assert not weights.layers[0]["self_attention"]["query"]["kernel"].sharding.is_fully_replicated


def test_a_batch_is_no_larger_than_a_microbatch_or_than_what_there_is_to_evaluate(sources):
    def sizes(mesh=(1, 1, 1), **fields):
        config = _config(sources[False], "encoder_decoder", "span_corruption", **fields)
        evaluator = Evaluator(open_experiment(config), make_mesh(*mesh))
        source = evaluator._sources["validation"]
        return [len(rows["valid"]) for rows in evaluator._iterate_rows("", source, ROWS)]

    assert sizes() == [4] * 5
    assert sizes(**{"batch_size": 64, "microbatches": 8}) == [8] * 3
    assert sizes(**{"batch_size": 2048, "microbatches": 1}) == [ROWS]
    assert sizes((4, 2, 1), **{"batch_size": 2048, "microbatches": 1}) == [24]
    assert sizes(**{"batch_size": 64, "microbatches": 1, "eval.batch_size": 10}) == [10, 10]


def test_a_rows_noise_depends_on_its_place_among_the_rows_alone(sources):
    config = _config(sources[False], "encoder_decoder", "span_corruption")
    losses = []
    for size in (1, 3, 20):
        config.eval.batch_size = size
        experiment = open_experiment(config)
        losses.append(
            Evaluator(experiment, make_mesh(1, 1, 1)).evaluate_in_training(_params(experiment))["validation"]["loss"]
        )
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

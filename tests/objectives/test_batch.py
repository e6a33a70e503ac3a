"""The layouts: the module docstring's literal example, on every architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.config import base_config
from t5lite.objectives import batch as batch_module
from t5lite.objectives.batch import Example, layout_for
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.objective import make_batch
from t5lite.system.vocabulary import Vocabulary

PACKED = Example(
    inputs=jnp.array([5, 6, 1, 8, 1, 0]),
    targets=jnp.array([7, 1, 9, 1, 0]),
    weights=jnp.array([1.0, 1, 1, 1, 0]),
    inputs_segment_ids=jnp.array([1, 1, 1, 2, 2, 0]),
    targets_segment_ids=jnp.array([1, 1, 2, 2, 0]),
)
FIELDS = base_config().objective.to_dict() | {"name": "causal_lm", "inputs_length": 8}


def _lists(batch):
    return {
        name: np.asarray(v).astype(int).tolist()
        for name, v in vars(batch).items()
        if v is not None and name != "answers"
    }


def test_the_encoder_decoder_layout_is_the_docstrings():
    assert _lists(layout_for("encoder_decoder")(PACKED)) == {
        "inputs": [5, 6, 1, 8, 1, 0],
        "inputs_segment_ids": [1, 1, 1, 2, 2, 0],
        "inputs_positions": [0, 1, 2, 0, 1, 0],
        "decoder_inputs": [0, 7, 0, 9, 0],
        "targets": [7, 1, 9, 1, 0],
        "weights": [1, 1, 1, 1, 0],
        "targets_segment_ids": [1, 1, 2, 2, 0],
        "targets_positions": [0, 1, 0, 1, 0],
    }


def test_another_start_stands_at_the_start_of_each_segment_and_nowhere_else():
    pairs, rows = (layout_for(on, length=11, start=99)(PACKED) for on in ("encoder_decoder", "decoder"))
    assert pairs.decoder_inputs.tolist() == [99, 7, 99, 9, 0]
    assert rows.decoder_inputs.tolist() == [99, 5, 6, 1, 7, 99, 8, 1, 9, 0, 0]


def test_the_decoder_layout_is_the_docstrings():
    assert _lists(layout_for("decoder", length=11, prefix_attention=True)(PACKED)) == {
        "decoder_inputs": [0, 5, 6, 1, 7, 0, 8, 1, 9, 0, 0],
        "targets": [5, 6, 1, 7, 1, 8, 1, 9, 1, 0, 0],
        "weights": [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0],
        "targets_segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0],
        "targets_positions": [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0],
        "prefix_mask": [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0],
    }


def test_the_examples_of_these_tests_stand_in_the_docstring():
    text = batch_module.__doc__
    for side in ("0 5 6 1 7 0 8 1 9 0 0", "1 1 1 1 0 1 1 1 0 0 0", "0 7 0 9 0"):
        assert side in text


def test_a_prefix_covers_the_start_token_and_its_tokens():
    """A window of 8 is split at 3. The prefix has four positions of the shifted inputs; the loss is after them."""
    example = Example(jnp.arange(10, 13), jnp.arange(13, 18), jnp.ones(5))
    batch = layout_for("decoder", length=8, prefix_attention=True)(example)
    assert batch.decoder_inputs.tolist() == [0, 10, 11, 12, 13, 14, 15, 16]
    assert batch.prefix_mask.sum() == 4 and batch.prefix_mask[:4].all()
    assert batch.weights.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_without_segments_nothing_is_masked():
    example = Example(jnp.arange(3), jnp.arange(4), jnp.ones(4))
    assert layout_for("encoder_decoder")(example).targets_segment_ids is None


def _causal(segments):
    objective = make_objective(FIELDS | {"segments": segments}, "decoder", Vocabulary.synthetic(50, 10))
    rows = {"tokens": jnp.array([[5, 6, 1, 7, 8, 9, 1, 4]])}
    if segments:
        rows["segment_ids"] = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3]])
    assert set(rows) == set(objective.row_structs(1))
    return make_batch(objective, jax.random.split(jax.random.key(0), 1), rows, None)


def test_causal_lm_keeps_documents_apart():
    batch = _causal(segments=True)
    assert batch.decoder_inputs[0].tolist() == [0, 5, 6, 0, 7, 8, 9, 0]
    assert batch.targets[0].tolist() == [5, 6, 1, 7, 8, 9, 1, 4]
    assert batch.targets_positions[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert (batch.weights == 1).all() and batch.inputs is None


def test_causal_lm_without_segments_crosses_documents():
    batch = _causal(segments=False)
    assert batch.decoder_inputs[0].tolist() == [0, 5, 6, 1, 7, 8, 9, 1]
    assert batch.targets_segment_ids is None


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_the_loss_of_pairs_is_on_their_targets_alone(architecture):
    fields = FIELDS | {"name": "supervised", "inputs_length": 6, "targets_length": 5}
    objective = make_objective(fields, architecture, Vocabulary.synthetic(50, 10))
    names = ("inputs", "inputs_segment_ids", "targets", "targets_segment_ids")
    rows = {name: getattr(PACKED, name)[None] for name in names}
    batch = make_batch(objective, jax.random.split(jax.random.key(0), 1), rows, None)
    assert batch.weights.sum() == 4
    assert batch.targets[batch.weights > 0].tolist() == [7, 1, 9, 1]

"""The logits equal those of Hugging Face's T5: stored logits, and new logits if transformers is installed."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from tests.model.t5_reference import KEPT, VARIANTS, seeded_ids, seeded_state, state_shapes, to_ours

VECTORS = pathlib.Path(__file__).with_name("t5_vectors.npz")


def our_logits(config, state, inputs, decoder_inputs, mask):
    batch = Batch(
        inputs=jnp.asarray(inputs),
        inputs_segment_ids=jnp.asarray(mask),
        decoder_inputs=jnp.asarray(decoder_inputs),
        targets=jnp.asarray(decoder_inputs),
        weights=jnp.ones(decoder_inputs.shape),
    )
    return np.asarray(jax.jit(Transformer(config).apply)({"params": to_ours(state, config)}, batch))


def assert_close(ours, theirs):
    """Check that logits differ by less than 1e-5 of the largest logit. Float32 sums have another order."""
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_stored_vectors(name):
    config = VARIANTS[name]
    logits = our_logits(config, seeded_state(state_shapes(config), seed=0), *seeded_ids(config, seed=1))
    assert_close(logits[:, list(KEPT)], np.load(VECTORS)[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name):
    pytest.importorskip("torch", reason="torch is not installed: the stored vectors cover this")
    pytest.importorskip("transformers", reason="transformers is not installed: the stored vectors cover this")
    from tests.model.make_vectors import reference_logits

    config = VARIANTS[name]
    state, ids = seeded_state(state_shapes(config), seed=2), seeded_ids(config, seed=3)
    assert_close(our_logits(config, state, *ids), reference_logits(config, state, *ids))

"""Numerics are those of transformers for every family: against stored logits, and live where it is installed."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from t5lite.interop.released import open_released
from t5lite.interop.writing import write_released
from tests.interop import drawn, reference
from tests.interop.ours import outputs
from tests.interop.variants import KEPT, VARIANTS, seeded_batch, seeded_state, write_folder

VECTORS = np.load(pathlib.Path(__file__).with_name("vectors.npz"))


LACKS = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
live = pytest.mark.skipif(bool(LACKS), reason=f"{' and '.join(LACKS)} not installed: no live comparison")
DRAWS = 6  # of each family


def assert_same(ours, theirs, real=None):
    """Logits within 2e-5 of the largest, which is float32 in another order of summation; losses within 1e-5.

    real: [B, T], where a query is no padding, whose outputs nobody reads and of which transformers makes others.
    """
    assert theirs
    for name, values in theirs.items():
        if name == "loss":
            assert abs(ours[name] - values) < 1e-5 * abs(values)
            continue
        off = np.abs(ours[name] - values)
        off = off * real[..., None] if name == "logits" and real is not None else off
        assert off.max() < 2e-5 * np.abs(values).max(), name


def real_queries(theirs, batch, kept=slice(None)):
    """Where the logits are of tokens that are no padding."""
    if "loss" not in theirs:
        return batch["mask"][:, kept]
    return batch.get("decoder_mask")


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_equal_stored_vectors(name, tmp_path):
    said = VARIANTS[name]
    folder = write_folder(tmp_path, said, seeded_state(said, seed=0))
    batch = seeded_batch(said, seed=1)
    ours = outputs(folder, batch)
    theirs = {key.partition("/")[2]: VECTORS[key] for key in VECTORS if key.startswith(f"{name}/")}
    if "logits" in theirs:
        ours["logits"] = ours["logits"][:, list(KEPT)]
    assert_same(ours, theirs, real_queries(theirs, batch, list(KEPT)))


# Live, over shapes drawn at random


@live
@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("family", drawn.FAMILIES)
def test_outputs_equal_those_of_transformers_in_any_shape_both_ways(family, seed, tmp_path):
    """A folder that transformers wrote gives its outputs here, and one written here gives them there."""
    said, batch = drawn.drawn(family, seed), drawn.drawn_batch(drawn.drawn(family, seed), seed)
    model = reference.fresh_model(said, seed)
    theirs = reference.outputs_of(model, batch)
    real = real_queries(theirs, batch)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert_same(outputs(tmp_path / "theirs", batch), theirs, real)

    released = open_released(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    labels = {key: said[key] for key in ("id2label",) if key in said}
    params = {path: released.read(path) for path in released.rows}
    write_released(tmp_path / "ours", released.model, params, more=labels, shard_bytes=20_000)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    again, info = reference.loaded(tmp_path / "ours", written)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert_same(reference.outputs_of(again, batch), theirs, real)


@live
@pytest.mark.parametrize("family", drawn.FAMILIES)
def test_bfloat16_that_transformers_wrote_is_read_as_it_reads_it(family, tmp_path):
    import torch

    said = drawn.drawn(family, 99)
    batch = drawn.drawn_batch(said, 99)
    reference.fresh_model(said, 99).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert open_released(tmp_path).dtype == "bfloat16"
    theirs = reference.outputs_of(reference.loaded(tmp_path, said)[0], batch)
    assert_same(outputs(tmp_path, batch), theirs, real_queries(theirs, batch))

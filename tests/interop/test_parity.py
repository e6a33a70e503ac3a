"""Every family computes the same as transformers: compared with stored logits, and live where possible."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from t5lite.interop.released import open_released
from t5lite.interop.writing import write_released
from tests.interop import drawn, reference
from tests.interop.own_outputs import outputs
from tests.interop.variants import STORED_POSITIONS, VARIANTS, seeded_batch, seeded_state, write_folder

VECTORS = np.load(pathlib.Path(__file__).with_name("vectors.npz"))


LACKS = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
live = pytest.mark.skipif(bool(LACKS), reason=f"{' and '.join(LACKS)} not installed: no live comparison")
DRAWS = 6  # random shapes of each family


def assert_same(actual, expected, real=None):
    """Check that logits differ by at most 2e-5 of the largest (float32 sums in another order), and losses by 1e-5.

    real: [B, T], 0 for padding. There the outputs may differ, because nothing uses them.
    """
    assert expected
    for name, values in expected.items():
        if name == "loss":
            assert abs(actual[name] - values) < 1e-5 * abs(values)
            continue
        error = np.abs(actual[name] - values)
        error = error * real[..., None] if name == "logits" and real is not None else error
        assert error.max() < 2e-5 * np.abs(values).max(), name


def real_queries(expected, batch, positions=slice(None)):
    """Return the mask of the tokens that have logits: 0 for padding."""
    if "loss" not in expected:
        return batch["mask"][:, positions]
    return batch.get("decoder_mask")


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_equal_stored_vectors(name, tmp_path):
    config_json = VARIANTS[name]
    folder = write_folder(tmp_path, config_json, seeded_state(config_json, seed=0))
    batch = seeded_batch(config_json, seed=1)
    actual = outputs(folder, batch)
    expected = {key.partition("/")[2]: VECTORS[key] for key in VECTORS if key.startswith(f"{name}/")}
    if "logits" in expected:
        actual["logits"] = actual["logits"][:, list(STORED_POSITIONS)]
    assert_same(actual, expected, real_queries(expected, batch, list(STORED_POSITIONS)))


# Live, with random shapes


@live
@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("family", drawn.FAMILIES)
def test_outputs_equal_those_of_transformers_in_any_shape_both_ways(family, seed, tmp_path):
    """A folder of transformers has the same outputs here, and a folder written here has them in transformers."""
    config_json, batch = drawn.draw_config(family, seed), drawn.draw_batch(drawn.draw_config(family, seed), seed)
    model = reference.fresh_model(config_json, seed)
    expected = reference.outputs_of(model, batch)
    real = real_queries(expected, batch)
    model.save_pretrained(tmp_path / "expected", max_shard_size="20KB")
    assert_same(outputs(tmp_path / "expected", batch), expected, real)

    released = open_released(tmp_path / "expected")
    (tmp_path / "actual").mkdir()
    labels = {key: config_json[key] for key in ("id2label",) if key in config_json}
    params = {path: released.read(path) for path in released.rows}
    write_released(tmp_path / "actual", released.model, params, json_fields=labels, shard_bytes=20_000)
    written = json.loads((tmp_path / "actual" / "config.json").read_text())
    again, info = reference.load_model(tmp_path / "actual", written)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert_same(reference.outputs_of(again, batch), expected, real)


@live
@pytest.mark.parametrize("family", drawn.FAMILIES)
def test_bfloat16_of_transformers_is_read_as_transformers_reads_it(family, tmp_path):
    import torch

    config_json = drawn.draw_config(family, 99)
    batch = drawn.draw_batch(config_json, 99)
    reference.fresh_model(config_json, 99).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert open_released(tmp_path).dtype == "bfloat16"
    expected = reference.outputs_of(reference.load_model(tmp_path, config_json)[0], batch)
    assert_same(outputs(tmp_path, batch), expected, real_queries(expected, batch))

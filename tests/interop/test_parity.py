"""Numerics are those of transformers for every family: against stored logits, and live where it is installed."""

import pathlib

import numpy as np
import pytest

from tests.interop.ours import outputs
from tests.interop.variants import KEPT, VARIANTS, seeded_batch, seeded_state, write_folder

VECTORS = np.load(pathlib.Path(__file__).with_name("vectors.npz"))


def assert_same(ours, theirs, batch, kept=slice(None)):
    """Logits within 2e-5 of the largest, which is float32 in another order of summation; losses within 1e-5.

    Of an encoder's padding, whose outputs nobody reads, transformers makes others.
    """
    if "logits" in theirs and "loss" not in theirs:
        real = batch["mask"][:, kept, None]
        ours, theirs = ({**side, "logits": side["logits"] * real} for side in (ours, theirs))
    for name, values in theirs.items():
        if name == "loss":
            assert abs(ours[name] - values) < 1e-5 * abs(values)
        else:
            assert np.abs(ours[name] - values).max() < 2e-5 * np.abs(values).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_equal_stored_vectors(name, tmp_path):
    said = VARIANTS[name]
    folder = write_folder(tmp_path, said, seeded_state(said, seed=0))
    batch = seeded_batch(said, seed=1)
    ours = outputs(folder, batch)
    theirs = {key.partition("/")[2]: VECTORS[key] for key in VECTORS if key.startswith(f"{name}/")}
    assert theirs
    if "logits" in theirs:
        ours["logits"] = ours["logits"][:, list(KEPT)]
    assert_same(ours, theirs, batch, list(KEPT))

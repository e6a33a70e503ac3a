"""A checkpoint of one mesh goes on on another: the same parameters to the bit, the same batches, noise and losses."""

import json

import jax
import numpy as np
import pytest

from t5lite.train import train
from t5lite.training import loop
from tests.small import small_config, write_texts

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
FOUR, EIGHT = {"data": 1, "fsdp": 4, "tensor": 1}, {"data": 8, "fsdp": 1, "tensor": 1}
SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}
STEPS_A_MESH = 2


class Moved(Exception):
    """The machine is gone; the next one has other devices."""


def _config(source, mesh, moves, architecture):
    config = small_config(source, "span_corruption", architecture)
    config.model.dropout, config.ema_decay = 0.1, 0.9
    config.budget.steps, config.checkpoint.every_steps = STEPS_A_MESH * moves, STEPS_A_MESH
    config.log_every_steps = 1
    for axis, size in mesh.items():
        config.mesh[axis] = size
    return config


def _losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["split"]) for line in lines], np.array([line["loss"] for line in lines])


@pytest.mark.parametrize(
    ("meshes", "architecture"),
    [
        ((FOUR, ONE, SPLIT), "decoder"),
        pytest.param((EIGHT, FOUR, ONE, SPLIT, EIGHT), "encoder_decoder", marks=pytest.mark.slow),
    ],
    ids=["three", "five"],
)
def test_a_run_that_moves_from_mesh_to_mesh_computes_what_it_would_have(meshes, architecture, tmp_path, monkeypatch):
    source = write_texts(tmp_path / "texts")
    saved, restored = [], []
    save, restore = loop.Checkpoints.save, loop.Checkpoints.restore

    def save_and_leave(self, state, progress):
        save(self, state, progress)
        saved.append(jax.device_get((state.params, state.opt_state, state.average)))
        self.wait()
        if int(state.step) < STEPS_A_MESH * len(meshes):
            raise Moved

    def seen_restore(self, *arguments):
        state, progress = restore(self, *arguments)
        restored.append(jax.device_get((state.params, state.opt_state, state.average)))
        largest = state.params["token_embedding"]["embedding"]
        assert len(largest.sharding.device_set) == np.prod(list(mesh.values()))
        return state, progress

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_and_leave)
        patch.setattr(loop.Checkpoints, "restore", seen_restore)
        for mesh in meshes[:-1]:
            with pytest.raises(Moved):
                train(_config(source, mesh, len(meshes), architecture), tmp_path / "moved")
        mesh = meshes[-1]
        train(_config(source, mesh, len(meshes), architecture), tmp_path / "moved")
    for before, after in zip(saved[:-1], restored, strict=True):
        jax.tree.map(np.testing.assert_array_equal, before, after)
    train(_config(source, ONE, len(meshes), architecture), tmp_path / "stayed")
    (moved_lines, moved), (stayed_lines, stayed) = map(_losses, (tmp_path / "moved", tmp_path / "stayed"))
    assert moved_lines == stayed_lines
    np.testing.assert_allclose(moved, stayed, rtol=1e-5)

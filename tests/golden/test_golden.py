"""A workdir that an earlier t5lite left can still be read, evaluated and gone on with."""

import json
import os
import tarfile
from pathlib import Path

import jax
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding

from t5lite import evaluate
from t5lite.train import train
from t5lite.training.checkpoint import hash_params
from t5lite.training.reading import read_intact
from tests.golden.make import ARCHIVE, golden_config


@pytest.fixture
def golden(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def _result(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_it_is_a_small_file():
    assert os.path.getsize(ARCHIVE) < 100_000


def test_its_parameters_are_what_they_were(golden):
    placed = SingleDeviceSharding(jax.devices()[0])

    def wanted(record):
        shapes = record.shapes("params").items()
        like = {path: jax.ShapeDtypeStruct(shape, "float32", sharding=placed) for path, shape in shapes}
        return {"params": unflatten_dict(like, sep="/")}

    _, items = next(read_intact(golden, [4], wanted))
    assert hash_params(items["params"]) == _result(golden)["params_sha256"]


def test_it_evaluates_to_the_same_loss(golden, capsys):
    evaluate.main(["--checkpoint", str(golden), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == 4
    now, before = said["metrics"]["validation"], _result(golden)["metrics"]["validation"]
    # It counted the space that the tokenizer puts in front of each document as a byte of the text.
    assert 1 < now.pop("bits_per_byte") / before.pop("bits_per_byte") < 1.01
    assert now == pytest.approx(before, rel=1e-4)


def test_it_can_be_gone_on_with(golden):
    config = golden_config()
    config.budget.steps = 5
    result = train(config, golden, ["budget.steps"])
    assert result["step"] == 5
    history = json.loads((golden / "provenance.json").read_text())["history"]
    assert [each["step"] for each in history] == [0, 4]

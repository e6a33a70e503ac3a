"""A new kind of answer needs only a module and a line in the tables of tasks. A new metric needs only a line."""

import json

import numpy as np
import pytest

from t5lite import evaluate, generate, preview
from t5lite.config import to_dict
from t5lite.reporting.words import find_metric
from t5lite.tasks import table
from t5lite.tasks.metrics import METRICS, Metric
from t5lite.tasks.task import make_class_task
from t5lite.train import train
from t5lite.training.policy import Policy
from tests.small import small_config, write_pairs


def misses(sums):
    """Return the number of wrong answers."""
    return float(sums["confusion"].sum() - np.diagonal(sums["confusion"]).sum())


# A head that reads the first token of each text, has no dropout, and writes its answer in a special form.
VERDICT = make_class_task(
    "verdict",
    name="verdict",
    part="head for verdicts",
    each="example",
    metrics=("accuracy", "misses"),
    loss_name="verdict_loss",
    has_labels=True,
    dropout=False,
    read_out=lambda names, words: f"the verdict: {names[0]}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdicts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "misses", Metric("misses", better=-1, low=0, compute=misses, needs="confusion"))
        patch.setitem(table.TASKS, VERDICT.head, VERDICT)
        patch.setitem(table.ANSWERS, VERDICT.name, VERDICT)
        config = small_config(write_pairs(folder / "pairs.jsonl"), "supervised", "encoder")
        config.objective.answer = VERDICT.name
        config.budget.steps, config.checkpoint.keep_best, config.eval.every_steps = 40, 1, 20
        config.checkpoint.every_steps, config.checkpoint.metric = 20, "validation/misses"
        config.schedule.rate = 1e-2
        yield folder / "run", config, train(config, folder / "run")


def test_it_is_trained_and_measured(run):
    workdir, _, result = run
    found = result["metrics"]["validation"]
    rows = result["evaluated"]["validation"]["used"]
    assert set(found) == {"loss", "accuracy", "misses"}
    assert found["misses"] == pytest.approx(rows * (1 - found["accuracy"])) and found["accuracy"] > 0.6
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all("misses" in line for line in lines if line["split"] == "validation")


def test_the_metric_ranks_checkpoints_and_is_known_to_the_report(run):
    assert Policy(metric="validation/misses").rank_steps({1: 3.0, 2: 1.0}) == [2, 1]
    assert find_metric("misses").better == -1


def test_it_is_evaluated_previewed_and_answers(run, tmp_path, capsys):
    workdir, config, result = run
    evaluate.main(["--checkpoint", str(workdir), "--json", "--examples", "1"])
    said = capsys.readouterr()
    assert json.loads(said.out)["metrics"]["validation"] == pytest.approx(result["metrics"]["validation"], rel=1e-4)
    assert "target: about the sea" in said.err or "target: other" in said.err
    generate.main(["--checkpoint", str(workdir), "--input", "the white whale", "--json"])
    assert json.loads(capsys.readouterr().out)["output"] in ("the verdict: about the sea", "the verdict: other")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    preview.main(["--config", str(tmp_path / "config.json"), "--n", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["answers"]["verdict"] in (0, 1)


def test_its_head_goes_on_only_with_the_same_labels(run, tmp_path, capsys):
    workdir, config, _ = run
    config = config.copy_and_resolve_references()
    config.init_from, config.budget.steps, config.checkpoint.keep_best = str(workdir), 1, None
    train(config, tmp_path / "same")
    assert "new" not in capsys.readouterr().err.partition("parameters restored")[2].partition("\n")[0]
    path = tmp_path / "others.jsonl"
    write_pairs(path)
    path.write_text(path.read_text().replace('"other"', '"another"'))
    config.data.train.source = f"files:{path}"
    train(config, tmp_path / "others")
    assert "1 new (verdict/kernel)" in capsys.readouterr().err

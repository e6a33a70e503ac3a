"""Mixtures of tasks: each task keeps its own labels and metrics, and its share of the training."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t5lite.config import read_config, to_dict
from t5lite.preview import main as preview
from t5lite.run.evaluation import load_evaluator
from t5lite.run.experiment import open_experiment
from t5lite.run.overrides import override
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.reading import saved_steps
from t5lite.training.workdir import read_member_labels
from tests.small import WORDS, sentence, small_config, write_texts

ROOT = Path(__file__).parents[2]

SIZES = {"mood": 240, "title": 60, "topic": 120}  # a config sorts the names
LABELS = {"mood": ("bad", "good", "so so"), "topic": ("good", "sea"), "title": None}


def write_task(path, name, pairs, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(pairs):
        text = sentence(rng, 2 if name == "topic" else 8)
        label = LABELS[name][i % len(LABELS[name])] if LABELS[name] else f"{text[:9]} {WORDS[i % 13]} {i}"
        rows.append({"inputs": f"{name}: {text}", "targets": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {name: write_task(folder / f"{name}.jsonl", name, pairs) for name, pairs in SIZES.items()}


def mixed_config(sources, architecture="encoder_decoder", names=tuple(SIZES), **train_fields):
    config = small_config(None, "supervised", architecture)
    for name in names:
        config.data.train.mixture[name] = {"source": sources[name]}
    config.data.train.update(train_fields)
    config.eval.rows, config.eval.generate_rows, config.eval.max_new_tokens = 8, 2, 4
    config.budget.steps, config.checkpoint.every_steps = 2, 2
    return config


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = mixed_config(sources)
    config.eval.every_steps = 1
    config.early_stopping.metric, config.early_stopping.patience = "validation_mood/accuracy", 5
    config.checkpoint.metric, config.checkpoint.keep_best = "validation_title/loss", 1
    return workdir, train(config, workdir)


def test_each_task_is_scored_by_its_own_metrics(trained):
    metrics = trained[1]["metrics"]
    assert set(metrics) == {"validation_mood", "validation_topic", "validation_title"}, "no mean over tasks"
    for name in ("mood", "topic"):
        assert {"accuracy", "macro_f1", "matthews", "exact_match"} <= set(metrics[f"validation_{name}"])
        assert "bleu" not in metrics[f"validation_{name}"]
        classes = trained[1]["classes"][f"validation_{name}"]
        assert tuple(classes["labels"]) == LABELS[name]
        assert np.shape(classes["confusion"]) == (len(LABELS[name]),) * 2
    assert {"exact_match", "token_f1", "rougeLsum", "bleu"} <= set(metrics["validation_title"])
    assert "accuracy" not in metrics["validation_title"] and "validation_title" not in trained[1]["classes"]


def test_a_workdir_finds_the_labels_of_each_task_again(trained):
    workdir, result = trained
    assert read_member_labels(workdir) == {
        name: None if labels is None else list(labels) for name, labels in LABELS.items()
    }
    evaluator, params, _ = load_evaluator(workdir)
    evaluator.with_details = True
    metrics = evaluator.evaluate_all(params)
    for split, values in result["metrics"].items():
        assert metrics[split] == pytest.approx(values)
    chosen = {name: {each.output for each in evaluator.predictions[f"validation_{name}"]} for name in SIZES}
    assert chosen["mood"] <= set(LABELS["mood"]) and chosen["topic"] <= set(LABELS["topic"])


@pytest.mark.parametrize("name", ["topic", "title"])
def test_a_new_file_is_scored_as_the_task_that_is_named(trained, sources, tmp_path, name):
    config = read_config(str(trained[0] / "config.json"))
    config.data.validation.source = write_task(tmp_path / "new.jsonl", name, 8, seed=1)
    config.data.validation.member = name
    evaluator, params, _ = load_evaluator(trained[0], config)
    assert ("accuracy" in evaluator.evaluate_all(params)["validation"]) == (LABELS[name] is not None)


def test_a_new_file_with_labels_of_another_task_is_refused(trained, tmp_path):
    config = read_config(str(trained[0] / "config.json"))
    config.data.validation.source = write_task(tmp_path / "new.jsonl", "mood", 8)
    config.data.validation.member = "topic"
    with pytest.raises(UserError, match=r"data\.validation: the label 'bad' and 1 more never occurs"):
        load_evaluator(trained[0], config)


def test_columns_of_a_named_task_are_its_own(trained, tmp_path):
    config = read_config(str(trained[0] / "config.json"))
    flags = ("template.inputs=topic: {text}", "columns.targets=label")
    config = override(config, [f"--config.data.train.mixture.topic.{flag}" for flag in flags])
    rows = [{"text": "the sea", "label": "sea"}] * 3
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.validation.source, config.data.validation.member = f"files:{tmp_path}/new.jsonl", "topic"
    evaluator, params, _ = load_evaluator(trained[0], config)
    assert next(evaluator.examples(params, "validation", 1)).inputs == "topic: the sea"
    config.data.validation.columns.targets = "label"
    with pytest.raises(UserError, match=r"config\.data\.validation: columns and templates are those of the member"):
        load_evaluator(trained[0], config)


def test_held_out_pairs_of_no_named_task_have_the_labels_of_all(sources, tmp_path):
    config = mixed_config(sources, names=("mood", "topic"))
    config.data.validation.source = sources["mood"]
    dataset = open_experiment(config).dataset
    assert dataset.find_split_labels("validation") == ("bad", "good", "sea", "so so")
    assert dataset.find_split_labels("train_topic") == LABELS["topic"]


def test_a_decoder_has_the_labels_of_each_task_too(sources):
    dataset = open_experiment(mixed_config(sources, "decoder")).dataset
    assert {name: dataset.find_split_labels(f"validation_{name}") for name in SIZES} == LABELS


def test_a_shared_head_has_the_labels_of_all_tasks(sources):
    config = mixed_config(sources, "encoder", ("mood", "topic"))
    dataset = open_experiment(config).dataset
    assert dataset.find_split_labels("validation_topic") == dataset.labels == ("bad", "good", "sea", "so so")


def test_a_member_says_whether_its_targets_are_labels(sources):
    config = mixed_config(sources)
    config.data.train.mixture.mood = {"source": sources["mood"], "labels": False}
    config.data.train.mixture.title = {"source": sources["title"], "labels": True}
    config.objective.targets_length = 32
    dataset = open_experiment(config).dataset
    assert dataset.find_split_labels("validation_mood") is None
    assert len(dataset.find_split_labels("validation_title")) == SIZES["title"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.data.train.update(mixing="equal"), r"config\.data\.train\.mixing: unknown value 'equal'"),
        (lambda c: c.data.train.update(mixing_cap=3), r"mixing_cap: is set, but config\.data\.train\.mixing is not"),
        (lambda c: c.data.train.update(mixing_temperature=2.0), r"mixing_temperature: is set, but"),
        (lambda c: c.data.train.update(mixing="proportional", mixing_cap=0), r"mixing_cap: must be from 1"),
        (lambda c: c.data.validation.update(member="mood"), r"validation\.member: is set, but .*source is not"),
        (
            lambda c: c.data.validation.update(source=c.data.train.mixture.mood.source, member="mod"),
            r"config\.data\.validation\.member: .* no member 'mod'; did you mean 'mood'",
        ),
        (
            lambda c: c.data.train.mixture.update(mood={"source": "files:x", "labels": "yes"}),
            r"mixture\.mood\.labels: must be of type bool",
        ),
    ],
)
def test_a_mistake_is_refused_in_one_line(sources, change, problem):
    config = mixed_config(sources)
    change(config)
    with pytest.raises(UserError, match=problem) as error:
        open_experiment(config)
    assert "\n" not in str(error.value)


def test_weights_beside_proportional_rates_are_refused(sources):
    config = mixed_config(sources, mixing="proportional")
    config.data.train.mixture.mood = {"source": sources["mood"], "weight": 2.0}
    with pytest.raises(UserError, match=r"mixture\.mood\.weight: mixing=proportional computes the rates"):
        open_experiment(config)


def test_proportional_rates_need_a_mixture(sources):
    config = small_config(sources["mood"], "supervised")
    config.data.train.mixing = "proportional"
    with pytest.raises(UserError, match=r"config\.data\.train\.mixing: needs a mixture"):
        open_experiment(config)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("cap", "temperature"), [(None, 1.0), (100, 1.0), (None, 2.0), (100, 3.0)])
def test_realised_rates_are_those_of_the_formula(sources, pack, cap, temperature):
    """The rates are of pairs. A row of short pairs holds more pairs than a row of long pairs."""
    config = mixed_config(sources, mixing="proportional", mixing_cap=cap, mixing_temperature=temperature)
    config.objective.pack = pack
    experiment = open_experiment(config)
    rows = experiment.train_rows()
    pairs = np.zeros(3)
    for step in range(2000 // config.batch_size):
        for member, row in rows.locate(step):
            pairs[member] += len(rows.members[member].plan.pairs(row))
    sizes = np.array([size - size // 20 for size in SIZES.values()])  # every 20th pair is held out
    rates = np.minimum(sizes, cap or np.inf) ** (1 / temperature)
    np.testing.assert_allclose(pairs / pairs.sum(), rates / rates.sum(), atol=0.01)
    drawn = experiment.count_drawn(0, 2000)
    assert [each.examples for each in drawn.values()] == pairs.tolist()


KILLED = """
import os, signal, sys
from pathlib import Path
from t5lite.config import read_config
from t5lite.data.rows import TrainRows
from t5lite.train import train

fetch = TrainRows.__call__
TrainRows.__call__ = lambda rows, step: os.kill(os.getpid(), signal.SIGKILL) if step == 7 else fetch(rows, step)
train(read_config(sys.argv[1]), Path(sys.argv[2]))
"""


def resumed_config(folder, kind):
    """Return the config of a mixture of unequal members, with a cap that holds for some of them and a temperature."""
    if kind == "pairs":
        made = {name: write_task(folder / f"{name}.jsonl", name, pairs) for name, pairs in SIZES.items()}
        config = mixed_config(made)
        config.eval.generate_rows, config.data.labels = 0, False  # the evaluation is not the point
    else:
        config = small_config(None)
        for number, (name, size) in enumerate(SIZES.items()):
            source = write_texts(folder / name, documents=size, sentences=4, seed=number)
            config.data.train.mixture[name] = {"source": source}
        config.eval.rows = 4
    config.data.train.update(mixing="proportional", mixing_cap=100, mixing_temperature=2.0)
    config.budget.steps, config.checkpoint.every_steps, config.log_every_steps = 9, 2, 1
    return config


def read_run(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    result = json.loads((workdir / "result.json").read_text())
    losses = [(line["step"], line["split"], line["loss"]) for line in lines]
    return result["params_sha256"], result["metrics"], result["cost"]["tokens"], losses


@pytest.mark.parametrize("kind", ["pairs", pytest.param("windows", marks=pytest.mark.slow)])
def test_a_killed_run_with_proportional_rates_goes_on_as_if_never_killed(tmp_path, kind):
    """The process that is killed has another seed of hashes, which must not change the order of the members."""
    config, workdir = resumed_config(tmp_path, kind), tmp_path / "killed"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(workdir)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (saved,) = saved_steps(workdir)[-1:]
    assert 0 < saved < 7 and not (workdir / "result.json").exists()
    assert all(count_members(config, range(saved, 9))), "the rest of the run reads all members"
    train(config, workdir)
    train(config, tmp_path / "whole")
    assert read_run(workdir) == read_run(tmp_path / "whole")


def count_members(config, steps):
    """Return the numbers of rows of each member in some steps."""
    rows = open_experiment(config).train_rows()
    return np.bincount([member for step in steps for member, _ in rows.locate(step)], minlength=3).tolist()


def test_preview_shows_the_share_of_each_member(sources, tmp_path, capsys):
    flags = [f"--config.data.train.mixture.{name}.source={sources[name]}" for name in ("mood", "topic")]
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.small import small_config\n\n\ndef get_config(arg):\n    return small_config(None, 'supervised')\n"
    )
    arguments = ["--config", str(config), *flags, "--config.data.train.mixing=proportional", "--n=400", "--summary"]
    preview(arguments)
    said = capsys.readouterr().out
    assert "members of the mixture, in 400 rows" in said
    line = next(line for line in said.splitlines() if line.strip().startswith("topic "))
    assert "114" in line and line.count("(33.3%)") == 1
    assert said.count("labels of the data") == 2

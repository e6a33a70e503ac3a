"""The config of GLUE and SuperGLUE: the columns are those of TFDS, the texts are T5's, and a few steps train."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.text.glue import Glue
from tensorflow_datasets.text.super_glue import SuperGlue

from t5lite.checks import check, check_budget
from t5lite.config import read_config
from t5lite.data.columns import list_names, read_columns
from t5lite.data.sources import open_source
from t5lite.data.tfds_source import tfds_source
from t5lite.system.errors import UserError
from t5lite.tasks.table import find_task
from t5lite.train import train
from t5lite.training.early_stopping import make_early_stopping
from tests.small import sentence, small_config

GLUE = Path(__file__).parents[1] / "configs" / "glue.py"
ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")
NAMES = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
NAMES += ["boolq", "cb", "copa", "multirc", "super_rte", "wic"]
TEXTS = {  # T5's texts, as its code writes them
    "cola": "cola sentence: {sentence}",
    "stsb": "stsb sentence1: {sentence1} sentence2: {sentence2}",
    "mnli": "mnli hypothesis: {hypothesis} premise: {premise}",
    "boolq": "boolq passage: {passage} question: {question}",
    "copa": "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
    "multirc": "multirc question: {question} answer: {answer} paragraph: {paragraph}",
    "super_rte": "rte hypothesis: {hypothesis} premise: {premise}",
    "wic": "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
}


def glue(*arguments):
    return read_config(f"{GLUE}:{','.join(arguments)}")


@pytest.mark.parametrize("task", NAMES)
def test_every_task_has_valid_fields(task):
    for architecture in ARCHITECTURES:
        config = glue(f"task={task}", f"architecture={architecture}")
        check(config)
        check_budget(config)
        assert make_early_stopping(config).metric.startswith("validation/")
        assert find_task(config.objective, architecture).name in ("text", "label", "number", "number_text")


@pytest.mark.parametrize("task", NAMES)
def test_the_columns_are_those_of_tfds(task):
    columns = {each.name: set(each.text_features) for each in Glue.BUILDER_CONFIGS}
    columns |= {
        {"rte": "super_rte"}.get(each.name, each.name): set(each.features) for each in SuperGlue.BUILDER_CONFIGS
    }
    texts = columns[task] - {"start1", "start2", "end1", "end2"}  # numbers, where the word of WiC stands
    for architecture in ARCHITECTURES:
        fields = glue(f"task={task}", f"architecture={architecture}").data.train
        assert set(list_names(fields.template.inputs)) == texts
        assert fields.columns.targets == "label"


def test_the_positive_labels_are_the_last_of_tfds_two_and_1_in_files():
    names = {each.name: each.label_classes for each in Glue.BUILDER_CONFIGS}
    names["multirc"] = next(each for each in SuperGlue.BUILDER_CONFIGS if each.name == "multirc").label_classes
    found = {task: glue(f"task={task}").eval.positive_label for task in NAMES}
    assert found == dict.fromkeys(NAMES) | {task: names[task][-1] for task in ("mrpc", "qqp", "multirc")}
    assert all(len(names[task]) == 2 for task in ("mrpc", "qqp"))
    assert glue("task=qqp", "source=files:x.tsv").eval.positive_label == "1"


@pytest.mark.parametrize("task", TEXTS)
def test_models_that_write_text_read_t5s_texts(task):
    for architecture in ("encoder_decoder", "decoder"):
        assert glue(f"task={task}", f"architecture={architecture}").data.train.template.inputs == TEXTS[task]


def test_datasets_of_tfds_are_found_without_tensorflow():
    assert tfds_source("glue/cola", columns=None, split="train").name == "tfds:glue/cola/2.0.0"


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_dataset_that_needs_tensorflow_says_so():
    with pytest.raises(
        UserError, match=r"tfds:super_glue/boolq cannot be opened: .*; install it, or give the dataset's"
    ):
        tfds_source("super_glue/boolq", columns=None, split="train")


def test_mnli_is_validated_on_its_matched_split():
    validation = glue("task=mnli").data.validation
    assert (validation.source, validation.split) == ("tfds:glue/mnli", "validation_matched")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["task=mnl"], "task='mnl' of the config is unknown; did you mean 'mnli'"),
        (["task=multirc", "source=files:train.jsonl"], "published files of multirc are nested"),
    ],
)
def test_a_mistake_is_named(arguments, problem):
    with pytest.raises(UserError, match=problem):
        glue(*arguments)


TSV = {
    "mnli": ("index\tgenre\tsentence1\tsentence2\tgold_label", '{i}\tx\t"{text}\t{text}\tneutral'),
    "stsb": ("index\tsentence1\tsentence2\tscore", "{i}\t{text}\t{text}\t{i}.5"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{bit}\t{i}\t{i}\t{text}\t{text}"),
}


def write_task(folder, task):
    """Write 40 rows with the columns of the published files. Return the source."""
    rng = np.random.default_rng(0)
    texts = [sentence(rng, 12) for _ in range(40)]
    if task in TSV:
        header, line = TSV[task]
        path = folder / "train.tsv"
        lines = (
            line.replace("{i}", str(i)).replace("{bit}", str(i % 3 % 2)).replace("{text}", text)
            for i, text in enumerate(texts)
        )
        path.write_text("\n".join([header, *lines]) + "\n")
    else:
        path = folder / "train.jsonl"
        rows = [{"question": text, "passage": text, "idx": i, "label": i % 3 == 0} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


@pytest.mark.parametrize(
    ("task", "architecture", "metric"),
    [
        pytest.param("mnli", "encoder_decoder", "accuracy", marks=pytest.mark.slow),
        pytest.param("boolq", "decoder", "accuracy", marks=pytest.mark.slow),
        pytest.param("mrpc", "encoder", "positive_f1", marks=pytest.mark.slow),
        ("stsb", "encoder", "pearson"),
        pytest.param("stsb", "encoder_decoder", "pearson", marks=pytest.mark.slow),
    ],
)
def test_two_steps_train_on_files_with_the_published_columns(tmp_path, task, architecture, metric):
    source = write_task(tmp_path, task)
    config = glue(f"task={task}", f"architecture={architecture}", f"source={source}", f"validation={source}", "steps=2")
    small = small_config(source, "supervised", architecture)
    for group in ("model", "tokenizer", "mesh"):
        config[group] = small[group]
    config.objective.inputs_length, config.batch_size, config.eval.rows = 32, 8, 8
    config.eval.generate_rows = 8 if task == "stsb" else 0
    config.eval.every_steps, config.checkpoint.every_steps = 2, 2
    result = train(config, tmp_path / "run")
    assert result["ended_at"] == 2 and metric in result["metrics"]["validation"]
    assert result["rows"]["data.train"] == 40


@pytest.mark.parametrize(
    ("task", "inputs", "targets"),
    [
        ("mnli", 'mnli hypothesis: {text} premise: "{text}', "neutral"),
        ("mrpc", "mrpc sentence1: {text} sentence2: {text}", "0"),
    ],
)
def test_published_files_are_read(tmp_path, task, inputs, targets):
    source = write_task(tmp_path, task)
    train = glue(f"task={task}", f"source={source}").data.train
    pairs = list(open_source(source, read_columns(train, train, "data.train"), quoting=train.quoting).pairs())
    text = sentence(np.random.default_rng(0), 12)
    assert len(pairs) == 40 and pairs[0] == (inputs.replace("{text}", text), targets)

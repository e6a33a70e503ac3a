"""Fine-tune on a task of GLUE (Wang et al. 2018) or SuperGLUE (Wang et al. 2019), in T5's format or with a head.

    python -m t5lite.train --config configs/glue.py:task=mnli --config.init_from=hf:t5-small --workdir runs/mnli
    python -m t5lite.train --config configs/glue.py:task=stsb,architecture=encoder --config.init_from=hf:bert \
        --workdir runs/stsb
    python -m t5lite.train --config configs/glue.py:task=cb,source=files:CB/train.jsonl,validation=files:CB/val.jsonl \
        --config.init_from=hf:t5-small --workdir runs/cb

An encoder-decoder and a decoder read T5's texts, such as "mnli hypothesis: … premise: …" (Raffel et al. 2020, appendix
D; the parts are in the order of T5's code), and write the name of the label. The known labels are scored by their
likelihood. An encoder reads the plain texts, with " | " between them, and chooses the label with a head. STS-B is
answered with a number: by a head on an encoder, and else as text, rounded to steps of 0.2, as T5 does.

Early stopping follows the metric of the task: CoLA Matthews correlation, STS-B Pearson correlation, CB macro F1,
MultiRC the F1 of "True" over all answers (F1a), others accuracy. STS-B also has Spearman correlation. CB also has
accuracy. MRPC and QQP also have the F1 of "equivalent" or "duplicate" (`eval.positive_label`). SuperGLUE also has the
share of MultiRC's questions whose answers are all right. It is not computed, because a row does not keep the id of its
question.

`source` is tfds:glue/TASK or tfds:super_glue/TASK if it is unset. TFDS gives the names of the labels. Its code for
SuperGLUE needs TensorFlow, except for MultiRC. The published files are read too (`source=files:…`):

    GLUE, .tsv           The labels of CoLA, MRPC, QQP, SST-2 and WNLI are 0 and 1 in the files, and stay 0 and 1. CoLA
                         has no header: add a line with source, label, star and sentence, separated by tabs. MRPC is in
                         .txt files: rename them to .tsv
    SuperGLUE, .jsonl    COPA's labels are 0 and 1. MultiRC is nested: use tfds:super_glue/multirc

The task super_rte is SuperGLUE's RTE. WSC and ReCoRD are not here: T5 marks words in their texts, or makes several
examples of a row, and templates do neither. For MultiRC, T5 also removes marks of HTML.

A mixture of the tasks takes the templates below as members: `data.train.mixture.NAME`, with `data.train.mixing`.

The data was not downloaded when this file was written, so no time and no score is given here. Tests train a few steps
on files with the same columns, and compare the columns with those of TFDS.
"""

from typing import NamedTuple

from t5lite.config import base_config, parse_arg
from t5lite.system.errors import UserError, nearest


class Task(NamedTuple):
    """A task.

    benchmark: the name of the TFDS dataset. texts: its columns, in the order of T5's text. metric: for early stopping.
    prefix: the first word of T5's text; None: the task's name. files: {column: its name in the published files}, if it
    has another name; None: the files cannot be read. length: of the inputs, in tokens.
    """

    benchmark: str
    texts: tuple[str, ...]
    metric: str = "accuracy"
    prefix: str | None = None
    files: dict[str, str] | None = {}  # noqa: RUF012
    length: int = 128


SENTENCES = ("sentence1", "sentence2")
CLAIMS = ("hypothesis", "premise")
TASKS = {
    "cola": Task("glue", ("sentence",), metric="matthews"),
    "sst2": Task("glue", ("sentence",)),
    "mrpc": Task("glue", SENTENCES, files={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}),
    "qqp": Task("glue", ("question1", "question2"), files={"label": "is_duplicate"}),
    "stsb": Task("glue", SENTENCES, metric="pearson", files={"label": "score"}),
    "mnli": Task("glue", CLAIMS, files={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}),
    "qnli": Task("glue", ("question", "sentence")),
    "rte": Task("glue", SENTENCES),
    "wnli": Task("glue", SENTENCES),
    "boolq": Task("super_glue", ("passage", "question"), length=512),
    "cb": Task("super_glue", CLAIMS, metric="macro_f1", length=256),
    "copa": Task("super_glue", ("choice1", "choice2", "premise", "question")),
    "multirc": Task("super_glue", ("question", "answer", "paragraph"), "positive_f1", files=None, length=512),
    "super_rte": Task("super_glue", CLAIMS, prefix="rte", length=256),
    "wic": Task("super_glue", ("sentence1", "sentence2", "word")),
}
POSITIVE = {"mrpc": "equivalent", "qqp": "duplicate", "multirc": "True"}  # in the published files: 1


def get_config(arg=None):
    arg = parse_arg(arg, task="cola", architecture="encoder_decoder", source="", validation="", steps=3000)
    if arg.task not in TASKS:
        raise UserError(f"argument task={arg.task!r} of the config is unknown; {nearest(arg.task, TASKS)}")
    config = base_config()
    config.name = f"glue_{arg.task}"
    set_data(config, arg)
    set_network(config, arg)
    config.objective.name = "supervised"
    config.objective.inputs_length = TASKS[arg.task].length
    config.objective.targets_length = 16
    if arg.task == "stsb":
        on_encoder = arg.architecture == "encoder"
        config.objective.answer = "number" if on_encoder else "number_text"
        config.data.train.number_step = None if on_encoder else 0.2
    else:
        config.data.labels = True
    config.budget.steps = arg.steps
    config.eval.every_steps = max(arg.steps // 15, 1)
    config.eval.rows = config.eval.generate_rows = 1000
    config.early_stopping.metric = f"validation/{TASKS[arg.task].metric}"
    config.early_stopping.patience = 5
    config.checkpoint.every_steps = config.eval.every_steps
    return config


def set_data(config, arg):
    """Set source, columns and templates."""
    task, data = TASKS[arg.task], config.data
    is_file = arg.source.startswith("files:")
    if is_file and task.files is None:
        raise UserError(f"the published files of {arg.task} are nested; leave source unset, or give tfds:…")
    names = task.files if is_file else {}
    data.train.source = arg.source or f"tfds:{task.benchmark}/{arg.task.removeprefix('super_')}"
    data.train.columns.targets = names.get("label", "label")
    texts = [(column, f"{{{names.get(column, column)}}}") for column in task.texts]
    if arg.architecture == "encoder":
        data.train.template.inputs = " | ".join(text for _, text in texts)
    else:
        parts = [task.prefix or arg.task, *(f"{column}: {text}" for column, text in texts)]
        data.train.template.inputs = " ".join(parts)
    if arg.task in POSITIVE:
        config.eval.positive_label = "1" if is_file else POSITIVE[arg.task]
    if task.benchmark == "glue" and is_file:
        data.train.quoting = "none"
    if arg.validation:
        data.validation.source = arg.validation
    elif arg.task == "mnli" and not is_file:
        data.validation.source = data.train.source
        data.validation.split = "validation_matched"


def set_network(config, arg):
    """Set the optimizer, and a small network, which `init_from` replaces by its own."""
    on_encoder_decoder = arg.architecture == "encoder_decoder"
    config.model.architecture = arg.architecture
    config.model.dropout = 0.1
    config.batch_size = 32
    if on_encoder_decoder:  # as T5 was fine-tuned
        config.optimizer.name = "adafactor"
        config.schedule.rate = 1e-3
        return
    config.schedule.name = "linear"
    config.schedule.rate = 2e-5
    config.schedule.warmup_steps = arg.steps // 10

"""Compare ten pre-training objectives with each other and with no pre-training.

    python -m t5lite.study --config configs/studies/objectives.py --workdir runs/objectives --parallel 2

All runs have the same small network and the same number of windows. Each network is fine-tuned on a task of
understanding (topic) and on a task of generation (summary). Everything is repeated with three seeds, pre-training too.
Arguments name other text and tasks. `held_out` is a word. With it, the name of the held-out file is the name of the
training file, with this word in place of "train":

    --config configs/studies/objectives.py:text=files:corpus.train.jsonl,topic=files:topics.train.jsonl,\
    summary=files:pairs.train.jsonl,held_out=validation

The study takes about an hour and a half on 2 cores. Its results on medical text are in
benchmarks/results/objectives_study.md: eight of ten objectives help to write summaries, by 0.4 to 0.9 nats a target
token. Objectives that have the whole window as targets help most.
"""

from pathlib import Path

from t5lite.config import parse_arg
from t5lite.objectives.catalogue import special_tokens
from t5lite.studies.study import read_study, repeat

PRETRAINED = ("span_corruption", "iid_denoising", "drop_tokens", "bert_style", "mass_style", "deshuffling", "prefix_lm",
              "text_infilling", "document_rotation", "ul2")  # fmt: skip
LONG = "sample_bytes=4000000,summary_length=128,topic_length=128"  # a longer form of first_run.py


def _read(config, source, held_out):
    if source:
        config.data.train.source = source
    if held_out:
        config.data.validation.source = config.data.train.source.replace("train", held_out)


def get_study(arg=None):
    arg = parse_arg(arg, text="", topic="", summary="", held_out="", steps=650, seeds=3)
    file = Path(__file__).with_name("first_run.py")
    first_run = read_study(f"{file}:pretrain_steps={arg.steps},summary_steps=150,topic_steps=150,{LONG}")
    tasks = {task: first_run[f"{task}_pretrained-0"] for task in ("topic", "summary")}
    for task, config in tasks.items():
        _read(config, arg[task], arg.held_out)
    made, fields = first_run["pretrain"].tokenizer, first_run["pretrain"].objective.to_dict()
    # One tokenizer for all, with the special tokens of each.
    specials = {token for name in PRETRAINED for token in special_tokens(made, {**fields, "name": name})}
    runs = {}
    for name in PRETRAINED:
        pretrain = first_run["pretrain"].copy_and_resolve_references()
        _read(pretrain, arg.text, arg.held_out)
        pretrain.tokenizer.specials = tuple(sorted(specials))
        pretrain.objective.name = name
        runs[name] = pretrain
        for task, config in tasks.items():
            runs[f"{task}_{name}"] = config.copy_and_resolve_references()
            runs[f"{task}_{name}"].init_from = f"@{name}"
    for task, config in tasks.items():
        runs[f"{task}_scratch"] = config.copy_and_resolve_references()
        runs[f"{task}_scratch"].init_from = None
        runs[f"{task}_scratch"].tokenizer.path = "@span_corruption"
    return repeat(runs, range(arg.seeds))

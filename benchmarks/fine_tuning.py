"""Compare the speed of fine-tuning with a peer's. Both do the same work in turn on the same machine, pair by pair.

    python benchmarks/fine_tuning.py --peer 'PYTHON benchmarks/peers/transformers_fine_tuning.py' --pairs 4 \\
        --labels_source files:types.jsonl --texts_source files:summaries.jsonl

Without --peer, only our side is measured. The default sources are tasks of pydocs. The networks have the sizes of
configs/finetune_tiny.py. The tasks:

    labels             an encoder-decoder learns to write the label of a text
    encoder_labels     an encoder with the layers of BERT learns to choose the label of a text, with a head
    texts              an encoder-decoder learns to write texts
    score_2, score_13  the encoder-decoder of `labels` scores 2 or 13 labels for each text, and chooses the best

Training is measured with packed rows and with padded rows. A packed row holds several examples, so a batch of packed
rows has more examples than a batch of the peer, which has one example in a row. Our padded rows have a fixed length.
The peer pads a batch to its longest text. All sides have equal tokens, AdamW and float32.

Our step takes the same time for all batches, so a few steps give the time of an epoch. The peer's time depends on the
lengths in a batch. So the peer reads batches of a shuffled epoch that are evenly spaced among all batches, ordered by
size. "padding" is exact: it is counted over the whole epoch, in inputs and targets together.

Each side is one process, and waits while the other side works. Prints a line for each measurement, and at the end a
line for each task: medians, the ratios of neighbouring measurements (ours divided by the peer's, in examples a second),
and facts of the epoch.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

TRAININGS = ("labels", "encoder_labels", "texts")
SCORE = "score_"  # and the number of labels
BLOCK = 256  # rows that are counted at a time
Facts = dict[str, Any]


def make_config(arguments: argparse.Namespace, task: str, packed: bool) -> Any:
    """Return the config of a training."""
    from t5lite.config import read_config
    from t5lite.model.presets import preset

    on_encoder, on_texts = task == "encoder_labels", task == "texts"
    config = read_config(f"configs/finetune_tiny.py:architecture={'encoder' if on_encoder else 'encoder_decoder'}")
    if on_encoder:
        sizes = {name: config.model[name] for name in ("num_encoder_layers", "d_model", "num_heads", "head_dim")}
        config.model.update(preset("bert_base"))
        config.model.update({**sizes, "d_ff": 4 * sizes["d_model"], "vocab_size": None, "mlm_transform": False,
                             "logits_bias": False, "max_positions": arguments.inputs_length})  # fmt: skip
        config.objective.texts_per_row = arguments.texts_per_row if packed else 1
    else:
        config.objective.pack = packed
        config.objective.targets_length = arguments.texts_length if on_texts else arguments.labels_length
    if arguments.layers is not None:
        config.model.num_encoder_layers = config.model.num_decoder_layers = arguments.layers
    config.model.dropout = arguments.dropout
    config.objective.inputs_length = arguments.inputs_length
    config.batch_size, config.mesh.data = arguments.batch_size, 1
    config.data.train.source = arguments.texts_source if on_texts else arguments.labels_source
    config.tokenizer.vocab_size, config.tokenizer.sentinels = arguments.vocab_size, 0
    config.schedule.name, config.schedule.warmup_steps = "constant", 0
    return config


class Training:
    """A training with packed or padded rows."""

    def __init__(self, config: Any):
        from t5lite.run.experiment import open_experiment
        from t5lite.training.trainer import make_trainer

        self.config, self.experiment = config, open_experiment(config)
        self.rows = self.experiment.train_rows()
        (self.source,) = self.rows.members
        parts = self.experiment.model, self.experiment.objective, self.experiment.vocabulary.table
        self.trainer = make_trainer(config, *parts, total_steps=10**6)
        self.state, self.step = self.trainer.init(), 0
        self.measure(0, steps=1)

    def measure(self, seconds: float, steps: int = 2) -> Facts:
        """Train for about `seconds`, at least `steps` steps. Return the seconds of a step, and the epoch's rates."""
        import jax

        from t5lite.data.rows import prefetch
        from t5lite.training.sharding import place_batch

        first, start, metrics = self.step, time.perf_counter(), None
        for rows in prefetch(lambda step: place_batch(self.rows(step), self.trainer.mesh), first, sys.maxsize):
            before, (self.state, metrics) = metrics, self.trainer.step(self.state, rows)
            self.step += 1
            jax.block_until_ready(before)  # as in training: metrics are read one step late
            if time.perf_counter() - start > seconds and self.step >= first + steps:
                break
        jax.block_until_ready(metrics)
        step_seconds = (time.perf_counter() - start) / (self.step - first)
        per_row = {name: self.epoch[name] / self.epoch["rows"] for name in ("examples", "tokens")}
        rates = {f"{name}_per_second": each * self.rows.batch_size / step_seconds for name, each in per_row.items()}
        return {"step_seconds": step_seconds, **rates}

    @functools.cached_property
    def epoch(self) -> Facts:
        """The numbers of rows, examples and tokens in an epoch, and the share of padding."""
        objective, examples, tokens = self.experiment.objective, 0, 0
        for start in range(0, len(self.source), BLOCK):
            rows = self.source.fetch(np.arange(start, min(start + BLOCK, len(self.source))))
            examples += int(rows["inputs_segment_ids"].max(axis=1).sum())
            tokens += sum(int((ids > 0).sum()) for name, ids in rows.items() if name.endswith("segment_ids"))
        if objective.max_texts == 1:  # packed rows hold the tokens in front of the texts
            tokens += objective.front_length * len(self.source)
        places = sum(objective.lengths) * len(self.source)
        return {"rows": len(self.source), "lengths": objective.lengths, "examples": examples, "tokens": tokens,
                "padding": 1 - tokens / places}  # fmt: skip


class Scoring:
    """The choice of the best of some labels for each text, as in an evaluation."""

    def __init__(self, training: Training, num_labels: int, num_examples: int):
        from t5lite.data.rows import evaluation_rows
        from t5lite.run.predictions import Predictor

        self.training, self.predictor = training, Predictor(training.experiment, training.trainer.mesh)
        self.names = training.experiment.dataset.labels[:num_labels]
        self.batches = list(evaluation_rows(training.source, num_examples, training.rows.batch_size))
        self.measure(0)

    def measure(self, seconds: float) -> Facts:
        """Score the labels of all examples at least once, for about `seconds`."""
        examples, start = 0, time.perf_counter()
        while not examples or time.perf_counter() - start < seconds:
            params = self.training.state.params
            examples += sum(1 for _ in self.predictor.choose_labels(params, self.batches, self.names))
        return {"labels": len(self.names), "examples_per_second": examples / (time.perf_counter() - start)}


def describe_for_peer(training: Training, name: str, num_batches: int) -> tuple[Facts, Facts]:
    """Return the work of the peer for a training with padded rows, and the facts of its epoch."""
    experiment, source, size = training.experiment, training.source, training.rows.batch_size
    order = np.random.default_rng(0).permutation(len(source))[: max(len(source) // size, 1) * size]
    batches, places, tokens = np.split(order, range(size, len(order), size)), [], 0
    front = experiment.objective.front_length
    for batch in batches:
        rows = source.fetch(batch)
        sides = [ids for key, ids in rows.items() if key.endswith("segment_ids")]
        counts = [(ids > 0).sum(axis=1) + (front if not i else 0) for i, ids in enumerate(sides)]
        places.append(len(batch) * sum(int(count.max()) for count in counts))
        tokens += int(sum(count.sum() for count in counts))
    spaced = ((np.arange(num_batches) + 0.5) / num_batches * len(batches)).astype(int)
    chosen = [batches[index] for index in np.argsort(places, kind="stable")[spaced]]
    model, on_encoder = experiment.model.config, name == "encoder_labels"
    fields = ("d_model", "d_ff", "num_heads", "head_dim", "vocab_size", "max_positions")
    shape = {field: getattr(model, field) for field in fields} | {
        "layers": model.num_encoder_layers,
        "dropout": training.config.model.dropout,
        "labels": len(experiment.dataset.labels or ()),
    }
    work = {"model": "bert" if on_encoder else "t5", "shape": shape}
    work["batches"] = [_list_tokens(training, source.fetch(batch)) for batch in chosen]
    return work, {"examples": len(order), "tokens": tokens, "padding": 1 - tokens / sum(places)}


def _list_tokens(training: Training, rows: dict[str, np.ndarray]) -> Facts:
    """Return {"inputs", "targets"}: the tokens of each row without padding; the targets of an encoder are labels."""
    from t5lite.system.vocabulary import CLS, SEP

    def remove_padding(side: str) -> list[list[int]]:
        pairs = zip(rows[side], rows[f"{side}_segment_ids"], strict=True)
        return [tokens[ids > 0].tolist() for tokens, ids in pairs]

    inputs = remove_padding("inputs")
    if "targets" in rows:
        return {"inputs": inputs, "targets": remove_padding("targets")}
    specials = training.experiment.vocabulary.specials
    inputs = [[specials[CLS], *tokens[:-1], specials[SEP]] for tokens in inputs]
    return {"inputs": inputs, "targets": rows["answers"].tolist()}


def run_ours(arguments: argparse.Namespace) -> None:
    """Make our side and the peer's work. Print the facts, then a measurement for each line "TASK SIDE" of stdin."""
    import jax

    from t5lite.cli import start_jax
    from t5lite.run.predictions import label_tokens

    start_jax()

    tasks, sides, work, facts = arguments.tasks, {}, {}, {}
    needed = [name for name in TRAININGS if name in tasks or (name == "labels" and any(map(is_scoring, tasks)))]
    for name in needed:
        made = {side: Training(make_config(arguments, name, side == "packed")) for side in ("packed", "padded")}
        sides |= {(name, side): training for side, training in made.items()}
        work[name], peer = describe_for_peer(made["padded"], name, arguments.peer_batches)
        facts[name] = {side: training.epoch for side, training in made.items()} | {"peer": peer}
    for name in filter(is_scoring, tasks):
        training, batches = sides["labels", "padded"], arguments.score_batches
        sides[name, "padded"] = Scoring(training, int(name[len(SCORE) :]), batches * training.rows.batch_size)
        labels = sides[name, "padded"].names
        rows = [row[:length].tolist() for row, length in zip(*label_tokens(training.experiment, labels), strict=True)]
        batches = [_list_tokens(training, rows_of_batch) for rows_of_batch in sides[name, "padded"].batches]
        work[name] = {**work["labels"], "labels": rows, "batches": batches}
    arguments.work.write_text(json.dumps({name: work[name] for name in tasks}))
    print(json.dumps({"facts": facts, "jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        name, side = line.split()
        print(json.dumps(sides[name, side].measure(arguments.seconds)), flush=True)


def is_scoring(task: str) -> bool:
    return task.startswith(SCORE) and task[len(SCORE) :].isdigit()


class Side:
    """A process that measures what it is asked for. It first prints a line when it is ready."""

    def __init__(self, command: Sequence[str]):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.ready = self._read()

    def _read(self) -> Facts:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"a side ended too early: {shlex.join(map(str, self.process.args))}")

    def measure(self, task: str) -> Facts:
        print(task, file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def summarise(task: str, measured: dict[str, list[Facts]], facts: Facts) -> Facts:
    """Return the medians of a task's sides, and the ratios of neighbouring measurements."""
    line: Facts = {"task": task}
    rates = {side: [each["examples_per_second"] for each in every] for side, every in measured.items()}
    for side, every in rates.items():
        line[f"{side}_examples_per_second"] = round(statistics.median(every), 2)
        if is_scoring(task):
            line[f"{side}_seconds_per_100_examples"] = round(100 / statistics.median(every), 3)
        elif side in facts:
            tokens_per_example = facts[side]["tokens"] / facts[side]["examples"]
            line[f"{side}_tokens_per_second"] = round(statistics.median(every) * tokens_per_example)
    for side in ("packed", "padded"):
        if "peer" in rates and side in rates:
            ratios = [ours / peer for ours, peer in zip(rates[side], rates["peer"], strict=True)]
            line[f"{side}_ratio"] = round(statistics.median(ratios), 2)
            line[f"{side}_ratios"] = [round(ratio, 2) for ratio in ratios]
    return line | {"epoch": facts} if facts else line


def main() -> None:
    arguments = parse_arguments()
    if arguments.ours:
        return run_ours(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work.json")
        ours = Side([sys.executable, __file__, *sys.argv[1:], "--ours", "--work", str(work)])
        peer = Side([*shlex.split(arguments.peer), "--work", str(work)]) if arguments.peer else None
    measured: dict[str, dict[str, list[Facts]]] = {}
    for _ in range(arguments.pairs):
        for task in arguments.tasks:
            sides = {side: (ours, f"{task} {side}") for side in ("padded",) if is_scoring(task)}
            sides = sides or {side: (ours, f"{task} {side}") for side in ("packed", "padded")}
            sides |= {} if peer is None else {"peer": (peer, task)}
            for name, (side, asked) in sides.items():
                found = side.measure(asked)
                if name == "peer":
                    found["examples_per_second"] = found["examples"] / found["seconds"]
                measured.setdefault(task, {}).setdefault(name, []).append(found)
                print(json.dumps({"task": task, "side": name, **found}), flush=True)
    for side in filter(None, (ours, peer)):
        side.close()
    versions = {"jax": ours.ready["jax"], "python": platform.python_version()} | (peer.ready if peer else {})
    for task in arguments.tasks:
        print(json.dumps(summarise(task, measured[task], ours.ready["facts"].get(task, {}))))
    print(json.dumps({"date": datetime.date.today().isoformat(), "cores": os.cpu_count(),
                      "machine": platform.machine(), **versions, "arguments": sys.argv[1:]}))  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the peer's command; default: measure only our side")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--labels_source", default="pydocs/science_topic", help="texts with labels")
    parser.add_argument("--texts_source", default="pydocs/summary_general", help="pairs of texts")
    parser.add_argument("--tasks", type=lambda names: names.split(","), metavar="NAME,…",
                        default=[*TRAININGS, f"{SCORE}2", f"{SCORE}13"])  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=8, help="rows in a batch")
    parser.add_argument("--inputs_length", type=int, default=512)
    parser.add_argument("--labels_length", type=int, default=16, help="the targets' cut for labels that are written")
    parser.add_argument("--texts_length", type=int, default=128, help="the targets' cut for texts")
    parser.add_argument("--texts_per_row", type=int, default=16, help="of packed rows of an encoder, at most")
    parser.add_argument("--vocab_size", type=int, default=4000)
    parser.add_argument("--layers", type=int, help="layers of each stack; default: as in configs/finetune_tiny.py")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of our side")
    parser.add_argument("--peer_batches", type=int, default=5, help="batches in each measurement of the peer")
    parser.add_argument("--score_batches", type=int, default=2, help="batches of which labels are scored")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)  # internal: our side
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # internal: the file with the peer's work
    arguments = parser.parse_args()
    for task in arguments.tasks:
        if task not in TRAININGS and not is_scoring(task):
            parser.error(f"unknown task {task!r}; the tasks are {', '.join(TRAININGS)} and {SCORE}K")
    return arguments


if __name__ == "__main__":
    main()

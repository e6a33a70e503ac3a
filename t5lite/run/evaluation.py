"""Compute metrics of parameters on held-out text.

All objectives have loss, perplexity and token accuracy. Language models also have bits per byte. The metrics of an
encoder's heads are in tasks/metrics.py. The last evaluation also uses the standards of `objectives/catalogue.py`, on
the same text. Pairs also have

    accuracy, macro_f1   if targets are a closed set: the most likely of the known labels is the answer
    exact_match          whether the greedily generated target equals the whole target, on `eval.generate_rows` pairs

Tokens of targets, tags and entities that do not fit in a row count as missed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from t5lite.config import flatten_fields, to_dict
from t5lite.data.cut import describe_share
from t5lite.data.labelled import TaggedSentences
from t5lite.data.rows import PackedPairs, Rows, RowSource, clip, evaluation_rows, space_evenly
from t5lite.decoding.generate import generate, step_weights
from t5lite.decoding.score import score_candidates
from t5lite.decoding.settings import Settings
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.objective import VOCABULARY, Objective, example_keys, make_batch, make_examples
from t5lite.run.experiment import Experiment, open_run
from t5lite.run.released import read_run_config
from t5lite.system.errors import UserError
from t5lite.system.hosts import check_agreement, gather, primary_first
from t5lite.system.progress import progress
from t5lite.tasks.metrics import Metrics, accuracy, compute_metrics, macro_f1
from t5lite.tasks.table import TASKS, list_heads, name_answers, sum_key
from t5lite.training.sharding import local_rows, make_mesh, place_batch, sharded_shapes
from t5lite.training.start import load_params
from t5lite.training.step import validation_key
from t5lite.training.trainer import bind_mesh, compile_eval_step


class EvaluatedExample(NamedTuple):
    """The text of one held-out example, and the text of the tokens that the model generated or chose."""

    inputs: str
    target: str
    output: str


class Evaluator:
    """Evaluate parameters on the held-out sets of an experiment. The evaluation steps compile once.

    between_batches: called before each batch. To stop the evaluation, it raises.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, between_batches: Callable[[], None] = lambda: None):
        self._between_batches = between_batches
        self.experiment, self.mesh, self.objective = experiment, mesh, experiment.evaluated
        self._conventions = experiment.conventions
        self._sources = experiment.validation_sources(self.objective)
        self._standards = {}
        for name, objective in experiment.standards.items():
            with contextlib.suppress(UserError):  # the held-out text may be shorter than one window of the standard
                self._standards[name] = objective, experiment.validation_sources(objective)
        self._steps = {
            objective: compile_eval_step(experiment.model, objective, experiment.vocabulary.table, mesh)
            for objective in (self.objective, *experiment.standards.values())
        }

    @property
    def splits(self) -> list[str]:
        """The names of the held-out sets. Examples of these sets can be shown; standards have no examples."""
        return list(self._sources)

    def evaluate_losses(self, params: Any) -> dict[str, Metrics]:
        """Return {split: metrics} of each held-out set. If targets are labels, add accuracy and macro F1."""
        metrics = {}
        for split in self._sources:
            metrics[split] = self._compute_metrics(params, split, self._sources[split], self.objective)
            if self.objective.rows == "pairs" and self.experiment.dataset.labels is not None:
                metrics[split] |= self._measure_accuracy(params, split)
        return metrics

    def evaluate_all(self, params: Any) -> dict[str, Metrics]:
        """Return the metrics of `evaluate_losses`, exact match of pairs, and {split_standard: metrics}."""
        metrics = self.evaluate_losses(params)
        for name, (objective, sources) in self._standards.items():
            for split, source in sources.items():
                title = f"{split}_{name}"
                metrics[title] = self._compute_metrics(params, title, source, objective)
        if self.objective.rows == "pairs" and self.experiment.config.eval.generate_rows:
            for split in self._sources:
                metrics[split]["exact_match"] = self._measure_exact_match(params, split)
        return metrics

    def count_rows(self) -> dict[str, dict[str, int]]:
        """Count rows, {split: {"used": rows evaluated, "of": rows in the set, "generated": rows for exact match}}."""
        fields = self.experiment.config.eval
        sources = dict(self._sources)
        for name, (_, standard_sources) in self._standards.items():
            sources |= {f"{split}_{name}": source for split, source in standard_sources.items()}
        counts = {split: {"used": min(fields.rows, len(each)), "of": len(each)} for split, each in sources.items()}
        if self.objective.rows == "pairs" and fields.generate_rows:
            for split, source in self._sources.items():
                counts[split]["generated"] = min(fields.generate_rows, len(source))
        return counts

    def share_notes(self) -> list[str]:
        """Return a sentence for each group of held-out sets that were not evaluated on all rows."""
        splits_by_note: dict[str, list[str]] = {}
        for split, counts in self.count_rows().items():
            if (note := describe_share(counts)) is not None:
                splits_by_note.setdefault(note, []).append(split)
        return [f"{', '.join(splits)}: {note}" for note, splits in splits_by_note.items()]

    def _choose_batch_size(self, count: int) -> int:
        """Return the batch size for the evaluation of `count` rows. Metrics do not depend on the batch size.

        The size is at most `count`, and at most `eval.batch_size` or a microbatch of training, which fits in memory.
        Then it is rounded up, so that the mesh divides it.
        """
        config, shards = self.experiment.config, self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        limit = config.eval.batch_size or config.batch_size // config.microbatches
        return -(-min(limit, max(count, 1)) // shards) * shards

    def _iterate_rows(self, title: str, source: RowSource, count: int) -> Iterator[Rows]:
        size = self._choose_batch_size(min(count, len(source)))
        with progress(title, -(-min(count, len(source)) // size)) as advance:
            for rows in evaluation_rows(source, count, size, local_rows(size, self.mesh)):
                self._between_batches()
                yield rows
                advance()

    def _compute_metrics(self, params: Any, split: str, source: RowSource, objective: Objective) -> Metrics:
        total: dict[str, Any] = {}
        for index, rows in enumerate(
            self._iterate_rows(f"evaluating on {split}", source, self.experiment.config.eval.rows)
        ):
            sums = self._steps[objective](params, place_batch(rows, self.mesh), jnp.int32(index))
            total = {name: total.get(name, 0.0) + value for name, value in sums.items()}
        total = {name: np.asarray(value, np.float64) for name, value in jax.device_get(total).items()}
        if "bytes" in total:
            total["bytes"] *= source.byte_scale
        for name, value in self._count_missed(source).items():
            total[name] = total.get(name, 0.0) + value
        metrics = compute_metrics(total)
        return {name: float(value) for name, value in metrics.items()}

    def _count_missed(self, source: RowSource) -> dict[str, Any]:
        """Return the sums for tokens that were cut off the evaluated rows. The model cannot predict these tokens."""
        indices = space_evenly(len(source), self.experiment.config.eval.rows)
        if isinstance(source, TaggedSentences):
            head = self.objective.answer_head.name
            missed = TASKS[head].sum_missed(source.find_cut_tags(indices), source.labels)
            return {sum_key(head, name): value for name, value in missed.items()}
        return {"lost": source.count_lost_target_tokens(indices)} if isinstance(source, PackedPairs) else {}

    def _measure_accuracy(self, params: Any, split: str) -> Metrics:
        """Return accuracy and macro F1, if the label with the highest probability is the answer."""
        experiment = self.experiment
        labels, label_lengths = label_tokens(experiment)
        score = functools.partial(
            bind_mesh(self.mesh, score_candidates),
            experiment.model,
            params,
            candidates=labels,
            candidate_lengths=label_lengths,
            **self._conventions.scoring_arguments(),
        )
        gold, chosen = [], []
        for rows in self._iterate_rows(f"scoring labels of {split}", self._sources[split], experiment.config.eval.rows):
            placed = place_batch({**rows, "lengths": _count_input_tokens(rows)}, self.mesh)
            best = jnp.argmax(score(placed["inputs"], placed["lengths"]), axis=1)
            best, targets, valid = gather((best, placed["targets"], placed["valid"]))
            same = (targets[:, None, : labels.shape[1]] == labels).all(axis=2)
            gold.append(np.argmax(same, axis=1)[valid])
            chosen.append(best[valid])
        confusion = np.zeros((len(labels), len(labels)))
        np.add.at(confusion, (np.concatenate(gold), np.concatenate(chosen)), 1)
        return {"accuracy": accuracy({"confusion": confusion}), "macro_f1": macro_f1({"confusion": confusion})}

    def _measure_exact_match(self, params: Any, split: str) -> float:
        source = self._sources[split]
        rows = self._iterate_rows(f"generating on {split}", source, self.experiment.config.eval.generate_rows)
        return float(
            np.mean(
                [each.target.strip() == each.output.strip() for each in self._generate_answers(params, rows, source)]
            )
        )

    def examples(self, params: Any, split: str, count: int) -> Iterator[EvaluatedExample]:
        """Yield `count` held-out examples, evenly spaced, with the model's answers."""
        source = self._sources[split]
        rows = self._iterate_rows(f"{split}: examples", source, count)
        is_encoder = self.objective.architecture == "encoder"
        return self._choose_answers(params, rows) if is_encoder else self._generate_answers(params, rows, source)

    def _choose_answers(self, params: Any, batches: Iterable[Rows]) -> Iterator[EvaluatedExample]:
        """Yield an encoder's examples with the likeliest tokens at predicted places and the likeliest answers."""
        experiment, objective = self.experiment, self.objective
        decode = experiment.dataset.tokenizer.decode

        @functools.partial(bind_mesh, self.mesh)
        @jax.jit
        def choose(params: Any, rows: Any, index: jax.Array) -> tuple[Batch, Any]:
            keys = example_keys(validation_key(), index, len(jax.tree.leaves(rows)[0]))
            batch = make_batch(objective, keys, rows, experiment.vocabulary.table)
            outputs = experiment.model.apply({"params": params}, batch, method="outputs")
            return batch, jax.tree.map(lambda logits: jnp.argmax(logits, axis=-1), outputs)

        def join_names(answers: Mapping[str, Any], true_answers: Mapping[str, Any], row: int) -> str:
            parts = (
                name_answers(head, answers[head][row], true_answers[head][row], objective.labels, decode)
                for head in list_heads(objective.heads)
            )
            return " | ".join(name for names in parts for name in names)

        for index, rows in enumerate(batches):
            placed = place_batch(rows, self.mesh)
            valid = gather(placed.pop("valid"))
            batch, chosen = gather(choose(params, placed, jnp.int32(index)))
            true_answers = {VOCABULARY: np.where(batch.weights > 0, batch.targets, -1), **batch.answers}
            for row in np.flatnonzero(valid):
                inputs = decode(_remove_padding(batch.inputs, batch.inputs_segment_ids)[row])
                target, output = (join_names(answers, true_answers, row) for answers in (true_answers, chosen))
                yield EvaluatedExample(inputs, target, output)

    def _generate_answers(self, params: Any, batches: Iterable[Rows], source: RowSource) -> Iterator[EvaluatedExample]:
        """Yield examples with greedy answers. A language model gets half of a window as input, and continues it.

        The target of a pair is its whole text, read from `source`, even if the row holds only a part of that text.
        """
        experiment = self.experiment
        objective, vocabulary = self.objective, experiment.vocabulary
        decode = experiment.dataset.tokenizer.decode
        weights = bind_mesh(self.mesh, step_weights)(experiment.model, params)

        @functools.partial(bind_mesh, self.mesh)
        @jax.jit
        def make(rows: Any, index: jax.Array) -> Example:
            keys = example_keys(validation_key(), index, len(jax.tree.leaves(rows)[0]))
            return make_examples(objective, keys, rows, vocabulary.table)

        for index, rows in enumerate(batches):
            placed = place_batch(rows, self.mesh)
            valid = gather(placed.pop("valid"))
            pairs = gather(placed.pop("pairs")) if "pairs" in placed else None
            examples = make(placed, jnp.int32(index))
            if objective.inputs_length == 0:
                half = objective.targets_length // 2
                examples = Example(examples.targets[:, :half], examples.targets[:, half:], examples.weights[:, half:])
            ids = examples.inputs_segment_ids
            full = jnp.ones(examples.inputs.shape, jnp.int32) if ids is None else ids
            lengths = jnp.sum(full > 0, axis=1, dtype=jnp.int32)
            generated = bind_mesh(self.mesh, generate)(
                experiment.model,
                params,
                examples.inputs,
                lengths,
                Settings(max_new_tokens=experiment.config.eval.max_new_tokens or objective.targets_length),
                weights=weights,
                **self._conventions.generation_arguments(),
            )
            examples, generated = gather((examples, generated))
            inputs = _remove_padding(examples.inputs, examples.inputs_segment_ids)
            targets = _remove_padding(examples.targets, examples.targets_segment_ids)
            for row in np.flatnonzero(valid):
                answer = generated.tokens[row, 0, : generated.lengths[row, 0]]
                target = targets[row] if pairs is None else source.target(int(pairs[row]))
                output = decode(self._conventions.text_tokens(answer))
                yield EvaluatedExample(decode(inputs[row]), decode(target), output)


def _remove_padding(tokens: np.ndarray, segment_ids: np.ndarray | None) -> list[np.ndarray]:
    """Return the tokens of each row of `tokens` [B, L] without padding."""
    return list(tokens) if segment_ids is None else [row[ids > 0] for row, ids in zip(tokens, segment_ids, strict=True)]


def load_evaluator(
    place: str | Path, config: ConfigDict | None = None, step: str | None = None, average: int = 1
) -> tuple[Evaluator, Any, int]:
    """Return the evaluator of a workdir or `hf:DIR`, the newest checkpoint's parameters, and their step (`hf:DIR`: 0).

    Args:
        config: the run's config, possibly with other held-out text or evaluation settings; None: the stored config.
        step, average: which checkpoints to read instead of the newest, see `load_params`.
    """
    config = read_run_config(place) if config is None else config
    with primary_first():
        experiment = open_run(config, place)
    check_agreement({**flatten_fields(to_dict(config)), **experiment.dataset.identity})
    mesh = make_mesh(**config.mesh)
    params, params_step = load_params(place, sharded_shapes(experiment.model.config, mesh), step, average)
    return Evaluator(experiment, mesh), params, params_step


def _count_input_tokens(rows: Rows) -> np.ndarray:
    return (rows["inputs_segment_ids"] > 0).sum(axis=1, dtype=np.int32)


def label_tokens(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels' tokens as targets of a row, int32 [C, T], with EOS, and their lengths, int32 [C]."""
    length, front = experiment.evaluated.targets_length, experiment.conventions.front
    encode, eos = experiment.dataset.tokenizer.encode, experiment.vocabulary.eos
    rows = [
        [*front, *clip(np.append(encode(label), eos), length - len(front))] for label in experiment.dataset.labels or ()
    ]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for token_row, row in zip(tokens, rows, strict=True):
        token_row[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)

"""The answers of a network to rows of held-out text, as text: generated, chosen by a head, or chosen among labels."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5lite.data.closed_sets import Labels
from t5lite.data.questions import QuestionWindows
from t5lite.data.rows import Rows, RowSource, clip
from t5lite.decoding.generate import generate, step_weights
from t5lite.decoding.score import count_units, score_candidates
from t5lite.decoding.settings import Settings
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.chat import ask_last_turns
from t5lite.objectives.objective import VOCABULARY, example_keys, make_batch, make_examples
from t5lite.run.experiment import Experiment
from t5lite.run.heads import compile_head
from t5lite.run.spans import WindowAnswer, join_windows, read_window
from t5lite.system.hosts import gather
from t5lite.tasks.cross_entropy import Sums
from t5lite.tasks.metrics import score_text
from t5lite.tasks.table import TASKS, find_task, list_heads
from t5lite.training.sharding import place_batch
from t5lite.training.step import validation_key
from t5lite.training.trainer import bind_mesh


class Prediction(NamedTuple):
    """The text of one held-out example, and the text of the tokens that the model generated or chose.

    scores: {metric: score of this answer}, or {label: its probability or its score by `eval.score_by`}.
    more_references: texts that are right answers too.
    """

    inputs: str
    target: str
    output: str
    scores: dict[str, float]
    more_references: tuple[str, ...] = ()

    @property
    def references(self) -> list[str]:
        """All right answers, the target first."""
        return [self.target, *self.more_references]


class Predictor:
    """Answer rows of held-out text with the network of an experiment. `evaluation_rows` yields the batches of rows."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh, self.objective = experiment, mesh, experiment.evaluated
        self._conventions = experiment.conventions
        self._decode = experiment.dataset.tokenizer.decode
        self._reading = experiment.reading
        self._task = find_task(experiment.config.objective, self.objective.architecture)

    def text_metrics(self, labels: Labels) -> tuple[str, ...]:
        """Return the names of the metrics that compare answers with targets as texts.

        Labels that are generated are only compared as a whole.
        """
        if not self.objective.has_answers:
            head = self.objective.answer_head
            return () if head is None else TASKS[head.name].text_metrics
        return self._task.text_metrics if labels is None else ("exact_match",)

    def choose_labels(self, params: Any, batches: Iterable[Rows], names: Sequence[str]) -> Iterator[Prediction]:
        """Yield pairs with the label of the highest score among the labels `names`, by `eval.score_by`.

        scores: {label: its score}.
        """
        experiment = self.experiment
        labels, label_lengths = label_tokens(experiment, names)
        units = count_units(experiment.config.eval.score_by, names, label_lengths)
        score = functools.partial(
            bind_mesh(self.mesh, score_candidates),
            experiment.model,
            params,
            candidates=labels,
            candidate_lengths=label_lengths,
            **self._conventions.scoring_arguments(),
        )
        for rows in batches:
            lengths = (rows["inputs_segment_ids"] > 0).sum(axis=1, dtype=np.int32)
            placed = place_batch({**rows, "lengths": lengths}, self.mesh)
            scores = score(placed["inputs"], placed["lengths"])
            names_of_arrays = ("inputs", "inputs_segment_ids", "targets", "valid")
            scores, arrays = gather((scores, {name: placed[name] for name in names_of_arrays}))
            scores = scores / units
            same = (arrays["targets"][:, None, : labels.shape[1]] == labels).all(axis=2)
            inputs = _remove_padding(arrays["inputs"], arrays["inputs_segment_ids"])
            for row in np.flatnonzero(arrays["valid"]):
                gold, best = int(np.argmax(same[row])), int(np.argmax(scores[row]))
                by_label = dict(zip(names, map(float, scores[row]), strict=True))
                yield Prediction(self._decode(inputs[row]), names[gold], names[best], by_label)

    def choose(self, params: Any, batches: Iterable[Rows]) -> Iterator[Prediction]:
        """Yield examples with the likeliest answers of all heads; on an encoder also tokens at predicted places.

        scores: the probability of each label of the whole text, if there are such labels.
        """
        experiment, objective, decode = self.experiment, self.objective, self._decode
        head = objective.answer_head
        probabilities_of = None if head is None else TASKS[head.name].probabilities

        @functools.partial(bind_mesh, self.mesh)
        @jax.jit
        def choose(params: Any, rows: Any, index: jax.Array) -> tuple[Batch, Any, Any]:
            keys = example_keys(validation_key(), index, len(jax.tree.leaves(rows)[0]))
            batch = make_batch(objective, keys, rows, experiment.vocabulary.table)
            outputs = experiment.model.apply({"params": params}, batch, method="outputs")
            chosen = {name: TASKS[name].choose(logits) for name, logits in outputs.items()}
            return batch, chosen, None if probabilities_of is None else probabilities_of(outputs[head.name])

        def join_names(answers: Mapping[str, Any], true_answers: Mapping[str, Any], row: int) -> str:
            parts = (
                TASKS[name].name_answers(answers[name][row], true_answers[name][row], self._reading)
                for name in list_heads(objective.heads)
            )
            return " | ".join(name for names in parts for name in names)

        for index, rows in enumerate(batches):
            placed = place_batch(rows, self.mesh)
            valid = gather(placed.pop("valid"))
            batch, chosen, probabilities = gather(choose(params, placed, jnp.int32(index)))
            true_answers = {VOCABULARY: np.where(batch.weights > 0, batch.targets, -1), **batch.answers}
            for row in np.flatnonzero(valid):
                sides = (
                    (batch.inputs, batch.inputs_segment_ids)
                    if batch.inputs is not None
                    else (batch.targets, batch.targets_segment_ids)
                )
                inputs = decode(_remove_padding(*sides)[row])
                target, output = (join_names(answers, true_answers, row) for answers in (true_answers, chosen))
                scores = {}
                if probabilities is not None:
                    scores = dict(zip(objective.labels, map(float, probabilities[row]), strict=True))
                yield Prediction(inputs, target, output, scores)

    def sum_rows(self, params: Any, batches: Iterable[Rows]) -> dict[str, np.ndarray]:
        """Return the `Task.row_sums` of the answers of a head to all rows, {name: float32 [n, …]}."""
        experiment, objective = self.experiment, self.objective
        row_sums, parts = TASKS[objective.answer_head.name].row_sums, []

        @functools.partial(bind_mesh, self.mesh)
        @jax.jit
        def compute(params: Any, rows: Any) -> Sums:
            keys = example_keys(validation_key(), jnp.int32(0), len(jax.tree.leaves(rows)[0]))
            batch = make_batch(objective, keys, rows, experiment.vocabulary.table)
            outputs = experiment.model.apply({"params": params}, batch, method="outputs")
            return row_sums(outputs[objective.answer_head.name], batch)

        for rows in batches:
            placed = place_batch(rows, self.mesh)
            valid = np.flatnonzero(gather(placed.pop("valid")))
            parts.append(jax.tree.map(lambda x, valid=valid: x[valid], gather(compute(params, placed))))
        return jax.tree.map(lambda *each: np.concatenate(each), *parts)

    def choose_spans(self, params: Any, batches: Iterable[Rows], source: QuestionWindows) -> Iterator[Prediction]:
        """Yield each question with its answer. `batches` must hold all windows of each question.

        The inputs of a prediction are the question. scores: those of `text_metrics`, and "margin", see `SpanAnswer`.
        """
        objective, experiment = self.objective, self.experiment
        compute = bind_mesh(self.mesh, compile_head(experiment.model, objective, experiment.vocabulary.table))
        found: dict[int, list[WindowAnswer]] = {}
        for rows in batches:
            placed = place_batch(rows, self.mesh)
            valid, windows = gather((placed.pop("valid"), placed.pop("windows")))
            logits, _ = gather(compute(params, placed))
            for row in np.flatnonzero(valid):
                window = source.windows[windows[row]]
                found.setdefault(int(window[0]), []).append(
                    read_window(logits[row], window[1:], objective.front_length)
                )
        tokenizer = experiment.dataset.tokenizer
        for question, windows in found.items():
            texts = source.read_texts(question)
            answer = join_windows(windows, texts.context, tokenizer)
            references = texts.answers or ("",)
            scores = score_text(self.text_metrics(None), references, answer.text) | {"margin": answer.margin}
            asked = self._decode(source.read_question(question))
            yield Prediction(asked, references[0], answer.text, scores, references[1:])

    def generate(self, params: Any, batches: Iterable[Rows], source: RowSource, labels: Labels) -> Iterator[Prediction]:
        """Yield examples with greedy answers. A language model gets half of a window as input, and continues it.

        References of a pair are whole texts, read from `source`, even if the row holds only a part of its target.
        labels: the closed set of targets. It decides which metrics the scores are of.
        """
        experiment, metrics = self.experiment, self.text_metrics(labels)
        objective, vocabulary, decode = self.objective, experiment.vocabulary, self._decode
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
            if objective.rows == "conversations":
                examples = ask_last_turns(examples)
            elif objective.inputs_length == 0:
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
                whole = self._conventions.text_tokens(targets[row])
                target, *more = map(decode, [whole] if pairs is None else source.references(int(pairs[row])))
                output = decode(self._conventions.text_tokens(answer))
                scores = score_text(metrics, [target, *more], output)
                yield Prediction(decode(inputs[row]), target, output, scores, tuple(more))


def _remove_padding(tokens: np.ndarray, segment_ids: np.ndarray | None) -> list[np.ndarray]:
    """Return the tokens of each row of `tokens` [B, L] without padding."""
    return list(tokens) if segment_ids is None else [row[ids > 0] for row, ids in zip(tokens, segment_ids, strict=True)]


def label_tokens(experiment: Experiment, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of `labels` as targets of a row, int32 [C, T], with EOS, and their lengths, int32 [C]."""
    length, front = experiment.evaluated.targets_length, experiment.conventions.front
    encode, eos = experiment.dataset.tokenizer.encode, experiment.vocabulary.eos
    rows = [[*front, *clip(np.append(encode(label), eos), length - len(front))] for label in labels]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for token_row, row in zip(tokens, rows, strict=True):
        token_row[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)

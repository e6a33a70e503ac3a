"""The answers of a network to rows of held-out text, as text: generated, chosen by a head, or chosen among labels."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5lite.data.rows import Rows, RowSource, clip
from t5lite.decoding.generate import generate, step_weights
from t5lite.decoding.score import score_candidates
from t5lite.decoding.settings import Settings
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.chat import ask_last_turns
from t5lite.objectives.objective import VOCABULARY, example_keys, make_batch, make_examples
from t5lite.run.experiment import Experiment
from t5lite.system.hosts import gather
from t5lite.tasks.metrics import score_text
from t5lite.tasks.table import list_heads, name_answers
from t5lite.tasks.text import TEXT
from t5lite.training.sharding import place_batch
from t5lite.training.step import validation_key
from t5lite.training.trainer import bind_mesh


class Prediction(NamedTuple):
    """The text of one held-out example, and the text of the tokens that the model generated or chose.

    scores: {metric: score of this answer}, or {label: its probability or log-probability}.
    """

    inputs: str
    target: str
    output: str
    scores: dict[str, float]


class Predictor:
    """Answer rows of held-out text with the network of an experiment. `evaluation_rows` yields the batches of rows."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh, self.objective = experiment, mesh, experiment.evaluated
        self._conventions = experiment.conventions
        self._decode = experiment.dataset.tokenizer.decode

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """The names of the metrics of generated answers. Labels are only compared as a whole."""
        if not self.objective.has_answers:
            return ()
        return TEXT.text_metrics if self.experiment.dataset.labels is None else ("exact_match",)

    def choose_labels(self, params: Any, batches: Iterable[Rows]) -> Iterator[Prediction]:
        """Yield pairs with the label of the highest probability. scores: the log-probability of each label's tokens."""
        experiment, names = self.experiment, self.experiment.dataset.labels
        labels, label_lengths = label_tokens(experiment)
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
            same = (arrays["targets"][:, None, : labels.shape[1]] == labels).all(axis=2)
            inputs = _remove_padding(arrays["inputs"], arrays["inputs_segment_ids"])
            for row in np.flatnonzero(arrays["valid"]):
                gold, best = int(np.argmax(same[row])), int(np.argmax(scores[row]))
                by_label = dict(zip(names, map(float, scores[row]), strict=True))
                yield Prediction(self._decode(inputs[row]), names[gold], names[best], by_label)

    def choose(self, params: Any, batches: Iterable[Rows]) -> Iterator[Prediction]:
        """Yield an encoder's examples with the likeliest tokens at predicted places and the likeliest answers.

        scores: the probability of each label, if the network chooses a label for the whole text.
        """
        experiment, objective, decode = self.experiment, self.objective, self._decode
        head = objective.answer_head
        labelled = head is not None and head.each == "example"

        @functools.partial(bind_mesh, self.mesh)
        @jax.jit
        def choose(params: Any, rows: Any, index: jax.Array) -> tuple[Batch, Any, Any]:
            keys = example_keys(validation_key(), index, len(jax.tree.leaves(rows)[0]))
            batch = make_batch(objective, keys, rows, experiment.vocabulary.table)
            outputs = experiment.model.apply({"params": params}, batch, method="outputs")
            chosen = jax.tree.map(lambda logits: jnp.argmax(logits, axis=-1), outputs)
            return batch, chosen, jax.nn.softmax(outputs[head.name]) if labelled else None

        def join_names(answers: Mapping[str, Any], true_answers: Mapping[str, Any], row: int) -> str:
            parts = (
                name_answers(head, answers[head][row], true_answers[head][row], objective.labels, decode)
                for head in list_heads(objective.heads)
            )
            return " | ".join(name for names in parts for name in names)

        for index, rows in enumerate(batches):
            placed = place_batch(rows, self.mesh)
            valid = gather(placed.pop("valid"))
            batch, chosen, probabilities = gather(choose(params, placed, jnp.int32(index)))
            true_answers = {VOCABULARY: np.where(batch.weights > 0, batch.targets, -1), **batch.answers}
            for row in np.flatnonzero(valid):
                inputs = decode(_remove_padding(batch.inputs, batch.inputs_segment_ids)[row])
                target, output = (join_names(answers, true_answers, row) for answers in (true_answers, chosen))
                scores = dict(zip(objective.labels, map(float, probabilities[row]), strict=True)) if labelled else {}
                yield Prediction(inputs, target, output, scores)

    def generate(self, params: Any, batches: Iterable[Rows], source: RowSource) -> Iterator[Prediction]:
        """Yield examples with greedy answers. A language model gets half of a window as input, and continues it.

        The target of a pair is its whole text, read from `source`, even if the row holds only a part of that text.
        """
        experiment = self.experiment
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
                true_answer = self._conventions.text_tokens(targets[row])
                target = decode(true_answer if pairs is None else source.target(int(pairs[row])))
                output = decode(self._conventions.text_tokens(answer))
                yield Prediction(decode(inputs[row]), target, output, score_text(self.text_metrics, [target], output))


def _remove_padding(tokens: np.ndarray, segment_ids: np.ndarray | None) -> list[np.ndarray]:
    """Return the tokens of each row of `tokens` [B, L] without padding."""
    return list(tokens) if segment_ids is None else [row[ids > 0] for row, ids in zip(tokens, segment_ids, strict=True)]


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

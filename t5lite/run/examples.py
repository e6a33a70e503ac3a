"""The examples of a training step as plain values, and statistics of the noise in many of them.

    for example in make_training_examples(experiment, step=0, count=100):
        as_json(example, experiment.objective)

Training sees the same examples: the same rows with the same noise.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.noise import Noise
from t5lite.objectives.objective import Expected, Member, Objective, example_keys, make_batch, make_examples
from t5lite.run.experiment import Experiment
from t5lite.tasks.table import TASKS
from t5lite.training.loss import count_tokens
from t5lite.training.step import noise_key


class TrainingExample(NamedTuple):
    """One example: its index in the run, its row, the example that the objective makes, and the model's inputs."""

    index: int
    row: dict[str, np.ndarray]
    objective_example: Example
    batch: Batch


def make_training_examples(experiment: Experiment, step: int, count: int) -> Iterator[TrainingExample]:
    """Yield `count` examples, as NumPy arrays, starting at the batch of `step` (0-based)."""
    config, objective = experiment.config, experiment.objective
    rows_of, table = experiment.train_rows(), experiment.vocabulary.table

    @jax.jit
    def make(rows: Any, step: jax.Array) -> tuple[Example, Batch]:
        keys = example_keys(noise_key(config.seed), step, config.batch_size)
        return make_examples(objective, keys, rows, table), make_batch(objective, keys, rows, table)

    for index in range(count):
        steps_later, place = divmod(index, config.batch_size)
        if place == 0:
            rows = rows_of(step + steps_later)
            examples_and_batch = jax.device_get(make(rows, jnp.int32(step + steps_later)))
        row, (example, batch) = jax.tree.map(lambda x: x[place], (rows, examples_and_batch))  # noqa: B023 - used at once
        yield TrainingExample((step + steps_later) * config.batch_size + place, row, example, batch)


def span_lengths(noise: Noise | None) -> list[int]:
    """Return the number of tokens in each span of noise, in order. At the end: a 0 for each span without tokens."""
    if noise is None:
        return []
    spans = np.cumsum(noise.starts)[np.asarray(noise.mask)]
    return [*np.bincount(spans)[1:].tolist(), *[0] * int(noise.inserts)]


def as_json(training_example: TrainingExample, objective: Objective) -> dict[str, Any]:
    """Return one example as plain values, without padding. A decoder's `inputs` are its `targets` shifted by one."""
    example, batch, row = training_example.objective_example, training_example.batch, training_example.row
    if batch.inputs is not None:
        inputs, inputs_ids = batch.inputs, batch.inputs_segment_ids
    else:
        inputs, inputs_ids = batch.decoder_inputs, batch.targets_segment_ids
    targets_ids = batch.targets_segment_ids if batch.decoder_inputs is not None else batch.inputs_segment_ids
    real = slice(None) if targets_ids is None else targets_ids > 0
    return {
        "index": training_example.index,
        "objective": objective.name,
        "member": None if example.member is None else objective.members[int(example.member)].name,
        "window": row["tokens"].tolist() if "tokens" in row else None,
        "inputs": (inputs if inputs_ids is None else inputs[inputs_ids > 0]).tolist(),
        "targets": batch.targets[real].tolist(),
        "weights": batch.weights[real].tolist(),
        "mask_rate": float(np.mean(example.noise.mask)) if example.noise is not None else None,
        "spans": span_lengths(example.noise),
        "answers": {TASKS[head].name: _existing_answers(answers) for head, answers in batch.answers.items()},
        "token_types": None if batch.token_types is None else batch.token_types.tolist(),
    }


def _existing_answers(answers: np.ndarray) -> float | int | list[int] | None:
    """Return the example's answer, or None without one. Of several answers, return those that are not -1."""
    if answers.ndim:
        return answers[answers >= 0].tolist()
    return None if np.isnan(answers) or (answers.dtype == np.int32 and answers < 0) else answers.item()


def measure_padding(batch: Batch) -> float:
    """Return the share of padding among all places of the batch, in inputs and targets together."""
    counts = count_tokens(batch)
    return 1 - float(counts["tokens"] / counts["places"])


@dataclasses.dataclass
class MeasuredNoise:
    """Statistics of the examples of an objective, or of a member of a mixture.

    mask_rates, padding, labels: one value for each example. spans: the length of each span.
    """

    name: str
    share: float
    expected: Expected
    mask_rates: list[float] = dataclasses.field(default_factory=list)
    spans: list[int] = dataclasses.field(default_factory=list)
    padding: list[float] = dataclasses.field(default_factory=list)
    labels: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, values: dict[str, Any], padding: float) -> None:
        """Add one example to the statistics. values: the result of `as_json`."""
        self.padding.append(padding)
        self.spans += values["spans"]
        if values["mask_rate"] is not None:
            self.mask_rates.append(values["mask_rate"])
        for name, answer in values["answers"].items():
            if isinstance(answer, int):
                self.labels.setdefault(name, []).append(answer)


def measure_noise(examples: Iterable[TrainingExample], objective: Objective) -> list[MeasuredNoise]:
    """Return the statistics of each member of a mixture, with its expected share. Without a mixture: a list of one."""
    members = objective.members or (Member(objective.name, 1.0, objective.expected),)
    by_member = collections.OrderedDict((member.name, MeasuredNoise(*member)) for member in members)
    for example in examples:
        values = as_json(example, objective)
        by_member[values["member"] or objective.name].add(values, measure_padding(example.batch))
    return list(by_member.values())

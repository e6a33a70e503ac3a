"""Compute metrics of parameters on held-out text.

All objectives have loss, perplexity and token accuracy. Language models also have bits per byte. The metrics of an
encoder's heads are in tasks/metrics.py. The last evaluation also uses the standards of `objectives/catalogue.py`, on
the same text. Pairs also have

    accuracy, macro_f1        if targets are a closed set: the known label with the best score is the answer; see
                              `eval.score_by`
    exact_match, rouge1, …    the greedily generated answer beside the whole target, on `eval.generate_rows` pairs. Of
                              several references, the best counts. If targets are a closed set, only exact_match

Tokens of targets, tags and entities that do not fit in a row count as missed.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from t5lite.config import flatten_fields, to_dict
from t5lite.data.chat.store import Conversations
from t5lite.data.closed_sets import Labels
from t5lite.data.cut import describe_share
from t5lite.data.dataset import TEST
from t5lite.data.labelled import TaggedSentences
from t5lite.data.questions import QuestionWindows
from t5lite.data.rows import PackedPairs, Rows, RowSource, evaluation_rows, space_evenly
from t5lite.objectives.objective import Objective
from t5lite.run.experiment import Experiment, open_run
from t5lite.run.predictions import Prediction, Predictor
from t5lite.run.released import read_run_config
from t5lite.system.errors import UserError
from t5lite.system.hosts import check_agreement, primary_first
from t5lite.system.progress import progress
from t5lite.tasks.intervals import Intervals, bootstrap_rows, bootstrap_sums, bootstrap_texts
from t5lite.tasks.label import LABEL
from t5lite.tasks.metrics import METRICS, Metrics, compute_metrics, compute_text_metrics, find_metric
from t5lite.tasks.table import TASKS, sum_key
from t5lite.tasks.task import calibration_sums, confusion
from t5lite.training.sharding import local_rows, make_mesh, place_batch, sharded_shapes
from t5lite.training.start import load_params
from t5lite.training.trainer import compile_eval_step

USUAL_ROWS = 256  # rows of a held-out set that are evaluated if `eval.rows` is unset, except for pairs after training


class Evaluator:
    """Evaluate parameters on the held-out sets of an experiment. The evaluation steps compile once.

    between_batches: called before each batch. To stop the evaluation, it raises.
    generates_in_training: whether `evaluate_in_training` generates answers. So early stopping and the best checkpoint
        can use a metric of generated answers.
    with_details: whether `evaluate_all` also fills `predictions` and `intervals`.
    predictions: {split: the answers to pairs that the metrics were computed from}.
    intervals: {split: {metric: (low, high)}}; see tasks/intervals.py.
    confusions: {split: matrix [C, C] of the last evaluation}: how often each label (rows) got each answer (columns).
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, between_batches: Callable[[], None] = lambda: None):
        self._between_batches = between_batches
        self.experiment, self.mesh, self.objective = experiment, mesh, experiment.evaluated
        self._predictor = Predictor(experiment, mesh)
        self.with_details = False
        self.predictions: dict[str, list[Prediction]] = {}
        self.intervals: dict[str, Intervals] = {}
        self.confusions: dict[str, np.ndarray] = {}
        self._sources = experiment.heldout_sources(self.objective)
        config = experiment.config
        steering = [config.early_stopping.metric, config.checkpoint.metric if config.checkpoint.keep_best else None]
        self.generates_in_training = any(
            name is not None and find_metric(name.rpartition("/")[2]).is_generated for name in steering
        )
        self._standards = {}
        for name, objective in experiment.standards.items():
            with contextlib.suppress(UserError):  # the held-out text may be shorter than one window of the standard
                self._standards[name] = objective, experiment.heldout_sources(objective)
        self._steps = {
            objective: compile_eval_step(experiment.model, objective, experiment.vocabulary.table, mesh)
            for objective in (self.objective, *experiment.standards.values())
        }

    @property
    def splits(self) -> list[str]:
        """The names of the held-out sets. Examples of these sets can be shown; standards have no examples."""
        return list(self._sources)

    @staticmethod
    def is_test(split: str) -> bool:
        """Return whether `split` is the test set, or a standard of the test set."""
        return split == TEST or split.startswith(f"{TEST}_")

    def evaluate_in_training(self, params: Any) -> dict[str, Metrics]:
        """Return {split: metrics} of the validation sets, on fewer rows than `evaluate_all`. The test set is not read.

        If targets are labels, the metrics include accuracy and macro F1. See also `generates_in_training`.
        """
        splits = [split for split in self._sources if split != TEST]
        return {split: self._evaluate(params, split, False, self.generates_in_training) for split in splits}

    def evaluate_all(self, params: Any) -> dict[str, Metrics]:
        """Return {split: metrics} of all held-out sets, and {split_standard: metrics}.

        The metrics include those of generated answers to pairs.
        """
        metrics = {split: self._evaluate(params, split, True, True) for split in self._sources}
        for name, (objective, sources) in self._standards.items():
            for split, source in sources.items():
                title = f"{split}_{name}"
                metrics[title] = self._compute_metrics(params, title, source, objective, True)
        return metrics

    def _evaluate(self, params: Any, split: str, is_last: bool, generates: bool) -> Metrics:
        """Return the metrics of a held-out set. is_last: whether training has ended, so more rows are evaluated."""
        metrics = self._compute_metrics(params, split, self._sources[split], self.objective, is_last)
        if self.objective.has_answers:
            if self._find_labels(split) is not None:
                metrics |= self._measure_accuracy(params, split, is_last)
            if generates and self.experiment.config.eval.generate_rows:
                metrics |= self._measure_texts(params, split)
        elif self._predictor.text_metrics(None):
            metrics |= self._measure_answers(params, split, is_last)
        elif self.with_details:
            self.intervals.setdefault(split, {}).update(self._bootstrap_rows(params, split, is_last))
        return metrics

    def _bootstrap_rows(self, params: Any, split: str, is_last: bool) -> Intervals:
        """Return the intervals of metrics that need the answers of each row; {} for other answers.

        The head answers a second time, because the evaluation step adds the answers of all rows.
        """
        head, source = self.objective.answer_head, self._sources[split]
        if head is None or TASKS[head.name].row_sums is None:
            return {}
        rows = self._iterate_rows(f"intervals of {split}", source, self._count_evaluated(source, is_last))
        positive = find_positive(self.experiment.config, self._find_labels(split))
        return bootstrap_rows(TASKS[head.name].metrics, self._predictor.sum_rows(params, rows), positive)

    def _count_evaluated(self, source: RowSource, is_last: bool = True) -> int:
        """Return how many rows of a held-out set are evaluated. is_last: whether training has ended."""
        rows = self.experiment.config.eval.rows
        if rows is None:
            rows = len(source) if is_last and self.objective.rows != "windows" else USUAL_ROWS
        return min(rows, len(source))

    def count_rows(self) -> dict[str, dict[str, int]]:
        """Count rows after training.

        Returns {split: {"used": rows evaluated, "of": rows in the set, "generated": rows with generated answers}}.
        """
        fields = self.experiment.config.eval
        sources = dict(self._sources)
        for name, (_, standard_sources) in self._standards.items():
            sources |= {f"{split}_{name}": source for split, source in standard_sources.items()}
        # A source may choose a few rows more or less than asked, to keep the windows of a question together.
        used = {split: len(each.choose(self._count_evaluated(each))) for split, each in sources.items()}
        counts = {split: {"used": used[split], "of": len(each)} for split, each in sources.items()}
        if self.objective.has_answers and fields.generate_rows:
            for split, source in self._sources.items():
                counts[split]["generated"] = min(fields.generate_rows, len(source))
        return counts

    def describe_classes(self) -> dict[str, dict[str, Any]]:
        """Return {split: {"labels": names, "confusion": rows of the confusion matrix}} of the last evaluation."""
        return {
            split: {"labels": list(self._find_labels(split) or ()), "confusion": matrix.round().astype(int).tolist()}
            for split, matrix in self.confusions.items()
        }

    @property
    def score_by(self) -> str | None:
        """How labels are compared (`eval.score_by`); None if no decoder chooses among labels."""
        chooses = self.objective.rows == "pairs" and any(map(self._find_labels, self._sources))
        return self.experiment.config.eval.score_by if chooses else None

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

    def _compute_metrics(
        self, params: Any, split: str, source: RowSource, objective: Objective, is_last: bool
    ) -> Metrics:
        total: dict[str, Any] = {}
        count = self._count_evaluated(source, is_last)
        for index, rows in enumerate(self._iterate_rows(f"evaluating on {split}", source, count)):
            sums = self._steps[objective](params, place_batch(rows, self.mesh), jnp.int32(index))
            total = {name: total.get(name, 0.0) + value for name, value in sums.items()}
        total = {name: np.asarray(value, np.float64) for name, value in jax.device_get(total).items()}
        if "bytes" in total:
            total["bytes"] *= source.byte_scale
        for name, value in self._count_missed(source, count).items():
            total[name] = total.get(name, 0.0) + value
        if (head := objective.answer_head) is not None and TASKS[head.name].has_labels:
            positive = find_positive(self.experiment.config, self._find_labels(split))
            total |= {sum_key(head.name, name): value for name, value in positive.items()}
        metrics = compute_metrics(total)
        self._note_classes(split, total)
        return {name: float(value) for name, value in metrics.items()}

    def _count_missed(self, source: RowSource, count: int) -> dict[str, Any]:
        """Return the sums for tokens that were cut off the `count` evaluated rows. A model cannot predict them."""
        indices = space_evenly(len(source), count)
        if isinstance(source, TaggedSentences):
            head = self.objective.answer_head.name
            missed = TASKS[head].sum_missed(source.find_cut_tags(indices), source.facts.labels)
            return {sum_key(head, name): value for name, value in missed.items()}
        has_targets = isinstance(source, PackedPairs | Conversations)
        return {"lost": source.count_lost_target_tokens(indices)} if has_targets else {}

    def _measure_accuracy(self, params: Any, split: str, is_last: bool) -> Metrics:
        """Return accuracy, macro F1 and so on, if the label with the best score by `eval.score_by` is the answer."""
        source, labels = self._sources[split], self._find_labels(split)
        rows = self._iterate_rows(f"scoring labels of {split}", source, self._count_evaluated(source, is_last))
        predictions = list(self._keep(split, self._predictor.choose_labels(params, rows, labels)))
        gold = np.array([labels.index(each.target) for each in predictions])
        logits = np.array([[each.scores[label] for label in labels] for each in predictions], np.float32)
        weights = np.ones(len(gold), np.float32)
        sums = {"confusion": confusion(logits, gold, weights), **calibration_sums(logits, gold, weights)}
        sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
        sums |= find_positive(self.experiment.config, labels)
        self._note_classes(split, {sum_key(LABEL.head, name): value for name, value in sums.items()})
        return {name: METRICS[name].compute(sums) for name in LABEL.metrics if METRICS[name].needs in sums}

    def _note_classes(self, split: str, sums: Mapping[str, Any]) -> None:
        """Note the confusion matrix in `sums` in `confusions`, and its intervals if `with_details`."""
        for head, task in TASKS.items():
            if task.has_labels and (matrix := sums.get(sum_key(head, "confusion"))) is not None:
                self.confusions[split] = matrix
        if self.with_details:
            self.intervals.setdefault(split, {}).update(bootstrap_sums(sums))

    def _measure_texts(self, params: Any, split: str) -> Metrics:
        """Return the metrics of the generated answers to `eval.generate_rows` pairs."""
        source, labels = self._sources[split], self._find_labels(split)
        rows = self._iterate_rows(f"generating on {split}", source, self.experiment.config.eval.generate_rows)
        generated = self._predictor.generate(params, rows, source, labels)
        # The answers to pairs with labels are kept by `_measure_accuracy`.
        return self._compare_texts(split, list(generated if labels is not None else self._keep(split, generated)))

    def _find_labels(self, split: str) -> Labels:
        return self.experiment.dataset.find_split_labels(split)

    def _measure_answers(self, params: Any, split: str, is_last: bool) -> Metrics:
        """Return the metrics that compare the answers of a head with the targets as texts."""
        source = self._sources[split]
        rows = self._iterate_rows(f"answering {split}", source, self._count_evaluated(source, is_last))
        return self._compare_texts(split, list(self._keep(split, self._choose(params, rows, source))))

    def _choose(self, params: Any, rows: Iterable[Rows], source: RowSource) -> Iterator[Prediction]:
        """Yield the answers of heads to `rows` of `source`."""
        if isinstance(source, QuestionWindows):
            return self._predictor.choose_spans(params, rows, source)
        return self._predictor.choose(params, rows)

    def _compare_texts(self, split: str, answered: list[Prediction]) -> Metrics:
        texts = (
            self._predictor.text_metrics(self._find_labels(split)),
            [each.scores for each in answered],
            [each.references for each in answered],
            [each.output for each in answered],
        )
        if self.with_details:
            self.intervals.setdefault(split, {}).update(bootstrap_texts(*texts))
        return compute_text_metrics(*texts)

    def _keep(self, split: str, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield `predictions`, and keep them in `predictions` if this is asked for."""
        self.predictions[split] = []
        for each in predictions:
            if self.with_details:
                self.predictions[split].append(each)
            yield each

    def read_predictions(self, params: Any) -> dict[str, list[Prediction]]:
        """Return {split: the answers of the last `evaluate_all`}. The heads of an encoder answer again."""
        if self.objective.has_answers:
            return self.predictions
        counts = {split: self._count_evaluated(source) for split, source in self._sources.items()}
        return {split: list(self.examples(params, split, count)) for split, count in counts.items()}

    def examples(self, params: Any, split: str, count: int) -> Iterator[Prediction]:
        """Yield `count` held-out examples, evenly spaced, with the model's answers."""
        source = self._sources[split]
        rows = self._iterate_rows(f"{split}: examples", source, count)
        if self.objective.architecture == "encoder" or self.objective.rows == "answers":
            return self._choose(params, rows, source)
        return self._predictor.generate(params, rows, source, self._find_labels(split))


def find_positive(config: ConfigDict, labels: Labels) -> dict[str, np.ndarray]:
    """Return {"positive": the index of `eval.positive_label` among the labels}; {} if it is not among them."""
    label = config.eval.positive_label
    return {"positive": np.float64(labels.index(label))} if label in (labels or ()) else {}


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

"""An experiment: the tokenizer, objective, model and rows that a config describes.

    experiment = open_experiment(config)
    experiment.objective, experiment.model, experiment.train_rows(), experiment.dataset

This module joins data, objectives and model. The verbs build on this module.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from t5lite.checks import FACTOR, check, require_training_data
from t5lite.config import require
from t5lite.data.chat.store import ChatPairs, Conversations, plan_conversations
from t5lite.data.closed_sets import check_positive_label
from t5lite.data.cut import Cut, describe_cut
from t5lite.data.dataset import Dataset, open_dataset, open_heldout
from t5lite.data.kinds import KINDS
from t5lite.data.labelled import Facts, LabelSets, check_labels, label_ids, pack_texts
from t5lite.data.mixing import Drawn, Share, compute_shares, count_examples
from t5lite.data.packing import choose_pairs, pair_plan
from t5lite.data.references import References
from t5lite.data.rows import PackedPairs, RowSource, TrainRows, Windows
from t5lite.data.store import Span
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.decoding.conventions import Conventions, make_conventions
from t5lite.decoding.score import SCORE_BY
from t5lite.interop.released import is_released
from t5lite.model.build import make_model
from t5lite.model.transformer import Transformer
from t5lite.objectives.catalogue import check_architecture, make_standards
from t5lite.objectives.objective import Objective
from t5lite.run.chat_template import keep_template, list_specials
from t5lite.run.inherit import check_tokenizer, open_given_tokenizer, with_inherited_shape
from t5lite.run.packed import fit_rows_to_data
from t5lite.run.released import find_labels, find_scale, fit_tokenizer
from t5lite.system.errors import UserError, nearest
from t5lite.system.progress import say
from t5lite.system.vocabulary import Rules, Vocabulary
from t5lite.tasks.table import find_data, find_task, make_evaluation_objective, make_objective
from t5lite.tasks.task import Reading
from t5lite.tasks.text import TEXT
from t5lite.training.budget import convert_budget, convert_minutes, measure_step_seconds
from t5lite.training.loss import check_loss
from t5lite.training.sharding import local_rows, place_batch
from t5lite.training.trainer import count_step_flops, make_trainer
from t5lite.training.workdir import read_member_labels

REFERENCES_ARE_USED = "training and losses take the first, metrics of generated answers take the best of all"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config, and what it describes: dataset, objectives and model.

    evaluated: the objective for evaluation, which may read other rows than training.
    standards: {name: objective} for comparisons with runs of other objectives.
    """

    config: ConfigDict
    dataset: Dataset
    objective: Objective
    evaluated: Objective
    standards: dict[str, Objective]
    model: Transformer

    @property
    def vocabulary(self) -> Vocabulary:
        return self.dataset.tokenizer.vocabulary

    @functools.cached_property
    def conventions(self) -> Conventions:
        """The tokens that stand around a question and an answer in evaluation."""
        tokenizer = self.dataset.tokenizer
        return make_conventions(self.evaluated, tokenizer.vocabulary, tokenizer.begins_with_start, tokenizer.rules)

    @property
    def data(self) -> str:
        """The kind of data that the run reads, a key of `data.kinds.KINDS`."""
        return find_data(self.config.objective, self.config.model.architecture)

    @property
    def reading(self) -> Reading:
        """What is needed to write answers as text."""
        return Reading(self.dataset.labels or (), self.dataset.scale, self.dataset.tokenizer.decode)

    def train_rows(self, places: Sequence[int] | None = None) -> TrainRows:
        """Return the rows of each step. places: the indices in a batch of the rows that this host reads; None: all."""
        sources, config = self._train_sources, self.config
        shares = compute_shares(sources, self.dataset.weights, config.data.train).values()
        members = [(source, share.weight) for source, share in zip(sources.values(), shares, strict=True)]
        return TrainRows(members, config.batch_size, config.seed, places)

    @functools.cached_property
    def _train_sources(self) -> dict[str, RowSource]:
        """The rows of each training member."""
        has_head, max_texts = self.objective.rows == "answers", self.objective.max_texts
        packed = max_texts > 1 if has_head else self.config.objective.pack
        return {
            name: self._make_source(span, self.objective, packed, limited=True)
            for name, span in self.dataset.train.items()
        }

    def compute_shares(self) -> dict[str, Share]:
        """Return the share of each member in the training mixture. Without a mixture: {}."""
        sources = self._train_sources
        return compute_shares(sources, self.dataset.weights, self.config.data.train) if len(sources) > 1 else {}

    def count_drawn(self, step: int, count: int) -> dict[str, Drawn]:
        """Return what each member brings to the first `count` rows from `step` on."""
        names, rows = list(self._train_sources), self.train_rows()
        places = itertools.islice((place for later in itertools.count(step) for place in rows.locate(later)), count)
        drawn = dict.fromkeys(names, Drawn(0, 0))
        for member, row in places:
            name, found = names[member], count_examples(rows.members[member], [row])
            drawn[name] = Drawn(drawn[name].rows + 1, drawn[name].examples + found)
        return drawn

    def count_steps_per_epoch(self) -> float:
        """Return the number of steps in which the batches have as many rows as all training sources together."""
        return sum(map(len, self.train_rows().members)) / self.config.batch_size

    def heldout_sources(self, objective: Objective) -> dict[str, RowSource]:
        """Return the rows of each held-out set for `objective`. Pairs are not packed, so metrics count pairs."""
        heldout = self.dataset.heldout
        sources = {
            name: self._make_source(span, objective, packed=False, for_evaluation=True)
            for name, span in heldout.items()
        }
        for name, source in sources.items():
            if len(source) == 0:
                raise UserError(f"data.{name}: the held-out text is shorter than one row; give more held-out text")
        return sources

    def _pair_sources(self) -> dict[str, RowSource]:
        """Return {split: rows} of training data, unpacked, and of each held-out set. Windows are no pairs: {}."""
        if self.objective.rows == "windows":
            return {}
        spans = self.dataset.train
        train = {
            "train" if len(spans) == 1 else f"train_{name}": self._make_source(
                span, self.objective, False, limited=True
            )
            for name, span in spans.items()
        }
        return train | self.heldout_sources(self.evaluated)

    def count_cut(self) -> dict[str, Cut]:
        """Return {split: counts of cut texts}, for training data and each held-out set. Windows cut nothing: {}."""
        return {name: source.count_cut() for name, source in self._pair_sources().items()}

    def count_labels(self) -> dict[str, dict[str, int]]:
        """Return {split: {label: number of pairs}}, for training data and each held-out set. {} without labels."""
        if self.data == "tags" or not (self.dataset.labels or any(self.dataset.member_labels.values())):
            return {}
        counts = {}
        for name, source in self._pair_sources().items():
            labels = self.dataset.find_split_labels(name)
            if labels is None:
                continue
            if isinstance(source, LabelSets):
                sums = source.fetch_answers(np.arange(len(source))).sum(axis=0)
                counts[name] = dict(zip(labels, sums.tolist(), strict=True))
                continue
            numbers = label_ids(self.dataset.tokenizer, labels)
            order = source.plan.order if isinstance(source, PackedPairs) else source.order
            targets = (source.store.document(2 * int(pair) + 1).astype(np.int32) for pair in order)
            found = Counter(numbers.get(target.tobytes()) for target in targets)
            counts[name] = {label: found[number] for number, label in enumerate(labels)}
        return counts

    def choose_class_weights(self) -> tuple[float, ...] | None:
        """Return the weight of each label in the loss of a head; None: all weights are 1.

        Balanced weights are n / (labels · n of the label), so their mean over the training data is 1.
        """
        fields, labels = self.config.loss, self.dataset.labels or ()
        if not fields.balance_classes and fields.class_weights is None:
            return None
        name = "balance_classes" if fields.balance_classes else "class_weights"
        no_head = "needs a head that chooses labels; set config.objective.answer to label, labels or tags, or unset it"
        require(self.objective.answer_head is not None and bool(labels), f"loss.{name}", no_head)
        if fields.balance_classes:
            counts = self._count_training_labels()
            return tuple(sum(counts.values()) / (len(labels) * max(counts[label], 1)) for label in labels)
        given = {}
        for row in fields.class_weights:
            is_pair = isinstance(row, tuple | list) and len(row) == 2
            require(is_pair, "loss.class_weights", f"{row!r} is not a pair (label, weight); correct it")
            label, weight = row
            require(label in labels, "loss.class_weights", f"unknown label {label!r}; {nearest(str(label), labels)}")
            is_weight = isinstance(weight, int | float) and 0 < weight < FACTOR
            require(is_weight, "loss.class_weights", f"the weight of {label!r} is {weight!r}; give a number above 0")
            given[label] = float(weight)
        return tuple(given.get(label, 1.0) for label in labels)

    def _count_training_labels(self) -> Counter[str]:
        """Return the number of training pairs of each label, or of all words with each tag, held-out ones included."""
        if counts := self.count_labels():
            return sum((Counter(counts[name]) for name in counts.keys() - self.dataset.heldout.keys()), Counter())
        return sum((Counter(span.store.card["labels"]) for span in self.dataset.train.values()), Counter())

    def cut_notes(self) -> list[str]:
        """Return a sentence for each split with cut texts. The sentence names the limit to raise."""
        notes = {name: describe_cut(cut, self.config.objective) for name, cut in self.count_cut().items()}
        return [f"{name}: {note}" for name, note in notes.items() if note is not None]

    def describe_references(self) -> str | None:
        """Return a sentence if pairs have several references; else None."""
        counts = self.dataset.references
        if not counts:
            return None
        shares = (f"{count:,} of {self.dataset.rows[name]:,} rows of {name}" for name, count in counts.items())
        return f"several references in {', '.join(shares)}: {REFERENCES_ARE_USED}"

    def report_rows(self) -> dict[str, Any]:
        """Return {"rows": the rows of each source}, with {"references": their number and use} if rows have several."""
        rows, counts = {"rows": self.dataset.rows}, self.dataset.references
        return rows | {"references": {"rows": counts, "use": REFERENCES_ARE_USED}} if counts else rows

    def _make_source(
        self, span: Span, objective: Objective, packed: bool, limited: bool = False, for_evaluation: bool = False
    ) -> RowSource:
        if objective.rows == "windows":
            return Windows(
                span,
                objective.window,
                objective.with_eos,
                objective.segments,
                objective.second_window,
                begins=for_evaluation and objective.predicts_text,
            )
        train, seed, documents = self.config.data.train, self.config.seed, KINDS[self.data].documents
        limits = {"limit": train.limit, "per_label": train.limit_per_label} if limited else {}
        sides = (objective.inputs_length, objective.targets_length)
        if objective.rows == "conversations":
            return Conversations(
                span.store, plan_conversations(span.store, sides[1], packed, limits.get("limit"), seed)
            )
        if objective.rows == "pairs":
            cut = (self.evaluated.inputs_length, self.evaluated.targets_length)
            plan = pair_plan(span.store, *cut, packed, seed=seed, bos=objective.bos, sides=sides, **limits)
            kind = PackedPairs if self.dataset.chat is None else ChatPairs
            more = References(span.store) if for_evaluation else None
            return kind(span.store, plan, objective.bos, for_evaluation, more)
        order = np.arange(span.store.num_documents // documents)
        if any(limit is not None for limit in limits.values()):
            order = choose_pairs(span.store, *limits.values(), seed, documents)
        facts = Facts(objective.labels, label_ids(self.dataset.tokenizer, objective.labels), self.dataset.scale,
                      for_evaluation)  # fmt: skip
        texts = KINDS[self.data].make_rows(span.store, order, objective.window, objective.front_length, facts)
        return pack_texts(texts, objective.front, objective.max_texts, seed) if packed else texts


def open_experiment(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> Experiment:
    """Return the experiment of `config`. Build the tokenizer and the token stores that the cache lacks.

    Args:
        workdir: the workdir of a run that has begun. Its tokenizer is then used, not the tokenizer of `init_from`.
        given: the fields that the command line has set.
    """
    experiment = _open(config, workdir, given)
    _check_limits(experiment)
    check_loss(config.loss, experiment.model.config)
    tokenizer = experiment.dataset.tokenizer
    tokenizer.begins_with_start = True  # training puts the start token first, also with a released tokenizer
    rules, vocabulary, objective = tokenizer.rules or Rules(), tokenizer.vocabulary, experiment.objective
    in_targets = objective.allowed_ids(vocabulary)
    dropped = {*rules.never, *rules.never_first, *rules.stops} - {vocabulary.eos}
    if in_targets[list(dropped)].any():
        say("note: targets of this run may hold tokens that the release suppresses or treats as the end of an answer; "
            "this run allows these tokens")  # fmt: skip
    continues = config.init_from is not None and objective.architecture == "encoder_decoder"
    tokenizer.rules = rules.adapt_to_training(in_targets, objective.bos, continues)
    return experiment


def _check_limits(experiment: Experiment) -> None:
    """Raise UserError for a limit of pairs that has no meaning for the objective's rows."""
    train, objective = experiment.config.data.train, experiment.objective
    for name in ("limit", "limit_per_label"):
        no_pairs = f"counts pairs, but {objective.name} reads windows of text; leave it unset"
        require(train[name] is None or objective.rows != "windows", f"data.train.{name}", no_pairs)
    has_labels = experiment.dataset.labels is not None and experiment.data == "pairs"
    no_labels = "the targets are no closed set of labels; set config.data.train.limit, or config.data.labels=True"
    require(train.limit_per_label is None or has_labels, "data.train.limit_per_label", no_labels)


def _open(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> Experiment:
    config = _resolve(config, workdir, given)
    require_training_data(config)
    tokenizer = open_given_tokenizer(config, workdir)
    if tokenizer is not None and "tokenizer.sentinels" in given:
        asked, present = config.tokenizer.sentinels, tokenizer.vocabulary.sentinels
        require(
            asked == present, f"tokenizer.sentinels={asked}", f"the tokenizer has {present} sentinels; leave it out"
        )
    if config.init_from is not None and workdir is None:
        check_tokenizer(config, tokenizer)
    task = find_task(config.objective, config.model.architecture)
    needs_labels = task.has_labels and config.objective.answer is not None
    require(not needs_labels or config.data.labels is not False, "data.labels",
            f"is False, but objective.answer={task.name} needs labels; unset one of them")  # fmt: skip
    kind, learned_by = find_data(config.objective, config.model.architecture), workdir or config.init_from
    # A head for numbers goes on with the scale that it has learned.
    scale = find_scale(learned_by) if kind == "numbers" and learned_by is not None else None
    return _assemble(config, open_dataset(config, kind, tokenizer, scale, needs_labels, has_member_labels=task is TEXT))


def open_run(config: ConfigDict, place: str | Path) -> Experiment:
    """Return the experiment to read a run in a workdir, or the released weights of `hf:DIR`, without training.

    The tokenizer is the run's. Training data is opened only if the held-out text is taken from it.
    """
    workdir = None if is_released(place) else Path(place)
    config = _resolve(config, workdir)
    config.tokenizer.path, config.tokenizer.chat_template, config.init_from = None, None, None
    sources = (config.data.validation.source, config.data.test.source)
    if workdir is None and sources == (None, None):
        raise UserError(f"config.data.validation.source is not set, and {place} holds no text; set the field")
    if workdir is not None and config.data.validation.source is None:
        return _open(config, workdir)
    tokenizer = load_tokenizer(str(place), config.tokenizer.sentinels, config.tokenizer.specials)
    tokenizer = fit_tokenizer(place, tokenizer, config.model.vocab_size)
    kind = find_data(config.objective, config.model.architecture)
    has_free_targets = config.data.labels is False and not KINDS[kind].has_labels
    labels = None if has_free_targets else find_labels(place)
    member_labels = {} if has_free_targets or workdir is None else read_member_labels(workdir)
    return _assemble(config, open_heldout(config, kind, tokenizer, labels, find_scale(place), member_labels))


def _resolve(config: ConfigDict, workdir: Path | None, given: Collection[str] = ()) -> ConfigDict:
    """Return a copy of `config` with its special tokens and the inherited shape, checked before any data is read.

    Args:
        workdir: the workdir of the run. If the run has begun, the shape is read from the workdir.
    """
    check(config)
    check_architecture(config.objective, config.model.architecture)
    config = with_inherited_shape(config, workdir, given)
    config = config.copy_and_resolve_references()
    config.tokenizer.specials = list_specials(config)
    return config


@functools.lru_cache(32)
def _make_functions(
    objective_config: FrozenConfigDict,
    model_config: FrozenConfigDict,
    vocabulary: Vocabulary,
    labels: tuple[str, ...] | None,
) -> tuple[Objective, Objective, dict[str, Objective], Transformer]:
    """Return the fields objective, evaluated, standards and model of an experiment.

    Equal arguments give the same objects, so that their functions are not compiled twice.
    """
    objective, evaluated = (
        make(objective_config, model_config.architecture, vocabulary, labels)
        for make in (make_objective, make_evaluation_objective)
    )
    standards = make_standards(objective_config, objective, vocabulary)
    return objective, evaluated, standards, make_model(model_config, vocabulary, objective.heads)


def _assemble(config: ConfigDict, dataset: Dataset) -> Experiment:
    parts = FrozenConfigDict(config.objective), FrozenConfigDict(config.model)
    objective, evaluated, standards, model = _make_functions(*parts, dataset.tokenizer.vocabulary, dataset.labels)
    objective, dataset = fit_rows_to_data(config, dataset, objective)
    if dataset.chat is not None:
        keep_template(dataset.chat, objective.architecture)
    is_text, has_labels = evaluated.rows == "pairs", False
    if find_data(config.objective, config.model.architecture) == "pairs":
        front = int(evaluated.bos is not None)
        # Labels of one task must differ. Labels of two tasks may be equal.
        for labels in {dataset.find_split_labels(split) for split in dataset.heldout} - {None}:
            check_labels(dataset.tokenizer, labels, evaluated.targets_length if is_text else None, front)
            has_labels = True
    _check_score_by(config.eval.score_by, is_text and has_labels)
    check_positive_label(config.eval.positive_label, map(dataset.find_split_labels, dataset.heldout))
    return Experiment(config, dataset, objective, evaluated, standards, model)


def _check_score_by(score_by: str, scores_labels: bool) -> None:
    """Raise UserError for an unknown name, and for a name without effect."""
    require(score_by in SCORE_BY, "eval.score_by", f"{score_by!r} is unknown; {nearest(score_by, SCORE_BY)}")
    no_labels = "this model does not write labels of a closed set; leave it unset"
    require(score_by == "sum" or scores_labels, f"eval.score_by={score_by}", no_labels)


def total_steps(experiment: Experiment, workdir: Path) -> int:
    """Return the run's budget in steps. A budget in minutes is converted once. `workdir` keeps the number of steps."""
    config, objective = experiment.config, experiment.objective
    tokens = config.batch_size * sum(objective.lengths)
    flops = count_step_flops(config, experiment.model, experiment.objective)
    steps = convert_budget(config.budget, experiment.count_steps_per_epoch, tokens, flops)
    if steps is not None:
        return steps

    def measure() -> float:
        # The time of a step does not depend on the schedule, so the number of steps does not matter.
        probe = make_trainer(config, experiment.model, objective, experiment.vocabulary.table, 10**9)
        rows = experiment.train_rows(local_rows(config.batch_size, probe.mesh))(0)
        return measure_step_seconds(probe.step, probe.init(), place_batch(rows, probe.mesh))

    return convert_minutes(config.budget.minutes, workdir, measure)

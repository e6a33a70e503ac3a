"""What a config denotes: its tokenizer, objective, model and rows, put together from data, objectives and model.

    experiment = open_experiment(config)
    experiment.objective, experiment.model, experiment.train_rows(), experiment.validation_sources()

Verbs stand on this module; the nouns below do not know each other's neighbours.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import check, load_json
from t5lite.data.dataset import Dataset, open_dataset, open_validation, pair_plan
from t5lite.data.rows import PackedPairs, RowSource, TrainRows, Windows
from t5lite.data.store import Span
from t5lite.data.tokenizer import load_tokenizer
from t5lite.errors import UserError
from t5lite.model.build import make_model
from t5lite.model.transformer import Transformer
from t5lite.objectives.catalogue import make_objective, special_tokens
from t5lite.objectives.objective import Objective
from t5lite.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with its data opened."""

    config: ConfigDict
    dataset: Dataset
    objective: Objective
    model: Transformer

    @property
    def vocabulary(self) -> Vocabulary:
        return self.dataset.tokenizer.vocabulary

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of an example on the encoder's side and on the decoder's."""
        return self.objective.lengths

    def train_rows(self, places: Sequence[int] | None = None) -> TrainRows:
        """The rows of each step; `places`: those of a batch that this host reads, None for all."""
        config, fields = self.config, self.config.objective
        limit = config.data.train.limit
        members = [
            (self._source(span, packed=fields.pack, limit=limit), self.dataset.weights[name])
            for name, span in self.dataset.train.items()
        ]
        return TrainRows(members, config.batch_size, config.seed, places)

    def validation_sources(self) -> dict[str, RowSource]:
        """The row source of each held-out set; pairs stand one to a row, so that metrics are by pair."""
        sources = {name: self._source(span, packed=False) for name, span in self.dataset.validation.items()}
        for name, source in sources.items():
            if len(source) == 0:
                raise UserError(f"data.{name}: the held-out text is shorter than one row; give more of it")
        return sources

    def _source(self, span: Span, packed: bool, limit: int | None = None) -> RowSource:
        objective = self.objective
        if objective.rows == "pairs":
            lengths = (objective.inputs_length, objective.targets_length)
            plan = pair_plan(span.store, *lengths, packed, limit, self.config.seed)
            return PackedPairs(span.store, plan)
        return Windows(span, objective.window, objective.with_eos, objective.segments)


def open_experiment(config: ConfigDict, own: Path | None = None) -> Experiment:
    """Open what `config` denotes, building tokenizer and token stores where the cache lacks them.

    own: the workdir of a run that has begun; its tokenizer takes the place of that of `init_from`.
    """
    config = _resolved(config)
    given = own or (Path(config.init_from) if config.init_from else None)
    dataset = open_dataset(config, _supervised(config), given)
    if given is not None and own is None:
        _check_tokenizer(dataset, given)
    return _put_together(config, dataset)


def open_run(config: ConfigDict, workdir: Path) -> Experiment:
    """The experiment of the run in `workdir`, for reading: its own tokenizer, and training data only if need be."""
    config = _resolved(config)
    config.tokenizer.path, config.init_from = str(workdir), None
    if config.data.validation.source is None:
        return open_experiment(config)
    tokenizer = load_tokenizer(str(workdir), 0, ())
    labels = None
    if config.data.labels is not False:
        labels = json.loads((workdir / "provenance.json").read_text())["labels"]
    return _put_together(config, open_validation(config, _supervised(config), tokenizer, labels))


def _resolved(config: ConfigDict) -> ConfigDict:
    """A copy with the special tokens named. What no run can have is refused before any data is read."""
    check(config)
    config = config.copy_and_resolve_references()
    config.tokenizer.specials = special_tokens(config.tokenizer, config.objective)
    return config


def _supervised(config: ConfigDict) -> bool:
    """Whether the data are pairs."""
    return config.objective.name == "supervised"


def _put_together(config: ConfigDict, dataset: Dataset) -> Experiment:
    vocabulary = dataset.tokenizer.vocabulary
    objective = make_objective(config.objective, config.model.architecture, vocabulary)
    return Experiment(config, dataset, objective, make_model(config.model, vocabulary))


def _check_tokenizer(dataset: Dataset, given: Path) -> None:
    load_json(given / "config.json")  # a workdir, or the error that says it is none
    if load_tokenizer(str(given), 0, ()).sha256 != dataset.tokenizer.sha256:
        raise UserError(
            f"the tokenizer differs from that of init_from={given}, so its parameters would mean nothing; "
            "leave config.tokenizer.path unset to use its own"
        )

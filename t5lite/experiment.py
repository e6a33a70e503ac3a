"""What a config denotes: its tokenizer, objective, model and rows, put together from data, objectives and model.

    experiment = open_experiment(config)
    experiment.objective, experiment.model, experiment.train_rows(), experiment.evaluation_rows()

Verbs stand on this module; the nouns below do not know each other's neighbours.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import load_json, require
from t5lite.data.dataset import Dataset, open_dataset, pair_plan
from t5lite.data.rows import PackedPairs, Rows, RowSource, TrainRows, Windows, evaluation_rows
from t5lite.data.store import Span
from t5lite.data.tokenizer import load_tokenizer
from t5lite.errors import UserError
from t5lite.model.config import VOCAB_MULTIPLE, ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import OBJECTIVES, Objective, make_objective
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

    def evaluation_rows(self) -> dict[str, Callable[[], Iterator[Rows]]]:
        """For each held-out set, a function that gives its batches from the start."""
        fields, batch_size = self.config.eval, self.evaluation_batch_size
        return {
            name: functools.partial(evaluation_rows, source, fields.rows, batch_size)
            for name, source in self.validation_sources().items()
        }

    @property
    def evaluation_batch_size(self) -> int:
        return self.config.eval.batch_size or self.config.batch_size

    def _source(self, span: Span, packed: bool, limit: int | None = None) -> RowSource:
        objective = self.objective
        if objective.rows == "pairs":
            lengths = (objective.inputs_length, objective.targets_length)
            plan = pair_plan(span.store, *lengths, packed, limit, self.config.seed)
            return PackedPairs(span.store, plan)
        return Windows(span, objective.window, objective.with_eos, objective.segments)


def open_experiment(config: ConfigDict) -> Experiment:
    """Open what `config` denotes, building tokenizer and token stores where the cache lacks them."""
    name = config.objective.name
    supervised = name == "supervised"
    require(name in OBJECTIVES, "objective.name", f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
    given = Path(config.init_from) if config.init_from else None
    dataset = open_dataset(config, supervised, given)
    if given is not None:
        _check_tokenizer(dataset, given)
    vocabulary = dataset.tokenizer.vocabulary
    objective = make_objective(config.objective, config.model.architecture, vocabulary)
    return Experiment(config, dataset, objective, make_model(config, vocabulary))


def _check_tokenizer(dataset: Dataset, given: Path) -> None:
    load_json(given / "config.json")  # a workdir, or the error that says it is none
    if load_tokenizer(str(given), 0, ()).sha256 != dataset.tokenizer.sha256:
        raise UserError(
            f"the tokenizer differs from that of init_from={given}, so its parameters would mean nothing; "
            "leave config.tokenizer.path unset to use its own"
        )


def make_model(config: ConfigDict, vocabulary: Vocabulary) -> Transformer:
    """The model of `config`. Its embedding has a row for every id of `vocabulary`, to a multiple of 128."""
    fields = dict(config.model)
    architecture = fields.pop("architecture")
    known = ("encoder_decoder", "decoder", "encoder")
    require(architecture in known, "model.architecture", f"{architecture!r} is none of {', '.join(known)}")
    if architecture == "decoder":
        fields["num_encoder_layers"] = 0
    elif architecture == "encoder":
        fields["num_decoder_layers"] = 0
    fields["positions"] = fields["positions"] or ("rotary" if architecture == "decoder" else "relative_bias")
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids",
    )
    return Transformer(ModelConfig(**fields))

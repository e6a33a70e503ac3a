"""Released weights in the place of a run: `hf:DIR` wherever a workdir is read, and as `init_from` of a run's config.

config_of("runs/tiny")        what the run left as config.json
config_of("hf:t5-small")      what a run that ended with these weights might have had
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import BAG_OF_WORDS, base_config, load_json
from t5lite.data.text_tokenizer import TextTokenizer
from t5lite.data.tokenizer import load_tokenizer
from t5lite.errors import UserError
from t5lite.interop.released import Released, folder_of, is_released, open_released
from t5lite.model.build import make_model
from t5lite.model.transformer import Transformer
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.objective import Objective, TooFewSentinels
from t5lite.training.workdir import read_labels
from t5lite.vocabulary import Vocabulary

SENTINELS_OF_T5 = 100
LENGTH, SHORTEST = 512, 16


def config_of(place: str | Path) -> ConfigDict:
    """The config of the run in a workdir, or one for the released weights of `hf:DIR`, without any data.

    UserError where there is no network to open: a bag of words.
    """
    if not is_released(place):
        config = load_json(Path(place) / "config.json")
        if config.model.architecture == BAG_OF_WORDS:
            raise UserError(f"{place} is a bag of words, and left no network: its metrics are in its result.json, "
                            "where compare finds them")  # fmt: skip
        return config
    released, config = open_released(folder_of(place)), base_config()
    config.name = folder_of(place).resolve().name
    _set_shape(config, released)
    config.tokenizer.path = str(place)
    config.tokenizer.sentinels = SENTINELS_OF_T5 if config.model.positions == "relative_bias" else 0
    config.objective.name = _objective_of(released)
    config.objective.inputs_length = min(LENGTH, released.model.max_positions or LENGTH)
    config.objective.targets_length = config.objective.inputs_length
    return config


def labels_of(place: str | Path) -> list[str] | None:
    """The closed set of targets of the run in a workdir, or of the head of released weights; None where it has none."""
    if not is_released(place):
        return read_labels(Path(place))
    labels = open_released(folder_of(place)).labels
    return None if labels is None else list(labels)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run or released weights, opened for reading without any data."""

    config: ConfigDict
    tokenizer: TextTokenizer
    labels: list[str] | None
    objective: Objective
    model: Transformer


def open_model(place: str | Path) -> Opened:
    """The config, tokenizer, objective and model of the run in a workdir, or of the released weights of `hf:DIR`."""
    config, labels = config_of(place), labels_of(place)
    tokenizer = load_tokenizer(str(place), config.tokenizer.sentinels, config.tokenizer.specials or ())
    if is_released(place):
        _fit_sentinels(config, tokenizer.vocabulary)
    objective = make_objective(config.objective, config.model.architecture, tokenizer.vocabulary, labels)
    return Opened(config, tokenizer, labels, objective, make_model(config.model, tokenizer.vocabulary, objective.heads))


def _set_shape(config: ConfigDict, released: Released) -> None:
    config.model.update({name: value for name, value in released.fields.items() if name in config.model})


def _fit_sentinels(config: ConfigDict, vocabulary: Vocabulary) -> None:
    """Of an objective with sentinels, windows short enough for those that there are; without any, a prefix LM."""
    fields, architecture = config.objective, config.model.architecture
    while True:
        try:
            make_objective(fields, architecture, vocabulary)
        except TooFewSentinels:
            fields.inputs_length //= 2
            if fields.inputs_length < SHORTEST:
                fields.name, fields.inputs_length = "prefix_lm", LENGTH
        except UserError:  # of labels, say, which do not concern sentinels
            return
        else:
            return


def _objective_of(released: Released) -> str:
    """What such weights were trained with, as far as their heads tell."""
    heads, architecture = released.model.heads, released.model.architecture
    if architecture == "encoder":
        if heads.classifier or heads.tagger:
            return "supervised" if heads.classifier else "tagging"
        return "mlm_nsp" if heads.next_sentence else "mlm"
    if architecture == "decoder":
        return "causal_lm"
    return "span_corruption" if released.model.positions == "relative_bias" else "bart"

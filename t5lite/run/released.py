"""Read released weights in place of a run: `hf:DIR` instead of a workdir, and as `init_from` in a config.

read_run_config("runs/tiny")                  the config.json of the run
read_run_config("hf:downloads/t5-small")      a config that fits these weights
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import BAG_OF_WORDS, base_config, load_json
from t5lite.data.answered import Scale
from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.opening import open_chat
from t5lite.data.tokenizers.release_files import has_chat_template
from t5lite.data.tokenizers.released import closes_texts
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.decoding.conventions import Conventions, make_conventions
from t5lite.interop.dropout import make_rates
from t5lite.interop.released import Released, get_folder, is_released, open_released
from t5lite.model.build import make_model
from t5lite.model.config import DROPOUT_PLACES, ModelConfig, combine_rates
from t5lite.model.transformer import Transformer
from t5lite.objectives.catalogue import find_kind
from t5lite.objectives.objective import Objective, TooFewSentinels
from t5lite.run.chat_template import keep_template
from t5lite.system.errors import UserError
from t5lite.system.files import read_json
from t5lite.system.progress import warn
from t5lite.system.vocabulary import MASK, Vocabulary
from t5lite.tasks.number import NUMBER
from t5lite.tasks.table import ANSWERS, TASKS, make_objective
from t5lite.tasks.task import Reading
from t5lite.training.workdir import read_labels, read_scale

# Fields of a model that are not part of its shape. `set_shape` says what dropout_places and dropout_rates are if unset.
RUN_FIELDS = ("dropout", "dropout_places", "dropout_rates", "dtype", "attention", "remat", "scan_layers")
SENTINELS_OF_T5 = 100
MAX_LENGTH, MIN_LENGTH = 512, 16  # tokens of inputs


def read_run_config(place: str | Path) -> ConfigDict:
    """Return the config of the run in a workdir, or a config for the released weights of `hf:DIR`. Read no data.

    Raises UserError for a bag of words, because a bag of words has no network.
    """
    if not is_released(place):
        config = load_json(Path(place) / "config.json")
        if config.model.architecture == BAG_OF_WORDS:
            raise UserError(f"{place} is a bag of words and has no network; its metrics are in result.json, so use "
                            "compare")  # fmt: skip
        return config
    released, config = open_released(get_folder(place)), base_config()
    config.name = get_folder(place).resolve().name
    set_shape(config, released.fields)
    config.tokenizer.path = str(place)
    config.tokenizer.sentinels = SENTINELS_OF_T5 if config.model.positions == "relative_bias" else 0
    config.objective.name = _guess_objective(released)
    config.objective.answer = _find_answer(released)
    if released.model.architecture == "decoder" and closes_texts(get_folder(place)):
        config.objective.name = "supervised"  # EOS ends the inputs, as in pairs
    elif released.model.architecture != "encoder" and has_chat_template(get_folder(place)):
        config.objective.name = "chat"
    config.objective.inputs_length = min(MAX_LENGTH, released.model.max_positions or MAX_LENGTH)
    config.objective.targets_length = config.objective.inputs_length
    return config


def find_labels(place: str | Path) -> list[str] | None:
    """Return the closed set of targets of a workdir's run, or of released weights; None if targets are free text."""
    if not is_released(place):
        return read_labels(Path(place))
    labels = open_released(get_folder(place)).labels
    return None if labels is None else list(labels)


def find_scale(place: str | Path) -> Scale | None:
    """Return the scale of the numbers that a run answers with; None if it answers with no numbers.

    The scale of a release with a head for numbers does not change the numbers.
    """
    if not is_released(place):
        scale = read_scale(Path(place))
        return None if scale is None else Scale(*scale)
    heads = open_released(get_folder(place)).model.heads.others
    return Scale(0.0, 1.0) if NUMBER.head in {head.name for head in heads} else None


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """Config, tokenizer, objective and model of a run or of released weights, opened without any data.

    tokenizer: the tokenizer with only the ids that the model has rows for.
    full_tokenizer: the tokenizer with all its ids.
    chat: turns conversations into tokens; None: the model is not for conversations.
    """

    config: ConfigDict
    tokenizer: TextTokenizer
    full_tokenizer: TextTokenizer
    labels: list[str] | None
    scale: Scale | None
    objective: Objective
    model: Transformer
    chat: ChatEncoder | None = None

    @property
    def reading(self) -> Reading:
        """What is needed to write answers as text."""
        return Reading(self.labels or (), self.scale, self.tokenizer.decode)

    @property
    def conventions(self) -> Conventions:
        """The tokens that stand around inputs and answers of this model."""
        tokenizer = self.tokenizer
        return make_conventions(self.objective, tokenizer.vocabulary, tokenizer.begins_with_start, tokenizer.rules)


def open_model(place: str | Path) -> OpenedModel:
    """Return config, tokenizer, objective and model of the run in a workdir, or of the released weights of `hf:DIR`."""
    config, labels = read_run_config(place), find_labels(place)
    full_tokenizer = load_tokenizer(str(place), config.tokenizer.sentinels, config.tokenizer.specials or ())
    tokenizer = fit_tokenizer(place, full_tokenizer, config.model.vocab_size)
    chat = _open_chat(place, config, tokenizer)
    full_tokenizer.begins_with_start = tokenizer.begins_with_start
    if is_released(place):
        _fit_objective(config, tokenizer.vocabulary, labels)
    vocabulary = tokenizer.vocabulary
    objective = make_objective(config.objective, config.model.architecture, vocabulary, labels)
    model = make_model(config.model, vocabulary, objective.heads)
    return OpenedModel(config, tokenizer, full_tokenizer, labels, find_scale(place), objective, model, chat)


def _open_chat(place: str | Path, config: ConfigDict, tokenizer: TextTokenizer) -> ChatEncoder | None:
    """Return what turns conversations into tokens; None if the model is not for conversations.

    If the template of a release cannot be used, warn, and change the objective in `config`: the model is then not for
    conversations.
    """
    if find_kind(config.objective).data != "chat":
        return None
    config.tokenizer.chat_template = None  # the tokenizer has it
    try:
        chat, _ = open_chat(config, tokenizer, prepends_start=tokenizer.begins_with_start)
    except UserError as error:
        if not is_released(place):
            raise
        config.objective.name = _guess_objective(open_released(get_folder(place)))
        warn(f"{place}: {error}. So the model answers without its chat template")
        return None
    if is_released(place) and chat.front is not None and not chat.writes_front:
        # As in transformers: what a template writes is all that the model reads.
        chat.front, tokenizer.begins_with_start = None, False
    keep_template(chat, config.model.architecture)
    return chat


def fit_tokenizer(place: str | Path, tokenizer: TextTokenizer, rows: int | None) -> TextTokenizer:
    """Return the tokenizer with only the ids below `rows`. A warning names the first id without a row."""
    fitted = tokenizer if rows is None else tokenizer.limit_rows(rows)
    if fitted is not tokenizer:
        count = tokenizer.vocabulary.rows
        warn(f"{place}: the tokenizer has {count} ids, but the weights have rows for {rows}: no text may hold "
             f"{tokenizer.decode([rows])!r}" + (" or the ids after it" if count > rows + 1 else ""))  # fmt: skip
    return fitted


def set_shape(config: ConfigDict, fields: Mapping[str, Any] | ConfigDict) -> None:
    """Give `config` the model's shape from `fields`. The fields in RUN_FIELDS do not change, with two exceptions.

    If dropout_places is unset, `fields` decide it. So they do for dropout_rates, if the rate `dropout` is the same.
    """
    config.model.update({name: fields[name] for name in fields if name in config.model and name not in RUN_FIELDS})
    if config.model.dropout_places is None:
        if config.model.dropout_rates is None and config.model.dropout == fields.get("dropout"):
            config.model.dropout_rates = fields.get("dropout_rates")
        config.model.dropout_places = fields.get("dropout_places")


def moved_dropout_note(workdir: Path, model: ModelConfig) -> str | None:
    """Return a note if a run began with dropout at all places and now drops at fewer places; else None."""
    stored = read_json(workdir / "config.json") or {}
    places = [place for place in DROPOUT_PLACES if model.dropout_rate(place)]
    if not places or "dropout_places" in (stored.get("model") or {}) or len(places) == len(DROPOUT_PLACES):
        return None
    return (
        f"dropout: this run began with dropout at {', '.join(DROPOUT_PLACES)}, and now drops at {', '.join(places)}, "
        f'as its family does; --config.model.dropout_places="{DROPOUT_PLACES}" with '
        "--allow_changes=model.dropout_places keeps all places"
    )


def dropout_note(config: ConfigDict) -> str | None:
    """Return a note if the dropout of a run differs from the dropout of the release in its `init_from`.

    Also return a note if the run has other rates than `model.dropout`, as its release. Else return None.
    """
    if not is_released(config.init_from or ""):
        return None
    released, model = open_released(get_folder(config.init_from)), config.model
    by_place = combine_rates(model.dropout, model.dropout_places, model.dropout_rates)
    released_rates = ", ".join(f"{name}={rate:g}" for name, rate in released.dropout.items())
    if released.dropout == make_rates(by_place, released.family.dropout):
        return f"dropout: as in config.json, {released_rates}" if model.dropout_rates else None
    own_rates = "".join(f", model.dropout_rates {place}={rate:g}" for place, rate in model.dropout_rates or ())
    return f"dropout: config.json has {released_rates}; this run has model.dropout={model.dropout:g}" + (
        f" at {', '.join(model.dropout_places)}{own_rates}" if by_place else ""
    )


def _fit_objective(config: ConfigDict, vocabulary: Vocabulary, labels: Sequence[str] | None) -> None:
    """Choose an objective that the vocabulary allows.

    If there are few sentinels, windows become shorter. If there are too few for the shortest window, the objective is a
    prefix LM. For BART without [MASK], the objective deletes tokens.
    """
    fields, architecture = config.objective, config.model.architecture
    if fields.name == "bart" and MASK not in vocabulary.specials:
        fields.name = "token_deletion"
    while True:
        try:
            make_objective(fields, architecture, vocabulary, labels)
        except TooFewSentinels:
            fields.inputs_length //= 2
            if fields.inputs_length < MIN_LENGTH:
                fields.name, fields.inputs_length = "prefix_lm", MAX_LENGTH
        except UserError:  # an error that is not about sentinels
            return
        else:
            return


def _find_answer(released: Released) -> str | None:
    """Return the value of objective.answer for the head of released weights; None without such a head."""
    names = (TASKS[head.name].name for head in released.model.heads.others)
    return next((name for name in names if name in ANSWERS), None)


def _guess_objective(released: Released) -> str:
    """Return the name of the objective that the weights were probably trained with, by architecture and heads."""
    others, architecture = released.model.heads.others, released.model.architecture
    if architecture == "encoder":
        return "supervised" if _find_answer(released) else "mlm_nsp" if others else "mlm"
    if architecture == "decoder":
        return "causal_lm"
    return "span_corruption" if released.model.positions == "relative_bias" else "bart"

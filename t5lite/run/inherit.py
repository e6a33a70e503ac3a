"""A run with `init_from` inherits shape and tokenizer from that run, or from those released weights.

    config = with_inherited_shape(config, workdir)      before any data is read
    tokenizer = open_given_tokenizer(config)            with new ids for tokens that only this objective needs

The shape is every field of `config.model` except NOT_INHERITED. If fields of the config file differ, they are replaced,
and a printed line says so. If fields set on the command line differ, they are refused. Another architecture is refused
too. A run that has begun reads its shape from its own config.json, and no longer needs its `init_from`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import BAG_OF_WORDS, load_json, lookup_field, require
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer, extends
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.interop.kept import read_kept
from t5lite.interop.released import get_folder, is_released, open_released
from t5lite.model.build import complete_fields
from t5lite.model.config import VOCAB_MULTIPLE
from t5lite.objectives.objective import TooFewSentinels
from t5lite.run.chat_template import list_specials
from t5lite.run.released import RUN_FIELDS, read_run_config, set_shape
from t5lite.run.siblings import with_siblings
from t5lite.system.errors import UserError
from t5lite.system.progress import say
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.table import make_objective

# The fields of a model that do not change the shape or the meaning of its parameters. A config keeps these fields.
NOT_INHERITED = ("architecture", *RUN_FIELDS)


def with_inherited_shape(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> ConfigDict:
    """Return `config` with the model's shape from its `init_from`, or `config` itself without an `init_from`.

    The vocabulary grows by the tokens that the objective needs and the tokenizer lacks. Unused sentinels are not added.

    Args:
        workdir: the workdir of the run, which may have begun.
        given: the fields that the command line has set.

    Raises:
        UserError: if a field of `given` differs, if the architecture differs, and if `init_from` has no network.
    """
    if config.init_from is None:
        return config
    require(config.model.architecture != BAG_OF_WORDS, "init_from", "a bag of words has no parameters; leave it unset")
    opened = config if workdir is None else with_siblings(config, workdir)
    place = opened.init_from
    shaped = with_begun_shape(config, workdir, given)
    if shaped is None:
        shaped = config.copy_and_resolve_references()
        set_shape(shaped, _read_model_fields(place, config))
        shaped.tokenizer.sentinels = _choose_sentinels(shaped, opened.tokenizer.path or place, given)
        _enlarge_embedding(shaped, config, opened.tokenizer.path or place)
    _report_changes(config, shaped, place, given)
    return shaped


def may_be_inherited(field: str) -> bool:
    """Return whether `init_from` can decide a field of a config. field: its dotted path."""
    return field.startswith("model.") or field == "tokenizer.sentinels"


def with_begun_shape(config: ConfigDict, workdir: Path | None, given: Collection[str] = ()) -> ConfigDict | None:
    """Return `config` with the shape that the run in `workdir` inherited when it began.

    None: no run with this `init_from` has begun there. given: the fields that the command line has set. If one of
    these fields differs, raises UserError.
    """
    if workdir is None or config.init_from is None or not (workdir / "config.json").is_file():
        return None
    begun = load_json(workdir / "config.json")
    if with_siblings(begun, workdir).init_from != with_siblings(config, workdir).init_from:
        return None
    shaped = config.copy_and_resolve_references()
    set_shape(shaped, {name: value for name, value in begun.model.items() if name != "architecture"})
    shaped.tokenizer.sentinels = begun.tokenizer.sentinels
    _refuse_given(config, shaped, str(workdir), given)
    return shaped


def open_given_tokenizer(config: ConfigDict, workdir: Path | None = None) -> TextTokenizer | None:
    """Return the tokenizer of `config` or of its `init_from`, with new ids that the objective needs.

    None: there is none, and a tokenizer must be trained.

    Args:
        config: with the inherited shape.
        workdir: the workdir of a run that has begun. If `config` names no tokenizer, the run's tokenizer is returned
            unchanged.
    """
    fields, specials = config.tokenizer, list_specials(config)
    if fields.path is None and workdir is not None:
        return load_tokenizer(str(workdir), fields.sentinels, specials)
    place = fields.path or config.init_from
    if place is None:
        return None
    tokenizer, sentinels = load_tokenizer(place, fields.sentinels, specials), fields.sentinels
    if config.init_from is None and not _find_sentinel_error(config, tokenizer.grow(0, specials).vocabulary):
        sentinels = 0
    return tokenizer.grow(sentinels, specials)


def _read_model_fields(place: str, config: ConfigDict) -> Mapping[str, Any]:
    """Return the fields of the model at `place`. Raises UserError if the config has another architecture.

    Weights of some families also fit another architecture: T5's fit an encoder. Fields that the release then does not
    define come from the config.
    """
    architecture = config.model.architecture
    if is_released(place):
        released = open_released(get_folder(place))
        source_architecture, fields = released.model.architecture, released.fields
        if architecture == source_architecture:
            fields = {name: getattr(released.model, name) for name in config.model if name != "architecture"} | fields
        elif architecture in released.family.architectures:
            source_architecture = architecture
    else:
        fields = read_run_config(place).model
        source_architecture = fields["architecture"]
    require(
        source_architecture == architecture,
        "model.architecture",
        f"it is {architecture}, but init_from={place} has {source_architecture}; set "
        f"--config.model.architecture={source_architecture}, or start from another run",
    )
    # A run does not take over another run's rates of dropout. A release's rates: see `set_shape`.
    own = ("architecture",) if is_released(place) else ("architecture", "dropout_rates")
    return {name: value for name, value in fields.items() if name not in own}


def _find_sentinel_error(config: ConfigDict, vocabulary: Vocabulary) -> TooFewSentinels | None:
    """Return the error of the objective if `vocabulary` has too few sentinels, else None."""
    try:
        make_objective(config.objective, config.model.architecture, vocabulary)
    except TooFewSentinels as error:
        return error
    except UserError:  # may be about labels that are not known yet; otherwise raised again later
        return None
    return None


def _choose_sentinels(config: ConfigDict, place: str, given: Collection[str]) -> int:
    """Return the number of sentinels for the tokenizer at `place`.

    A tokenizer with sentinels keeps its number. Any other tokenizer gets `config.tokenizer.sentinels` if the objective
    needs sentinels, if the command line has set the field, or if `place` is a release with T5's positions; else none.
    """
    specials, asked = list_specials(config, place), config.tokenizer.sentinels
    vocabulary = load_tokenizer(place, 0, specials).grow(0, specials).vocabulary
    present, error = vocabulary.sentinels, _find_sentinel_error(config, vocabulary)
    if present:
        fixed = f"the tokenizer of {place} has {present} sentinels, and their ids cannot change"
        differs = "tokenizer.sentinels" in given and asked != present
        require(not differs, f"tokenizer.sentinels={asked}", f"{fixed}; leave it out")
        if error is not None:
            require(False, "objective.inputs_length", f"{fixed}, but {error.needed} are needed; shorten it")
        return present
    like_t5 = is_released(place) and config.model.positions == "relative_bias"
    return asked if error is not None or like_t5 or "tokenizer.sentinels" in given else 0


def _enlarge_embedding(shaped: ConfigDict, config: ConfigDict, place: str) -> None:
    """Set the embedding's number of rows so that all ids fit, if the number is set.

    shaped, config: the config with and without the inherited shape.
    """
    specials = list_specials(shaped, place)
    tokenizer = load_tokenizer(place, shaped.tokenizer.sentinels, specials).grow(shaped.tokenizer.sentinels, specials)
    rows, model = tokenizer.vocabulary.rows, shaped.model
    if (model.vocab_size or 0) < rows and not model.vocab_size == config.model.vocab_size is None:
        model.vocab_size = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _list_changes(config: ConfigDict, shaped: ConfigDict) -> list[str]:
    """Return the names of the model's fields that were replaced.

    Some values follow from others, such as key heads from heads. Such values are not changes.
    """
    before, after = complete_fields(config.model), complete_fields(shaped.model)
    return [
        name
        for name in config.model
        if name not in NOT_INHERITED and before[name] != after[name] and config.model[name] != shaped.model[name]
    ]


def _refuse_given(config: ConfigDict, shaped: ConfigDict, place: str, given: Collection[str]) -> None:
    """Raise UserError if a field in `given` has another value in the shape from `place`."""
    after = complete_fields(shaped.model)
    values = {f"model.{name}": after[name] for name in _list_changes(config, shaped)}
    if config.tokenizer.sentinels != shaped.tokenizer.sentinels:
        values["tokenizer.sentinels"] = shaped.tokenizer.sentinels
    for field, value in values.items():
        if field in given:
            raise UserError(
                f"config.{field}={lookup_field(config, field)}: {place} has {value}, and a run inherits "
                f"this field; leave --config.{field} out"
            )


def _report_changes(config: ConfigDict, shaped: ConfigDict, place: str, given: Collection[str]) -> None:
    """Print which fields of the shape were replaced. Raises UserError for a replaced field in `given`."""
    _refuse_given(config, shaped, f"init_from={place}", given)
    before, after, changed = complete_fields(config.model), complete_fields(shaped.model), _list_changes(config, shaped)
    if before["vocab_size"] is None and "vocab_size" in changed:
        changed.remove("vocab_size")
    if changed:
        listed = ", ".join(f"config.model.{name} {before[name]} → {after[name]}" for name in changed)
        say(f"the shape comes from init_from={place}: {listed}")


def count_known_rows(config: ConfigDict, vocabulary: Vocabulary) -> int | None:
    """Return the number of ids of the tokenizer at `init_from`, if the run's own `vocabulary` has more ids; else None.

    Also None for released rows, because further rows may be for tokens that the release does not name.
    """
    source = config.init_from
    if is_released(source) or read_kept(Path(source)) is not None:
        return None
    before = load_tokenizer(source, 0, ()).vocabulary.rows
    return before if before < vocabulary.rows else None


def check_tokenizer(config: ConfigDict, tokenizer: TextTokenizer) -> None:
    """Refuse a tokenizer that gives an id another meaning than the tokenizer of `init_from`."""
    if not extends(tokenizer, load_tokenizer(config.init_from, config.tokenizer.sentinels, config.tokenizer.specials)):
        raise UserError(
            f"config.tokenizer.path: this tokenizer gives ids other meanings than the tokenizer of init_from="
            f"{config.init_from}; leave tokenizer.path unset to use the tokenizer of init_from"
        )

"""What a run inherits from the run, or the released weights, in its `init_from`: shape and tokenizer.

    config = with_inherited_shape(config, workdir)      before any data is read
    tokenizer = given_tokenizer(config)                 with new ids for what the objective needs and it lacks

The shape is every field of `config.model` except those in OWN. Where fields of the config file differ, they are
replaced, and a line says so. Where fields set on the command line differ, they are refused. Another architecture is
refused too. A run that has begun knows its shape from its own config.json, and no longer needs its `init_from`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import BAG_OF_WORDS, load_json, lookup_field, require
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.interop.kept import read_kept
from t5lite.interop.released import folder_of, is_released, open_released
from t5lite.model.build import settled
from t5lite.model.config import VOCAB_MULTIPLE
from t5lite.objectives.catalogue import special_tokens
from t5lite.objectives.objective import TooFewSentinels
from t5lite.run.released import OF_THE_RUN, config_of, set_shape
from t5lite.run.siblings import with_siblings
from t5lite.system.errors import UserError
from t5lite.system.progress import say
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.table import make_objective

# The fields of a model that do not change the shape or the meaning of its parameters. A config keeps its own values.
OWN = ("architecture", *OF_THE_RUN)


def with_inherited_shape(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> ConfigDict:
    """Return `config` with the model's shape from its `init_from`, or `config` itself where it has none.

    The vocabulary grows by what the objective needs and the tokenizer lacks. Sentinels that would not be used are not
    added.

    Args:
        workdir: the workdir of the run, which may have begun.
        given: the fields that the command line has set.

    Raises:
        UserError: for a field of `given` that differs, for another architecture, and for an `init_from` without a
            network.
    """
    if config.init_from is None:
        return config
    require(config.model.architecture != BAG_OF_WORDS, "init_from", "a bag of words has no parameters; leave it unset")
    opened = config if workdir is None else with_siblings(config, workdir)
    place = opened.init_from
    shaped = as_begun(config, workdir, given)
    if shaped is None:
        shaped = config.copy_and_resolve_references()
        set_shape(shaped, _model_at(place, config))
        shaped.tokenizer.sentinels = _sentinels(shaped, opened.tokenizer.path or place, given)
        _make_room(shaped, config, opened.tokenizer.path or place)
    _tell(config, shaped, place, given)
    return shaped


def may_be_inherited(field: str) -> bool:
    """Return whether `init_from` can decide the field of a config, given by its dotted path."""
    return field.startswith("model.") or field == "tokenizer.sentinels"


def as_begun(config: ConfigDict, workdir: Path | None, given: Collection[str] = ()) -> ConfigDict | None:
    """Return `config` with the shape that the run in `workdir` inherited when it began; None where none began that way.

    Raises UserError for a field of `given`, the fields that the command line has set, that differs.
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


def given_tokenizer(config: ConfigDict, own: Path | None = None) -> TextTokenizer | None:
    """Return the tokenizer that `config` names, or that of its `init_from`, with new ids that its objective needs.

    None: a tokenizer is to be trained.

    Args:
        config: with the inherited shape.
        own: the workdir of a run that has begun. Where `config` names no tokenizer, the run's own is returned as it is.
    """
    fields, specials = config.tokenizer, _specials(config)
    if fields.path is None and own is not None:
        return load_tokenizer(str(own), fields.sentinels, specials)
    place = fields.path or config.init_from
    if place is None:
        return None
    tokenizer, sentinels = load_tokenizer(place, fields.sentinels, specials), fields.sentinels
    if config.init_from is None and not _lacks_sentinels(config, tokenizer.grow(0, specials).vocabulary):
        sentinels = 0
    return tokenizer.grow(sentinels, specials)


def _specials(config: ConfigDict) -> tuple[str, ...]:
    return special_tokens(config.tokenizer, config.objective, config.model.architecture)


def _model_at(place: str, config: ConfigDict) -> Mapping[str, Any]:
    """Return the fields of the model at `place`. Raises UserError where its architecture is not the config's.

    A release may belong to a family whose weights also serve another architecture, as T5's serve an encoder. Fields
    that such a release does not define then come from the config.
    """
    ours = config.model.architecture
    if is_released(place):
        released = open_released(folder_of(place))
        theirs, fields = released.model.architecture, released.fields
        if ours == theirs:
            fields = {name: getattr(released.model, name) for name in config.model if name != "architecture"} | fields
        elif ours in released.family.architectures:
            theirs = ours
    else:
        fields = config_of(place).model
        theirs = fields["architecture"]
    require(
        theirs == ours,
        "model.architecture",
        f"it is {ours}, and that of init_from={place} is {theirs}, whose parameters would mean nothing here; "
        f"set --config.model.architecture={theirs}, or start from another run",
    )
    return {name: value for name, value in fields.items() if name != "architecture"}


def _lacks_sentinels(config: ConfigDict, vocabulary: Vocabulary) -> TooFewSentinels | None:
    """Return the objective's error that `vocabulary` has too few sentinels, or None."""
    try:
        make_objective(config.objective, config.model.architecture, vocabulary)
    except TooFewSentinels as error:
        return error
    except UserError:  # raised again where it matters: it may be about labels that are not known yet
        return None
    return None


def _sentinels(config: ConfigDict, place: str, given: Collection[str]) -> int:
    """Return the number of sentinels for the tokenizer at `place`.

    A tokenizer with sentinels keeps its number. Any other gets `config.tokenizer.sentinels` if the objective needs
    some, if the command line has set the field, or if `place` is a release with T5's positions; else none.
    """
    specials, asked = _specials(config), config.tokenizer.sentinels
    vocabulary = load_tokenizer(place, 0, specials).grow(0, specials).vocabulary
    present, lacks = vocabulary.sentinels, _lacks_sentinels(config, vocabulary)
    if present:
        fixed = f"the tokenizer of {place} has {present} sentinels, whose ids cannot move"
        is_other = "tokenizer.sentinels" in given and asked != present
        require(not is_other, f"tokenizer.sentinels={asked}", f"{fixed}; leave it out")
        if lacks is not None:
            require(False, "objective.inputs_length", f"{fixed}, and {lacks.needed} are needed; shorten it")
        return present
    like_t5 = is_released(place) and config.model.positions == "relative_bias"
    return asked if lacks is not None or like_t5 or "tokenizer.sentinels" in given else 0


def _make_room(shaped: ConfigDict, config: ConfigDict, place: str) -> None:
    """Make the embedding large enough for all ids, where its number of rows is set.

    config: the config without the inherited shape.
    """
    specials = _specials(shaped)
    tokenizer = load_tokenizer(place, shaped.tokenizer.sentinels, specials).grow(shaped.tokenizer.sentinels, specials)
    rows, model = tokenizer.vocabulary.rows, shaped.model
    if (model.vocab_size or 0) < rows and not model.vocab_size == config.model.vocab_size is None:
        model.vocab_size = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _changed(config: ConfigDict, shaped: ConfigDict) -> list[str]:
    """Return the names of the model's fields that were replaced.

    Some values follow from others: key heads that are not set are as many as heads. Such values are not changes.
    """
    before, after = settled(config.model), settled(shaped.model)
    return [
        name
        for name in config.model
        if name not in OWN and before[name] != after[name] and config.model[name] != shaped.model[name]
    ]


def _refuse_given(config: ConfigDict, shaped: ConfigDict, place: str, given: Collection[str]) -> None:
    """Raise UserError where a field in `given` has another value in the shape from `place`."""
    after = settled(shaped.model)
    there = {f"model.{name}": after[name] for name in _changed(config, shaped)}
    if config.tokenizer.sentinels != shaped.tokenizer.sentinels:
        there["tokenizer.sentinels"] = shaped.tokenizer.sentinels
    for field, value in there.items():
        if field in given:
            raise UserError(
                f"config.{field}={lookup_field(config, field)}: {place} has {value}, and a run has the shape of what "
                f"it starts from; leave --config.{field} out"
            )


def _tell(config: ConfigDict, shaped: ConfigDict, place: str, given: Collection[str]) -> None:
    """Say which fields of the shape were replaced. Raises UserError for a replaced field in `given`."""
    _refuse_given(config, shaped, f"init_from={place}", given)
    before, after, changed = settled(config.model), settled(shaped.model), _changed(config, shaped)
    if before["vocab_size"] is None and "vocab_size" in changed:
        changed.remove("vocab_size")
    if changed:
        listed = ", ".join(f"config.model.{name} {before[name]} → {after[name]}" for name in changed)
        say(f"the shape is that of init_from={place}: {listed}")


def known_rows(config: ConfigDict, vocabulary: Vocabulary) -> int | None:
    """Return how many ids the tokenizer at `init_from` has, where the run's own `vocabulary` has more; else None.

    None too where the rows were released: further rows may be meant for tokens that the release does not name.
    """
    source = config.init_from
    if is_released(source) or read_kept(Path(source)) is not None:
        return None
    before = load_tokenizer(source, 0, ()).vocabulary.rows
    return before if before < vocabulary.rows else None

"""All objectives by name, and the functions that make an objective from a config's fields.

objective = make_objective(config.objective, "encoder_decoder", vocabulary)
"""

import contextlib
import dataclasses
from collections.abc import Sequence

from t5lite.objectives import chat, denoisers, language_models, masked_lm, pairs
from t5lite.objectives.mixtures import mixture_kind
from t5lite.objectives.objective import Fields, Head, Kind, Objective, choose_bos
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")
WINDOW_OBJECTIVES = {**denoisers.KINDS, **language_models.KINDS, **masked_lm.KINDS}
OBJECTIVES: dict[str, Kind] = {
    **WINDOW_OBJECTIVES,
    **dict.fromkeys(("ul2", "ul2r"), mixture_kind(WINDOW_OBJECTIVES, ("encoder_decoder", "decoder"))),
    "mixture": mixture_kind(WINDOW_OBJECTIVES, ARCHITECTURES),
    **pairs.KINDS,
    **chat.KINDS,
}


def find_kind(fields: Fields) -> Kind:
    """Return the kind of the objective that `fields` names. Raises UserError for an unknown name."""
    name = fields["name"]
    if name not in OBJECTIVES:
        raise UserError(f"config.objective.name: unknown objective {name!r}; {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def special_tokens(tokenizer: Fields, fields: Fields, architecture: str | None = None) -> tuple[str, ...]:
    """Return the special tokens of a config: `tokenizer.specials` if set, else the tokens that the objective needs."""
    specials = tokenizer["specials"]
    return tuple(find_kind(fields).specials({**fields, "architecture": architecture}) if specials is None else specials)


def check_architecture(fields: Fields, architecture: str) -> None:
    """Raise UserError for an objective that has no meaning on an architecture."""
    known = find_kind(fields).architectures
    if architecture not in known:
        raise UserError(
            f"config.objective.name: {fields['name']} has no meaning on config.model.architecture={architecture!r}; "
            f"it works on {' and '.join(known)}"
        )


def unused_fields(fields: Fields, defaults: Fields) -> tuple[str, ...]:
    """Return the names of fields that the objective does not use, and that differ from their defaults."""
    used = ("name", "inputs_length", "architecture", *find_kind(fields).uses(fields))
    return tuple(name for name in defaults if name not in used and fields[name] != defaults[name])


def make_objective(
    fields: Fields,
    architecture: str,
    vocabulary: Vocabulary,
    labels: Sequence[str] | None = None,
    answer: Head | None = None,
) -> Objective:
    """Return the objective that `fields` describes, laid out for `architecture`.

    Args:
      fields: a config's `objective`.
      labels: the labels of the data, if its targets are a closed set of labels.
      answer: the model's head for the answers that rows contain.

    Raises UserError for an unknown name, an architecture on which the objective has no meaning, special tokens that
    the vocabulary does not have, and settings that cannot work.
    """
    kind = find_kind(fields)
    fields = {**fields, "architecture": architecture, "labels": labels and tuple(labels), "answer_head": answer}
    check_architecture(fields, architecture)
    lacking = [name for name in kind.specials(fields) if name not in vocabulary.specials]
    if lacking:
        raise UserError(
            f"config.tokenizer.specials: {fields['name']} needs {', '.join(lacking)}, but the tokenizer does not have "
            "these tokens; for training, unset config.tokenizer.specials, or add the tokens to it"
        )
    built = kind.build(fields, vocabulary, kind.window(fields, vocabulary))
    return dataclasses.replace(built, start=vocabulary.start, bos=choose_bos(fields, vocabulary))


def make_evaluation_fields(fields: Fields) -> Fields:
    """Return the objective fields for evaluation. A kind may replace fields of training by fixed values."""
    return find_kind(fields).evaluation_fields(dict(fields))


# The standards: additional objectives of evaluation, which compare runs with different objectives. The standard of
# denoisers is T5's span corruption, and the standard of language models is plain next-token prediction.
STANDARDS = {
    "span_corruption": {"noise_density": 0.15, "mean_noise_span_length": 3.0},
    "causal_lm": {"segments": True},
}


def standard_names(fields: Fields, architecture: str) -> tuple[str, ...]:
    """Return the names of the standards of a run with the objective `fields`.

    A standard is left out if it is the objective of the run, or if it has no meaning on `architecture`.
    """
    names = find_kind(fields).standards
    if architecture == "decoder" and names:
        names = dict.fromkeys((*names, "causal_lm"))
    return tuple(
        name
        for name in names
        if architecture in OBJECTIVES[name].architectures
        and (fields["name"] != name or any(fields[key] not in (None, value) for key, value in STANDARDS[name].items()))
    )


def make_standards(fields: Fields, objective: Objective, vocabulary: Vocabulary) -> dict[str, Objective]:
    """Return {name: objective}: the standards of runs with `objective`.

    A standard has the `inputs_length` of `objective`, and its `prefix_attention` if the standard has a prefix. A
    standard that is impossible with these sizes is left out.
    """
    standards = {}
    for name in standard_names(fields, objective.architecture):
        attention = None if name == "causal_lm" else objective.prefix_attention
        standard = {**fields, **STANDARDS[name], "name": name, "prefix_attention": attention}
        with contextlib.suppress(UserError):
            standards[name] = make_objective(standard, objective.architecture, vocabulary)
    return standards

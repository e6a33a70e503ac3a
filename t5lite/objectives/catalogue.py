"""All objectives by name, and the functions that make an objective from a config's fields.

objective = make_objective(config.objective, "encoder_decoder", vocabulary)
"""

import contextlib
import dataclasses
from collections.abc import Sequence

from t5lite.objectives import denoisers, language_models, masked_lm, pairs
from t5lite.objectives.mixtures import mixture_kind
from t5lite.objectives.objective import Fields, Head, Kind, Objective, bos_of
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")
OF_WINDOWS = {**denoisers.KINDS, **language_models.KINDS, **masked_lm.KINDS}
OBJECTIVES: dict[str, Kind] = {
    **OF_WINDOWS,
    **dict.fromkeys(("ul2", "ul2r"), mixture_kind(OF_WINDOWS, ("encoder_decoder", "decoder"))),
    "mixture": mixture_kind(OF_WINDOWS, ARCHITECTURES),
    **pairs.KINDS,
}


def kind_of(fields: Fields) -> Kind:
    """Return the kind of the objective that `fields` names. Raises UserError for an unknown name."""
    name = fields["name"]
    if name not in OBJECTIVES:
        raise UserError(f"config.objective.name: unknown objective {name!r}; {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def special_tokens(tokenizer: Fields, fields: Fields, architecture: str | None = None) -> tuple[str, ...]:
    """Return the special tokens of a config: `tokenizer.specials` if set, else those that the objective needs."""
    named = tokenizer["specials"]
    return tuple(kind_of(fields).specials({**fields, "architecture": architecture}) if named is None else named)


def unused_fields(fields: Fields, defaults: Fields) -> tuple[str, ...]:
    """Return the names of `fields` that differ from their `defaults` although the objective does not use them."""
    used = ("name", "inputs_length", "architecture", *kind_of(fields).uses(fields))
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
      labels: the labels of the data, where its targets are a closed set.
      answer: the head for the answers that rows bring.

    Raises UserError for an unknown name, an architecture on which the objective has no meaning, special tokens that
    the vocabulary lacks, and settings that cannot work.
    """
    kind = kind_of(fields)
    fields = {**fields, "architecture": architecture, "labels": labels and tuple(labels), "answer": answer}
    if architecture not in kind.architectures:
        raise UserError(
            f"config.objective.name: {fields['name']} has no meaning on config.model.architecture={architecture!r}; "
            f"it works on {' and '.join(kind.architectures)}"
        )
    lacking = [name for name in kind.specials(fields) if name not in vocabulary.specials]
    if lacking:
        raise UserError(
            f"config.tokenizer.specials: {fields['name']} needs {', '.join(lacking)}, which the tokenizer lacks; "
            "training adds them if config.tokenizer.specials is unset, or names them"
        )
    built = kind.build(fields, vocabulary, kind.window(fields, vocabulary))
    return dataclasses.replace(built, start=vocabulary.start, bos=bos_of(fields, vocabulary))


def evaluated_fields(fields: Fields) -> Fields:
    """Return the objective fields for evaluation: the same for all runs with this objective, whatever they train on."""
    return kind_of(fields).evaluated_as(dict(fields))


# The standards: objectives by which runs with different objectives are compared. Denoisers are compared by T5's
# span corruption, language models by plain next-token prediction.
STANDARDS = {
    "span_corruption": {"noise_density": 0.15, "mean_noise_span_length": 3.0},
    "causal_lm": {"segments": True},
}


def standard_names(fields: Fields, architecture: str) -> tuple[str, ...]:
    """Return the names of the standards by which a run with the objective `fields` is evaluated as well.

    A standard is left out if it is the run's own objective, or has no meaning on `architecture`.
    """
    wanted = kind_of(fields).standards
    if architecture == "decoder" and wanted:
        wanted = dict.fromkeys((*wanted, "causal_lm"))
    return tuple(
        name
        for name in wanted
        if architecture in OBJECTIVES[name].architectures
        and (fields["name"] != name or any(fields[key] not in (None, value) for key, value in STANDARDS[name].items()))
    )


def make_standards(fields: Fields, objective: Objective, vocabulary: Vocabulary) -> dict[str, Objective]:
    """Return the standards for runs with `objective`, by name.

    They have the same `inputs_length` and the same `prefix_attention`, where they have a prefix. A standard that
    cannot be made with these sizes is left out.
    """
    made = {}
    for name in standard_names(fields, objective.architecture):
        attention = None if name == "causal_lm" else objective.prefix_attention
        standard = {**fields, **STANDARDS[name], "name": name, "prefix_attention": attention}
        with contextlib.suppress(UserError):
            made[name] = make_objective(standard, objective.architecture, vocabulary)
    return made

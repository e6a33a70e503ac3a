"""Dropout of released models: read config.json's rates as fields of `model`, and write them.

A family's config.json has rates for some of the places of model/config.py. Each family has a table of these fields:

    "hidden_dropout_prob": Rate(("embedding", "residual"), default=0.1)

The release chooses the places: those with a rate above 0. If every rate is 0, these are all places of the family. The
run chooses the rate, `model.dropout`. If this is the release's main rate, the run also has the release's rates of the
places with another rate, as `model.dropout_rates`. The main rate is the one at "residual". If it is 0, the main rate is
the first one above 0 in the family's table.

    hidden_dropout_prob 0.1, attention_probs_dropout_prob 0.2, classifier_dropout 0
    dropout=0.1, dropout_places=("embedding", "attention", "residual"), dropout_rates=(("attention", 0.2),)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from t5lite.model.config import DROPOUT_PLACES, ModelConfig
from t5lite.system.errors import UserError


class Rate(NamedTuple):
    """The meaning of a rate in config.json.

    places: where the rate applies. () stands for a kind of dropout that the model here does not have.
    default: the value if config.json lacks the field: transformers' default rate, or the name of another field.
    """

    places: tuple[str, ...]
    default: float | str


Rates = Mapping[str, Rate]


def read_rates(json: Mapping[str, Any], table: Rates) -> dict[str, float]:
    """Return {field of config.json: rate}. Raises UserError for a value that is not a rate."""
    rates: dict[str, float] = {}
    for name, (_, default) in table.items():
        value = json.get(name)
        if value is None:
            value = rates[default] if isinstance(default, str) else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(
                f"config.json: {name} should be a rate of at least 0 and below 1, but is {value!r}; correct it"
            )
        rates[name] = float(value)
    return rates


def read_fields(json: Mapping[str, Any], table: Rates) -> dict[str, Any]:
    """Return the release's `dropout`, `dropout_places` and `dropout_rates`, fields of a config's `model`."""
    rates = read_rates(json, table)
    by_place = {place: rate for name, rate in rates.items() if rate > 0 for place in table[name].places}
    main = by_place.get("residual") or next(iter(by_place.values()), 0.0)
    places = by_place.keys() or {place for rate in table.values() for place in rate.places}
    others = tuple((place, by_place[place]) for place in DROPOUT_PLACES if by_place.get(place, main) != main)
    return {
        "dropout": main,
        "dropout_places": tuple(place for place in DROPOUT_PLACES if place in places),
        "dropout_rates": others or None,
    }


def make_rates(by_place: Mapping[str, float], table: Rates) -> dict[str, float]:
    """Return {field: rate} for config.json, for a model with the rates `by_place`.

    A field for several places has the lowest of their rates. A field without places has the rate 0.
    """
    return {name: min((by_place.get(place, 0.0) for place in used), default=0.0) for name, (used, _) in table.items()}


def find_lost_places(config: ModelConfig, table: Rates) -> list[str]:
    """Return the places where a model has another rate of dropout than the family's config.json can say."""
    rates = make_rates(config.dropout_by_place, table)
    expressed = {place: rate for name, rate in rates.items() for place in table[name].places}
    has_head = any(head.dropout for head in config.heads.others)
    places = [place for place in DROPOUT_PLACES if place != "head" or has_head]
    return [place for place in places if config.dropout_rate(place) != expressed.get(place, 0.0)]

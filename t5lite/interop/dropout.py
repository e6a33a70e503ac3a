"""Dropout of released models: read config.json's rates as `model.dropout_places`, and write them.

A family's config.json has rates for some of the places of model/config.py. Each family has a table of these fields:

    "hidden_dropout_prob": Rate(("embedding", "residual"), default=0.1)

A model here has one rate for all its places. The run chooses the rate, and the release chooses the places: those with a
rate above 0. If every rate is 0, these are all places of the family.
"""

from collections.abc import Collection, Mapping
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


def read_places(json: Mapping[str, Any], table: Rates) -> tuple[str, ...]:
    """Return the places where the release has dropout, in the order of DROPOUT_PLACES."""
    rates = read_rates(json, table)
    places = {place for name, rate in rates.items() if rate > 0 for place in table[name].places}
    places = places or {place for rate in table.values() for place in rate.places}
    return tuple(place for place in DROPOUT_PLACES if place in places)


def make_rates(dropout: float, places: Collection[str], table: Rates) -> dict[str, float]:
    """Return {field: rate} for config.json, for a model with the rate `dropout` at `places`.

    The rate of a field is 0 if the field has no places, or if the model has no dropout at one of these places.
    """
    return {name: dropout if used and set(used) <= set(places) else 0.0 for name, (used, _) in table.items()}


def model_rates(config: ModelConfig, table: Rates) -> dict[str, float]:
    """Return config.json's rates for a model."""
    return make_rates(config.dropout, [place for place in DROPOUT_PLACES if config.dropout_rate(place)], table)


def find_lost_places(config: ModelConfig, table: Rates) -> list[str]:
    """Return the places where a model has dropout, but the family's config.json cannot say so."""
    expressed = {place for name, rate in model_rates(config, table).items() if rate for place in table[name].places}
    has_head = any(head.dropout for head in config.heads.others)
    places = [place for place in DROPOUT_PLACES if place != "head" or has_head]
    return [place for place in places if config.dropout_rate(place) and place not in expressed]

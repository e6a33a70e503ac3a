"""Dropout of released models: what config.json says of it, as `model.dropout_places`, and the way back.

A family's config.json has a rate for some of the places of model/config.py. Each family has a table of its fields:

    "hidden_dropout_prob": Rate(("embedding", "residual"), usual=0.1)

A model here has one rate for all of its places. It is the run's own; the places are the release's: those with a rate
above 0, or all of the family's where every rate is 0.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from t5lite.model.config import DROPOUT_PLACES, ModelConfig
from t5lite.system.errors import UserError


class Rate(NamedTuple):
    """What a field of config.json is a rate of.

    places: where it applies; none for a dropout that the model here does not have. usual: the rate where config.json
    lacks the field, as transformers has it, or the name of the field that then applies.
    """

    places: tuple[str, ...]
    usual: float | str


Rates = Mapping[str, Rate]


def read_rates(json: Mapping[str, Any], table: Rates) -> dict[str, float]:
    """{field of config.json: rate}. UserError for what is no rate."""
    rates: dict[str, float] = {}
    for name, (_, usual) in table.items():
        value = json.get(name)
        if value is None:
            value = rates[usual] if isinstance(usual, str) else usual
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"config.json: {name} should be a rate of at least 0 and below 1, is {value!r}")
        rates[name] = float(value)
    return rates


def read_places(json: Mapping[str, Any], table: Rates) -> tuple[str, ...]:
    """Where the release drops, of DROPOUT_PLACES and in their order."""
    rates = read_rates(json, table)
    places = {place for name, rate in rates.items() if rate > 0 for place in table[name].places}
    places = places or {place for rate in table.values() for place in rate.places}
    return tuple(place for place in DROPOUT_PLACES if place in places)


def rates_of(dropout: float, places: Collection[str], table: Rates) -> dict[str, float]:
    """The rates that config.json has for a model that drops at `dropout` at these places: {field: rate}.

    0 for a field whose places the model does not all drop at.
    """
    return {name: dropout if at and set(at) <= set(places) else 0.0 for name, (at, _) in table.items()}


def rates_json(config: ModelConfig, table: Rates) -> dict[str, float]:
    """The rates of a model as config.json has them."""
    return rates_of(config.dropout, [place for place in DROPOUT_PLACES if config.dropout_at(place)], table)


def unsaid_places(config: ModelConfig, table: Rates) -> list[str]:
    """Where a model drops although the family's config.json will not say so."""
    said = {place for name, rate in rates_json(config, table).items() if rate for place in table[name].places}
    has_head = any(head.dropout for head in config.heads.others)
    places = [place for place in DROPOUT_PLACES if place != "head" or has_head]
    return [place for place in places if config.dropout_at(place) and place not in said]

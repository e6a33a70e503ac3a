"""What a family of released models says of itself: its config.json as a model's fields, and where its tensors lie.

    Entry("encoder/layers/mlp/up/kernel", "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight", transposed=True)

is a row of a family's table: layer n of our stacked parameter, and the tensor that holds it. Both ways of the
conversion read the same rows.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.errors import UserError
from t5lite.interop.dropout import Rates
from t5lite.model.config import ModelConfig

Json = Mapping[str, Any]


class Entry(NamedTuple):
    """A parameter of ours, and the tensor that holds it, or holds layer {n} of it.

    transposed: theirs is [out, in]. part: (i, of), the i-th of so many equal parts of the tensor's last axis, which
    holds several parameters. row: theirs is [1, n], ours [n]. optional: zeros stand for one that is not there.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    row: bool = False
    optional: bool = False

    @property
    def stacked(self) -> bool:
        return "{n}" in self.theirs

    def to_ours(self, values: np.ndarray) -> np.ndarray:
        """One layer of ours from the tensor."""
        if self.part is not None:
            values = np.split(values, self.part[1], axis=-1)[self.part[0]]
        if self.row:
            values = values[0]
        return values.T if self.transposed else values

    def to_theirs(self, values: np.ndarray) -> np.ndarray:
        """The tensor, or the part of it, from one layer of ours."""
        values = values.T if self.transposed else values
        return values[None] if self.row else values


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture of released models is laid out.

    model_types: those of config.json. fields: (config.json, names of the tensors) -> values of a config's `model`, with
    "heads" where the objective does not decide. to_json: (model) -> the part of config.json that describes it; it
    raises UserError for a model that is none of the family. entries: (model) -> the table.
    dropout: the fields of config.json that are rates of dropout, for these two functions to leave out.
    renamed: (regex, replacement) for older names of the tensors. ignored: names of tensors that hold no parameters.
    twice: {name: the name of the tensor that it repeats}.
    """

    model_types: tuple[str, ...]
    fields: Callable[[Json, Sequence[str]], dict[str, Any]]
    to_json: Callable[[ModelConfig], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    dropout: Rates
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    twice: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """The name in the table of a tensor that the file calls `name`."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def layer_entries(
    at: str, theirs: str, kernels: Mapping[str, str], norms: Mapping[str, str], biases: bool, transposed: bool = True
) -> list[Entry]:
    """The rows of one stack: kernels and norms as {ours below `at`: theirs after `theirs`}, with their biases."""
    entries = []
    for ours, name in kernels.items():
        entries.append(Entry(f"{at}{ours}/kernel", f"{theirs}{name}.weight", transposed))
        if biases:
            entries.append(Entry(f"{at}{ours}/bias", f"{theirs}{name}.bias"))
    for ours, name in norms.items():
        entries.append(Entry(f"{at}{ours}/scale", f"{theirs}{name}.weight"))
        if biases:
            entries.append(Entry(f"{at}{ours}/bias", f"{theirs}{name}.bias"))
    return entries


def needed(json: Json, name: str) -> int:
    """A whole number of config.json, at least 1."""
    value = json.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {name} should be a whole number from 1, is {value!r}")
    return value


def number(json: Json, name: str, usual: float) -> float:
    """A number of config.json above 0; `usual` where it says nothing."""
    value = json.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"config.json: {name} should be a number above 0, is {value!r}")
    return value


def chosen(json: Json, name: str, known: Mapping[str, str], usual: str) -> str:
    """Our word for what config.json says under `name`, one of `known`."""
    value = json.get(name, usual)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"config.json: {name}={value!r} is not supported; known: {', '.join(known)}")
    return known[value]


def refuse_others(json: Json, expected: Mapping[str, Any]) -> None:
    """UserError for a field of config.json that changes the computation in a way that the model here does not have."""
    for name, value in expected.items():
        if json.get(name, value) != value:
            raise UserError(f"config.json: {name}={json[name]!r} is not supported, only {value!r}")


def inverse(known: Mapping[str, str], value: str, field: str) -> str:
    """Their word for ours; UserError where they have none."""
    for theirs, ours in known.items():
        if ours == value:
            return theirs
    raise UserError(f"model.{field}={value!r} has no name there")


def require_same(config: ModelConfig, expected: Mapping[str, Any], family: str) -> None:
    """UserError where a model differs from what its family fixes."""
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise UserError(f"{family} needs model.{field}={value!r}, which here is {getattr(config, field)!r}")

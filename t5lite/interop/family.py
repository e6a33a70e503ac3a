"""What a family of released models says of itself: its config.json as a model's fields, and where its tensors lie.

    Entry("encoder/layers/mlp/up/kernel", "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight", transposed=True)

is a row of a family's table: layer n of our stacked parameter, and the tensor that holds it. Both ways of the
conversion read the same rows.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.interop.dropout import Rates
from t5lite.model.config import ModelConfig
from t5lite.model.transformer import parameter_shapes
from t5lite.system.errors import UserError

Json = Mapping[str, Any]
Shape = tuple[int, ...]


# How a class of transformers ends: its head, or none.
KIND = re.compile(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|EncoderModel|Model)$")


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
    """How one architecture of released models is laid out, and which parts its classes in transformers have.

    A "kind" is the end of such a class's name, as "ForMaskedLM" of BertForMaskedLM.

    Args:
        model_types: those of config.json.
        fields: (config.json, {tensor: shape}) -> values of a config's `model`, with "heads" of an encoder.
        to_json: (model) -> the part of config.json that describes it. UserError for a model that is none of the family.
        entries: (model) -> the table.
        dropout: the fields of config.json that are rates of dropout; `fields` and `to_json` leave them out.
        kinds: {kind: parts that its weights may lack}. A part is the first name of a path ("decoder", "lm_head").
            "" stands for weights whose config.json names no class.
        answers: the kinds whose weights answer, if no part is missing. Others are something to start from.
        needs: {kind: tensors that its weights must have, beside the parts}.
        heads: {regex of a tensor: its kind} of heads that no model here has. They are kept, not read.
        buffers: regexes of tensors that are computed. They are kept too.
        more_parts: (model) -> models with other heads, whose parts the weights may have beside those of `model`.
        renamed: (regex, replacement) for other names of the tensors.
        aliases: {name: the tensor that it repeats}. Weights may have a tensor under any one of its names.
        ties: (config.json) -> whether it ties the head to the embedding, where a tensor can contradict it.
        architectures: those that a run may take in place of the weights' own; it leaves what it does not need.
    """

    model_types: tuple[str, ...]
    fields: Callable[[Json, Mapping[str, Shape]], dict[str, Any]]
    to_json: Callable[[ModelConfig], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    dropout: Rates
    kinds: Mapping[str, tuple[str, ...]]
    answers: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    more_parts: Callable[[ModelConfig], tuple[ModelConfig, ...]] = lambda model: ()
    renamed: tuple[tuple[str, str], ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ties: Callable[[Json], bool] = lambda json: False
    architectures: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """The name in the table of a tensor that the file calls `name`."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def is_buffer(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)

    def kind_of_head(self, name: str) -> str | None:
        """The kind whose head the tensor is, where no model here has that head."""
        return next((kind for pattern, kind in self.heads.items() if re.fullmatch(pattern, name)), None)

    def kind_of(self, json: Json, names: Iterable[str]) -> str:
        """The kind that config.json names; else the one whose head the tensors have; else ""."""
        named = named_kind(json)
        if named in self.kinds:
            return named
        return next(filter(None, map(self.kind_of_head, sorted(names))), "")


def named_kind(json: Json) -> str:
    """The kind of the first class that config.json's `architectures` names; "" where it names none."""
    classes = json.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise UserError(f"config.json: architectures should be a list of names, is {str(classes)[:60]}")
    found = KIND.search(classes[0]) if classes else None
    return found[0] if found else ""


@functools.lru_cache(16)
def shapes_of(model: ModelConfig) -> dict[str, Shape]:
    """{path: shape} of a model's parameters."""
    leaves = jax.tree.leaves_with_path(parameter_shapes(model))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def their_shape(entry: Entry, shape: Shape) -> Shape:
    """The shape of a tensor that holds a parameter, or a layer of it, of this shape."""
    shape = shape[1:] if entry.stacked else shape
    shape = shape[::-1] if entry.transposed else shape
    if entry.part is not None:
        shape = (*shape[:-1], shape[-1] * entry.part[1])
    return (1, *shape) if entry.row else shape


def part_of(path: str) -> str:
    """The part of a model that a parameter belongs to: the first name of its path."""
    return path.partition("/")[0]


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


def refuse_contradictions(json: Json, field: str, derived: Mapping[str, Any]) -> None:
    """UserError where other fields of config.json, which follow from `field`, say something else."""
    for name, value in derived.items():
        if json.get(name, value) not in (value, None):
            raise UserError(f"config.json: {name}={json[name]!r} contradicts {field}={json.get(field)!r}; correct one")


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

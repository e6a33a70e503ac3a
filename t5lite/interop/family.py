"""A family of released models: how config.json maps to a model's fields, and tensors to parameters.

A row of a family's table has the path of a parameter here, and the name of the tensor in the released files. If the
parameter stacks layers, {n} in the name stands for the layer:

    Entry("encoder/layers/mlp/up/kernel", "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight", transposed=True)

Import and export read the same rows.
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


# The end of a class name in transformers. It tells which head the class has.
KIND = re.compile(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|EncoderModel|Model)$")
# {activation in config.json, for a feed-forward block without a gate: its name here}
UNGATED = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}
# How models other than T5 scale scores and logits, and how they are initialised.
COMMON_SCALES = {"scale_scores": True, "scale_logits": False, "initialisation": "gpt2"}


class Entry(NamedTuple):
    """A parameter here, and the tensor that holds it. For stacked layers: one tensor for each layer {n}.

    path, tensor: the parameter's path, and the tensor's name in the family's table.
    transposed: the tensor is [out, in].
    part: (i, count): the tensor's last axis holds `count` parameters of equal size, and this parameter is the i-th.
    row: the tensor is [1, n], and the parameter is [n].
    optional: the tensor may be missing; then the parameter is 0.
    """

    path: str
    tensor: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    row: bool = False
    optional: bool = False

    @property
    def stacked(self) -> bool:
        return "{n}" in self.tensor

    def to_parameter(self, values: np.ndarray) -> np.ndarray:
        """Return one layer of the parameter from the tensor's values."""
        if self.part is not None:
            values = np.split(values, self.part[1], axis=-1)[self.part[0]]
        if self.row:
            values = values[0]
        return values.T if self.transposed else values

    def to_tensor(self, values: np.ndarray) -> np.ndarray:
        """Return the tensor, or its `part`, from one layer of the parameter."""
        values = values.T if self.transposed else values
        return values[None] if self.row else values


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture of released models is stored, and which parts its classes in transformers have.

    A "kind" is the end of a class name: "ForMaskedLM" for BertForMaskedLM.

    Args:
        model_types: values of model_type in config.json.
        fields: (config.json, {tensor: shape}) -> values of a config's `model`; for an encoder also "heads".
        to_json: (model) -> the model's fields in config.json. Raises UserError if the model is not of this family.
        entries: (model) -> the table.
        dropout: the rates of dropout in config.json. `fields` and `to_json` leave these fields out.
        kinds: {kind: parts that weights of this kind may lack}. A part is the first name of a path, such as "decoder".
            The kind "" stands for weights without a class in config.json.
        answering_kinds: the kinds that can answer, if no part is missing. Runs can start from the other kinds too.
        needed_tensors: {kind: tensors that weights of this kind must have}.
        kinds_of_kept_heads: {regex of a tensor: its kind}, for heads that no model here has. These tensors are kept,
            but not read.
        buffers: regexes of computed tensors. These tensors are kept, but not read.
        more_parts: (model) -> models with other heads; the weights may have the parts of these models as well.
        renames: (regex, replacement) pairs that turn a name in the files into the name in the table.
        aliases: {name: the tensor that it repeats}. Weights may have a tensor under any one of its names.
        ties: (config.json) -> whether config.json ties the head to the embedding. Only for families in which a stored
            head can contradict config.json.
        architectures: other architectures that a run may choose. The run then ignores the parts that it does not need.
    """

    model_types: tuple[str, ...]
    fields: Callable[[Json, Mapping[str, Shape]], dict[str, Any]]
    to_json: Callable[[ModelConfig], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    dropout: Rates
    kinds: Mapping[str, tuple[str, ...]]
    answering_kinds: tuple[str, ...]
    needed_tensors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    kinds_of_kept_heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    more_parts: Callable[[ModelConfig], tuple[ModelConfig, ...]] = lambda model: ()
    renames: tuple[tuple[str, str], ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ties: Callable[[Json], bool] = lambda json: False
    architectures: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """Return the name in the table of the tensor that has the name `name` in the file."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def is_buffer(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)

    def kind_of_head(self, name: str) -> str | None:
        """Return the kind whose head has the tensor `name`, if no model here has that head; else None."""
        kinds = self.kinds_of_kept_heads.items()
        return next((kind for pattern, kind in kinds if re.fullmatch(pattern, name)), None)

    def refusal(self, kind: str, json: Json) -> str | None:
        """Return the reason why weights of this kind cannot answer; None if they can.

        Missing parts are not checked.
        """
        if kind in self.answering_kinds:
            return None
        return f"it is a {next(iter(json.get('architectures') or ()), kind)}, whose head no model here has"

    def find_kind(self, json: Json, names: Iterable[str]) -> str:
        """Return the kind that config.json names. If it names none: the kind of the head among the tensors, or ""."""
        kind = read_kind(json)
        if kind in self.kinds:
            return kind
        return next(filter(None, map(self.kind_of_head, sorted(names))), "")


def read_kind(json: Json) -> str:
    """Return the kind of the first class in config.json's `architectures`; "" if there is none.

    Raises UserError if `architectures` is not a list of names.
    """
    classes = json.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise UserError(
            f"config.json: architectures should be a list of class names, but is {str(classes)[:60]}; correct it"
        )
    ending = KIND.search(classes[0]) if classes else None
    return ending[0] if ending else ""


@functools.lru_cache(16)
def list_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Return {path: shape} of a model's parameters."""
    leaves = jax.tree.leaves_with_path(parameter_shapes(model))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def tensor_shape(entry: Entry, shape: Shape) -> Shape:
    """Return the shape of the tensor in the files. shape: the shape of the parameter, with its axis of layers."""
    shape = shape[1:] if entry.stacked else shape
    shape = shape[::-1] if entry.transposed else shape
    if entry.part is not None:
        shape = (*shape[:-1], shape[-1] * entry.part[1])
    return (1, *shape) if entry.row else shape


def tensor_names(entry: Entry, model: ModelConfig) -> list[str]:
    """Return the names of the tensors that hold a parameter of `model`, one for each layer."""
    layers = list_shapes(model)[entry.path][0] if entry.stacked else 1
    return [entry.tensor.format(n=layer) for layer in range(layers)]


def name_part(path: str) -> str:
    """Return the part of a model that a parameter belongs to: the first name of its path."""
    return path.partition("/")[0]


def layer_entries(
    path: str, tensor: str, kernels: Mapping[str, str], norms: Mapping[str, str], biases: bool, transposed: bool = True
) -> list[Entry]:
    """Return the rows of one stack of layers.

    Args:
        path: the beginning of the parameters' paths.
        tensor: the beginning of the tensors' names.
        kernels, norms: {rest of the parameter's path: rest of the tensor's name}.
        biases: whether each kernel and each norm has a bias too.
        transposed: whether the tensors of kernels are [out, in].
    """
    entries = []
    for leaf, names in (("kernel", kernels), ("scale", norms)):
        for name, stored in names.items():
            entries.append(Entry(f"{path}{name}/{leaf}", f"{tensor}{stored}.weight", transposed and leaf == "kernel"))
            if biases:
                entries.append(Entry(f"{path}{name}/bias", f"{tensor}{stored}.bias"))
    return entries


def read_count(json: Json, name: str) -> int:
    """Return a whole number of config.json. Raises UserError unless it is at least 1."""
    value = json.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {name} should be a whole number from 1, but is {value!r}; correct it")
    return value


def read_number(json: Json, name: str, default: float) -> float:
    """Return a number of config.json, or `default` if it is absent. Raises UserError unless it is above 0."""
    value = json.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"config.json: {name} should be a number above 0, but is {value!r}; correct it")
    return value


def read_heads(json: Json, width: str, heads: str) -> dict[str, int | None]:
    """Return the fields of a model in which head_dim times num_heads is the width.

    width, heads: the names of the width and of the number of heads in config.json. Raises UserError for a remainder.
    """
    d_model, num_heads = read_count(json, width), read_count(json, heads)
    if d_model % num_heads:
        raise UserError(f"config.json: {width}={d_model} should be a multiple of {heads}={num_heads}; correct one")
    return {"d_model": d_model, "num_heads": num_heads, "head_dim": d_model // num_heads, "num_kv_heads": None}


def even_head_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the values that a model must have, so that `read_heads` and COMMON_SCALES read the same model again."""
    return {"num_kv_heads": None, "head_dim": config.d_model // config.num_heads, "logit_scale": 1.0}


def read_choice(json: Json, name: str, known: Mapping[str, str], default: str) -> str:
    """Return the name here for the value of the field `name`. known: {value in config.json: name here}.

    Raises UserError for any other value.
    """
    value = json.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"config.json: {name}={value!r} is not supported; known: {', '.join(known)}")
    return known[value]


def refuse_others(json: Json, expected: Mapping[str, Any]) -> None:
    """Raise UserError if a field of config.json differs from the only value that the model here supports."""
    for name, value in expected.items():
        if json.get(name, value) != value:
            raise UserError(f"config.json: {name}={json[name]!r} is not supported, only {value!r}")


def refuse_contradictions(json: Json, field: str, derived: Mapping[str, Any]) -> None:
    """Raise UserError if other fields of config.json contradict `field`. derived: the values that follow from it."""
    for name, value in derived.items():
        if json.get(name, value) not in (value, None):
            raise UserError(f"config.json: {name}={json[name]!r} contradicts {field}={json.get(field)!r}; correct one")


def find_released_activation(known: Mapping[str, str], config: ModelConfig, family: str) -> str:
    """Return the name of a model's activation in config.json. Raises UserError if `known` lacks the activation."""
    for released, name in known.items():
        if name == config.activation:
            return released
    raise UserError(
        f"{family} has no name for config.model.activation={config.activation!r}; known: {', '.join(known.values())}"
    )


def require_same(config: ModelConfig, expected: Mapping[str, Any], family: str) -> None:
    """Raise UserError if a model differs from the values that all models of its family have."""
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise UserError(f"{family} needs config.model.{field}={value!r}, but it is {getattr(config, field)!r}")

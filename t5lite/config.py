"""Configs: every field with its default, and the functions that read configs. The ranges of values are in checks.py.

A config file has `get_config(arg)`, which starts from `base_config()` and sets fields. `--config file.py:key=value,…`
passes arguments to it. `--config.a.b=value` overrides any field (overrides.py). A field without a value is a typed
placeholder (None).

    config = base_config()
    config.batch_size = 32
    config.model.d_model = 512
"""

import contextlib
import importlib.util
import json
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from t5lite.system.errors import UserError, nearest
from t5lite.system.files import FORMAT, check_format, read_json

BAG_OF_WORDS = "bag_of_words"  # a value of model.architecture: the baseline of labelled tasks, without a network


def _optional(kind: type) -> Any:
    return config_dict.placeholder(kind)


def base_config() -> ConfigDict:
    """Return all fields of a run. Lengths are in tokens, rates are per step, and `budget` has exactly one field set."""
    config = ConfigDict(
        {
            "name": "",
            "seed": 0,
            "tokenizer": _tokenizer(),
            "data": _data(),
            "objective": _objective(),
            "model": _model(),
            "optimizer": _optimizer(),
            "schedule": _schedule(),
            "loss": {"z_loss": 0.0, "label_smoothing": 0.0},
            "batch_size": 8,
            "microbatches": 1,
            "budget": {
                "steps": _optional(int),
                "tokens": _optional(float),
                "flops": _optional(float),
                "minutes": _optional(float),
            },
            "eval": {
                "every_steps": _optional(int),  # None: at the end only
                "rows": 256,  # windows of held-out text, or pairs
                "batch_size": _optional(int),  # None: a microbatch of training
                "generate_rows": 256,  # pairs whose targets are also generated, for exact match
                "max_new_tokens": _optional(int),  # None: the targets' length
            },
            "checkpoint": {
                "every_steps": 1000,
                "keep": 2,  # the newest; these stay too:
                "keep_every_steps": _optional(int),  # all at multiples of this step, for good
                "keep_best": _optional(int),  # this many with the best `metric`
                "metric": "validation/loss",  # held-out set and metric
                "mode": _optional(str),  # "min" or "max"; None: decided by the metric
            },
            "log_every_steps": 10,
            "max_skipped_steps": 10,  # in a row. An update is skipped if its loss or gradient is not finite
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "init_from": _optional(str),
            "init_from_step": _optional(str),  # a step, or "best"; None: the newest
            "ema_decay": _optional(float),  # decay of an average of the parameters. The average is then evaluated
            "trainable": _optional(tuple),  # ((regex, bool), …); None: everything. Frozen parts have no backward pass
            "deterministic": False,
            "debug_nans": False,  # the same as train's --debug_nans
        }
    )
    config.lock()
    for group in (config.data.train, config.objective):
        group.mixture.unlock()  # the user chooses its names
    return config


def _tokenizer() -> dict[str, Any]:
    return {
        "path": _optional(str),  # a .model file, a run's workdir, hf:DIR; None: `init_from`'s, or train one
        "vocab_size": 8000,  # pieces, if the tokenizer is trained
        "sentinels": 100,
        "specials": _optional(tuple),  # tokens with ids above the sentinels; None: what the objective needs
        "sample_bytes": 10_000_000,  # bytes of text that the tokenizer is trained on
    }


def _data() -> dict[str, Any]:
    return {
        "train": {
            "source": _optional(str),
            "split": _optional(str),
            "columns": {"text": "text", "inputs": "inputs", "targets": "targets"},
            "quoting": "auto",  # for .csv and .tsv, also held-out ones; or "csv", "none": see data/delimited.py
            "limit": _optional(int),  # use only this many supervised pairs, the first in a fixed random order
            "mixture": {},  # NAME: {source, weight, split, columns}, instead of `source`; see member_fields
        },
        "validation": {
            "source": _optional(str),
            "split": _optional(str),
            "columns": _columns(),  # None: the columns of `train`
        },
        "labels": _optional(bool),  # targets are labels of a closed set; None: decided by the training targets
    }


def _columns() -> dict[str, Any]:
    return {"text": _optional(str), "inputs": _optional(str), "targets": _optional(str)}


def member_fields(group: str) -> ConfigDict:
    """Return the fields that a member of a mixture may have, unset. group: "data.train", or "objective"."""
    if group == "data.train":
        fields = {"source": _optional(str), "split": _optional(str), "columns": _columns()}
    else:
        usual = ConfigDict(_objective())
        fields = {name: _optional(usual.get_type(name)) for name in usual if name != "mixture"}
        fields["mode"] = _optional(str)
    return ConfigDict({**fields, "weight": _optional(float)})


def _objective() -> dict[str, Any]:
    return {
        "name": "span_corruption",
        "inputs_length": 512,
        "targets_length": _optional(int),  # for pairs; derived for other objectives
        "noise_density": _optional(float),  # None: the objective's own, .15 or .3; prefix LM: a random split
        "masking": "count",  # mlm: a fixed number a window; or "bernoulli": each with probability noise_density
        "replacement": "independent",  # mlm: 80 % [MASK], 10 % random, 10 % kept, by chance; "exact": by count
        "whole_words": False,  # mlm: a word's pieces are masked together
        "max_predictions": _optional(int),  # mlm: the most in a window; None: noise_density of it, rounded up
        "mean_noise_span_length": 3.0,
        "noises": ("sentence_permutation", "text_infilling"),  # bart
        "fim_rate": 0.5,  # fill in the middle: the fraction of windows with moved parts
        "mixture": {},  # mixture: NAME: {name, weight, mode, and any field here with another value}
        "segments": True,  # causal LM: attention and loss stay inside a document
        "pack": True,  # pairs: put several in a row
        # On a decoder, inputs see each other in both directions; None: only in a prefix LM and in mixtures with one.
        "prefix_attention": _optional(bool),
    }


def _model() -> dict[str, Any]:
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "vocab_size": _optional(int),  # rows of the embedding; None: the vocabulary, rounded up to a multiple of 128
        "d_model": 256,
        "d_ff": 512,
        "num_heads": 4,
        "head_dim": 64,
        "num_kv_heads": _optional(int),  # key and value heads, shared by groups of query heads; None: num_heads
        "positions": _optional(str),  # None: relative_bias, or rotary on a decoder
        "relative_buckets": 32,
        "relative_max_distance": 128,
        "rotary_base": 10000.0,
        "rotary_scaling": _optional(tuple),  # ("linear", factor), or Llama 3's: see model/config.py
        "max_positions": _optional(int),  # the longest inputs or targets; learned positions need it
        "position_offset": 0,  # rows in the table of positions before the first position
        "norm": "rms",
        "norm_position": "pre",
        "norm_epsilon": 1e-6,
        "embedding_norm": False,
        "scale_embeddings": False,
        "activation": "geglu",
        "biases": "none",
        "qk_norm": False,
        "scale_scores": _optional(bool),  # None, also at scale_logits: as in T5 with relative_bias, else as usual
        "tie_embeddings": True,
        "scale_logits": _optional(bool),
        "logits_soft_cap": _optional(float),
        "logits_bias": False,
        "initialisation": _optional(str),  # None: t5 with relative_bias, else gpt2
        "token_types": _optional(int),  # encoder only: sentence A or B; None: 2, even if the objective has no B
        "mlm_transform": True,  # BERT's dense layer, activation and norm before an encoder's vocabulary
        "dropout": 0.0,
        "dropout_places": _optional(tuple),  # None: the places of the model's family, see model/config.py
        "dtype": "float32",
        "attention": "auto",
        "remat": "none",
        "scan_layers": False,
    }


def _optimizer() -> dict[str, Any]:
    return {
        "name": "adamw",
        "b1": _optional(float),  # None, here and below: the method's default
        "b2": _optional(float),
        "epsilon": _optional(float),
        "momentum": _optional(float),
        "weight_decay": 0.0,
        "clip_norm": 1.0,  # global norm of the gradients of all trainable parameters; 0: off
        "min_size_to_factor": 128,  # adafactor: smaller matrices keep their full second moment
        "adam_rate": 1.0,  # muon: the rate of parameters updated by Adam, as a multiple of the schedule's
        "rate_multipliers": _optional(tuple),  # ((regex, multiplier), …)
        "weight_decay_multipliers": _optional(tuple),
    }


def _schedule() -> dict[str, Any]:
    return {
        "name": "constant",
        "rate": 1e-3,  # the peak
        "warmup_steps": 0,
        "final_fraction": 0.0,  # fraction of the peak at the end; not read by constant and inverse_square_root
        "decay_fraction": 0.2,  # fraction of all steps; warmup_stable_decay only
        "decay_shape": "1-sqrt",  # or "linear"; warmup_stable_decay only
    }


BOOLEANS = {"": True, "true": True, "1": True, "false": False, "0": False}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Return the arguments `key=value,…` that follow a config file's colon, with the types of the defaults.

    Raises UserError for a value of another type, and for an unknown key, naming the nearest known one.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise UserError(f"unknown argument {key!r} of the config; {nearest(key, defaults)}")
        kind = type(defaults[key])
        try:
            values[key] = BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"argument {key}={value!r} of the config must be of type {kind.__name__}") from None
    return ConfigDict(values)


def load_function(path: Path, name: str) -> Any:
    """Return the function `name` of the Python file `path`. An error inside the file names the file and line."""
    if not path.is_file():
        raise UserError(f"no config file {path}; correct the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; give a .py file with a function {name}(arg)")
    module = importlib.util.module_from_spec(spec)
    with errors_of(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f"{path} has no function {name}(arg); define it")
    return getattr(module, name)


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn any error in the code of the config file `path` into a UserError that names the file and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = path if _is_file(error.filename, path) else error.filename or path
        raise UserError(f"{place}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{place}: {_in_short(error)}") from error


def _is_file(name: str | None, path: Path) -> bool:
    return name is not None and Path(name).absolute() == path.absolute()


def _in_short(error: Exception) -> str:
    """Return the message of `error`. For an unknown field it is short: ml_collections would print the whole config."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        near = re.search(r'Did you mean "(\w+)"', text)
        unknown = re.search(r'Key "(\w+)" does not exist', text) or re.fullmatch(r"""["']+(\w+)["']+(\n.*)?""", text)
        if unknown:
            return f"unknown field {unknown[1]}" + (f"; did you mean {near[1]!r}?" if near else "")
    return text if isinstance(error, TypeError | ValueError) and text else f"{type(error).__name__}: {text}"


def read_config(spec: str) -> ConfigDict:
    """Return the config of `FILE.py[:key=value,…]`, or of the config.json that a run left."""
    path, _, arg = spec.partition(":")
    if path.endswith(".json") and Path(path).is_file():
        return load_json(Path(path))
    get_config = load_function(Path(path), "get_config")
    with errors_of(Path(path)):
        config = get_config(arg or None)
    check_made(config, path)
    return config


def check_made(config: Any, where: str) -> None:
    """Refuse the result of a config file if it did not start from base_config; else lock it."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{where}: returned {type(config).__name__} where a config should be; return base_config() with changes"
        )
    _check_fields(config, base_config(), where)
    config.lock()


def _check_fields(config: ConfigDict, base: ConfigDict, where: str) -> None:
    """Refuse a config that did not start from base_config, or that replaced a whole group of fields."""
    for name in sorted(set(config) ^ set(base)):
        change = "lacks" if name in base else "adds"
        raise UserError(f"{where}: the config {change} the field {name}; start from base_config() and set its fields")
    for name, group in base.items():
        if isinstance(group, ConfigDict) and name != "mixture":
            if not isinstance(config[name], ConfigDict):
                raise UserError(f"{where}: {name} is a group of fields; set one of them: {', '.join(group)}")
            _check_fields(config[name], group, f"{where}: {name}")


def lookup_field(tree: Mapping[str, Any] | ConfigDict, path: str, missing: Any = None) -> Any:
    """Return the field or group at a dotted path, or `missing` where there is none."""
    for part in path.split("."):
        tree = tree.get(part, missing) if isinstance(tree, Mapping | ConfigDict) else missing
    return tree


def set_field(config: ConfigDict, path: str, value: Any) -> None:
    """Set the field at a dotted path."""
    group, _, name = path.rpartition(".")
    (lookup_field(config, group) if group else config)[name] = value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return the config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def flatten_fields(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted path: value} for the leaves of a tree of dicts."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flatten_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def load_json(path: Path) -> ConfigDict:
    """Return the config that a run left as config.json. Fields added since it was written take their defaults.

    Raises UserError where there is no config.json, where it is damaged, and where it belongs to released weights.
    """
    written = read_json(path)
    if written is None:
        raise UserError(f"{path.parent} is not a run's workdir, because it has no config.json; correct the path")
    if "model_type" in written:
        raise UserError(f"{path.parent} holds released weights and is not a run's workdir; say hf:{path.parent}")
    config = base_config()
    try:
        check_format(written.pop("format", FORMAT), str(path.parent))
        _fill(config, written, str(path))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}; restore it, or choose another workdir") from error
    return config


def _fill(config: ConfigDict, values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if key == "mixture":  # the user chooses its names
            with config.unlocked():
                config.mixture = ConfigDict(value)
        elif key not in config:
            raise UserError(f"{where}: unknown field {key}; {nearest(key, config)}")
        elif isinstance(config[key], ConfigDict):
            _fill(config[key], value, f"{where}: {key}")
        else:
            config[key] = _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def require(condition: bool, field: str, message: str) -> None:
    """Raise a UserError about `config.field` unless `condition` holds."""
    if not condition:
        raise UserError(f"config.{field}: {message}")

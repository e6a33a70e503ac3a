"""Configs: every field with its default, and the functions that read configs. The ranges of values are in checks.py.

A config file has `get_config(arg)`, which starts from `base_config()` and sets fields. `--config file.py:key=value,…`
passes arguments to it. `--config.a.b=value` overrides any field (overrides.py). A field without a value is None, and
still has a type.

    config = base_config()
    config.batch_size = 32
    config.model.d_model = 512
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from t5lite.system.errors import UserError, nearest
from t5lite.system.files import FORMAT, check_format, read_json
from t5lite.system.python_files import explain_errors, load_function

PROPORTIONAL = "proportional"  # a value of data.train.mixing
BAG_OF_WORDS = "bag_of_words"  # a value of model.architecture: a baseline for labelled tasks, without a network


def _optional(kind: type) -> Any:
    return config_dict.placeholder(kind)


def base_config() -> ConfigDict:
    """Return all fields of a run. Lengths are in tokens, rates per step. A run sets exactly one field of `budget`."""
    config = ConfigDict(
        {
            "name": "",
            "seed": 0,
            "tokenizer": _tokenizer_fields(),
            "data": _data_fields(),
            "objective": _objective_fields(),
            "model": _model_fields(),
            "optimizer": _optimizer_fields(),
            "schedule": _schedule_fields(),
            "loss": _loss_fields(),
            "batch_size": 8,
            "microbatches": 1,
            "budget": {
                "steps": _optional(int),
                "epochs": _optional(float),  # passes over the rows of all training sources
                "tokens": _optional(float),
                "flops": _optional(float),
                "minutes": _optional(float),
            },
            "eval": {
                "every_steps": _optional(int),  # None: only at the end
                # The number of windows of held-out text, or of pairs. None: 256; for pairs, at the end: all.
                "rows": _optional(int),
                "batch_size": _optional(int),  # None: the rows of a microbatch of training
                "generate_rows": 256,  # for this many pairs, targets are also generated, for exact match
                "max_new_tokens": _optional(int),  # None: the length of the targets
                # How labels are compared if a model with a decoder chooses among them: "sum" of log-probabilities,
                # mean of a "token", or sum divided by the "byte"s of the label.
                "score_by": "sum",
                # The label whose F1 is computed (binary F1), for held-out sets with this label. None: no such metric.
                "positive_label": _optional(str),
            },
            "checkpoint": {
                "every_steps": 1000,
                "keep": 2,  # keep the newest checkpoints: this many
                "keep_every_steps": _optional(int),  # also keep all checkpoints at multiples of this step
                "keep_best": _optional(int),  # also keep this many checkpoints with the best `metric`
                "metric": "validation/loss",  # held-out set and metric
                "mode": _optional(str),  # whether the best is "min" or "max"; None: decided by the metric
            },
            "early_stopping": {
                "metric": _optional(str),  # held-out set and metric, such as validation/loss; None: no early stopping
                "patience": 3,  # stop after this many evaluations in a row without an improvement
                "min_delta": 0.0,  # an improvement is larger than this
            },
            "log_every_steps": 10,
            "max_skipped_steps": 10,  # in a row; a step is skipped if its loss or gradient is not finite
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "init_from": _optional(str),
            "init_from_step": _optional(str),  # a step, or "best"; None: the newest checkpoint
            "ema_decay": _optional(float),  # decay of an average of the parameters; if set, the average is evaluated
            "mixout": 0.0,  # at each step, the probability that a neuron's weights have their values of `init_from`
            "trainable": _optional(tuple),  # ((regex, bool), …); None: all parameters are trained
            "deterministic": False,
            "debug_nans": False,  # the same as train's --debug_nans
        }
    )
    config.lock()
    for group in (config.data.train, config.objective):
        group.mixture.unlock()  # the user chooses the names of the members
    return config


def _loss_fields() -> dict[str, Any]:
    return {
        "z_loss": 0.0,
        "label_smoothing": 0.0,
        "r_drop": 0.0,  # weight of the divergence of two passes with different dropout (R-Drop); 0: off, one pass
        "balance_classes": False,  # for a head: weight labels by the inverse of their number in training
        "class_weights": _optional(tuple),  # for a head: ((label, weight), …); other labels have weight 1
    }


def _tokenizer_fields() -> dict[str, Any]:
    return {
        "path": _optional(str),  # a .model file, a workdir, hf:DIR; None: that of `init_from`, else train one
        "source": _optional(str),  # the text on which a tokenizer is trained; None: the training sources
        "vocab_size": 8000,  # the number of pieces, if the tokenizer is trained
        "sentinels": 100,
        "specials": _optional(tuple),  # tokens with ids above the sentinels; None: the ones that the objective needs
        "sample_bytes": 10_000_000,  # train the tokenizer on this many bytes of text
        # chat: a file with a Jinja template, or plain or chatml; None: the template of the tokenizer, else plain
        "chat_template": _optional(str),
    }


def _data_fields() -> dict[str, Any]:
    return {
        "train": {
            "source": _optional(str),
            "split": _optional(str),
            "columns": {
                "text": "text",
                "inputs": "inputs",
                "targets": "targets",
                "question": "question",
                "context": "context",
                "answers": "answers",
            },
            # Texts with the names of columns in braces, such as "summarize: {text}", in place of `columns`.
            "template": _template_fields(),
            "templates": _optional(tuple),  # several pairs (inputs, targets) of templates, instead of `template`
            "number_step": _optional(float),  # number_text: all targets are rounded to multiples of this
            "quoting": "auto",  # or "csv", "none": for .csv and .tsv, also held-out ones; see data/delimited.py
            "limit": _optional(int),  # use only this many supervised pairs, the first ones of a fixed random order
            "limit_per_label": _optional(int),  # the same for each label
            "mixture": {},  # NAME: {source, weight, …}, instead of `source`; see member_fields
            # How often the pairs of each member are drawn. None: by `weight`. "proportional": in proportion to
            # min(n, mixing_cap) ** (1 / mixing_temperature), where n is the number of the member's pairs (or windows).
            "mixing": _optional(str),
            "mixing_cap": _optional(int),
            "mixing_temperature": 1.0,
        },
        # member: the member of the mixture to which the source belongs; its columns, templates and labels are used.
        # validation steers training: early stopping, the best checkpoint. test is evaluated only after training.
        "validation": {**_heldout_fields(), "member": _optional(str)},
        "test": {**_heldout_fields(), "member": _optional(str)},
        "labels": _optional(bool),  # whether targets are labels of a closed set; None: the training targets decide
    }


def _heldout_fields() -> dict[str, Any]:
    return {
        "source": _optional(str),
        "split": _optional(str),
        "columns": _column_fields(),  # None, here and below: those of `train`
        "template": _template_fields(),
        "templates": _optional(tuple),
    }


def _template_fields() -> dict[str, Any]:
    return {"text": _optional(str), "inputs": _optional(str), "targets": _optional(str)}


def _column_fields() -> dict[str, Any]:
    return {name: _optional(str) for name in ("text", "inputs", "targets", "question", "context", "answers")}


def member_fields(group: str) -> ConfigDict:
    """Return the fields that a member of a mixture may have, all None. group: "data.train" or "objective"."""
    if group == "data.train":
        fields = {**_heldout_fields(), "labels": _optional(bool)}
    else:
        usual = ConfigDict(_objective_fields())
        fields = {name: _optional(usual.get_type(name)) for name in usual if name != "mixture"}
        fields["mode"] = _optional(str)
    return ConfigDict({**fields, "weight": _optional(float)})


def _objective_fields() -> dict[str, Any]:
    return {
        "name": "span_corruption",
        "inputs_length": 512,  # chat on a decoder: a whole conversation
        "targets_length": _optional(int),  # for pairs; computed for other objectives
        # supervised: text, label, labels, number, number_text, tags or span. None: text; on an encoder: label.
        "answer": _optional(str),
        "noise_density": _optional(float),  # None: the objective's default, .15 or .3; prefix LM: a random split
        "masking": "count",  # mlm: a fixed number per window; "bernoulli": each token with probability noise_density
        "replacement": "independent",  # mlm: 80 % [MASK], 10 % random, 10 % kept, by chance; "exact": fixed numbers
        "whole_words": False,  # mlm: mask all pieces of a word together
        "max_predictions": _optional(int),  # mlm: at most this many; None: noise_density × window, rounded up
        "mean_noise_span_length": 3.0,
        "noises": ("sentence_permutation", "text_infilling"),  # bart
        "fim_rate": 0.5,  # fill in the middle: the fraction of windows with moved parts
        "mixture": {},  # mixture: NAME: {name, weight, mode, and any other field of this group}
        "segments": True,  # causal LM: attention and loss do not cross from one document to another
        "pack": True,  # pairs and chat: put several of them in one row
        "texts_per_row": 1,  # a head that answers for whole texts: at most this many texts in one row
        # In a decoder, inputs see each other in both directions. None: only in a prefix LM and in mixtures with one.
        "prefix_attention": _optional(bool),
    }


def _model_fields() -> dict[str, Any]:
    return {
        "architecture": "encoder_decoder",
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "vocab_size": _optional(int),  # rows of the embedding; None: the vocabulary, rounded up to a multiple of 128
        "d_model": 256,
        "d_ff": 512,
        "num_heads": 4,
        "head_dim": 64,
        "num_kv_heads": _optional(int),  # heads of keys and values, each for a group of query heads; None: num_heads
        "positions": _optional(str),  # None: relative_bias; for a decoder: rotary
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
        "scale_scores": _optional(bool),  # None, also for scale_logits: with relative_bias as in T5, else as usual
        "tie_embeddings": True,
        "scale_logits": _optional(bool),
        "logits_soft_cap": _optional(float),
        "logits_bias": False,
        "initialisation": _optional(str),  # None: with relative_bias t5, else gpt2
        "token_types": _optional(int),  # encoder only: sentence A or B; None: 2, also if there is no sentence B
        "mlm_transform": True,  # encoder: BERT's dense layer, activation and norm before the logits
        "dropout": 0.0,
        "dropout_places": _optional(tuple),  # None: the places of the model's family, see model/config.py
        "dropout_rates": _optional(tuple),  # ((place, rate), …): places with another rate than `dropout`
        "dtype": "float32",
        "attention": "auto",
        "remat": "none",
        "scan_layers": False,
    }


def _optimizer_fields() -> dict[str, Any]:
    return {
        "name": "adamw",
        "b1": _optional(float),  # None, here and below: the method's default
        "b2": _optional(float),
        "epsilon": _optional(float),
        "momentum": _optional(float),
        "weight_decay": 0.0,
        "clip_norm": 1.0,  # global norm of the gradients of all trainable parameters; 0: off
        "min_size_to_factor": 128,  # adafactor: smaller matrices keep their full second moment
        "adam_rate": 1.0,  # muon: multiplier of the rate, for parameters that Adam updates
        "rate_multipliers": _optional(tuple),  # ((regex, multiplier), …)
        "weight_decay_multipliers": _optional(tuple),
    }


def _schedule_fields() -> dict[str, Any]:
    return {
        "name": "constant",
        "rate": 1e-3,  # the largest learning rate
        "warmup_steps": 0,
        "final_fraction": 0.0,  # final rate / `rate`; not used by constant and inverse_square_root
        "decay_fraction": 0.2,  # fraction of all steps; warmup_stable_decay only
        "decay_shape": "1-sqrt",  # or "linear"; warmup_stable_decay only
    }


BOOLEANS = {"": True, "true": True, "1": True, "false": False, "0": False}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Return the arguments `key=value,…` after the colon of `--config FILE.py:…`, with the types of the defaults.

    Raises UserError for an unknown key, and for a value of another type.
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


def read_config(spec: str) -> ConfigDict:
    """Return the config of `FILE.py[:key=value,…]`, or of a run's config.json."""
    path, _, arg = spec.partition(":")
    if path.endswith(".json") and Path(path).is_file():
        return load_json(Path(path))
    get_config = load_function(Path(path), "get_config")
    with explain_errors(Path(path)):
        config = get_config(arg or None)
    check_returned_config(config, path)
    return config


def check_returned_config(config: Any, where: str) -> None:
    """Lock the config that a config file returned. Raises UserError if it does not come from base_config."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{where}: returned {type(config).__name__} instead of a config; return base_config() with changes"
        )
    _check_fields(config, base_config(), where)
    config.lock()


def _check_fields(config: ConfigDict, base: ConfigDict, where: str) -> None:
    """Raise UserError if a config does not have the fields of base_config, or has replaced a group of fields."""
    for name in sorted(set(config) ^ set(base)):
        change = "lacks" if name in base else "adds"
        raise UserError(f"{where}: the config {change} the field {name}; start from base_config() and set its fields")
    for name, group in base.items():
        if isinstance(group, ConfigDict) and name != "mixture":
            if not isinstance(config[name], ConfigDict):
                raise UserError(f"{where}: {name} is a group of fields; set one of them: {', '.join(group)}")
            _check_fields(config[name], group, f"{where}: {name}")


def lookup_field(tree: Mapping[str, Any] | ConfigDict, path: str, missing: Any = None) -> Any:
    """Return the field or group at a dotted path, or `missing` if there is none."""
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
    """Return the config of a run's config.json. Fields that are newer than the file take their defaults.

    Raises UserError if there is no config.json, if it is damaged, or if it belongs to released weights.
    """
    written = read_json(path)
    if written is None:
        raise UserError(f"{path.parent} is not a run's workdir, because it has no config.json; correct the path")
    if "model_type" in written:
        raise UserError(f"{path.parent} holds released weights and is not a run's workdir; give hf:{path.parent}")
    config = base_config()
    try:
        check_format(written.pop("format", FORMAT), str(path.parent))
        _fill(config, written, str(path))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}; restore it, or choose another workdir") from error
    return config


def _fill(config: ConfigDict, values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if key == "mixture":  # the user chooses the names of the members
            with config.unlocked():
                config.mixture = ConfigDict(value)
        elif key not in config:
            raise UserError(f"{where}: unknown field {key}; {nearest(key, config)}")
        elif isinstance(config[key], ConfigDict):
            _fill(config[key], value, f"{where}: {key}")
        else:
            config[key] = _to_tuples(value)


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value


def require(condition: bool, field: str, message: str) -> None:
    """Raise a UserError about `config.field` unless `condition` holds."""
    if not condition:
        raise UserError(f"config.{field}: {message}")

"""Checks of a config's values: the range of every number, and the combinations that are allowed.

Combinations with the tokenizer, the model or the mesh are checked later, when these are known. The ranges here exclude
only values that the arithmetic of a run cannot hold. So a typing mistake is an error that names the field, and does not
become an overflow or an endless run.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from t5lite.config import PROPORTIONAL, base_config, lookup_field, member_fields, require

STEPS = 2**31 - 1  # the largest int32
LENGTH = 2**18  # tokens of a window; the cost of dense attention grows with the square
ROWS = 2**20  # rows of a batch
WIDTH = 2**20  # units of a layer
FACTOR = 1e6  # a multiplier of a rate or a loss

# {field: (smallest, largest)} for every number in a config. If a bound itself is not allowed, a later check refuses it.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "tokenizer.vocab_size": (1, 2**24),
    "tokenizer.sentinels": (0, 100_000),
    "tokenizer.sample_bytes": (1, 2**40),
    "data.train.limit": (1, 2**53),
    "data.train.limit_per_label": (1, 2**53),
    "data.train.number_step": (1e-6, 1e6),
    "data.train.mixing_cap": (1, 2**53),
    "data.train.mixing_temperature": (1, FACTOR),
    "objective.inputs_length": (1, LENGTH),
    "objective.targets_length": (1, LENGTH),
    "objective.texts_per_row": (1, LENGTH),
    "objective.noise_density": (0, 1),
    "objective.mean_noise_span_length": (1, LENGTH),
    "objective.max_predictions": (1, LENGTH),
    "objective.fim_rate": (0, 1),
    "model.num_encoder_layers": (0, 1000),
    "model.num_decoder_layers": (0, 1000),
    "model.vocab_size": (1, 2**24),
    "model.d_model": (1, WIDTH),
    "model.d_ff": (1, WIDTH),
    "model.num_heads": (1, WIDTH),
    "model.head_dim": (1, WIDTH),
    "model.num_kv_heads": (1, WIDTH),
    "model.relative_buckets": (4, 2**16),
    "model.relative_max_distance": (3, LENGTH),
    "model.rotary_base": (1, 1e12),
    "model.max_positions": (1, LENGTH),
    "model.position_offset": (0, LENGTH),
    "model.norm_epsilon": (0, 1),
    "model.logits_soft_cap": (0, FACTOR),
    "model.token_types": (0, 2**16),
    "model.dropout": (0, 1),
    "optimizer.b1": (0, 1),
    "optimizer.b2": (0, 1),
    "optimizer.epsilon": (0, FACTOR),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, FACTOR),
    "optimizer.clip_norm": (0, 1e30),
    "optimizer.min_size_to_factor": (0, STEPS),
    "optimizer.adam_rate": (0, FACTOR),
    "schedule.rate": (0, FACTOR),
    "schedule.warmup_steps": (0, STEPS),
    "schedule.final_fraction": (0, 1),
    "schedule.decay_fraction": (0, 1),
    "loss.z_loss": (0, FACTOR),
    "loss.label_smoothing": (0, 1),
    "loss.r_drop": (0, FACTOR),
    "batch_size": (1, ROWS),
    "microbatches": (1, ROWS),
    "budget.steps": (1, STEPS),
    "budget.epochs": (0, 1e9),
    "budget.tokens": (0, 1e30),
    "budget.flops": (0, 1e40),
    "budget.minutes": (0, 1e8),
    "eval.every_steps": (1, STEPS),
    "eval.rows": (1, STEPS),
    "eval.batch_size": (1, ROWS),
    "eval.generate_rows": (0, STEPS),
    "eval.max_new_tokens": (1, LENGTH),
    "early_stopping.patience": (1, STEPS),
    "early_stopping.min_delta": (0, 1e30),
    "checkpoint.every_steps": (1, STEPS),
    "checkpoint.keep": (1, STEPS),
    "checkpoint.keep_every_steps": (1, STEPS),
    "checkpoint.keep_best": (1, STEPS),
    "ema_decay": (0, 1),
    "mixout": (0, 1),
    "log_every_steps": (1, STEPS),
    "max_skipped_steps": (0, STEPS),
    "mesh.data": (-1, ROWS),
    "mesh.fsdp": (-1, ROWS),
    "mesh.tensor": (-1, ROWS),
}


# {group with a mixture: fields that every member must set}; all fields of a member: config.member_fields.
REQUIRED_OF_MEMBERS = {"data.train": ("source", "weight"), "objective": ("weight",)}
WEIGHTS = (0, FACTOR)  # the range of a member's `weight`; other numbers have the ranges of the objective


def check(config: ConfigDict) -> None:
    """Raise UserError for values that no run can have. Later checks cover tokenizer, model and mesh."""
    check_values(config)
    require(
        config.batch_size % config.microbatches == 0,
        "microbatches",
        f"{config.microbatches} must divide config.batch_size={config.batch_size}",
    )
    for field in ("loss.label_smoothing", "model.dropout", "mixout"):
        require(lookup_field(config, field) < 1, field, "must be below 1")
    loss = config.loss
    both = "set balance_classes or class_weights, not both"
    require(not (loss.balance_classes and loss.class_weights is not None), "loss", both)
    require(config.ema_decay is None or 0 < config.ema_decay < 1, "ema_decay", "must be between 0 and 1")
    require(config.name.isprintable(), "name", "must be printable, on one line")
    for name in ("validation", "test"):
        heldout, no_source = config.data[name], f"is set, but config.data.{name}.source is not; set both, or neither"
        for field in ("split", "member"):
            require(heldout[field] is None or heldout.source is not None, f"data.{name}.{field}", no_source)
        no_mixture = "names a member of config.data.train.mixture, which is not set; unset it"
        require(heldout.member is None or len(config.data.train.mixture) > 0, f"data.{name}.member", no_mixture)
    train = config.data.train
    require(train.source is None or not train.mixture, "data.train", "set source or mixture, not both")
    both = "set limit or limit_per_label, not both"
    require(train.limit is None or train.limit_per_label is None, "data.train", both)
    mixed = "belongs to config.data.train.source, which is not set; set config.data.train.mixture.NAME.split instead"
    require(train.split is None or not train.mixture, "data.train.split", mixed)
    _check_mixing(train)


def _check_mixing(train: ConfigDict) -> None:
    """Raise UserError for rates of a mixture that do not fit together. train: `config.data.train`."""
    known = f"unknown value {train.mixing!r}; set {PROPORTIONAL}, or unset it: then members have weights"
    require(train.mixing in (None, PROPORTIONAL), "data.train.mixing", known)
    for name in ("mixing_cap", "mixing_temperature"):
        is_default = train[name] == base_config().data.train[name]
        no_mixing = f"is set, but config.data.train.mixing is not; set mixing={PROPORTIONAL}, or unset both"
        require(is_default or train.mixing is not None, f"data.train.{name}", no_mixing)
    no_mixture = "needs a mixture; unset it, or set config.data.train.mixture.NAME.source"
    require(train.mixing is None or not train.source, "data.train.mixing", no_mixture)
    for name, member in train.mixture.items() if train.mixing is not None else ():
        has_weight = isinstance(member, ConfigDict) and "weight" in member
        both = f"mixing={PROPORTIONAL} computes the rates; unset weight, or unset mixing"
        require(not has_weight, f"data.train.mixture.{name}.weight", both)


def require_training_data(config: ConfigDict) -> None:
    """Raise UserError for a config without training data."""
    train = config.data.train
    require(train.source is not None or len(train.mixture) > 0, "data.train", "has no text; set source or mixture")


def check_values(config: ConfigDict) -> None:
    """Raise UserError for a value of a wrong type, and for a number outside its range."""
    base = base_config()
    _check_group(config, base, "")
    for group in REQUIRED_OF_MEMBERS:
        _check_members(config, base, group)


def _check_group(config: ConfigDict, base: ConfigDict, prefix: str) -> None:
    for name, value in base.items():
        field = prefix + name
        if name == "mixture":
            require(isinstance(config[name], ConfigDict), field, "must be a group of fields")
        elif isinstance(value, ConfigDict):
            _check_group(config[name], value, f"{field}.")
        else:
            _check_value(field, config[name], base.get_type(name), value is None, RANGES.get(field))


def _check_members(config: ConfigDict, base: ConfigDict, group: str) -> None:
    known = member_fields(group)
    for member, values in lookup_field(config, group).mixture.items():
        where = f"{group}.mixture.{member}"
        for name, value in values.items() if isinstance(values, ConfigDict) else ():
            if isinstance(known.get(name), ConfigDict):
                for part, text in value.items() if isinstance(value, ConfigDict) else ():
                    _check_value(f"{where}.{name}.{part}", text, str, True, None)
            elif name in known:
                optional = name not in REQUIRED_OF_MEMBERS[group] and lookup_field(base, group).get(name) is None
                limits = WEIGHTS if name == "weight" else RANGES.get(f"objective.{name}")
                _check_value(f"{where}.{name}", value, known.get_type(name), optional, limits)


def _check_value(field: str, value: Any, kind: type, optional: bool, limits: tuple[float, float] | None) -> None:
    """Raise UserError for a value that is not of type `kind`, or is outside `limits`. An int is allowed for a float."""
    if value is None:
        require(optional, field, "needs a value")
        return
    number = kind in (int, float)
    is_kind = isinstance(value, (int, float) if kind is float else kind) and not (number and isinstance(value, bool))
    require(is_kind, field, f"must be of type {kind.__name__}, is {type(value).__name__}")
    if number:
        smallest, largest = limits
        shown = "far beyond" if abs(value) > 1e18 else f"{value:,}"
        require(smallest <= value <= largest, field, f"must be from {smallest:,} to {largest:,}, is {shown}")
    elif kind is tuple:
        require(_is_plain(value), field, "may hold only texts, numbers and tuples of texts and numbers")


def _is_plain(value: Any) -> bool:
    """Return whether JSON can hold the value."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))


def in_range(kind: type, smallest: float, largest: float) -> Callable[[str], Any]:
    """Return a function for argparse that converts a text to an int or a float, and checks its range."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"must be from {smallest:,} to {largest:,}")
        return value

    convert.__name__ = kind.__name__  # argparse names the type in its error
    return convert


def check_budget(config: ConfigDict) -> None:
    """Raise UserError if a config does not set exactly one budget."""
    budgets = {name: value for name, value in config.budget.items() if value is not None}
    require(
        len(budgets) == 1,
        "budget",
        f"set exactly one of {', '.join(config.budget)}; now set: {', '.join(budgets) or 'none'}",
    )
    for name, value in budgets.items():
        require(value > 0, f"budget.{name}", f"must be above 0, is {value}")

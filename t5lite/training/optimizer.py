"""Optimizers: a method (AdamW, Adafactor, Lion, Muon) and tables for each parameter give one optax transformation.

All methods have the same steps. Only the second step differs:

    gradient ─ clip by global norm                            (trainable parameters only)
             ─ the direction of the method                    (Adam, Lion …; the optimizer state belongs to this step)
             ─ + weight_decay · decay multiplier · parameter
             ─ × −rate · rate multiplier                      ─► update, added to the parameter

So weight decay is decoupled from the gradient and multiplied by the rate, as in optax.adamw. Frozen parameters do
not take part in these steps: they do not count in the norm, have no state, and their update keeps their bits.

The rate is an argument of `update(gradients, state, params, rate=0.1)`. So runs with different schedules share a
compiled program.

An update can be skipped: `update(…, applies=False)`. Then the state does not change, and the update keeps the bits of
the parameters. Only the counter of steps goes on. The step counters of the bias corrections do not go on.

`applies` is used for each leaf, at the point where a moment or an update is computed. So XLA can write both in place. A
choice between an old and a new state at the end would need memory for both states.

Layers are stacked, [N, ...] under a key `layers`. If a method is defined for a matrix or a parameter, it treats each of
the N layers separately.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from t5lite.config import base_config
from t5lite.system.errors import UserError, nearest
from t5lite.training.schedules import fill_settings
from t5lite.training.tables import flatten_with_paths, is_stacked, join_path, match_table

# The defaults of each method for fields that are None in the config. A method does not read a field that has no entry
# here. The one exception is the momentum of adafactor: None means no momentum.
METHOD_DEFAULTS = {
    "adamw": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8},
    "adafactor": {"epsilon": 1e-30},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "momentum": 0.95},
}

# Default tables of (regex, multiplier or bool), for all architectures. A table in the config replaces the default
# table.
RATE_MULTIPLIERS = ((r".*", 1.0),)
WEIGHT_DECAY_MULTIPLIERS = (
    (r".*/(scale|bias)", 0.0),
    (r".*relative_bias/.*", 0.0),
    (r".*", 1.0),
)
TRAINABLE = ((r".*", True),)
# The matrices that Muon orthogonalises. Embeddings and the head are left out: they are not maps between hidden spaces.
MUON = ((r".*layers/.*/kernel", True), (r"(mlm_transform/dense|pooler)/kernel", True), (r".*", False))


def _map_with_values(function: Callable, values: Any) -> optax.GradientTransformation:
    """Return a stateless transformation: update ← function(update, parameter, the parameter's value in `values`).

    Values are looked up by path, because the tree of updates lacks masked parameters.
    """
    by_path = dict(flatten_with_paths(values))

    def apply(updates, params):
        return jax.tree_util.tree_map_with_path(lambda k, u, p: function(u, p, by_path[join_path(k)]), updates, params)

    return optax.stateless(apply)


NOTHING = -0.0  # adding this keeps the bits of every float; adding 0.0 would turn -0.0 into 0.0


def _freeze() -> optax.GradientTransformation:
    """Return a transformation with updates that keep the bits of every parameter."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.full_like(u, NOTHING), updates))


def _skip_update(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Return `inner` with one change: if `applies` is False, its updates keep the bits of every parameter."""

    def update(updates, state, params=None, *, applies=True, **more):
        updates, state = inner.update(updates, state, params, applies=applies, **more)
        return jax.tree.map(lambda u: jnp.where(applies, u, NOTHING), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Return a transformation: update ← −rate · update. Its state counts the steps, as that of optax's schedules does.

    Nothing reads the count. It is kept because checkpoints have it.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, rate, **_):
        del params
        count = optax.safe_increment(state.count)
        return jax.tree.map(lambda u: -rate * u, updates), optax.ScaleByScheduleState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def _skip_state(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return `inner` with one change: if `applies` is False, its state does not change."""

    def update(updates, state, params=None, *, applies=True, **_):
        updates, new = inner.update(updates, state, params)
        return updates, optax.tree.where(applies, new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _rms(x: jax.Array, stacked: bool) -> jax.Array:
    """Return the root mean square of `x`, or of each layer if `stacked`, in a shape that broadcasts against `x`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(int(stacked), x.ndim)), keepdims=True))


def _is_factored(shape: tuple[int, ...], stacked: bool, min_size: int) -> bool:
    return len(shape) >= 2 + stacked and min(shape[-2:]) >= min_size


def _scale_by_factored_rms(min_size: int, decay_rate: float, epsilon: float) -> optax.GradientTransformation:
    """Return a transformation that divides gradients by the root of their second moment.

    The second moment of a matrix is stored as its means over rows and over columns. optax.scale_by_factored_rms factors
    the two largest axes, and one of them may be the axis of layers. This function always factors the last two axes, and
    it does not factor a stacked vector.

    The state is an optax.FactoredState. For a factored parameter [..., R, C], it has v_row [..., R], v_col [..., C] and
    v [1]. For other parameters, v_row and v_col are [1], and v has the shape of the parameter.
    """

    def init(params):
        def moments(keys, p):
            if _is_factored(p.shape, is_stacked(join_path(keys)), min_size):
                shapes = p.shape[:-1], p.shape[:-2] + p.shape[-1:], (1,)
            else:
                shapes = (1,), (1,), p.shape
            return tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)

        return make_state(jnp.zeros([], jnp.int32), jax.tree_util.tree_map_with_path(moments, params), params)

    def make_state(count, moments, like):
        return optax.FactoredState(count, *(jax.tree.map(lambda _, m, i=i: m[i], like, moments) for i in range(3)))

    def update(grads, state, params=None, *, applies=True, **_):
        count = optax.safe_increment(state.count)
        decay = 1.0 - count.astype(jnp.float32) ** -decay_rate

        def moments(keys, g, *old):
            (v_row, v_col, v), square = old, jnp.square(g) + epsilon
            if _is_factored(g.shape, is_stacked(join_path(keys)), min_size):
                v_row = decay * v_row + (1.0 - decay) * jnp.mean(square, axis=-1)
                v_col = decay * v_col + (1.0 - decay) * jnp.mean(square, axis=-2)
            else:
                v = decay * v + (1.0 - decay) * square
            return optax.tree.where(applies, (v_row, v_col, v), old)

        def direction(keys, g, new):
            v_row, v_col, v = new
            if not _is_factored(g.shape, is_stacked(join_path(keys)), min_size):
                return g * jax.lax.rsqrt(v)
            row_factor = jax.lax.rsqrt(v_row / jnp.mean(v_row, axis=-1, keepdims=True))
            return g * row_factor[..., :, None] * jax.lax.rsqrt(v_col)[..., None, :]

        new = jax.tree_util.tree_map_with_path(moments, grads, state.v_row, state.v_col, state.v)
        new_count = jnp.where(applies, count, state.count)
        return jax.tree_util.tree_map_with_path(direction, grads, new), make_state(new_count, new, grads)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Return optax.scale_by_adam, with the same state. The update is computed from the moments that the new state has.

    `_skip_state` computes the update before it chooses between old and new moments. This would need memory for both.
    """
    like = optax.scale_by_adam(b1, b2, epsilon)

    def update(grads, state, params=None, *, applies=True, **_):
        mu = optax.tree.where(applies, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu)
        nu = optax.tree.where(applies, optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2), state.nu)
        count = optax.safe_increment(state.count)
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(jnp.where(applies, count, state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(like.init, update)


def _average_updates(decay: float) -> optax.GradientTransformationExtraArgs:
    """Return optax.ema(debias=False), with the same state. The update is the average in the new state."""
    like = optax.ema(decay, debias=False)

    def update(updates, state, params=None, *, applies=True, **_):
        ema = optax.tree.where(applies, optax.tree.update_moment(updates, state.ema, decay, 1), state.ema)
        count = jnp.where(applies, optax.safe_increment(state.count), state.count)
        return ema, optax.EmaState(count, ema)

    return optax.GradientTransformationExtraArgs(like.init, update)


def _adamw(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the direction of Adam; weight decay is decoupled (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""
    return [_scale_by_adam(s["b1"], s["b2"], s["epsilon"])]


def _lion(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the sign of an interpolated momentum (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms)."""
    return [_skip_state(optax.scale_by_lion(s["b1"], s["b2"]))]


def _adafactor(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the steps of Adafactor as in the training of T5 (Shazeer and Stern 2018; Raffel et al. 2020).

    Second moments decay by 1 − t^−0.8. The update of a parameter is clipped to a root mean square of 1. Then the update
    is multiplied by the root mean square of the parameter, or by 1e-3 if this is larger. So `rate` is relative to the
    size of the weights. As in T5X, each layer has its own root mean squares, so stacking changes nothing. The optional
    momentum averages updates before the rate is applied; optax.adafactor averages them after.
    """
    stacked = jax.tree_util.tree_map_with_path(lambda keys, _: is_stacked(join_path(keys)), params)
    steps = [
        _scale_by_factored_rms(s["min_size_to_factor"], decay_rate=0.8, epsilon=s["epsilon"]),
        _map_with_values(lambda u, p, stacked: u / jnp.maximum(1.0, _rms(u, stacked)), stacked),
        _map_with_values(lambda u, p, stacked: u * jnp.maximum(1e-3, _rms(p, stacked)), stacked),
    ]
    return steps + ([_average_updates(s["momentum"])] if s["momentum"] else [])


def _muon(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return orthogonalised momentum for the matrices of layers, and Adam for all other parameters.

    Source: Jordan et al. 2024, Muon. Three Newton-Schulz steps after the "AOL" scaling (Boissin et al. 2025,
    Turbo-Muon) replace five steps. On two cores, they take 0.13 s of a step of configs/tiny.py instead of 0.29 s, and
    training is as good.

    An orthogonalised [R, C] matrix is scaled by 0.2 sqrt(max(R, C)). Then its root mean square is about as large as
    that of an update of Adam, so one schedule fits both (Liu et al. 2025, Muon is Scalable for LLM Training).
    """
    by_muon = match_table(MUON, params, "Muon's matrices", allow_unused=True)

    def dimension_numbers(updates):
        # The first axis of stacked layers is then a batch of matrices. The parameters of Adam are masked out here.
        return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=-2, output_axis=-1), updates)

    scale = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: 0.2 * max(u.shape[-2:]) ** 0.5 * u, updates),
    )
    orthogonal = scale_by_muon(
        ns_steps=3, preconditioning="aol", beta=s["momentum"], weight_dimension_numbers=dimension_numbers
    )
    muon = optax.chain(_skip_state(orthogonal), scale)
    adam = optax.chain(_scale_by_adam(s["b1"], s["b2"], s["epsilon"]))
    return [optax.partition({"muon": muon, "adam": adam}, jax.tree.map(lambda m: "muon" if m else "adam", by_muon))]


_METHODS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}


def _read_settings(fields: Mapping) -> dict:
    """Return all fields, with defaults for missing fields.

    Raises UserError for an unknown field, an unknown value and a value out of range. The message names the field.
    """
    config = base_config()
    s = fill_settings(fields, {**config.optimizer, "trainable": config.trainable}, "optimizer")
    if s["name"] not in _METHODS:
        raise UserError(f"optimizer.name: unknown optimizer {s['name']!r}; {nearest(s['name'], _METHODS)}")
    s |= {field: value for field, value in METHOD_DEFAULTS[s["name"]].items() if s[field] is None}
    for field in ("b1", "b2", "momentum"):
        if s[field] is not None and not 0 <= s[field] < 1:
            raise UserError(f"optimizer.{field} is {s[field]}; it must be at least 0 and less than 1")
    for field in ("epsilon", "weight_decay", "clip_norm", "adam_rate"):
        if s[field] is not None and s[field] < 0:
            raise UserError(f"optimizer.{field} is {s[field]}; it must not be negative")
    return s


def _match_field(s: dict, field: str, default: tuple, kind: type | tuple, params: Any) -> Any:
    """Return a tree like `params`, with values from the table in `field`, or from the table `default` if it is None.

    Raises UserError for a value that is negative or not of type `kind`.
    """
    table_name = "config.trainable" if field == "trainable" else f"config.optimizer.{field}"
    has_table = s[field] is not None
    values = match_table(s[field] if has_table else default, params, table_name, allow_unused=not has_table)
    for path, value in flatten_with_paths(values):
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or value < 0:
            expected = "true or false" if kind is bool else "a number of at least 0"
            raise UserError(f"{table_name}: the value for {path!r} is {value!r}; it must be {expected}")
    return values


def trainable_mask(table: Any, params: Any) -> Any:
    """Return a tree of bools like `params`: which parameters are trainable.

    table: rows (regex, bool); None: all parameters are trainable. Raises UserError for a table that does not fit
    `params`.
    """
    return _match_field({"trainable": table}, "trainable", TRAINABLE, bool, params)


def make_optimizer(fields: Mapping, params: Any) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer that `fields` describe, for the tree `params`.

    The method `update` of the optimizer needs the parameters as its third argument, and `rate`, a float32 scalar. It
    accepts `applies`, a bool scalar (see the module's docstring). Gradients and parameters may be None for frozen
    parameters.

    Args:
        fields: the fields of the config's `optimizer`, and its `trainable`. A missing field has the config's default.
        params: nested dict of float32 arrays or their jax.ShapeDtypeStruct. Only paths and shapes are read.

    Raises:
        UserError: for an unknown name, a value out of range, a table that does not cover `params`, a row that matches
            no parameter, and a `trainable` that freezes all parameters. The message names the field.
    """
    s = _read_settings(fields)
    trainable = trainable_mask(s["trainable"], params)
    rates = _match_field(s, "rate_multipliers", RATE_MULTIPLIERS, (int, float), params)
    decays = _match_field(s, "weight_decay_multipliers", WEIGHT_DECAY_MULTIPLIERS, (int, float), params)
    if not any(jax.tree.leaves(trainable)):
        raise UserError("trainable: every parameter is frozen; set at least one row to True")
    if s["name"] == "muon" and s["adam_rate"] != 1.0:
        by_muon = match_table(MUON, params, "Muon's matrices", allow_unused=True)
        rates = jax.tree.map(lambda rate, m: rate if m else rate * s["adam_rate"], rates, by_muon)

    steps = [optax.clip_by_global_norm(s["clip_norm"])] if s["clip_norm"] else []
    steps += _METHODS[s["name"]](s, params)
    if s["weight_decay"]:
        decays = jax.tree.map(lambda multiplier: multiplier * s["weight_decay"], decays)
        steps.append(_map_with_values(lambda u, p, decay: u + decay * p if decay else u, decays))
    steps.append(_scale_by_rate())
    steps.append(_map_with_values(lambda u, p, rate: u if rate == 1.0 else u * rate, rates))
    labels = jax.tree.map(lambda t: "trainable" if t else "frozen", trainable)
    return _skip_update(optax.partition({"trainable": optax.chain(*steps), "frozen": _freeze()}, labels))

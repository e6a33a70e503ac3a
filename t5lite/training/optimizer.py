"""Optimizers: a method (AdamW, Adafactor, Lion, Muon) and per-parameter tables, made into one optax transformation.

All methods share the same steps; only the second differs:

    gradient ─ clip by global norm                            (trainable parameters only)
             ─ the method's own direction                     (Adam's, Lion's …: where the state is)
             ─ + weight_decay · decay multiplier · parameter
             ─ × −schedule(step) · rate multiplier            ─► update, added to the parameter

So weight decay is decoupled from the gradient and multiplied by the schedule, as in optax.adamw. Frozen parameters take
no part in these steps: they have no share in the norm, no state, and an update that keeps their bits.

An update can be left out: `update(gradients, state, params, applies=False)`. The state then stays as it was, bit for
bit, and the update keeps the parameters' bits. Only the schedule's own step goes on, because schedules depend on steps
alone; the steps of the bias corrections do not. `applies` is read leaf by leaf, where a moment or an update is
computed, so XLA can write both in place. A choice between two whole states would hold both in memory.

Layers are stacked, [N, ...] under a key `layers`. Where a method treats "a matrix" or "a parameter", it treats each of
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
from t5lite.training.tables import flatten_with_paths, is_stacked, match_table, path_of

# A method's defaults for fields that the config leaves open (None). A method does not read a field without an entry;
# the exception is adafactor's momentum, where None means no momentum.
METHOD_DEFAULTS = {
    "adamw": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8},
    "adafactor": {"epsilon": 1e-30},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "momentum": 0.95},
}

# Tables of (regex, multiplier or bool) for every architecture. A table in the config replaces the whole default table.
RATE_MULTIPLIERS = ((r".*", 1.0),)
WEIGHT_DECAY_MULTIPLIERS = (
    (r".*/(scale|bias)", 0.0),
    (r".*relative_bias/.*", 0.0),
    (r".*", 1.0),
)
TRAINABLE = ((r".*", True),)
# The matrices that Muon orthogonalises. Embeddings and the head are lookups, not maps between hidden spaces.
MUON = ((r".*layers/.*/kernel", True), (r"(mlm_transform/dense|pooler)/kernel", True), (r".*", False))


def _per_parameter(function: Callable, values: Any) -> optax.GradientTransformation:
    """Return a stateless transformation: update ← function(update, parameter, value from the tree `values`).

    Values are found by path, because masking removes parameters from the tree of updates.
    """
    by_path = dict(flatten_with_paths(values))

    def apply(updates, params):
        return jax.tree_util.tree_map_with_path(lambda k, u, p: function(u, p, by_path[path_of(k)]), updates, params)

    return optax.stateless(apply)


NOTHING = -0.0  # adding this keeps the bits of every float; adding 0.0 would turn -0.0 into 0.0


def _freeze() -> optax.GradientTransformation:
    """Return a transformation with updates that keep the bits of every parameter."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.full_like(u, NOTHING), updates))


def _leave_out(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Return `inner`, with updates that keep the bits of every parameter where the update is left out."""

    def update(updates, state, params=None, *, applies=True):
        updates, state = inner.update(updates, state, params, applies=applies)
        return jax.tree.map(lambda u: jnp.where(applies, u, NOTHING), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _hold(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return `inner`, with a state that does not change where the update is left out."""

    def update(updates, state, params=None, *, applies=True, **_):
        updates, new = inner.update(updates, state, params)
        return updates, optax.tree.where(applies, new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _rms(x: jax.Array, stacked: bool) -> jax.Array:
    """Return the root mean square of `x`, of each layer if `stacked`, in a shape that broadcasts against `x`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(int(stacked), x.ndim)), keepdims=True))


def _is_factored(shape: tuple[int, ...], stacked: bool, min_size: int) -> bool:
    return len(shape) >= 2 + stacked and min(shape[-2:]) >= min_size


def _scale_by_factored_rms(min_size: int, decay_rate: float, epsilon: float) -> optax.GradientTransformation:
    """Return a division of gradients by the root of their second moment, kept as row and column means for a matrix.

    optax.scale_by_factored_rms factors the two largest axes, and one of them may be the axis of layers. This one always
    factors the last two axes, and does not factor a stacked vector. The state is optax's own container. For a parameter
    [..., R, C] it holds v_row [..., R], v_col [..., C] and v [1] where factored, else [1], [1] and [..., R, C].
    """

    def init(params):
        def moments(keys, p):
            if _is_factored(p.shape, is_stacked(path_of(keys)), min_size):
                shapes = p.shape[:-1], p.shape[:-2] + p.shape[-1:], (1,)
            else:
                shapes = (1,), (1,), p.shape
            return tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)

        return state_of(jnp.zeros([], jnp.int32), jax.tree_util.tree_map_with_path(moments, params), params)

    def state_of(count, moments, like):
        return optax.FactoredState(count, *(jax.tree.map(lambda _, m, i=i: m[i], like, moments) for i in range(3)))

    def update(grads, state, params=None, *, applies=True, **_):
        count = optax.safe_increment(state.count)
        decay = 1.0 - count.astype(jnp.float32) ** -decay_rate

        def moments(keys, g, *old):
            (v_row, v_col, v), square = old, jnp.square(g) + epsilon
            if _is_factored(g.shape, is_stacked(path_of(keys)), min_size):
                v_row = decay * v_row + (1.0 - decay) * jnp.mean(square, axis=-1)
                v_col = decay * v_col + (1.0 - decay) * jnp.mean(square, axis=-2)
            else:
                v = decay * v + (1.0 - decay) * square
            return optax.tree.where(applies, (v_row, v_col, v), old)

        def direction(keys, g, new):
            v_row, v_col, v = new
            if not _is_factored(g.shape, is_stacked(path_of(keys)), min_size):
                return g * jax.lax.rsqrt(v)
            row_factor = jax.lax.rsqrt(v_row / jnp.mean(v_row, axis=-1, keepdims=True))
            return g * row_factor[..., :, None] * jax.lax.rsqrt(v_col)[..., None, :]

        new = jax.tree_util.tree_map_with_path(moments, grads, state.v_row, state.v_col, state.v)
        kept = jnp.where(applies, count, state.count)
        return jax.tree_util.tree_map_with_path(direction, grads, new), state_of(kept, new, grads)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Return optax.scale_by_adam with the same state, but with the update computed from the moments that are kept.

    Computing the update before choosing the moments, as `_hold` does, would hold both copies in memory.
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


def _average(decay: float) -> optax.GradientTransformationExtraArgs:
    """Return optax.ema without its correction for the start, with the same state. The update is the kept average."""
    like = optax.ema(decay, debias=False)

    def update(updates, state, params=None, *, applies=True, **_):
        ema = optax.tree.where(applies, optax.tree.update_moment(updates, state.ema, decay, 1), state.ema)
        count = jnp.where(applies, optax.safe_increment(state.count), state.count)
        return ema, optax.EmaState(count, ema)

    return optax.GradientTransformationExtraArgs(like.init, update)


def _adamw(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the steps of Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""
    return [_scale_by_adam(s["b1"], s["b2"], s["epsilon"])]


def _lion(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the sign of an interpolated momentum (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms)."""
    return [_hold(optax.scale_by_lion(s["b1"], s["b2"]))]


def _adafactor(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return the steps of Adafactor as T5 was trained with it (Shazeer and Stern 2018; Raffel et al. 2020).

    Second moments decay by 1 − t^−0.8. The update of a parameter is clipped to a root mean square of 1. Then it is
    scaled by the root mean square of the parameter, at least 1e-3, so `rate` is relative to the size of the weights. As
    in T5X, both root mean squares are over the parameter of one layer, so stacking changes nothing. The optional
    momentum averages the update before the rate is applied; optax.adafactor averages it after.
    """
    stacked = jax.tree_util.tree_map_with_path(lambda keys, _: is_stacked(path_of(keys)), params)
    steps = [
        _scale_by_factored_rms(s["min_size_to_factor"], decay_rate=0.8, epsilon=s["epsilon"]),
        _per_parameter(lambda u, p, stacked: u / jnp.maximum(1.0, _rms(u, stacked)), stacked),
        _per_parameter(lambda u, p, stacked: u * jnp.maximum(1e-3, _rms(p, stacked)), stacked),
    ]
    return steps + ([_average(s["momentum"])] if s["momentum"] else [])


def _muon(s: dict, params: Any) -> list[optax.GradientTransformation]:
    """Return orthogonalised momentum for the layers' matrices, Adam for all else (Jordan et al. 2024, Muon).

    Three Newton-Schulz steps after the "AOL" scaling (Boissin et al. 2025, Turbo-Muon) replace five steps. On two cores
    they take 0.13 s of a step of configs/tiny.py instead of 0.29 s, and train as well.

    An orthogonalised [R, C] matrix is scaled by 0.2 sqrt(max(R, C)). Its root mean square is then about that of Adam's
    update, so one schedule suits both (Liu et al. 2025, Muon is Scalable for LLM Training).
    """
    by_muon = match_table(MUON, params, "Muon's matrices", allow_unused=True)

    def dimension_numbers(updates):
        # The axis before the last two, of layers, is then a batch of matrices. Adam's parameters are masked out here.
        return jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=-2, output_axis=-1), updates)

    scale = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: 0.2 * max(u.shape[-2:]) ** 0.5 * u, updates),
    )
    orthogonal = scale_by_muon(
        ns_steps=3, preconditioning="aol", beta=s["momentum"], weight_dimension_numbers=dimension_numbers
    )
    muon = optax.chain(_hold(orthogonal), scale)
    adam = optax.chain(_scale_by_adam(s["b1"], s["b2"], s["epsilon"]))
    return [optax.partition({"muon": muon, "adam": adam}, jax.tree.map(lambda m: "muon" if m else "adam", by_muon))]


_METHODS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}


def _settings(fields: Mapping) -> dict:
    """Return all fields with their defaults.

    Raises UserError, naming the field, for an unknown field or value and for a value out of range.
    """
    config = base_config()
    s = fill_settings(fields, {**config.optimizer, "trainable": config.trainable}, "optimizer")
    if s["name"] not in _METHODS:
        raise UserError(f"optimizer.name: unknown optimizer {s['name']!r}; {nearest(s['name'], _METHODS)}")
    s |= {field: value for field, value in METHOD_DEFAULTS[s["name"]].items() if s[field] is None}
    for field in ("b1", "b2", "momentum"):
        if s[field] is not None and not 0 <= s[field] < 1:
            raise UserError(f"optimizer.{field}: must be at least 0 and less than 1, got {s[field]}")
    for field in ("epsilon", "weight_decay", "clip_norm", "adam_rate"):
        if s[field] is not None and s[field] < 0:
            raise UserError(f"optimizer.{field}: must not be negative, got {s[field]}")
    return s


def _table(s: dict, field: str, default: tuple, kind: type | tuple, params: Any) -> Any:
    """Return the tree of values that the table in `field`, or its default, gives to `params`.

    Raises UserError for a value that is negative or not of type `kind`.
    """
    what = "config.trainable" if field == "trainable" else f"config.optimizer.{field}"
    given = s[field] is not None
    values = match_table(s[field] if given else default, params, what, allow_unused=not given)
    for path, value in flatten_with_paths(values):
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or value < 0:
            wanted = "true or false" if kind is bool else "a number of at least 0"
            raise UserError(f"{what}: the value for {path!r} must be {wanted}, got {value!r}")
    return values


def trainable_mask(table: Any, params: Any) -> Any:
    """Return a tree of bools like `params`, from a table of (regex, bool); for None, all True.

    Raises UserError for a table that does not fit `params`.
    """
    return _table({"trainable": table}, "trainable", TRAINABLE, bool, params)


def make_optimizer(fields: Mapping, schedule: Callable, params: Any) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer that `fields` describe, for the tree `params`.

    Its `update` needs the parameters as the third argument, and takes `applies`, a bool scalar (see the module).
    Gradients and parameters may be None where they are frozen.

    Args:
        fields: the fields of the config's `optimizer`, and its `trainable`. A missing field has the config's default.
        schedule: a function from the 0-based step of an update to its rate.
        params: nested dict of float32 arrays or their jax.ShapeDtypeStruct. Only paths and shapes are read.

    Raises:
        UserError: naming the field, for an unknown name, a value out of range, a table that does not cover `params` or
            has a row that matches nothing, and a `trainable` that leaves nothing to train.
    """
    s = _settings(fields)
    trainable = trainable_mask(s["trainable"], params)
    rates = _table(s, "rate_multipliers", RATE_MULTIPLIERS, (int, float), params)
    decays = _table(s, "weight_decay_multipliers", WEIGHT_DECAY_MULTIPLIERS, (int, float), params)
    if not any(jax.tree.leaves(trainable)):
        raise UserError("trainable: every parameter is frozen; set at least one row to True")
    if s["name"] == "muon" and s["adam_rate"] != 1.0:
        by_muon = match_table(MUON, params, "Muon's matrices", allow_unused=True)
        rates = jax.tree.map(lambda rate, m: rate if m else rate * s["adam_rate"], rates, by_muon)

    steps = [optax.clip_by_global_norm(s["clip_norm"])] if s["clip_norm"] else []
    steps += _METHODS[s["name"]](s, params)
    if s["weight_decay"]:
        decays = jax.tree.map(lambda multiplier: multiplier * s["weight_decay"], decays)
        steps.append(_per_parameter(lambda u, p, decay: u + decay * p if decay else u, decays))
    steps.append(optax.scale_by_learning_rate(schedule))
    steps.append(_per_parameter(lambda u, p, rate: u if rate == 1.0 else u * rate, rates))
    labels = jax.tree.map(lambda t: "trainable" if t else "frozen", trainable)
    return _leave_out(optax.partition({"trainable": optax.chain(*steps), "frozen": _freeze()}, labels))

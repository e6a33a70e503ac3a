"""The train step and the evaluation step: pure functions that make the noise of their examples.

    state, metrics = train_step(state, rows, seed)    rows: arrays [B, …] from the host
    sums = eval_step(params, rows, index)

Noise and dropout are functions of (seed, state.step) alone. The seed is an argument, so runs with different seeds share
one compiled program.

If the loss or the norm of the gradient is not finite, the update is skipped: parameters and optimizer state keep all
their bits, and only the step counter goes on. This is decided before the optimizer runs, so no memory for a second
state is needed (see optimizer.py).

Only trainable parameters are differentiated. A frozen parameter has no gradient, no optimizer state and no average, and
the step returns its array unchanged. XLA leaves out the backward pass below the lowest trainable parameter.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch, select_predicted
from t5lite.objectives.objective import Objective, Row, example_keys, make_batch
from t5lite.system.vocabulary import TokenTable
from t5lite.tasks.cross_entropy import LossSettings, Sums
from t5lite.tasks.table import list_heads, loss_sums, prediction_sums, two_pass_sums
from t5lite.tasks.text import byte_sums
from t5lite.training.average import update_average
from t5lite.training.loss import count_tokens, find_finite_rows, sum_heads, sum_weights
from t5lite.training.mixout import mix, select_mixed
from t5lite.training.tables import fill, keep_leaves

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """The state of a training: a step reads it and returns the next one.

    step: int32 scalar, the number of completed steps.
    params: nested dict of float32 arrays.
    opt_state: the state of the optax optimizer.
    average: the average of the trainable parameters, with None in place of each frozen parameter. None if the config
    has
        no `ema_decay`.
    pretrained: the values of `init_from` of the parameters in the tree, see mixout.py. None if the config has no
        `mixout`.
    """

    step: Array
    params: Any
    opt_state: Any
    average: Any = None
    pretrained: Any = None

    @property
    def evaluated_params(self) -> Any:
        """The parameters to evaluate: the average if there is one, else the parameters."""
        return self.params if self.average is None else fill(self.average, self.params)


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Fields of the config that a step needs, beside model, objective and optimizer."""

    batch_size: int
    microbatches: int
    loss: LossSettings
    ema_decay: float | None
    mixout: float


TrainStep = Callable[[TrainState, Row], tuple[TrainState, Sums]]
GeneralStep = Callable[[TrainState, Row, Array, Array], tuple[TrainState, Sums]]  # of any seed and any rate
EvalStep = Callable[[Any, Row, Array], Sums]


def init_state(
    params: Any, optimizer: optax.GradientTransformation, average_mask: Any = None, mixed_mask: Any = None
) -> TrainState:
    """Return the state before the first step.

    Args:
        average_mask: a tree of bools: which parameters have an average in the state. None: no parameter has one.
        mixed_mask: a tree of bools: which parameters are trained and may be mixed. None: there is no mixout.
    """
    average = None if average_mask is None else jax.tree.map(jnp.copy, keep_leaves(params, average_mask))
    pretrained = None if mixed_mask is None else jax.tree.map(jnp.copy, select_mixed(params, mixed_mask))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, pretrained)


def noise_key(seed: int | Array) -> Array:
    """Return the PRNG key for the noise of a run's objective. The key of each example is folded from it."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def validation_key() -> Array:
    """Return the PRNG key for all validation noise. All runs have the same key, so their losses can be compared."""
    return jax.random.fold_in(jax.random.key(0), 2)


def _make_batch(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Batch:
    batch = make_batch(objective, keys, rows, table)
    return batch if objective.predicted is None else select_predicted(batch, objective.predicted)


def make_train_step(
    model: Transformer,
    objective: Objective,
    table: TokenTable,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    trainable: Any,
) -> GeneralStep:
    """Return the function (state, rows, seed, rate) -> (state, metrics). It is not jitted: the caller knows the
    shardings.

    Loss and gradient are summed over microbatches. The sums are divided once, by the weight of the whole batch. `seed`
    is an int32 scalar, `rate` the learning rate, a float32 scalar. `metrics` are float32 scalars; "grad_norm" is the
    norm of the gradient before clipping. Three metrics are bool:

        skipped         the update was skipped
        finite_update   the update is finite
        finite_rows     [B]: the loss of each row is finite

    Args:
        trainable: a tree of bools like the parameters: which parameters are trainable.
    """
    heads = list_heads(objective.heads)
    is_frozen = jax.tree.map(lambda is_trainable: not is_trainable, trainable)

    def compute_loss(
        trained: Any, frozen: Any, batch: Batch, key: Array, weights: Sums
    ) -> tuple[Array, tuple[Sums, Array]]:
        sums, finite_rows = _run_passes(model, fill(trained, frozen), batch, key, settings.loss)
        return sum_heads(sums, "objective", weights)[0], (sums | count_tokens(batch), finite_rows)

    def train_step(state: TrainState, rows: Row, seed: Array, rate: Array) -> tuple[TrainState, Sums]:
        noise, dropout = noise_key(seed), jax.random.fold_in(jax.random.key(seed), 1)
        keys = example_keys(noise, state.step, settings.batch_size)
        batch = _make_batch(objective, keys, rows, table)
        key, weights = jax.random.fold_in(dropout, state.step), sum_weights(batch, heads)
        trained = computed = keep_leaves(state.params, trainable)
        if settings.mixout:
            mixout = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), state.step)
            computed, pull_back = mix(trained, state.pretrained, settings.mixout, mixout)
        compute_gradient = functools.partial(
            jax.grad(compute_loss, has_aux=True), computed, keep_leaves(state.params, is_frozen), weights=weights
        )
        if settings.microbatches == 1:
            gradient, (sums, finite_rows) = compute_gradient(batch, key)
        else:
            gradient, (sums, finite_rows) = _accumulate(compute_gradient, batch, key, settings.microbatches)
        gradient = pull_back(gradient) if settings.mixout else gradient
        loss, weight = sum_heads(sums, "nll", weights)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        metrics = sums | {"loss": loss / weight, "grad_norm": optax.tree.norm(gradient)}
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained, rate=rate, applies=is_finite)
        metrics |= {"skipped": ~is_finite, "finite_rows": finite_rows, "finite_update": _is_finite(updates)}
        trained = optax.apply_updates(trained, updates)
        average, step = state.average, state.step + 1
        if settings.ema_decay is not None:
            average = update_average(average, trained, settings.ema_decay, step)
        return TrainState(step, fill(trained, state.params), opt_state, average, state.pretrained), metrics

    return train_step


def _run_passes(
    model: Transformer, params: Any, batch: Batch, key: Array, settings: LossSettings
) -> tuple[Sums, Array]:
    """Return (sums of the loss, finite rows) of one pass with dropout; with R-Drop, of two passes.

    finite rows: bool [B], whether the loss of each row is finite.
    """
    apply = functools.partial(model.apply, {"params": params}, batch, deterministic=False, method="outputs")
    if not settings.r_drop:
        outputs = apply(rngs={"dropout": key})
        return loss_sums(outputs, batch, settings), find_finite_rows(outputs, batch)
    outputs, others = (apply(rngs={"dropout": each}) for each in jax.random.split(key))
    finite_rows = find_finite_rows(outputs, batch) & find_finite_rows(others, batch)
    return two_pass_sums(outputs, others, batch, settings), finite_rows


def _is_finite(tree: Any) -> Array:
    """Return a bool scalar: whether all numbers of all leaves are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _accumulate(
    compute_gradient: Callable, batch: Batch, key: Array, microbatches: int
) -> tuple[Any, tuple[Sums, Array]]:
    """Return (gradient, (sums of metrics, finite rows)). Gradient and metrics are summed over microbatches.

    finite rows: bool [B], whether the loss of each row is finite. A microbatch consists of every `microbatches`-th row
    of the batch, so no row moves to another device.
    """

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    def add(total: Any, index_and_part: tuple[Array, Batch]) -> tuple[Any, Array]:
        index, part = index_and_part
        gradient, (sums, finite_rows) = compute_gradient(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (gradient, sums)), finite_rows

    parts = (jnp.arange(microbatches), jax.tree.map(split, batch))
    gradient, (sums, _) = jax.eval_shape(compute_gradient, jax.tree.map(lambda x: x[0], parts[1]), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (gradient, sums))
    (gradient, sums), finite_rows = jax.lax.scan(add, zeros, parts)
    return gradient, (sums, jnp.moveaxis(finite_rows, 0, 1).reshape(-1))


def make_eval_step(model: Transformer, objective: Objective, table: TokenTable) -> EvalStep:
    """Return the function (params, rows, index) -> sums of the loss and of the predictions.

    `index` is the number of the batch. The index of a row among all held-out rows follows from it. The noise of a row
    depends only on this index, so the sums do not depend on the batch size. Rows that are not "valid" have weight 0.
    """

    def eval_step(params: Any, rows: Row, index: Array) -> Sums:
        rows = dict(rows)
        valid = rows.pop("valid")
        keys = example_keys(validation_key(), index, len(valid))
        batch = _make_batch(objective, keys, rows, table)
        batch = batch.keep_valid(valid)
        outputs = model.apply({"params": params}, batch, deterministic=True, method="outputs")
        sums = loss_sums(outputs, batch) | prediction_sums(outputs, batch, objective.labels, rows)
        return sums | byte_sums(objective, keys, rows, batch.weights, table) if "begins" in rows else sums

    return eval_step

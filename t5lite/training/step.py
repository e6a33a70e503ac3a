"""The train step and the evaluation step: pure functions, jitted once, that make their own noise.

    state, metrics = train_step(state, rows, seed)    rows: what the host read, [B, …]
    sums = eval_step(params, rows, index)

Noise and dropout are functions of (seed, state.step) alone. The seed is an argument, so runs with different seeds share
one compiled program.

If the loss or the norm of the gradient is not finite, the update is left out: parameters and optimizer state stay as
they were, bit for bit, and only the step counts. This is decided before the optimizer runs, so no second state is held
(see optimizer.py).

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
from t5lite.objectives.batch import Batch, only_predicted
from t5lite.objectives.objective import Objective, Row, example_keys, make_batch
from t5lite.system.vocabulary import TokenTable
from t5lite.tasks.cross_entropy import Sums
from t5lite.tasks.table import heads_of, loss_sums, prediction_sums
from t5lite.tasks.text import byte_sums
from t5lite.training.average import update_average
from t5lite.training.loss import count_tokens, find_finite_rows, sum_heads, sum_weights
from t5lite.training.tables import fill, keep_leaves

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """What a training step reads and returns.

    step: int32 scalar, the number of steps done.
    params: float32.
    opt_state: optax's.
    average: the average of the trainable parameters, with None in the place of each frozen one. None where the config
        asks for no average.
    """

    step: Array
    params: Any
    opt_state: Any
    average: Any = None

    @property
    def evaluated_params(self) -> Any:
        """The parameters to evaluate: the average where there is one."""
        return self.params if self.average is None else fill(self.average, self.params)


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Fields of the config that a step needs beside model, objective and optimizer."""

    batch_size: int
    microbatches: int
    label_smoothing: float
    z_loss: float
    ema_decay: float | None


TrainStep = Callable[[TrainState, Row], tuple[TrainState, Sums]]
SeededStep = Callable[[TrainState, Row, Array], tuple[TrainState, Sums]]
EvalStep = Callable[[Any, Row, Array], Sums]


def init_state(
    model: Transformer, optimizer: optax.GradientTransformation, batch: Batch, seed: Array, averaged: Any = None
) -> TrainState:
    """Return the state before the first step. Jit this function with the shardings that the state should have.

    Args:
        batch: gives the shapes.
        averaged: a tree of bools: which parameters have an average in the state. None: no parameter has one.
    """
    params = model.init(jax.random.key(seed), batch)["params"]
    average = None if averaged is None else jax.tree.map(jnp.copy, keep_leaves(params, averaged))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def noise_key(seed: int | Array) -> Array:
    """Return the PRNG key from which the noise of a run's objective is folded."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def validation_key() -> Array:
    """Return the PRNG key of all validation noise. It is the same in every run, so losses can be compared."""
    return jax.random.fold_in(jax.random.key(0), 2)


def _make_batch(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Batch:
    batch = make_batch(objective, keys, rows, table)
    return batch if objective.predicted is None else only_predicted(batch, objective.predicted)


def make_train_step(
    model: Transformer,
    objective: Objective,
    table: TokenTable,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    trainable: Any,
) -> SeededStep:
    """Return the function (state, rows, seed) -> (state, metrics). It is not jitted: the caller knows the shardings.

    Sums of loss and gradient accumulate over microbatches. They are divided once, by the weight of the whole batch.
    `seed` is an int32 scalar. `metrics` are float32 scalars, among them "grad_norm", the norm of the gradient before
    clipping, and three that are bool:

        skipped         the update was left out
        finite_update   the optimizer's update is finite
        finite_rows     [B]: the loss of each row is finite

    Args:
        trainable: a tree of bools like the parameters.
    """
    heads = heads_of(objective.heads)
    is_frozen = jax.tree.map(lambda is_trainable: not is_trainable, trainable)

    def loss_of(trained: Any, frozen: Any, batch: Batch, key: Array, weights: Sums) -> tuple[Array, tuple[Sums, Array]]:
        params = fill(trained, frozen)
        outputs = model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key}, method="outputs")
        sums = loss_sums(outputs, batch, settings.label_smoothing, settings.z_loss)
        return sum_heads(sums, "objective", weights)[0], (sums | count_tokens(batch), find_finite_rows(outputs, batch))

    def train_step(state: TrainState, rows: Row, seed: Array) -> tuple[TrainState, Sums]:
        noise, dropout = noise_key(seed), jax.random.fold_in(jax.random.key(seed), 1)
        keys = example_keys(noise, state.step, settings.batch_size)
        batch = _make_batch(objective, keys, rows, table)
        key, weights = jax.random.fold_in(dropout, state.step), sum_weights(batch, heads)
        trained = keep_leaves(state.params, trainable)
        gradient_of = functools.partial(
            jax.grad(loss_of, has_aux=True), trained, keep_leaves(state.params, is_frozen), weights=weights
        )
        if settings.microbatches == 1:
            gradient, (sums, rows_are_finite) = gradient_of(batch, key)
        else:
            gradient, (sums, rows_are_finite) = _accumulate(gradient_of, batch, key, settings.microbatches)
        loss, weight = sum_heads(sums, "nll", weights)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        metrics = sums | {"loss": loss / weight, "grad_norm": optax.tree.norm(gradient)}
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained, applies=is_finite)
        metrics |= {"skipped": ~is_finite, "finite_rows": rows_are_finite, "finite_update": _all_finite(updates)}
        trained = optax.apply_updates(trained, updates)
        average, step = state.average, state.step + 1
        if settings.ema_decay is not None:
            average = update_average(average, trained, settings.ema_decay, step)
        return TrainState(step, fill(trained, state.params), opt_state, average), metrics

    return train_step


def _all_finite(tree: Any) -> Array:
    """Return whether all numbers of all leaves are finite, a bool scalar."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _accumulate(gradient_of: Callable, batch: Batch, key: Array, microbatches: int) -> tuple[Any, tuple[Sums, Array]]:
    """Return (gradient, (sums of metrics, whether the loss of each row is finite)), summed over microbatches.

    A microbatch takes every `microbatches`-th row of the batch, so each device keeps its rows.
    """

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

    def add(total: Any, index_and_part: tuple[Array, Batch]) -> tuple[Any, Array]:
        index, part = index_and_part
        gradient, (sums, rows_are_finite) = gradient_of(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (gradient, sums)), rows_are_finite

    parts = (jnp.arange(microbatches), jax.tree.map(split, batch))
    gradient, (sums, _) = jax.eval_shape(gradient_of, jax.tree.map(lambda x: x[0], parts[1]), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (gradient, sums))
    (gradient, sums), rows_are_finite = jax.lax.scan(add, zeros, parts)
    return gradient, (sums, jnp.moveaxis(rows_are_finite, 0, 1).reshape(-1))


def make_eval_step(model: Transformer, objective: Objective, table: TokenTable) -> EvalStep:
    """Return the function (params, rows, index) -> sums of the loss and of the predictions.

    `index` is the number of the batch. It gives each row its place among all held-out rows. The noise of a row depends
    on this place alone, so the sums do not depend on the size of a batch. Rows that are not "valid" count nothing.
    """

    def eval_step(params: Any, rows: Row, index: Array) -> Sums:
        rows = dict(rows)
        valid = rows.pop("valid")
        keys = example_keys(validation_key(), index, len(valid))
        batch = _make_batch(objective, keys, rows, table)
        batch = batch.only(valid)
        outputs = model.apply({"params": params}, batch, deterministic=True, method="outputs")
        sums = loss_sums(outputs, batch) | prediction_sums(outputs, batch, objective.labels, rows)
        return sums | byte_sums(objective, keys, rows, batch.weights, table) if "begins" in rows else sums

    return eval_step

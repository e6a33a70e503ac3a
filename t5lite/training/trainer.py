"""Make a compiled train step, with mesh, optimizer, schedule and shardings.

    trainer = make_trainer(config, model, objective, table, total_steps)
    state = trainer.init()
    state, metrics = trainer.step(state, place_batch(rows, trainer.mesh))

The step is compiled ahead of time. So rows of another shape are an error, and never a second compilation. Seed and
learning rate are arguments of the compiled step. So trainers that differ only in their seed, their schedule or their
number of steps share their compiled programs. A process caches programs, so a study compiles each program once for all
seeds, rates and budgets.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

from t5lite.model.flops import step_flops
from t5lite.model.transformer import Transformer, parameter_shapes
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Objective, example_keys, make_batch
from t5lite.system.errors import UserError
from t5lite.system.hosts import wait_for_all
from t5lite.system.vocabulary import TokenTable
from t5lite.tasks.cross_entropy import LossSettings
from t5lite.training.optimizer import make_optimizer, trainable_mask
from t5lite.training.schedules import Schedule, make_schedule
from t5lite.training.sharding import batch_sharding, check_batch, make_mesh, state_shardings
from t5lite.training.step import (
    GeneralStep,
    StepSettings,
    TrainState,
    TrainStep,
    init_state,
    make_eval_step,
    make_train_step,
)

MAX_PROGRAMS = 8  # a process caches at most this many compiled programs of each function
# The compiled step depends on these config fields, and on model and objective.
STEP_FIELDS = ("batch_size", "microbatches", "trainable", "loss", "optimizer", "ema_decay", "mixout")


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A compiled training step, with its mesh, schedule, shapes and shardings.

    shapes, shardings: the shape and the sharding of each array in the TrainState.
    init: returns the first state. Each device makes its part of the arrays.
    step: the compiled step. It consumes its argument `state` (donation).
    function: the step without jit.
    memory_bytes: the memory that the compiler plans for the step, on one device.
    """

    mesh: Mesh
    schedule: Schedule
    shapes: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    step: TrainStep
    function: TrainStep
    memory_bytes: int


def batch_shapes(objective: Objective, batch_size: int, table: TokenTable) -> Batch:
    """Return the Batch that `objective` makes, with a jax.ShapeDtypeStruct in place of each array."""

    def make(rows: Any) -> Batch:
        return make_batch(objective, example_keys(jax.random.key(0), jnp.int32(0), batch_size), rows, table)

    return jax.eval_shape(make, _row_structs(objective, batch_size))


def _row_structs(objective: Objective, batch_size: int, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    structs = objective.row_structs(batch_size).items()
    return {name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding) for name, each in structs}


def make_trainer(
    config: ConfigDict,
    model: Transformer,
    objective: Objective,
    table: TokenTable,
    total_steps: int,
    class_weights: tuple[float, ...] | None = None,
) -> Trainer:
    """Make the mesh of `config`, and compile the step for this mesh. class_weights: see `LossSettings`.

    Raises UserError if the state or a step does not fit in the memory of a device.
    """
    mesh = make_mesh(**config.mesh)
    check_batch(config.batch_size, config.microbatches, mesh)
    fields = FrozenConfigDict({name: config[name] for name in STEP_FIELDS})
    schedule = make_schedule(config.schedule, total_steps)
    programs = _compile_programs(fields, model, objective, table, mesh, class_weights)
    # Without this wait, CPU hosts fail if one of them starts the first common program over 30 s late (a limit of Gloo).
    wait_for_all()
    seed = np.int32(config.seed)
    rate = bind_mesh(mesh, jax.jit(schedule, out_shardings=NamedSharding(mesh, PartitionSpec())))
    return Trainer(
        mesh=mesh,
        schedule=schedule,
        shapes=programs.shapes,
        shardings=programs.shardings,
        init=functools.partial(programs.init, seed=seed),
        step=functools.partial(_run_step, programs.step, seed, rate),
        function=functools.partial(_run_step, programs.function, seed, schedule),
        memory_bytes=_planned_bytes(programs.step),
    )


def _run_step(step: Callable, seed: np.int32, rate: Callable, state: TrainState, rows: Any) -> tuple[TrainState, Any]:
    return step(state, rows, seed=seed, rate=rate(state.step))


@dataclasses.dataclass(frozen=True)
class _Programs:
    """What trainers of any seed and any schedule share. See Trainer; functions have `seed`, steps also `rate`."""

    shapes: TrainState
    shardings: TrainState
    init: Callable[..., TrainState]
    step: Any
    function: GeneralStep


@functools.lru_cache(MAX_PROGRAMS)
def _compile_programs(
    config: FrozenConfigDict,
    model: Transformer,
    objective: Objective,
    table: TokenTable,
    mesh: Mesh,
    class_weights: tuple[float, ...] | None,
) -> _Programs:
    params = parameter_shapes(model.config)
    optimizer = make_optimizer({**config.optimizer, "trainable": config.trainable}, params)
    trainable = trainable_mask(config.trainable, params)
    settings = StepSettings(
        config.batch_size,
        config.microbatches,
        LossSettings(config.loss.label_smoothing, config.loss.z_loss, class_weights, config.loss.r_drop),
        config.ema_decay,
        config.mixout,
    )
    average_mask = None if config.ema_decay is None else trainable
    make_state = functools.partial(
        init_state, optimizer=optimizer, average_mask=average_mask, mixed_mask=trainable if config.mixout else None
    )

    def init(seed: jax.Array) -> TrainState:
        # Two rows are enough to make parameters. With few rows, the arrays that tracing needs stay small.
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch_shapes(objective, 2, table))
        return make_state(model.init(jax.random.key(seed), batch)["params"])

    seed = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(make_state, params)
    state_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes)) // mesh.size
    check_memory(state_bytes, mesh, "parameters and optimizer state", "make the model smaller, or raise mesh.fsdp")
    shardings = state_shardings(shapes, mesh, params, model.config)
    function = make_train_step(model, objective, table, optimizer, settings, trainable)
    step = jax.jit(
        function,
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    with jax.set_mesh(mesh):
        rows = _row_structs(objective, config.batch_size, batch_sharding(mesh))
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
        compiled = step.lower(placed, rows, seed=seed, rate=rate).compile()
    advice = "lower batch_size, raise microbatches, or set model.remat=full"
    check_memory(_planned_bytes(compiled), mesh, "a training step", advice)
    initialise = bind_mesh(mesh, jax.jit(init, out_shardings=shardings))
    return _Programs(shapes, shardings, initialise, compiled, function)


def count_step_flops(config: ConfigDict, model: Transformer, objective: Objective) -> float:
    """Return the FLOPs of one training step. With R-Drop, a step has two passes over the batch."""
    encoder_length, decoder_length = objective.lengths
    lengths = {"encoder_length": encoder_length, "decoder_length": decoder_length}
    flops = step_flops(model.config, batch=config.batch_size, predicted=objective.predicted, **lengths)
    return flops * (2 if config.loss.r_drop else 1)


def bind_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Return a function that calls `function` inside `jax.set_mesh(mesh)`, so activations are split over `mesh`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args, **kwargs)

    return wrapped


@functools.lru_cache(MAX_PROGRAMS)
def compile_eval_step(model: Transformer, objective: Objective, table: TokenTable, mesh: Mesh) -> Callable:
    """Return the jitted evaluation step: (params, rows, index) -> sums. The caller must place the rows on `mesh`."""
    step = make_eval_step(model, objective, table)
    return bind_mesh(mesh, jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec())))


def _planned_bytes(compiled: Any) -> int:
    """Return the bytes that the compiled step needs on a device: arguments, new outputs and temporaries."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    arrays = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return arrays + analysis.temp_size_in_bytes


def check_memory(needed: int, mesh: Mesh, purpose: str, advice: str) -> None:
    """Raise UserError if a device of `mesh` has fewer than `needed` bytes of memory. CPU devices share their memory.

    Args:
        needed: the bytes that each device needs.
        purpose: the purpose of the memory, for the message, such as "a training step".
        advice: what to change, for the message.
    """
    device = mesh.local_devices[0]
    available = (device.memory_stats() or {}).get("bytes_limit")
    if available is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    if available is not None and needed > available:
        raise UserError(
            f"{purpose} would need {needed / 2**30:,.1f} GiB on a device that has {available / 2**30:,.1f} GiB; "
            f"{advice}"
        )


def measure_peak_bytes() -> int:
    """Return the peak memory of one device in bytes since this process began; 0 if the device does not measure it."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def peak_bytes(trainer: Trainer, before: int = 0) -> int:
    """Return the peak memory of one device in bytes: measured by the device, or else planned by the compiler.

    Args:
        before: the result of `measure_peak_bytes` when the run began. If the peak has not grown since then, the
            measured peak belongs to an earlier run, and the planned value is returned.
    """
    measured = measure_peak_bytes()
    return measured if measured > before else trainer.memory_bytes

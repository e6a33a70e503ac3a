"""A compiled train step with everything it needs: mesh, optimizer, schedule, shardings.

    trainer = make_trainer(config, model, objective, table, total_steps)
    state = trainer.init()
    state, metrics = trainer.step(state, put_batch(rows, trainer.mesh))

The step is compiled ahead of time: rows of another shape are an error, never a second compilation. Trainers that differ
only in their seed share their programs. A process keeps its programs, so a study compiles each program once for all
seeds.
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
from t5lite.model.transformer import Transformer
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Objective, example_keys, make_batch
from t5lite.system.errors import UserError
from t5lite.system.hosts import wait_for_all
from t5lite.system.vocabulary import TokenTable
from t5lite.training.optimizer import make_optimizer, trainable_mask
from t5lite.training.schedules import Schedule, make_schedule
from t5lite.training.sharding import batch_sharding, check_batch, make_mesh, state_shardings
from t5lite.training.step import StepSettings, TrainState, TrainStep, init_state, make_eval_step, make_train_step

MAX_PROGRAMS = 8  # the most programs of a kind that a process keeps
# The fields of a config on which the programs of a training depend, beside its model and objective.
STEP_FIELDS = ("batch_size", "microbatches", "trainable", "loss", "optimizer", "schedule", "ema_decay")


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A compiled training step, and what was made with it.

    shapes, shardings: of the TrainState.
    init: returns the first state, each array made on its own devices.
    step: the compiled step. It donates the state that it is given.
    function: the step without jit.
    memory_bytes: planned by the compiler for one device.
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
    shapes = objective.row_shapes(batch_size)
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in shapes.items()}


def make_trainer(
    config: ConfigDict, model: Transformer, objective: Objective, table: TokenTable, total_steps: int
) -> Trainer:
    """Place the training of `config` on its mesh, and compile the step.

    Raises UserError where the state or a step does not fit in the memory of a device.
    """
    mesh = make_mesh(**config.mesh)
    check_batch(config.batch_size, config.microbatches, mesh)
    fields = FrozenConfigDict({name: config[name] for name in STEP_FIELDS})
    made = _compile_for_any_seed(fields, model, objective, table, mesh, total_steps)
    wait_for_all()  # on CPUs, the first program of all hosts waits only half a minute for a late host (Gloo)
    seeded = {
        name: functools.partial(getattr(made, name), seed=np.int32(config.seed))
        for name in ("init", "step", "function")
    }
    return dataclasses.replace(made, **seeded)


@functools.lru_cache(MAX_PROGRAMS)
def _compile_for_any_seed(
    config: FrozenConfigDict, model: Transformer, objective: Objective, table: TokenTable, mesh: Mesh, total_steps: int
) -> Trainer:
    """Return a Trainer whose functions have one more argument: `seed`, int32."""
    schedule = make_schedule(config.schedule, total_steps)
    batch = batch_shapes(objective, config.batch_size, table)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    optimizer = make_optimizer({**config.optimizer, "trainable": config.trainable}, schedule, params)
    trainable = trainable_mask(config.trainable, params)
    settings = StepSettings(
        config.batch_size,
        config.microbatches,
        config.loss.label_smoothing,
        config.loss.z_loss,
        config.ema_decay,
    )

    def init(seed: jax.Array) -> TrainState:
        # Two rows are enough to make parameters, and keep the arrays of the tracing small.
        zeros = jax.tree.map(lambda x: jnp.zeros((2, *x.shape[1:]), x.dtype), batch)
        return init_state(model, optimizer, zeros, seed, None if config.ema_decay is None else trainable)

    seed = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(init, seed)
    held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes)) // mesh.size
    check_memory(held, mesh, "parameters and optimizer state", "make the model smaller, or raise mesh.fsdp")
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
        compiled = step.lower(placed, rows, seed=seed).compile()
    way_out = "lower batch_size, raise microbatches, or set model.remat=full"
    check_memory(_memory_bytes(compiled), mesh, "a training step", way_out)
    return Trainer(
        mesh=mesh,
        schedule=schedule,
        shapes=shapes,
        shardings=shardings,
        init=bind_mesh(mesh, jax.jit(init, out_shardings=shardings)),
        step=compiled,
        function=function,
        memory_bytes=_memory_bytes(compiled),
    )


def flops_of_a_step(config: ConfigDict, model: Transformer, objective: Objective) -> float:
    """Return the FLOPs of one training step."""
    encoder_length, decoder_length = objective.lengths
    lengths = {"encoder_length": encoder_length, "decoder_length": decoder_length}
    return step_flops(model.config, batch=config.batch_size, predicted=objective.predicted, **lengths)


def bind_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Return `function`, called under `mesh`. The model places its activations by this mesh."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args, **kwargs)

    return wrapped


@functools.lru_cache(MAX_PROGRAMS)
def compile_eval_step(model: Transformer, objective: Objective, table: TokenTable, mesh: Mesh) -> Callable:
    """Return the jitted evaluation step, (params, rows, index) -> sums. The caller places the rows on `mesh`."""
    step = make_eval_step(model, objective, table)
    return bind_mesh(mesh, jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec())))


def _memory_bytes(compiled: Any) -> int:
    """Return the bytes that the compiled step holds on a device: arguments, new outputs and temporaries."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def check_memory(needed: int, mesh: Mesh, what: str, way_out: str) -> None:
    """Raise UserError where each device of `mesh` needs more bytes than it has. CPU devices share their memory.

    Args:
        what: what needs the memory, for the message.
        way_out: what the user can change.
    """
    device = mesh.local_devices[0]
    has = (device.memory_stats() or {}).get("bytes_limit")
    if has is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    if has is not None and needed > has:
        raise UserError(
            f"{what} would take {needed / 2**30:,.1f} GiB on a device that has {has / 2**30:,.1f} GiB; {way_out}"
        )


def measure_peak_bytes() -> int:
    """Return the peak memory of one device in bytes since this process began; 0 where the device does not count it."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def peak_bytes(trainer: Trainer, before: int = 0) -> int:
    """Return the peak memory of one device in bytes: counted by the device, else planned by the compiler.

    Args:
        before: the `measure_peak_bytes` when the run began. If the peak has not grown since, it belongs to an earlier run.
    """
    counted = measure_peak_bytes()
    return counted if counted > before else trainer.memory_bytes

"""Several hosts: a process on each runs the same command, and jax.distributed joins them.

    with joined(Address(…), heartbeat_timeout):      a single process does without
        is_primary()          whether this is host 0, which alone prints and writes the small files of a workdir
        agree(facts)          check that facts are the same on every host; a UserError on the one that differs
        with primary_first(): host 0 runs the block, then the others do
        whole(tree)           arrays as NumPy, wherever their parts lie

The hosts talk through the key-value store of JAX's coordination service, not through the devices. So they can talk
before the first program is compiled. They wait for each other as long as all are alive, because no timeout of a barrier
fits the time that a tokenizer takes. Every host must make the same calls in the same order.
"""

import contextlib
import itertools
import json
import math
import re
import signal
import socket
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed  # the store and JAX's list of clusters have no public names
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.system.errors import RUN_ME_AGAIN, UserError, last_words
from t5lite.system.watchdog import AGAIN, Watchdog, explain_abort

CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")  # JAX's clusters that are recognised for sure and at no cost
WAIT_MS = 500  # of one call; between two calls Python handles signals

_calls = itertools.count()


class Address(NamedTuple):
    """Where the hosts meet, as jax.distributed.initialize takes it. None: the cluster knows."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def index() -> int:
    """Return the index of this host, from 0.

    jax.process_index() may differ: a TPU may count its hosts in another order.
    """
    return distributed.global_state.process_id


def is_primary() -> bool:
    """Return whether this is host 0, or the only host."""
    return index() == 0


def count() -> int:
    """Return the number of hosts."""
    return distributed.global_state.num_processes


def are_several(address: Address) -> bool:
    """Return whether there are hosts to join: `address` says so, or the cluster in which JAX finds this process.

    Raises UserError for an address that is incomplete or wrong.
    """
    cluster = next((env for env in ClusterEnv._cluster_types if env.name in CLUSTERS and env.is_env_present()), None)
    missing = [f"--{name}" for name, value in address._asdict().items() if value is None]
    if cluster is None and 0 < len(missing) < len(address):
        raise UserError(f"{' and '.join(missing)} missing: several hosts need all of --{', --'.join(address._fields)}")
    processes = address.num_processes or (1 if cluster is None else cluster.get_process_count())
    if address.coordinator_address is not None and not re.search(r":\d+$", address.coordinator_address):
        raise UserError(f"--coordinator_address={address.coordinator_address} has no port; it is HOST:PORT, of host 0")
    if address.process_id is not None and not 0 <= address.process_id < processes:
        raise UserError(f"--process_id={address.process_id} must be at least 0 and below --num_processes={processes}")
    return processes > 1


@contextlib.contextmanager
def joined(address: Address, heartbeat_timeout: float) -> Iterator[None]:
    """Join the other hosts, and part from them at the end of the block. If the block fails, the other hosts end too."""
    # JAX's preemption service would replace t5lite's handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    explain_abort("not all hosts met in time; start the same command on each, and see that they can reach host 0", 2)
    # JAX waits twice as long, so that t5lite's watchdog notices a death first: it can name the host.
    try:
        jax.distributed.initialize(*address, heartbeat_timeout_seconds=math.ceil(2 * heartbeat_timeout))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"cannot join the hosts at {address.coordinator_address}: {error}; is the port free?"
        ) from error
    names = from_primary(to_primary(f"host {index()} ({socket.gethostname()})"))
    lost = "JAX gave up, on this host or on another" if is_primary() else f"{names[0]} is gone"
    explain_abort(f"{lost}: what JAX says of it stands above; {AGAIN}", RUN_ME_AGAIN)
    watchdog = Watchdog(_client(), index(), names, heartbeat_timeout)
    try:
        yield
        meet()
    except BaseException as error:
        _leave(watchdog, error)
    watchdog.stop()
    jax.distributed.shutdown()


def _leave(watchdog: Watchdog, error: BaseException) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # this host is leaving already
        signal.signal(number, signal.SIG_IGN)
    if _of_devices(error):
        watchdog.await_reason()  # an operation fails at once if another host dies, and cannot say which
    line, code = last_words(error)
    if line is None:
        said = "".join(traceback.format_exception(error)).rstrip()
        line = f"{type(error).__name__}: {error}"
    else:
        said = f"t5lite: {line}"
    watchdog.leave(code, f"{watchdog.names[watchdog.index]} stopped: {line}", said)


def _of_devices(error: BaseException | None) -> bool:
    """Return whether `error` or its cause comes from XLA: a message that begins with a status, such as UNKNOWN."""
    if error is None:
        return False
    has_status = isinstance(error, ValueError | RuntimeError) and re.match(r"[A-Z_]+: ", str(error))
    return bool(has_status) or _of_devices(error.__cause__ or error.__context__)


def _client() -> Any:
    return distributed.global_state.client


def _get(key: str) -> str:
    while True:
        try:
            return _client().blocking_key_value_get(key, WAIT_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def from_primary(value: Any) -> Any:
    """Return host 0's `value`, any JSON value, on every host."""
    if count() == 1:
        return value
    key = f"hosts/said/{next(_calls)}"
    if is_primary():
        _client().key_value_set(key, json.dumps(value))
    return json.loads(_get(key))


def to_primary(value: Any) -> list[Any]:
    """Return the `value` of each host, in their order, on host 0. On the others return [] at once, without waiting."""
    if count() == 1:
        return [value]
    key = f"hosts/said/{next(_calls)}"
    _client().key_value_set(f"{key}/{index()}", json.dumps(value))
    if not is_primary():
        return []
    keys = [f"{key}/{host}" for host in range(count())]
    values = [json.loads(_get(each)) for each in keys]
    for each in keys:
        _client().key_value_delete(each)
    return values


def meet() -> None:
    """Wait until every host has come here."""
    to_primary(None)
    from_primary(None)


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """Run the block on host 0, then on the others. So the others find what host 0 built in a shared folder."""
    if not is_primary():
        from_primary(None)
    yield
    if is_primary():
        from_primary(None)


def agree(facts: Mapping[str, Any]) -> None:
    """Wait until every host is here, and check that `facts` (JSON values) are the same on all.

    Raises UserError on a host that differs from host 0.
    """
    if count() == 1:
        return
    theirs, mine = from_primary(facts), json.loads(json.dumps(facts))
    different = sorted(name for name in mine.keys() | theirs if mine.get(name) != theirs.get(name))
    if different:
        listed = ", ".join(f"{name} ({mine.get(name)}, there {theirs.get(name)})" for name in different)
        raise UserError(f"host {index()} differs from host 0 in {listed}; start the same command on every host")
    meet()


def whole(tree: Any) -> Any:
    """Return `tree` with each array as a NumPy array. Arrays on several hosts are gathered, one after the other."""

    def fetch(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)


class AnyHost:
    """Ask at each step whether any host says yes. The answer comes one step late, so that no host waits for another.

    The question is a program on the devices, like the step, and reaches all hosts in the same order. So all hosts have
    the same answer at the same step.
    """

    def __init__(self) -> None:
        devices = Mesh(np.array(jax.devices()), ("all",))
        self._sharding = NamedSharding(devices, P("all"))
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(devices, P()))
        self._pending: Any = None

    def __call__(self, mine: bool, at_once: bool) -> bool:
        """Return the answer to the previous question. mine: this host's answer to the new question.

        at_once: wait for all hosts and return the answer to the new question. A single host always returns `mine`.
        """
        if count() == 1:
            return mine
        parts = [jax.device_put(np.array([mine]), device) for device in self._sharding.addressable_devices]
        shape = (self._sharding.num_devices,)
        asked = self._any(jax.make_array_from_single_device_arrays(shape, self._sharding, parts))
        answered, self._pending = (asked, None) if at_once else (self._pending, asked)
        return answered is not None and bool(answered)

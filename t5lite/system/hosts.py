"""What several hosts say to each other. A process on each host runs the same command (joining.py joins them).

    is_primary()           whether this is host 0, which alone prints and writes the small files of a workdir
    check_agreement(facts) check that facts are the same on every host; a UserError on the one that differs
    with primary_first():  host 0 runs the block, then the others do
    gather(tree)           arrays as NumPy, wherever their parts lie

The hosts talk through the key-value store of JAX's coordination service, not through the devices. So they can talk
before the first program is compiled. They wait for each other as long as all are alive, because no timeout of a barrier
fits the time that a tokenizer takes. Every host must make the same calls in the same order.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the store has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5lite.system.errors import UserError

WAIT_MS = 500  # of one call; between two calls Python handles signals

_calls = itertools.count()


def get_index() -> int:
    """Return the index of this host, from 0.

    jax.process_index() may differ: a TPU may count its hosts in another order.
    """
    return distributed.global_state.process_id


def is_primary() -> bool:
    """Return whether this is host 0, or the only host."""
    return get_index() == 0


def count_hosts() -> int:
    """Return the number of hosts."""
    return distributed.global_state.num_processes


def get_store() -> Any:
    """Return the client of JAX's coordination service, which has the key-value store."""
    return distributed.global_state.client


def _get_value(key: str) -> Any:
    """Wait for the JSON value of a key."""
    while True:
        try:
            return json.loads(get_store().blocking_key_value_get(key, WAIT_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def from_primary(value: Any) -> Any:
    """Return host 0's `value`, any JSON value, on every host."""
    if count_hosts() == 1:
        return value
    key = f"hosts/value/{next(_calls)}"
    if is_primary():
        get_store().key_value_set(key, json.dumps(value))
    return _get_value(key)


def to_primary(value: Any) -> list[Any]:
    """Return the `value` of each host, in their order, on host 0. On the others return [] at once, without waiting."""
    if count_hosts() == 1:
        return [value]
    key = f"hosts/value/{next(_calls)}"
    get_store().key_value_set(f"{key}/{get_index()}", json.dumps(value))
    if not is_primary():
        return []
    values = [_get_value(f"{key}/{host}") for host in range(count_hosts())]
    get_store().key_value_delete(f"{key}/")
    return values


def wait_for_all() -> None:
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


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Wait until every host is here, and check that `facts` (JSON values) are the same on all.

    Raises UserError on a host that differs from host 0.
    """
    if count_hosts() == 1:
        return
    there, here = from_primary(facts), json.loads(json.dumps(facts))
    different = sorted(name for name in here.keys() | there if here.get(name) != there.get(name))
    if different:
        listed = ", ".join(f"{name} ({here.get(name)}, there {there.get(name)})" for name in different)
        raise UserError(f"host {get_index()} differs from host 0 in {listed}; start the same command on every host")
    wait_for_all()


def gather(tree: Any) -> Any:
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
        self._pending: Any = None

    @functools.cached_property
    def _program(self) -> tuple[NamedSharding, Any]:
        """The sharding of one flag a device, and the program that returns on all whether any flag is set."""
        mesh = Mesh(np.array(jax.devices()), ("all",))
        return NamedSharding(mesh, P("all")), jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, P()))

    def __call__(self, mine: bool, at_once: bool) -> bool:
        """Return the answer to the previous question.

        Args:
            mine: this host's answer to the new question. A single host always gets this back.
            at_once: wait for all hosts and return the answer to the new question.
        """
        if count_hosts() == 1:
            return mine
        sharding, find_any = self._program
        flags = jax.make_array_from_callback((sharding.num_devices,), sharding, lambda index: np.array([mine]))
        asked = find_any(flags)
        answered, self._pending = (asked, None) if at_once else (self._pending, asked)
        return answered is not None and bool(answered)

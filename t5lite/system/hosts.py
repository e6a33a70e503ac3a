"""Exchange values between hosts. A process on each host runs the same command (joining.py connects them).

    is_primary()           return whether this is host 0. Only host 0 prints, and writes the small files of a workdir
    check_agreement(facts) check that facts are the same on every host; raise UserError on a host that differs
    with primary_first():  run the block on host 0, then on the other hosts
    gather(tree)           return arrays as NumPy arrays, also if several hosts have parts of an array

The hosts use the key-value store of JAX's coordination service, not the devices. So they can exchange values before the
first program is compiled. They wait for each other while all are alive: a fixed timeout would be too short for training
a tokenizer. Every host must make the same calls in the same order.
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

WAIT_MS = 500  # the longest wait of one call; between two calls Python handles signals

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
    """Wait until a key has a value, and return that JSON value."""
    while True:
        try:
            return json.loads(get_store().blocking_key_value_get(key, WAIT_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def from_primary(value: Any) -> Any:
    """Return the `value` of host 0 on every host. value: any JSON value."""
    if count_hosts() == 1:
        return value
    key = f"hosts/value/{next(_calls)}"
    if is_primary():
        get_store().key_value_set(key, json.dumps(value))
    return _get_value(key)


def to_primary(value: Any) -> list[Any]:
    """Return the values of all hosts, in the order of the hosts, on host 0. On the other hosts return [] at once."""
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
    """Wait until every host has called this function."""
    to_primary(None)
    from_primary(None)


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """Run the block on host 0, then on the other hosts. So the others can use what host 0 built in a shared folder."""
    if not is_primary():
        from_primary(None)
    yield
    if is_primary():
        from_primary(None)


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Check that `facts` (JSON values) are the same on all hosts, and wait until all hosts have called this function.

    Raises UserError on a host whose facts differ from those of host 0.
    """
    if count_hosts() == 1:
        return
    of_primary, of_this = from_primary(facts), json.loads(json.dumps(facts))
    different = sorted(name for name in of_this.keys() | of_primary if of_this.get(name) != of_primary.get(name))
    if different:
        listed = ", ".join(f"{name} ({of_this.get(name)}, there {of_primary.get(name)})" for name in different)
        raise UserError(f"host {get_index()} differs from host 0 in {listed}; start the same command on every host")
    wait_for_all()


def gather(tree: Any) -> Any:
    """Return `tree` with each array as a NumPy array. An array with parts on several hosts is collected first."""

    def fetch(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)


class AnyHost:
    """Find out at each step whether any host has its flag set.

    Each call returns the answer to the previous call, so that no host waits for another. The question is a program on
    the devices, like the training step. All hosts run it in the same order, so all get the same answer at a step.
    """

    def __init__(self) -> None:
        self._pending: Any = None

    @functools.cached_property
    def _program(self) -> tuple[NamedSharding, Any]:
        """(sharding of the flags, one on each device; program that returns on all devices whether a flag is set)."""
        mesh = Mesh(np.array(jax.devices()), ("all",))
        return NamedSharding(mesh, P("all")), jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, P()))

    def __call__(self, flag: bool, at_once: bool) -> bool:
        """Return whether any host had its flag set at the previous call. A single host gets `flag` back.

        Args:
            flag: the flag of this host.
            at_once: wait for all hosts and return the answer for this call instead.
        """
        if count_hosts() == 1:
            return flag
        sharding, find_any = self._program
        flags = jax.make_array_from_callback((sharding.num_devices,), sharding, lambda index: np.array([flag]))
        new = find_any(flags)
        answer, self._pending = (new, None) if at_once else (self._pending, new)
        return answer is not None and bool(answer)

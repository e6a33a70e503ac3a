"""Connect several hosts by jax.distributed, and disconnect them. If one host is gone, all other hosts end.

    with join_hosts(Address(…), heartbeat_timeout):      only for several hosts

A host that fails tells the other hosts, and they end within seconds. A host that does not answer counts as dead after
the heartbeat timeout. The store of JAX's coordination service has two kinds of keys for this:

    hosts/beat/3   a number that host 3 increases again and again
    hosts/end/3    {"code": 2, "line": "…"}: how host 3 ended. If host 3 does not answer, host 0 writes this key

The store is in the process of host 0. Every host reads hosts/end/ and ends with the first entry there. If host 0 itself
is gone, JAX aborts the process in one of JAX's threads. Python cannot register a callback for that (jaxlib throws
std::bad_cast when it calls one). So the handler of SIGABRT prints the last line.
"""

import contextlib
import ctypes
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src.clusters import ClusterEnv  # JAX's list of clusters has no public name

from t5lite.system.errors import RUN_ME_AGAIN, UserError, describe_end, end_process
from t5lite.system.hosts import from_primary, get_index, get_store, is_primary, to_primary, wait_for_all

CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")  # the clusters that JAX recognises reliably and at no cost
BEATS, ENDS = "hosts/beat/", "hosts/end/"
LINGER_SECONDS = 5.0  # host 0, which has the store, waits at most this long for the other hosts to end
AGAIN = "the same command on every host goes on from the last checkpoint"


class Address(NamedTuple):
    """The arguments of jax.distributed.initialize by which hosts find each other. None: the cluster gives the value."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def are_several(address: Address) -> bool:
    """Return whether there are several hosts: by `address`, or by the cluster that JAX finds.

    Raises UserError for an address that is incomplete or wrong.
    """
    cluster = next((env for env in ClusterEnv._cluster_types if env.name in CLUSTERS and env.is_env_present()), None)
    missing = [f"--{name}" for name, value in address._asdict().items() if value is None]
    if cluster is None and 0 < len(missing) < len(address):
        raise UserError(
            f"{' and '.join(missing)} missing; several hosts need all of --{', --'.join(address._fields)}: set them"
        )
    processes = address.num_processes or (1 if cluster is None else cluster.get_process_count())
    if address.coordinator_address is not None and not re.search(r":\d+$", address.coordinator_address):
        raise UserError(f"--coordinator_address={address.coordinator_address} has no port; give HOST:PORT of host 0")
    if address.process_id is not None and not 0 <= address.process_id < processes:
        raise UserError(f"--process_id={address.process_id} must be at least 0 and below --num_processes={processes}")
    return processes > 1


@contextlib.contextmanager
def join_hosts(address: Address, heartbeat_timeout: float) -> Iterator[None]:
    """Connect to the other hosts, and disconnect at the end of the block. If the block fails, all hosts end."""
    # JAX's preemption service would replace t5lite's handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    explain_abort(
        "not all hosts connected in time; start the same command on every host, and check that they reach host 0", 2
    )
    # JAX waits twice as long, so that t5lite's watchdog notices a dead host first. The watchdog can name the host.
    try:
        jax.distributed.initialize(*address, heartbeat_timeout_seconds=math.ceil(2 * heartbeat_timeout))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"cannot join the hosts at {address.coordinator_address}: {error}; check that the port is free"
        ) from error
    names = from_primary(to_primary(f"host {get_index()} ({socket.gethostname()})"))
    lost = "JAX gave up, on this host or on another" if is_primary() else f"{names[0]} is gone"
    explain_abort(f"{lost}: see JAX's message above; {AGAIN}", RUN_ME_AGAIN)
    watchdog = Watchdog(names, heartbeat_timeout)
    try:
        yield
        wait_for_all()
    except BaseException as error:
        watchdog.end_after(error)
    watchdog.stop()
    jax.distributed.shutdown()


class Watchdog:
    """Write the heartbeat of this host, and watch the heartbeats of the others.

    names: the names of all hosts. timeout: a host whose heartbeat has not changed for this many seconds counts as dead.
    """

    def __init__(self, names: Sequence[str], timeout: float):
        self.names, self.timeout = names, timeout
        self._pause = min(max(timeout / 20, 0.1), 1.0)
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, because all hosts have finished."""
        self._stopped.set()
        self._thread.join()

    def end_after(self, error: BaseException) -> NoReturn:
        """End the process after `error`, with the output and code of a single process, and tell the other hosts."""
        for number in (signal.SIGINT, signal.SIGTERM):  # this process is ending already
            signal.signal(number, signal.SIG_IGN)
        if _is_from_devices(error):
            # If another host dies, an operation fails at once, but its error does not name the host. The watch thread
            # finds out which host it is, and ends the process with a line that names it.
            self._stopped.wait(self.timeout + 5 * self._pause)
        line, code = describe_end(error)
        output = f"t5lite: {line}" if line else "".join(traceback.format_exception(error)).rstrip()
        line = line or f"{type(error).__name__}: {error}"
        self._end(code, f"{self.names[get_index()]} stopped: {line}", output)

    def _end(self, code: int, line: str, output: str) -> NoReturn:
        """Print `output`, tell the other hosts by `line` how this host ended, and end the process with `code`.

        sys.exit is not used, because JAX would then wait minutes for the other hosts.
        """
        self._ending.acquire()  # never released: only one thread may end the process
        print(output, file=sys.stderr)
        deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(RuntimeError):  # the store is gone, so the other hosts cannot be told
            _write_end(get_index(), code, line)
            while is_primary() and len(_read_all(ENDS)) < len(self.names) and time.monotonic() < deadline:
                time.sleep(0.05)
        end_process(code)

    def _watch(self) -> None:
        last_beats: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._stopped.wait(self._pause):
            beat += 1
            try:
                get_store().key_value_set(f"{BEATS}{get_index()}", str(beat), True)
                if is_primary():
                    self._note_silent_hosts(last_beats)
                ends = [json.loads(end) for _, end in sorted(_read_all(ENDS).items())]
            except RuntimeError:
                if self._stopped.is_set():
                    return
                ends = [{"code": RUN_ME_AGAIN, "line": f"{self.names[0]} does not answer; {AGAIN}"}]
            if ends:
                self._end(ends[0]["code"], ends[0]["line"], f"t5lite: {ends[0]['line']}")

    def _note_silent_hosts(self, last_beats: dict[int, tuple[str, float]]) -> None:
        """Write the end of each host whose heartbeat has not changed for `timeout` seconds.

        last_beats: {host: (last heartbeat, when it changed)}. Updated in place.
        """
        now, ended, beats = time.monotonic(), _read_all(ENDS), _read_all(BEATS)
        for host, name in enumerate(self.names):
            beat = beats.get(host, "")
            if host not in last_beats or last_beats[host][0] != beat:
                last_beats[host] = beat, now
            elif now - last_beats[host][1] > self.timeout and host not in ended:
                line = f"{name} has not answered for {self.timeout:g} seconds; {AGAIN}"
                _write_end(host, RUN_ME_AGAIN, line)


def _read_all(folder: str) -> dict[int, str]:
    """Return {host: value} of the keys in `folder`."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in get_store().key_value_dir_get(folder)}


def _write_end(host: int, code: int, line: str) -> None:
    get_store().key_value_set(f"{ENDS}{host}", json.dumps({"code": code, "line": line}), True)


def _is_from_devices(error: BaseException | None) -> bool:
    """Return whether `error` or its cause comes from XLA. XLA's messages begin with a status, such as UNKNOWN."""
    if error is None:
        return False
    has_status = isinstance(error, ValueError | RuntimeError) and re.match(r"[A-Z_]+: ", str(error))
    return bool(has_status) or _is_from_devices(error.__cause__ or error.__context__)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []  # C has only the address of a handler, so Python must keep the handler alive


def explain_abort(line: str, code: int) -> None:
    """Install a handler: if JAX aborts the process, print `line` after JAX's messages, and end with `code`."""

    def on_abort(number: int) -> None:
        os.write(2, f"t5lite: {line}\n".encode())
        os._exit(code)

    _handlers.append(_HANDLER(on_abort))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _handlers[-1])

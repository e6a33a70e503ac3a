"""Join several hosts by jax.distributed, and part from them. If one host is gone, all others end.

    with join_hosts(Address(…), heartbeat_timeout):      a single process does without

A host that fails says so, and the others end within seconds. A host that falls silent is missed after the heartbeat
timeout. Two kinds of keys in the store of JAX's coordination service serve this:

    hosts/beat/3   a number that host 3 counts up
    hosts/end/3    {"code": 2, "line": "…"}: how host 3 ended; if host 3 fell silent, host 0 writes it

The store lives in host 0. Every host reads hosts/end/ and ends with the first entry there. If host 0 itself is gone,
JAX aborts the process from a thread of its own. Python cannot register a callback for that (jaxlib throws std::bad_cast
when it calls one). So the last line is printed in the handler of SIGABRT.
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

from t5lite.system.errors import RUN_ME_AGAIN, UserError, end_process, last_words
from t5lite.system.hosts import from_primary, get_index, get_store, is_primary, to_primary, wait_for_all

CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")  # JAX's clusters that are recognised for sure and at no cost
BEATS, ENDS = "hosts/beat/", "hosts/end/"
LINGER_SECONDS = 5.0  # host 0, which has the store, outlives the others by at most this
AGAIN = "the same command on every host goes on from the last checkpoint"


class Address(NamedTuple):
    """Where the hosts meet, as jax.distributed.initialize takes it. None: the cluster knows."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


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
def join_hosts(address: Address, heartbeat_timeout: float) -> Iterator[None]:
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
    names = from_primary(to_primary(f"host {get_index()} ({socket.gethostname()})"))
    lost = "JAX gave up, on this host or on another" if is_primary() else f"{names[0]} is gone"
    explain_abort(f"{lost}: see the message of JAX above; {AGAIN}", RUN_ME_AGAIN)
    watchdog = Watchdog(names, heartbeat_timeout)
    try:
        yield
        wait_for_all()
    except BaseException as error:
        watchdog.leave_after(error)
    watchdog.stop()
    jax.distributed.shutdown()


class Watchdog:
    """Beat for this host and watch the others.

    names: of all hosts. timeout: seconds of silence after which a host counts as dead.
    """

    def __init__(self, names: Sequence[str], timeout: float):
        self.names, self.timeout = names, timeout
        self._pause = min(max(timeout / 20, 0.1), 1.0)
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: the hosts part in peace."""
        self._stopped.set()
        self._thread.join()

    def leave_after(self, error: BaseException) -> NoReturn:
        """End the process after `error`, with the words and the code of a single process, and tell the other hosts."""
        for number in (signal.SIGINT, signal.SIGTERM):  # this host is leaving already
            signal.signal(number, signal.SIG_IGN)
        if _is_from_devices(error):
            # An operation fails at once if another host dies, and cannot say which. The watch thread finds out and
            # ends the process with the name of that host.
            self._stopped.wait(self.timeout + 5 * self._pause)
        line, code = last_words(error)
        words = f"t5lite: {line}" if line else "".join(traceback.format_exception(error)).rstrip()
        line = line or f"{type(error).__name__}: {error}"
        self._leave(code, f"{self.names[get_index()]} stopped: {line}", words)

    def _leave(self, code: int, line: str, words: str) -> NoReturn:
        """Print `words`, tell the others by `line` how this host ended, and end the process with `code`.

        Not by sys.exit: after that JAX would wait minutes for the others to come to the same end.
        """
        self._ending.acquire()  # never released: only one thread may end the process
        print(words, file=sys.stderr)
        until = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(RuntimeError):  # the store is gone, so nobody can be told
            _write_end(get_index(), code, line)
            while is_primary() and len(_read_all(ENDS)) < len(self.names) and time.monotonic() < until:
                time.sleep(0.05)
        end_process(code)

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._stopped.wait(self._pause):
            beat += 1
            try:
                get_store().key_value_set(f"{BEATS}{get_index()}", str(beat), True)
                if is_primary():
                    self._note_the_silent(heard)
                ends = [json.loads(end) for _, end in sorted(_read_all(ENDS).items())]
            except RuntimeError:
                if self._stopped.is_set():
                    return
                ends = [{"code": RUN_ME_AGAIN, "line": f"{self.names[0]} does not answer; {AGAIN}"}]
            if ends:
                self._leave(ends[0]["code"], ends[0]["line"], f"t5lite: {ends[0]['line']}")

    def _note_the_silent(self, heard: dict[int, tuple[str, float]]) -> None:
        """Write the end of each host whose beat has not changed for `timeout` seconds.

        heard: {host: its last beat, and when that was new}.
        """
        now, ended, beats = time.monotonic(), _read_all(ENDS), _read_all(BEATS)
        for host, name in enumerate(self.names):
            beat = beats.get(host, "")
            if host not in heard or heard[host][0] != beat:
                heard[host] = beat, now
            elif now - heard[host][1] > self.timeout and host not in ended:
                line = f"{name} has not answered for {self.timeout:g} seconds; {AGAIN}"
                _write_end(host, RUN_ME_AGAIN, line)


def _read_all(folder: str) -> dict[int, str]:
    """Return {host: value} of the keys in `folder`."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in get_store().key_value_dir_get(folder)}


def _write_end(host: int, code: int, line: str) -> None:
    get_store().key_value_set(f"{ENDS}{host}", json.dumps({"code": code, "line": line}), True)


def _is_from_devices(error: BaseException | None) -> bool:
    """Return whether `error` or its cause comes from XLA: a message that begins with a status, such as UNKNOWN."""
    if error is None:
        return False
    has_status = isinstance(error, ValueError | RuntimeError) and re.match(r"[A-Z_]+: ", str(error))
    return bool(has_status) or _is_from_devices(error.__cause__ or error.__context__)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Any] = []  # C holds only the handler's address, so Python must hold the handler


def explain_abort(line: str, code: int) -> None:
    """If JAX aborts the process, print `line` after JAX's own messages, and end with `code`."""

    def on_abort(number: int) -> None:
        os.write(2, f"t5lite: {line}\n".encode())
        os._exit(code)

    _kept.append(_HANDLER(on_abort))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _kept[-1])

"""If one host is gone, all hosts end: within seconds if it says so itself, within the heartbeat timeout if it cannot.

    hosts/beat/3   a number that host 3 counts up
    hosts/end/3    {"code": 2, "line": "…"}: how host 3 ended; if host 3 fell silent, host 0 writes it

These are keys in the store of JAX's coordination service, which lives in host 0. Every host reads hosts/end/ and ends
with the first entry there. If host 0 itself is gone, JAX aborts the process from a thread of its own. Python cannot
register a callback for that (jaxlib throws std::bad_cast when it calls one). So the last line is printed in the handler
of SIGABRT.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from t5lite.system.errors import RUN_ME_AGAIN, end_process

BEATS, ENDS = "hosts/beat/", "hosts/end/"
LINGER_SECONDS = 5.0  # host 0, which has the store, outlives the others by at most this
AGAIN = "the same command on every host goes on from the last checkpoint"


class Watchdog:
    """Beat for this host and watch the others. client: of JAX's coordination service.

    names: of all hosts. timeout: seconds of silence after which a host counts as dead.
    """

    def __init__(self, client: Any, index: int, names: Sequence[str], timeout: float):
        self.client, self.index, self.names, self.timeout = client, index, names, timeout
        self._pause = min(max(timeout / 20, 0.1), 1.0)
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: the hosts part in peace."""
        self._stopped.set()
        self._thread.join()

    def await_reason(self) -> None:
        """Wait while the watch thread finds out which host is gone, and ends the process with its name."""
        self._stopped.wait(self.timeout + 5 * self._pause)

    def leave(self, code: int, line: str, said: str | None) -> NoReturn:
        """Print `said`, tell the others by `line` how this host ended, and end the process with `code`.

        Not by sys.exit: after that JAX would wait minutes for the others to come to the same end.
        """
        self._ending.acquire()  # never released: only one thread may end the process
        if said is not None:
            print(said, file=sys.stderr)
        try:
            self.client.key_value_set(f"{ENDS}{self.index}", json.dumps({"code": code, "line": line}), True)
            self._linger()
        except RuntimeError:
            pass  # the store is gone, so nobody can be told
        end_process(code)

    def _linger(self) -> None:
        until = time.monotonic() + LINGER_SECONDS
        while self.index == 0 and len(self._ends()) < len(self.names) and time.monotonic() < until:
            time.sleep(0.05)

    def _ends(self) -> dict[int, dict[str, Any]]:
        return {int(key.rsplit("/", 1)[1]): json.loads(end) for key, end in self.client.key_value_dir_get(ENDS)}

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._stopped.wait(self._pause):
            beat += 1
            try:
                self.client.key_value_set(f"{BEATS}{self.index}", str(beat), True)
                if self.index == 0:
                    self._note_the_silent(heard)
                ends = self._ends()
            except RuntimeError:
                if self._stopped.is_set():
                    return
                ends = {0: _lost(f"{self.names[0]} does not answer")}
            for _, end in sorted(ends.items()):
                self.leave(end["code"], end["line"], f"t5lite: {end['line']}")

    def _note_the_silent(self, heard: dict[int, tuple[str, float]]) -> None:
        """Write the end of each host whose beat has not changed for `timeout` seconds."""
        now, ended = time.monotonic(), self._ends()
        beats = {int(key.rsplit("/", 1)[1]): beat for key, beat in self.client.key_value_dir_get(BEATS)}
        for host, name in enumerate(self.names):
            beat = beats.get(host, "")
            if heard.get(host, (None, 0.0))[0] != beat:
                heard[host] = beat, now
            elif now - heard[host][1] > self.timeout and host not in ended:
                end = _lost(f"{name} has not answered for {self.timeout:g} seconds")
                self.client.key_value_set(f"{ENDS}{host}", json.dumps(end), True)


def _lost(what: str) -> dict[str, Any]:
    """Return the end of a host that could not say it itself."""
    return {"code": RUN_ME_AGAIN, "line": f"{what}; {AGAIN}"}


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

"""Bounded waiting for the network, in downloads that other packages make with `requests`.

    with refuse_silent_hosts():
        builder.download_and_prepare()

A download may take any time, as long as bytes arrive. It ends if its host cannot be reached, or sends nothing for a
while. `requests` alone waits without limit, and tensorflow-datasets tries again for minutes.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

CONNECT, SILENCE = 20.0, 60.0  # seconds to connect to a host, and without a byte of it
RESOLVE = 25.0  # seconds to find the addresses of a host, beside CONNECT
RETRIES = 2  # after a connection that broke before the answer
Place = tuple[str, int]  # host and port
PORTS = {"https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}


@contextlib.contextmanager
def refuse_silent_hosts() -> Iterator[None]:
    """Within the block, raise requests.ConnectionError for a host that cannot be reached, or that stays silent.

    A proxy in the environment counts as the host.
    """
    from requests.adapters import HTTPAdapter

    send, default = HTTPAdapter.send, socket.getdefaulttimeout()
    known: dict[Place, str | None] = {}
    answered: set[Place] = set()

    def send_with_limits(
        adapter: HTTPAdapter, request: Any, stream: bool = False, timeout: Any = None, **given: Any
    ) -> Any:
        place = _check_host(request.url, given.get("proxies"), known)
        total = adapter.max_retries.total
        again = RETRIES if place in answered else 0  # silence of a host that has never answered is not tried again
        limits = {"total": None, "status": total, "connect": RETRIES, "other": again, "read": again}
        adapter.max_retries = adapter.max_retries.new(**limits if total is not None else {})
        response = send(adapter, request, stream=stream, timeout=timeout or (CONNECT, SILENCE), **given)
        answered.add(place)
        return response

    HTTPAdapter.send = send_with_limits
    socket.setdefaulttimeout(SILENCE)  # for urllib, which reads ftp
    try:
        yield
    finally:
        HTTPAdapter.send = send
        socket.setdefaulttimeout(default)


def _check_host(url: str, proxies: Any, known: dict[Place, str | None]) -> Place:
    """Return the host and port of a URL, or of its proxy. Raise requests.ConnectionError if it cannot be reached.

    known: {place: why it cannot be reached, or None}, of earlier calls.
    """
    from requests import ConnectionError
    from requests.utils import prepend_scheme_if_needed, select_proxy

    proxy = select_proxy(url, proxies)
    parts = urlsplit(prepend_scheme_if_needed(proxy, "http") if proxy else url)
    place = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 80)
    if place not in known:
        known[place] = explain_unreachable(*place)
    if known[place] is not None:
        raise ConnectionError(f"{'the proxy ' if proxy else ''}{place[0]} cannot be reached ({known[place]})")
    return place


def explain_unreachable(host: str, port: int) -> str | None:
    """Return why no connection to a host is possible; None if it is possible."""
    found: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT).close()
            found.append(None)
        except OSError as error:
            found.append(error.strerror or str(error))

    # A thread, because no limit applies to the search for the addresses of a host.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT + RESOLVE)
    return found[0] if found else f"no answer within {CONNECT + RESOLVE:.0f} seconds"

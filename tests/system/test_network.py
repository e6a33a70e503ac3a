"""Downloads end if a host cannot be reached or stays silent, and go on for as long as bytes arrive."""

import contextlib
import socket
import threading
import time

import pytest
import requests
import tensorflow_datasets as tfds
from requests.adapters import HTTPAdapter

from t5lite.data.columns import Columns
from t5lite.data.sources import open_source
from t5lite.system import network
from t5lite.system.errors import UserError
from t5lite.system.network import explain_unreachable, refuse_silent_hosts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"


@contextlib.contextmanager
def serve(*answers):
    """Serve one answer a connection, the last one again and again. An answer is a list of (seconds to wait, bytes).

    Yields (address, the number of connections so far).
    """
    server, seen = socket.create_server(("127.0.0.1", 0)), []

    def answer(connection, parts):
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            for seconds, part in parts:
                time.sleep(seconds)
                connection.sendall(part)

    def listen():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                # The first connection is the check whether the host can be reached.
                parts = answers[min(max(len(seen) - 1, 0), len(answers) - 1)]
                seen.append(connection)
                threading.Thread(target=answer, args=(connection, parts), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/text.txt", seen
    finally:
        server.close()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, seconds in {"CONNECT": 5.0, "SILENCE": 0.6, "RESOLVE": 1.0}.items():
        monkeypatch.setattr(network, name, seconds)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def download(address):
    """Download as tensorflow-datasets does."""
    from tensorflow_datasets.core.download.downloader import _open_url

    with refuse_silent_hosts(), _open_url(address) as (_, blocks):
        return b"".join(blocks)


def test_a_slow_download_is_not_cut_off():
    with serve([(0.4, HEAD), *[(0.3, bytes([letter])) for letter in b"slowly"]]) as (address, _):
        start = time.monotonic()
        assert download(address) == b"slowly"
        assert time.monotonic() - start > 3 * network.SILENCE


def test_an_error_of_the_server_is_tried_again():
    busy = [(0, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")]
    with serve(busy, busy, busy, [(0, HEAD + b"fourth")]) as (address, _):
        assert download(address) == b"fourth"


@pytest.mark.parametrize("parts", [[(9, HEAD)], [(0, HEAD + b"sl"), (9, b"owly")]], ids=["no answer", "half a file"])
def test_a_silent_host_ends_the_download(parts):
    with serve(parts) as (address, seen):
        start = time.monotonic()
        with pytest.raises(requests.RequestException):
            download(address)
        assert time.monotonic() - start < 4 * network.SILENCE and len(seen) == 2


def test_a_proxy_is_the_host_that_must_be_reached(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{closed_port()}")
    with pytest.raises(requests.ConnectionError, match=r"the proxy 127\.0\.0\.1 cannot be reached"):
        download("http://example.invalid/text.txt")


def test_a_search_for_addresses_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(network, "CONNECT", 0.2)
    ended = threading.Event()

    def connect(*given, **named):
        ended.wait(9)
        raise OSError("the test has ended")

    monkeypatch.setattr(socket, "create_connection", connect)
    start = time.monotonic()
    reason = explain_unreachable("example.invalid", 443)
    ended.set()
    assert reason.startswith("no answer within") and time.monotonic() - start < 3


def test_nothing_stays_changed():
    send, timeout = HTTPAdapter.send, socket.getdefaulttimeout()
    with pytest.raises(ZeroDivisionError), refuse_silent_hosts():
        assert HTTPAdapter.send is not send
        _ = 1 / 0
    assert HTTPAdapter.send is send and socket.getdefaulttimeout() == timeout


class NetworkTestTexts(tfds.core.GeneratorBasedBuilder):
    """A dataset whose text is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    ADDRESS = ""

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download(self.ADDRESS))}

    def _generate_examples(self, path):
        yield 0, {"text": path.read_text()}


def read_texts():
    return list(open_source("tfds:network_test_texts", Columns(), "train").fragments())


def test_a_dataset_without_a_network_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(NetworkTestTexts, "ADDRESS", f"http://127.0.0.1:{closed_port()}/text.txt")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached \(Connection refused\); check the network"):
        read_texts()
    assert time.monotonic() - start < 20


def test_a_dataset_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with serve([(0.1, HEAD + b"slowly")]) as (address, _):
        monkeypatch.setattr(NetworkTestTexts, "ADDRESS", address)
        assert [fragment.text for fragment in read_texts()] == ["slowly"]

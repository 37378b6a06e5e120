"""The metrics' door: what it answers, and that nobody can hold it up."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostnet.errors import HostError, UsageError
from vhostnet.frontdoors import metrics_server
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.metrics_server import (
    MAX_CLIENTS,
    MetricsAddress,
    MetricsServer,
    listen,
    parse_address,
)

BIG = b"x" * (4 << 20)  # more than any socket takes at once


class Bed:
    """A server whose loop runs in a thread, and clients of it."""

    def __init__(self) -> None:
        self.renders = 0
        self.text: bytes | None = b"metric 1\n"
        self.loop = Loop()
        sock, close = listen(MetricsAddress("127.0.0.1", 0))
        self.where = sock.getsockname()
        self.server = MetricsServer(self.loop, sock, close, self.render, "text/plain; version=9")
        self._bell, bell = socket.socketpair()
        self.loop.watch(bell.fileno(), 1, lambda _ready: self.loop.stop())
        self._kept = bell
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()
        self.clients: list[socket.socket] = []

    def render(self) -> bytes:
        self.renders += 1
        assert self.text is not None
        return self.text

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.where, timeout=60)
        self.clients.append(client)
        return client

    def ask(self, data: bytes) -> bytes:
        client = self.connect()
        client.sendall(data)
        return everything(client)

    def get(self, path: str = "/metrics", method: str = "GET") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self.where, timeout=60)
        connection.request(method, path)
        found = connection.getresponse()
        found.body = found.read()  # type: ignore[attr-defined]
        connection.close()
        return found

    def close(self) -> None:
        self._bell.send(b"x")
        self._thread.join()
        self.server.close()
        self.loop.close()
        for end in (self._bell, self._kept, *self.clients):
            end.close()


def everything(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 20):
            data += piece
    return data


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


def test_the_metrics_are_at_their_path(bed: Bed) -> None:
    found = bed.get()
    assert (found.status, found.body) == (200, b"metric 1\n")
    assert found.headers["Content-Type"] == "text/plain; version=9"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?x=1", 200),
        ("GET", "/other", 404),
        ("POST", "/metrics", 405),
    ],
)
def test_other_requests(bed: Bed, method: str, path: str, status: int) -> None:
    assert bed.get(path, method).status == status


def test_what_is_no_request_gets_an_answer_too(bed: Bed) -> None:
    assert bed.ask(b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert bed.ask(b"GET / HTTP/1.1\r\n" + b"a" * 9000).startswith(b"HTTP/1.1 431 ")


def test_a_request_may_come_byte_by_byte(bed: Bed) -> None:
    client = bed.connect()
    for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
        client.sendall(bytes([byte]))
    assert everything(client).endswith(b"metric 1\n")


def test_an_answer_longer_than_a_socket_takes_arrives_whole(bed: Bed) -> None:
    bed.text = BIG
    assert bed.get().body == BIG


def test_who_does_not_read_holds_nobody_up(bed: Bed) -> None:
    bed.text = BIG
    for _ in range(5):
        bed.connect().sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert bed.get().body == BIG


def test_who_says_nothing_holds_nobody_up_however_many_they_are(bed: Bed) -> None:
    silent = [bed.connect() for _ in range(3 * MAX_CLIENTS)]
    assert bed.get().status == 200
    assert everything(silent[0]) == b""  # the oldest had to go
    assert bed.server.n_clients <= MAX_CLIENTS


def test_who_is_not_done_in_time_is_hung_up_on(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "PATIENCE_S", 0.05)
    client = bed.connect()
    client.sendall(b"GET /metr")
    assert everything(client) == b""


def test_scraping_in_a_rage_makes_the_text_seldom(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "FRESH_S", 1000.0)
    for _ in range(20):
        assert bed.get().status == 200
    assert bed.renders == 1


def test_a_text_that_takes_long_is_kept_nine_times_as_long() -> None:
    now = 100.0

    def render() -> bytes:
        nonlocal now
        now += 2.0
        return b"made at %d" % now

    with contextlib.closing(Loop()) as loop:
        sock, close = listen(MetricsAddress("127.0.0.1", 0))
        server = MetricsServer(loop, sock, close, render, "text/plain", lambda: now)
        for at, made in ((100.0, 102), (119.9, 102), (120.0, 122), (120.5, 122)):
            now = max(now, at)
            assert server.answer("GET", "/metrics").endswith(b"made at %d" % made)
        server.close()


def test_a_text_that_cannot_be_made_is_our_bug_and_no_end(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    bed.text = None
    assert bed.get().status == 500
    assert "bug in this program" in caplog.text
    bed.text = b"metric 2\n"
    assert bed.get().body == b"metric 2\n"


def test_a_unix_socket_is_for_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with contextlib.closing(Loop()) as loop:
        sock, close = listen(MetricsAddress("", 0, str(path)))
        server = MetricsServer(loop, sock, close, lambda: b"metric 1\n", "text/plain")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            for _ in range(3):
                loop.run_once(5)
            assert client.recv(1000).endswith(b"metric 1\n")
        server.close()
        server.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:9743", MetricsAddress("127.0.0.1", 9743)),
        ("tcp:[::1]:0", MetricsAddress("::1", 0)),
        ("tcp:*:80", MetricsAddress("*", 80)),
        ("unix:/run/m.sock", MetricsAddress("", 0, "/run/m.sock")),
    ],
)
def test_addresses(text: str, address: MetricsAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither tcp:HOST:PORT nor unix:PATH"),
        ("9743", "neither"),
        ("127.0.0.1:9743", "neither"),
        ("tcp:9743", "neither"),
        ("tcp:a:", "is not a port"),
        ("tcp:a:65536", "is not a port"),
        ("tcp:a:-1", "is not a port"),
        ("tcp:::1:80", "in brackets"),
        ("unix:", "empty"),
        ("unix:" + "a" * 200, "107"),
    ],
)
def test_what_is_no_address(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_address(text)


def test_a_port_that_is_taken_is_told() -> None:
    sock, close = listen(MetricsAddress("127.0.0.1", 0))
    with pytest.raises(HostError, match=r"^tcp:127\.0\.0\.1:\d+: Address already in use$"):
        listen(MetricsAddress("127.0.0.1", sock.getsockname()[1]))
    close()

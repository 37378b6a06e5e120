"""The metrics' door: a small HTTP server for Prometheus, in the daemon's loop.

Theory of operation.  A client is one connection with one request.  It may be slow or hostile, and
has nothing to hold on to: no call of ours waits for it, what it sends is bounded, and whoever is
not done after `PATIENCE_S` is hung up on.  When more than `MAX_CLIENTS` are connected the oldest
one has to go, so that a scraper always comes in.  The text is made at most once in `FRESH_S`, and
then not for `REST` times as long as it took, so that it never has more than a tenth of the loop's
time; between, the same one is given to all.

READING   the request has not ended
    Operations:  what arrives is read, at most `MAX_REQUEST` bytes in all
WRITING   the response is made
    Operations:  what the socket takes is written; at the end it is closed
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from vhostnet.errors import HostError, UsageError
from vhostnet.frontdoors.acceptor import Acceptor
from vhostnet.frontdoors.event_loop import READABLE, WRITABLE, Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_path
from vhostnet.protocol.http_request import (
    MAX_REQUEST,
    BadRequest,
    parse_request,
    response,
)

SYSCALLS = ("recvfrom", "sendto", "shutdown", "getsockopt", "getsockname")

log = logging.getLogger("vhostnet.metrics")

PATH = "/metrics"
MAX_CLIENTS = 16
PATIENCE_S = 5.0
FRESH_S = 0.1
REST = 9.0
#: Of a unix socket: for us and our group; who else may know is for the folder to say.
SOCKET_MODE = 0o660
_INDEX = b"vhostnet: metrics are at /metrics\n"


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where to listen: a host and a port, or the path of a unix socket.

    Attributes:
        host: "" is a unix socket; "*" every address of this host.
        port: 0 is one that the kernel chooses.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


def parse_address(text: str) -> MetricsAddress:
    """ "tcp:HOST:PORT" (HOST in brackets if it has colons) or "unix:PATH"; UsageError."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        check_path(rest)
        return MetricsAddress("", 0, rest)
    host, colon, port = rest.rpartition(":")
    if kind != "tcp" or not colon or not host:
        raise UsageError(f"{text!r} is neither tcp:HOST:PORT nor unix:PATH")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise UsageError(f"{port!r} is not a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{host!r}: write an address with colons in brackets, tcp:[::1]:{port}")
    return MetricsAddress(host, int(port))


def listen(address: MetricsAddress) -> tuple[socket.socket, Callable[[], None]]:
    """A listening, non-blocking socket, and what closes it; HostError."""
    if address.path:
        listening = ListeningSocket(address.path, SOCKET_MODE)
        return listening.socket, listening.close
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            None if address.host == "*" else address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise HostError(f"{address}: {error.strerror}", error.errno or 0) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise HostError(f"{address}: {error.strerror}", error.errno or 0) from error
    return sock, sock.close


class MetricsServer:
    """Answers GET /metrics.

    Args:
        loop: of the daemon.
        sock, close: from `listen`, ours from now on.
        render: makes the text.
        content_type: of that text.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        close: Callable[[], None],
        render: Callable[[], bytes],
        content_type: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loop = loop
        self._close_socket = close
        self._render = render
        self._content_type = content_type
        self._clock = clock
        self._text: bytes | None = None
        self._fresh_until = 0.0
        #: by age, the oldest first
        self._clients: OrderedDict[_Client, None] = OrderedDict()
        self._acceptor = Acceptor(
            loop, sock, self._accepted, log.warning, "a client of the metrics"
        )

    @property
    def n_clients(self) -> int:
        """Connections, now."""
        return len(self._clients)

    def close(self) -> None:
        """Hang up on all and stop listening.  Harmless the second time."""
        for client in list(self._clients):
            client.close()
        self._acceptor.close()
        self._close_socket()

    def forget(self, client: _Client) -> None:
        """A client has gone."""
        self._clients.pop(client, None)

    def answer(self, method: str, path: str) -> bytes:
        """The response to a request."""
        is_head = method == "HEAD"
        if method not in ("GET", "HEAD"):
            text = f"{method} is not for here\n".encode()
            return response(HTTPStatus.METHOD_NOT_ALLOWED, text, allow="GET, HEAD")
        if path == PATH:
            return response(HTTPStatus.OK, self._fresh_text(), self._content_type, is_head=is_head)
        if path == "/":
            return response(HTTPStatus.OK, _INDEX, is_head=is_head)
        return response(HTTPStatus.NOT_FOUND, _INDEX, is_head=is_head)

    def _fresh_text(self) -> bytes:
        began = self._clock()
        if self._text is None or began >= self._fresh_until:
            self._text = self._render()
            ended = self._clock()
            self._fresh_until = ended + max(FRESH_S, REST * (ended - began))
        return self._text

    def _accepted(self, sock: socket.socket) -> None:
        while len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).close()
        self._clients[_Client(self, sock)] = None


class _Client:
    """One connection."""

    def __init__(self, server: MetricsServer, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._server = server
        self._socket = sock
        self._request = b""
        self._unsent = b""
        self._timer = server.loop.call_later(PATIENCE_S, self.close)
        server.loop.watch(sock.fileno(), READABLE, self._read)

    def close(self) -> None:
        """Hang up.  Harmless the second time."""
        if self._socket.fileno() >= 0:
            self._timer.cancel()
            self._server.loop.unwatch(self._socket.fileno())
            self._socket.close()
        self._server.forget(self)

    def _read(self, _ready: int) -> None:
        try:
            data = self._socket.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._request += data
        try:
            request = parse_request(self._request)
            if request is None:
                return
            answer = self._server.answer(request.method, request.path)
        except BadRequest as bad:
            answer = response(bad.status, f"{bad.status.phrase}\n".encode())
        except Exception:
            log.exception("bug in this program: no metrics")
            answer = response(HTTPStatus.INTERNAL_SERVER_ERROR, b"a bug in vhostnet, see its log\n")
        self._unsent = answer
        self._server.loop.watch(self._socket.fileno(), WRITABLE, self._write)

    def _write(self, _ready: int) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""
        if not self._unsent:
            with contextlib.suppress(OSError):
                # what the client still sends would turn our answer into a reset
                self._socket.shutdown(socket.SHUT_WR)
                self._socket.recv(MAX_REQUEST)
            self.close()

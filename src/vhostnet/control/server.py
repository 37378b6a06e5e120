"""The control socket: its clients, and events for all of them.

Theory of operation.  A client is one non-blocking connection with a session of its own
(`protocol/qmp_session.py`).  In a turn of the loop at most `A_TURN` bytes of it are read, so one
that sends without pause holds nobody up.  What it does not read waits here:

READING   little waits
    Operations:  commands are read and answered
FULL      more than `PENDING_HIGH` bytes wait
    Operations:  none of its commands is read until all of that has gone
    Caveats:     events still come; at `PENDING_MAX` the client is disconnected

Events come from any thread (`vhostnet.events`): they are queued, and an eventfd wakes the loop.
The queue is bounded: a guest can break its rings as fast as it likes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from vhostnet import __version__, events
from vhostnet.frontdoors.acceptor import Acceptor
from vhostnet.frontdoors.event_loop import READABLE, WRITABLE, Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.frontdoors.unix_sockets import peer_pid
from vhostnet.protocol.qmp_session import QmpSession

from .daemon import Daemon
from .registry import Command, execute

SYSCALLS = ("eventfd2", "recvfrom", "sendto", "getsockopt", "getsockname")

logger = logging.getLogger("vhostnet")

MAX_CLIENTS = 32
#: Bytes of commands that are read in a turn.
A_TURN = 4096
PENDING_HIGH = 64 * 1024
PENDING_MAX = 4 * 1024 * 1024
#: Events that wait for the loop; of more, the oldest are dropped, and EVENTS_LOST says how many.
MAX_EVENTS = 1024


def version() -> tuple[int, int, int]:
    """Of this program."""
    parts = [int(part) for part in __version__.split(".")[:3] if part.isdecimal()]
    major, minor, micro = (*parts, 0, 0, 0)[:3]
    return major, minor, micro


class _Client:
    """One connection."""

    def __init__(self, server: ControlServer, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._server = server
        self._socket = sock
        self._session = QmpSession(server.execute, version(), f"vhostnet {__version__}")
        self._unsent = bytearray()
        self._is_full = False
        self._watched = 0
        self.pid = peer_pid(sock)

    def greet(self) -> None:
        """Say who we are."""
        self._send(self._session.greeting())

    def tell(self, event: events.Event) -> None:
        """Send an event, if the client is there for it."""
        self._send(self._session.event(event.name, event.data, event.seconds))

    def close(self) -> None:
        """Hang up."""
        self._server.loop.unwatch(self._socket.fileno())
        self._server.clients.discard(self)
        self._socket.close()

    def _on_ready(self, ready: int) -> None:
        if ready & WRITABLE:
            self._send(b"")
        if ready & READABLE and self._socket.fileno() >= 0:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(A_TURN)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._send(self._session.feed(data))
        else:
            self.close()

    def _send(self, data: bytes) -> None:
        self._unsent += data
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if len(self._unsent) > PENDING_MAX:
            self._server.log.warning(
                f"hung up on client pid {self.pid}: it does not read its events"
            )
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        self._is_full = len(self._unsent) > (0 if self._is_full else PENDING_HIGH)
        wanted = (0 if self._is_full else READABLE) | (WRITABLE if self._unsent else 0)
        if wanted != self._watched:
            self._watched = wanted
            self._server.loop.watch(self._socket.fileno(), wanted, self._on_ready)


class ControlServer:
    """The control socket of a daemon.

    Args:
        loop: of the daemon.
        listening: ours from now on.
        daemon: what commands are about.
        commands: see `table.commands`.
    """

    def __init__(
        self,
        loop: Loop,
        listening: ListeningSocket,
        daemon: Daemon,
        commands: Mapping[str, Command],
    ) -> None:
        self.loop = loop
        self.log = PeerLog(logger, "control", loop.call_later)
        self.clients: set[_Client] = set()
        self._daemon = daemon
        self._commands = commands
        self._listening = listening
        # Guards what waits, and the bell: when that is taken away, its number may soon be
        # another file's.
        self._ringing = threading.Lock()
        self._events: deque[events.Event] = deque()
        self._n_lost = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._bell, READABLE, self._on_bell)
        self._stop_listening = events.listen(self._on_event)
        self._acceptor = Acceptor(
            loop, listening.socket, self._accepted, self.log.warning, "a client"
        )

    def execute(self, name: str, arguments: dict[str, Any]) -> Any:
        """Run a command of a client's."""
        return execute(self._commands, self._daemon, name, arguments)

    def close(self) -> None:
        """Tell what has happened, hang up, remove the socket file."""
        self._stop_listening()
        self._pass_on()
        for client in list(self.clients):
            client.close()
        with self._ringing:
            self.loop.unwatch(self._bell)
            os.close(self._bell)
            self._bell = -1
        self._acceptor.close()
        self._listening.close()
        self.log.flush()

    def _accepted(self, sock: socket.socket) -> None:
        if len(self.clients) >= MAX_CLIENTS:
            self.log.warning(f"refused client pid {peer_pid(sock)}: {MAX_CLIENTS} are connected")
            sock.close()
            return
        client = _Client(self, sock)
        self.clients.add(client)
        client.greet()

    def _on_event(self, event: events.Event) -> None:
        """In any thread."""
        with self._ringing, contextlib.suppress(BlockingIOError):
            self._events.append(event)
            if len(self._events) > MAX_EVENTS:
                self._events.popleft()
                self._n_lost += 1
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _on_bell(self, _ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        self._pass_on()

    def _pass_on(self) -> None:
        with self._ringing:
            waiting, self._events = self._events, deque()
            n_lost, self._n_lost = self._n_lost, 0
        if n_lost:
            waiting.appendleft(events.Event("EVENTS_LOST", {"count": n_lost}, time.time()))
        for event in waiting:
            for client in list(self.clients):
                client.tell(event)

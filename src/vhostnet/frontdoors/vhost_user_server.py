"""Serve vhost-user front-ends: for each device one session at a time, any number of devices.

Theory of operation
===================

A `DeviceServer` owns a device and its current `Connection`, if any.  A door brings connected
sockets to it: `ListeningDoor` accepts them, `ConnectingDoor` makes them (QEMU with server=on),
and an inherited descriptor is offered once.  All run on the one `Loop`.

FREE      no front-end
    Operations:  `offer` starts a session
SERVING   a front-end is connected
    Operations:  `offer` first lets the live connection read what has arrived: if that is the
                 end of its stream, the new one is served, otherwise it is refused
    Caveats:     never two sessions on one device; they would share rings
FINISHED  one session was all that was asked for (`--one-off`, `--fd`), or `close` was called
    Operations:  `offer` refuses
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from typing import Protocol

from vhostnet.errors import HostError, UsageError
from vhostnet.frontdoors.acceptor import Acceptor
from vhostnet.frontdoors.connection import Connection, SessionDevice
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_path
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.unix_sockets import connect_unix, peer_pid

SYSCALLS = ("getsockopt", "getsockname", "getpeername")

RECONNECT_S = 1.0

logger = logging.getLogger("vhostnet")


class Door(Protocol):
    """How front-ends come to a device."""

    def open(self) -> None:
        """Let front-ends in."""

    def session_ended(self) -> None:
        """The device is free again."""

    def close(self) -> None:
        """Let nobody in any more."""


class DeviceServer:
    """One device and the front-end that is connected to it.

    Args:
        is_one_off: whether the first session is the last.
        on_finished: called with an exit status when that session has ended.
        trace: is told what front-ends say.
    """

    def __init__(
        self,
        loop: Loop,
        device: SessionDevice,
        name: str,
        *,
        is_one_off: bool = False,
        on_finished: Callable[[int], None] = lambda _status: None,
        trace: TraceFile | None = None,
    ) -> None:
        self.loop = loop
        self.log = PeerLog(logger, name, loop.call_later)
        self.connection: Connection | None = None
        self._door: Door | None = None
        self._device = device
        self._trace = None if trace is None else (trace, name)
        self._is_one_off = is_one_off
        self._on_finished = on_finished
        self._is_finished = False

    def open(self, door: Door) -> None:
        """Serve whoever comes through `door`."""
        self._door = door
        door.open()

    def offer(self, sock: socket.socket) -> None:
        """Serve a connected front-end, or refuse it; owns the socket from now on."""
        live = self.connection
        if live is not None:
            live.process_input()
        if self._is_finished or self.connection is not None:
            pid = peer_pid(sock)
            sock.close()
            self.log.warning(f"refused front-end pid {pid}: {live} is connected")
            return
        self.connection = Connection(
            self.loop, sock, self._device, self.log, self._session_ended, self._trace
        )
        self.connection.start()

    def check_memory(self) -> None:
        """End the session if its front-end has taken its memory away."""
        if self.connection is not None:
            self.connection.check_memory()

    def close(self) -> None:
        """End the session, close door and device.  Harmless the second time."""
        self._is_finished = True
        if self._door is not None:
            self._door.close()
            self._door = None
        if self.connection is not None:
            self.connection.close("vhostnet ends")
        try:
            self._device.close()
        except Exception as error:
            # The other devices' sockets and TAPs are still to be closed.
            self.log.bug(f"bug in this program: closing the device failed: {error!r}")
        self.log.flush()

    def _session_ended(self, exit_status: int) -> None:
        self.connection = None
        if self._is_one_off and not self._is_finished:
            self._is_finished = True
            if self._door is not None:
                self._door.close()
            self._on_finished(exit_status)
        elif self._door is not None:
            self._door.session_ended()


class ListeningDoor:
    """Front-ends connect to our socket."""

    def __init__(self, server: DeviceServer, listening: ListeningSocket) -> None:
        self._server = server
        self._listening = listening
        self._acceptor: Acceptor | None = None

    def open(self) -> None:
        """Accept connections."""
        server = self._server
        self._acceptor = Acceptor(
            server.loop, self._listening.socket, server.offer, server.log.warning, "a front-end"
        )

    def session_ended(self) -> None:
        """Nothing to do: we have been listening all the time."""

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        if self._acceptor is not None:
            self._acceptor.close()
        self._listening.close()


class ConnectingDoor:
    """We connect to the front-end's socket, and again one second after it was lost."""

    def __init__(self, server: DeviceServer, path: str) -> None:
        check_path(path)
        self._server = server
        self._path = path
        self._is_closed = False
        # Why the last try failed: a log line is written when this changes, not for each try.
        self._trouble: str | None = None

    def open(self) -> None:
        """Try to connect, now and every second."""
        self._connect()

    def session_ended(self) -> None:
        """Try again, but not at once: the peer may be what made the session fail."""
        self._server.loop.call_later(RECONNECT_S, self._connect)

    def close(self) -> None:
        """Make no more connections."""
        self._is_closed = True

    def _connect(self) -> None:
        if self._is_closed:
            return
        try:
            _, [fd] = connect_unix(self._path)
        except (OSError, HostError) as error:
            trouble = error.strerror if isinstance(error, OSError) else str(error)
            if trouble != self._trouble:
                self._trouble = trouble
                self._server.log.info(
                    f"waiting for a front-end to listen on {self._path}: {trouble}"
                )
            self._server.loop.call_later(RECONNECT_S, self._connect)
            return
        self._trouble = None
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._server.offer(sock)


def inherited_socket(fd: int) -> socket.socket:
    """The connected unix socket that our parent left open for us.

    Raises:
        UsageError: `fd` is not open, or is something else.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise UsageError(f"{fd} is no socket")
    except OSError as error:
        raise UsageError(f"{fd}: {error.strerror}") from None
    sock = socket.socket(fileno=fd)
    try:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise UsageError(f"{fd} is no unix stream socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UsageError(f"{fd} is a listening socket, must be a connected one")
        sock.getpeername()
    except BaseException as error:
        with contextlib.suppress(OSError):
            sock.detach()
        if isinstance(error, OSError):
            raise HostError(f"{fd}: not connected: {error.strerror}", error.errno or 0) from error
        raise
    sock.set_inheritable(False)
    return sock

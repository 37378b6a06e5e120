"""One front-end's connection: its socket, the session on it, and the end of both.

Theory of operation
===================

The socket is non-blocking; the loop calls when it is readable.  Messages are read up to their
own borders (see vhost_user_codec), each is handled and answered before the next one is read, so
two replies are never interleaved.  Replies that the peer does not read yet wait in a small
buffer; a peer that lets it grow past `MAX_PENDING` loses its session.

OPEN      `start` was called: the device has a session, the loop watches the socket
    Operations:  read, handle, answer
    Caveats:     any exception ends it; what the exception is decides blame and log line
ENDED     reached once, from OPEN, for whatever reason
    Operations:  none; `on_end` has been told
    Caveats:     the device was cleared before the socket was closed: a peer that sees the end
                 of the stream may rely on its memory being unmapped

Descriptors: each one that was received is closed here unless the device took it.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from vhostnet.errors import EXIT_BUG, EXIT_OK, HostError, PeerError
from vhostnet.events import tell
from vhostnet.frontdoors.event_loop import READABLE, WRITABLE, Loop
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.traced_session import TracedSession
from vhostnet.frontdoors.unix_sockets import peer_pid
from vhostnet.protocol.verbs import VhostUserVerbs
from vhostnet.protocol.vhost_user_codec import MAX_FDS, Codec
from vhostnet.protocol.vhost_user_session import Session
from vhostnet.protocol.vhost_user_trace import Event

SYSCALLS = ("recvmsg", "sendto", "getsockopt", "getsockname")

# Of replies that the peer has not read, bytes.  The longest reply is 20; QEMU waits for each.
MAX_PENDING = 64 * 1024

# Chunks (a header or a payload) read in one turn of the loop, so that a peer that sends without
# pause does not keep the other devices waiting.
CHUNKS_A_TURN = 256

# One more than is legal, so that one too many is a message that can be named, not a lost one.
ANCILLARY_ROOM = socket.CMSG_SPACE((MAX_FDS + 1) * array.array("i").itemsize)


class SessionDevice(VhostUserVerbs, Protocol):
    """A device that serves one session after another."""

    def open_session(self, pid: int | None) -> None:
        """A front-end, of this process, has connected."""

    def close_session(self) -> None:
        """Free memory, rings and descriptors of the session; may be called twice."""

    def check_memory(self) -> None:
        """Raise PeerError if the memory that the front-end shares has gone away."""

    def close(self) -> None:
        """The end of the daemon: stop threads, close the backend."""


class Disconnected(Exception):
    """The peer has gone; its text says how, if there is more to say."""


class Connection:
    """A session in progress.

    Args:
        sock: connected; owned from now on.
        on_end: told once, with the exit status that fits the reason.
        trace: is told what is said, by the device of this name.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        device: SessionDevice,
        log: PeerLog,
        on_end: Callable[[int], None],
        trace: tuple[TraceFile, str] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.pid = peer_pid(sock)
        self.is_open = True
        self._loop = loop
        self._socket = sock
        self._device = device
        self._log = log
        self._on_end = on_end
        self._codec = Codec()
        self._trace = trace

        def report(text: str) -> None:
            log.warning(f"refused {text}")

        self._session = (
            Session(device, report) if trace is None else TracedSession(device, report, *trace)
        )
        self._unsent = bytearray()
        # Whether the loop is to tell when the socket takes more; set and cleared by _flush.
        self._is_blocked = False

    def start(self) -> None:
        """Open the device's session and begin to listen to the peer."""
        self._log.info(f"front-end {self} connected")
        self._trace_event(f"connected: {self}")
        tell("DEVICE_CONNECTED", device=self._log.name, pid=self.pid)

        def start() -> None:
            self._device.open_session(self.pid)
            self._watch()

        self._guard(start)

    def process_input(self) -> None:
        """Handle what has arrived, the end of the stream included."""
        if self.is_open:
            self._guard(self._receive_some)

    def check_memory(self) -> None:
        """End the session if the front-end has taken its memory away."""
        if self.is_open:
            self._guard(self._device.check_memory)

    def close(self, reason: str) -> None:
        """End the session from our side."""
        if self.is_open:
            self._log.info(f"closed the session: {reason}")
            self._end(EXIT_OK, reason)

    def __str__(self) -> str:
        return "of unknown pid" if self.pid is None else f"pid {self.pid}"

    # --- The one place where sessions end ------------------------------------------------------

    def _guard(self, step: Callable[[], None]) -> None:
        """Run a step; whatever it raises ends this session and nothing else."""
        try:
            step()
        except Disconnected as how:
            self._log.info(f"front-end {self} disconnected{how}")
            self._end(EXIT_OK, f"the front-end disconnected{how}")
        except (PeerError, HostError) as error:
            self._log.warning(f"closed the session: {error}")
            self._end(error.exit_status, str(error))
        except Exception as error:
            self._log.bug(f"closed the session: bug in this program: {error!r}")
            self._end(EXIT_BUG, f"bug in this program: {error!r}")

    def _end(self, exit_status: int, reason: str) -> None:
        self.is_open = False
        self._trace_event(f"disconnected: {reason}")
        self._loop.unwatch(self._socket.fileno())
        try:
            self._device.close_session()
        except Exception as error:
            self._log.bug(f"bug in this program: closing the session failed: {error!r}")
            exit_status = EXIT_BUG
        close_fds(self._codec.drain_fds())
        self._socket.close()
        tell("DEVICE_DISCONNECTED", device=self._log.name, reason=reason)
        self._on_end(exit_status)

    def _trace_event(self, text: str) -> None:
        if self._trace is not None:
            trace, who = self._trace
            trace.tell(who, Event(text))

    # --- Socket --------------------------------------------------------------------------------

    def _watch(self) -> None:
        events = READABLE | WRITABLE if self._is_blocked else READABLE
        self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        if ready & WRITABLE:
            self._guard(self._flush)
        if ready & READABLE:
            self.process_input()

    def _receive_some(self) -> None:
        for _ in range(CHUNKS_A_TURN):
            try:
                data, fds = self._receive()
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise Disconnected(f": {error.strerror}") from error
            if not data:
                raise Disconnected(
                    " in the middle of a message" if self._codec.is_mid_message else ""
                )
            self._handle(data, fds)

    def _handle(self, data: bytes, fds: list[int]) -> None:
        requests = self._codec.feed(data, fds)
        try:
            for request in requests:
                self._send(self._session.handle(request))
        finally:
            for request in requests:
                close_fds(request.fds)
        if self._codec.error is not None:
            raise self._codec.error

    def _receive(self) -> tuple[bytes, list[int]]:
        """Read at most to the end of the current header or payload."""
        data, ancillary, flags, _ = self._socket.recvmsg(
            self._codec.wanted, ANCILLARY_ROOM, socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                # A truncated message may end within a number.
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if flags & socket.MSG_CTRUNC:
            close_fds(fds)
            raise PeerError(
                f"file descriptors were lost: more than {MAX_FDS} in one message, "
                f"or no room for them in this process (see ulimit -n)"
            )
        return data, fds.tolist()

    def _send(self, reply: bytes) -> None:
        if reply:
            self._unsent += reply
            self._flush()
            if len(self._unsent) > MAX_PENDING:
                raise PeerError(f"{len(self._unsent)} bytes of replies are not being read")

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise Disconnected(f": {error.strerror}") from error
        if self._is_blocked != bool(self._unsent):
            self._is_blocked = bool(self._unsent)
            self._watch()


def close_fds(fds: Iterable[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

"""Accept connections on a listening socket, in the daemon's loop."""

from __future__ import annotations

import socket
from collections.abc import Callable

from .event_loop import READABLE, Loop

SYSCALLS = ("accept4", "getsockopt", "getsockname")

#: After accept failed for want of descriptors or memory; the socket stays readable meanwhile.
PAUSE_S = 1.0


class Acceptor:
    """Accepts one connection a turn of the loop, so that nobody who connects holds others up.

    Args:
        loop: of the daemon.
        listening: non-blocking; stays the caller's, who closes it after `close`.
        accepted: gets each connection, and owns it from then on.
        warn: gets a line when none could be accepted; it is tried again after `PAUSE_S`.
        who: comes to this socket, for that line.
    """

    def __init__(
        self,
        loop: Loop,
        listening: socket.socket,
        accepted: Callable[[socket.socket], None],
        warn: Callable[[str], None],
        who: str,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._accepted = accepted
        self._warn = warn
        self._who = who
        self._is_closed = False
        self._watch()

    def close(self) -> None:
        """Accept nobody any more.  Harmless the second time."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.unwatch(self._listening.fileno())

    def _watch(self) -> None:
        if not self._is_closed:
            self._loop.watch(self._listening.fileno(), READABLE, self._accept)

    def _accept(self, _ready: int) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._warn(f"can not accept {self._who}: {error.strerror}")
            self._loop.unwatch(self._listening.fileno())
            self._loop.call_later(PAUSE_S, self._watch)
            return
        self._accepted(sock)

"""What systemd is told while the daemon runs: READY, STATUS, RELOADING, STOPPING and WATCHDOG.

Source: sd_notify(3), sd_watchdog_enabled(3).  Without NOTIFY_SOCKET all of it is nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from vhostnet import events
from vhostnet.frontdoors.event_loop import Loop

log = logging.getLogger("vhostnet")

#: Pings in the time that systemd allows between two.
PINGS = 4


SYSCALLS = ("sendto",)


class _Connection:
    """To the service manager; kept, since a sealed process can make none."""

    def __init__(self) -> None:
        self._address = ""
        self._socket: socket.socket | None = None

    def open(self, address: str) -> None:
        """Connect; OSError."""
        if self._socket is not None and self._address == address:
            return
        self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._address, self._socket = address, sock
        # A leading "@" is the abstract name space.
        sock.connect("\0" + address[1:] if address[0] == "@" else address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, message: bytes) -> None:
        """Send it; OSError."""
        if self._socket is not None:
            self._socket.send(message)


_connection = _Connection()


def connect() -> None:
    """Connect to the service manager, if it asked for it, while that is possible."""
    notify()


def notify(*lines: str) -> None:
    """Send lines such as "READY=1"; whoever does not listen any more is no reason not to serve."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    try:
        _connection.open(address)
        if lines:
            _connection.send("\n".join(lines).encode() + b"\n")
    except BlockingIOError:
        return  # it is busy; the next line is newer
    except OSError:
        _connection.close()


def reloading() -> None:
    """Say that the file is read again; `notify("READY=1")` says that it is done."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Within how many seconds systemd wants a ping, or None."""
    usec = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 1e6 if usec.isascii() and usec.isdigit() and int(usec) else None


class Beating(Protocol):
    """A thread that can be asked whether it comes by (`device.worker.Worker`)."""

    name: str

    def heartbeat(self) -> bool: ...


class Watchdog:
    """Pings systemd for as long as the loop and all workers come by.

    The ping is a timer of the loop, so a loop that hangs sends none.  Before it, each worker is
    asked whether it came by since the last one; if one did not, there is no ping either.

    Args:
        within_s: systemd restarts us after so long without.
        workers: those that there are at the moment.
    """

    def __init__(
        self, loop: Loop, within_s: float, workers: Callable[[], Iterator[Beating]]
    ) -> None:
        self._loop = loop
        self._every_s = within_s / PINGS
        self._workers = workers
        self._hung: set[str] = set()
        self._timer = loop.call_later(0, self._turn)

    def close(self) -> None:
        """Ping no more."""
        self._timer.cancel()

    def _turn(self) -> None:
        self._timer = self._loop.call_later(self._every_s, self._turn)
        hung = {worker.name for worker in self._workers() if not worker.heartbeat()}
        for name in hung - self._hung:
            log.error("worker %s hangs: the watchdog is not fed until it comes by", name)
        self._hung = hung
        if not hung:
            notify("WATCHDOG=1")


@contextlib.contextmanager
def status_lines(loop: Loop, cards: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Keep STATUS= up to date for the length of the block.

    Args:
        cards: how many devices there are, and how many front-ends are connected.
    """

    def say() -> None:
        n_devices, n_connected = cards()
        notify(f"STATUS={n_devices} devices, {n_connected} front-ends connected")

    def told(event: events.Event) -> None:
        # These are told by control, in the middle of what they are about.
        if event.name.startswith("DEVICE_"):
            loop.call_later(0, say)

    end = events.listen(told)
    say()
    try:
        yield
    finally:
        end()
        notify("STOPPING=1")

"""The open /dev/cuse: one read(2) a request, one write(2) a reply, on the loop.

Not here: what the messages mean (`protocol/cuse_session.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable

from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.protocol import cuse_codec as codec

log = logging.getLogger("vhostnet")

SYSCALLS = ("readv", "poll", "ppoll")

CUSE_DEVICE = "/dev/cuse"
#: Requests handled in one turn of the loop, so that signals and timers have theirs.
REQUESTS_A_TURN = 64
#: The request was interrupted before we read it, or its caller's connection is ending.
_AGAIN = (errno.ENOENT, errno.EINTR)


def open_cuse(path: str = CUSE_DEVICE) -> int:
    """Open the device; each open makes one character device.

    Raises:
        HostError: it is not there, or not for us; the message says what to do.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        code = e.errno or 0
        if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            advice = "load the kernel's module (modprobe cuse); a container has to be given it"
            raise HostError(f"{path} is not there: {advice}", code) from e
        if code in (errno.EACCES, errno.EPERM):
            raise HostError(f"{path} may not be opened: root may", code) from e
        raise HostError(f"{path}: {e.strerror}", code) from e


class CuseChannel:
    """Requests from the kernel, replies to it.

    Args:
        fd: /dev/cuse, non-blocking; ours from now on.
        receive: takes one request (`CuseSession.receive`).
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray(codec.READ_SIZE)
        self._receive: Callable[[bytes], None] = lambda _message: None
        self._on_gone: Callable[[], None] = lambda: None
        self._loop: Loop | None = None

    def connect(self, receive: Callable[[bytes], None]) -> None:
        """Say who takes the requests."""
        self._receive = receive

    def send(self, message: bytes) -> None:
        """Give the kernel a reply; one that nobody waits for any more is dropped."""
        try:
            os.write(self._fd, message)
        except OSError as e:
            # the caller is gone, or the connection: the next read will tell
            if e.errno not in (errno.ENOENT, errno.ENODEV, errno.EPERM):
                raise

    def wait_for_one(self, timeout: float) -> bool:
        """Handle the next request, before there is a loop; False: none came."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000)) and self._handle_one()

    def watch(self, loop: Loop, on_gone: Callable[[], None]) -> None:
        """Handle requests as they come.

        Args:
            on_gone: told when the kernel has ended the connection.
        """
        self._loop, self._on_gone = loop, on_gone
        loop.watch(self._fd, READABLE, self._readable)

    def close(self) -> None:
        """End the connection: the kernel takes the device away.  Harmless the second time."""
        if self._fd >= 0:
            if self._loop is not None:
                self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self, _ready: int) -> None:
        for _ in range(REQUESTS_A_TURN):
            if self._fd < 0 or not self._handle_one():
                return

    def _handle_one(self) -> bool:
        try:
            size = os.readv(self._fd, [self._buffer])
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno in _AGAIN:
                return True
            return self._gone()
        if size == 0:
            return self._gone()
        message = bytes(memoryview(self._buffer)[:size])
        try:
            self._receive(message)
        except PeerError as e:
            log.warning("%s", e)
            self._refuse(message, e.errno)
        except Exception:
            log.exception("bug in this program: a request of /dev/cuse failed")
            self._refuse(message, errno.EIO)
        return True

    def _refuse(self, message: bytes, code: int) -> None:
        """A caller must not wait for ever; if it was answered, this answer is dropped."""
        unique = codec.unique_of(message)
        if unique:
            self.send(codec.encode_error(unique, code))

    def _gone(self) -> bool:
        if self._loop is not None:
            self._loop.unwatch(self._fd)
        self._on_gone()
        return False

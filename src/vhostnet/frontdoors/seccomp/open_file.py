"""One open file of the device: a socket pair, and the `VhostFile` behind it.

The caller has one end.  Calls on descriptors of the reserved range are answered by the
supervisor; on any other number (dup2, SCM_RIGHTS) read, write and poll are the socket's own,
and mean nearly the same: a message of ours lies in it to be read, one that is written comes to
us, and its errors are logged since its writer has gone on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

from vhostnet.errors import PeerError
from vhostnet.uapi import vhost

if TYPE_CHECKING:
    from vhostnet.frontdoors.vhost_ioctl import VhostFile

log = logging.getLogger(__name__)

#: Messages that are taken in one go, and the most that is looked at of each.
_A_TURN = 64
_MOST = 4096


class OpenFile:
    """From open to the last close.

    Args:
        vhost_file: ours from now on.
        flags: of the open.

    Attributes:
        fd: our end; readable when something was written, or the last close has been.
        theirs: the caller's end, until `given`.
        inode: what tells the open file, wherever a descriptor of it is.
        name: for log lines.
        runs: whether one of its rings ran when that was last said in the log.
    """

    def __init__(self, vhost_file: VhostFile, flags: int, name: str) -> None:
        self.vhost = vhost_file
        self.name = name
        self.runs = False
        self.may_read = flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)
        self.may_write = flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self.theirs.setblocking(not flags & os.O_NONBLOCK)
        self.fd = self._socket.fileno()
        self.inode = os.fstat(self.theirs.fileno()).st_ino
        self._lock = threading.Lock()
        self._undelivered = b""
        vhost_file.verbs.on_readable = self.deliver

    def given(self) -> None:
        """The caller has its end; ours of it would hide the last close."""
        self.theirs.close()

    def deliver(self) -> None:
        """Put what can be read where the caller reads.  Called from any thread."""
        with self._lock:
            while True:
                if not self._undelivered:
                    try:
                        self._undelivered = self.vhost.read(vhost.MSG.size)
                    except PeerError:
                        return
                try:
                    self._socket.send(self._undelivered)
                except OSError:  # full: at the next call; or nobody is there any more
                    return
                self._undelivered = b""

    def take_writes(self) -> bool:
        """Take what was written natively; False: that was the last close."""
        for _ in range(_A_TURN):
            try:
                data = self._socket.recv(_MOST)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data and self._is_closed():
                return False
            try:
                self.vhost.write(data)
            except PeerError as e:
                log.warning("%s: what was written to it: %s", self.name, e)
        return True

    def _is_closed(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def read(self, end: int, size: int) -> bytes | None:
        """read(2) at *end*, a descriptor of ours of the caller's end; None: let it wait.

        Raises PeerError: EBADF, EAGAIN, EBADFD.
        """
        if not self.may_read:
            raise PeerError("it was opened for writing only", errno.EBADF)
        if size < vhost.MSG.size:
            return b""
        self.deliver()
        with socket.socket(fileno=os.dup(end)) as theirs:
            try:
                return theirs.recv(vhost.MSG.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
        if not os.get_blocking(end):
            raise PeerError("there is no message", errno.EAGAIN)
        if self.vhost.would_sleep_for_ever():
            raise PeerError("there is no IOTLB to miss", errno.EBADFD)
        return None

    def write(self, data: bytes) -> int:
        """write(2).  Raises PeerError."""
        if not self.may_write:
            raise PeerError("it was opened for reading only", errno.EBADF)
        return self.vhost.write(data)

    def recall(self, end: int) -> None:
        """Take back what lies unread at *end*: a verb that comes may drop it."""
        messages = []
        with self._lock, socket.socket(fileno=os.dup(end)) as theirs:
            with contextlib.suppress(OSError):
                while data := theirs.recv(vhost.MSG.size, socket.MSG_DONTWAIT):
                    messages.append(data)
            if self._undelivered:
                messages.append(self._undelivered)
                self._undelivered = b""
            self.vhost.unread(messages)

    def close(self) -> None:
        """The last close has been, or nobody will be asked any more."""
        self.vhost.verbs.on_readable = lambda: None
        self.vhost.release()
        self._socket.close()
        self.theirs.close()

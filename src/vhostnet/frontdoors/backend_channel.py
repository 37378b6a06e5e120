"""Our own requests to a front-end, on the socket of SET_BACKEND_REQ_FD.

Nothing here waits for an answer: the front-end may at this moment be blocked in a request to us
on the main channel.  What answers a miss is an IOTLB_MSG there.
"""

from __future__ import annotations

import logging
import os
import socket

from vhostnet.errors import PeerError
from vhostnet.uapi import vhost_user as vu

SYSCALLS = ("recvfrom", "recvmsg", "sendto", "getsockopt", "getsockname")

log = logging.getLogger("vhostnet.device")


class BackendChannel:
    """The sending side of the channel.

    Args:
        name: what log lines call the device.
        fd: the socket, ours from now on; PeerError if it is none.
    """

    def __init__(self, name: str, fd: int) -> None:
        self._name = name
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError as e:
            os.close(fd)
            raise PeerError(f"descriptor for our requests: {e.strerror}") from e
        self._failed = False

    def send_iotlb_miss(self, iova: int, access: int) -> None:
        """Ask for the translation of the page at *iova*; from any thread.

        Args:
            access: VHOST_ACCESS_*: what the device wants to do there.
        """
        body = vu.Iotlb(iova & (1 << 64) - 1, 0, 0, access, vu.VHOST_IOTLB_MISS, 0, 0)
        payload = vu.IOTLB.pack(body)
        head = vu.Header(vu.VHOST_USER_BACKEND_IOTLB_MSG, vu.VHOST_USER_VERSION, len(payload))
        try:
            # one write: two threads' messages do not mix
            self._socket.send(vu.HEADER.pack(head) + payload, socket.MSG_DONTWAIT)
        except OSError as e:
            if not self._failed:
                self._failed = True
                log.warning("%s: cannot ask for a translation: %s", self._name, e.strerror)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

"""The argument of one ioctl that came through /dev/cuse: what of the caller's memory we have.

Theory of operation
-------------------
The kernel passes an ioctl's argument as a number.  What lies behind it the kernel fetches if
we say where and how much: our answer is RETRY with the addresses, and the same ioctl comes
again with the bytes as its data.  There is no telling that it comes again, and nothing has to
be remembered: each round runs the ioctl from its beginning with the bytes that are there, and
the first one that is missing ends the round (`NeedsMemory`).  That is right because no ioctl
of vhost changes anything before it has read all of its argument, nor after it has written.

All arguments of vhost begin at the address that was passed, so the bytes are one piece from
there on.  Sizes come from what the ioctl reads, never from its number, since several numbers
lie: SET_MEM_TABLE and the features arrays go on behind their heads, GET_VRING_BUSYLOOP_TIMEOUT
writes although it is encoded as reading only.

The other way would be to read the caller's memory by its pid.  It saves the round trip, but
it is wrong where the caller is in a pid namespace that we cannot see, needs the right to
ptrace it, has to care for pages that the caller itself may not write, and waits where the
caller's page fault would (userfaultfd), with all other devices.  The kernel copies as the caller
and in its time; a bad address is EFAULT without our doing anything.

Source: Linux fs/fuse/ioctl.c fuse_do_ioctl().
"""

from __future__ import annotations

import errno
from typing import Final

from vhostnet.errors import PeerError
from vhostnet.uapi import vhost
from vhostnet.uapi.fuse import FUSE_IOCTL_MAX_DATA

_ADDRESS_LIMIT: Final = 1 << 64
_IOC_WRITE: Final = 1
#: ioctls that write their argument back: a round less if both are asked for at once.
_WRITTEN_BACK: Final = {
    vhost.VHOST_GET_VRING_BASE: vhost.VRING_STATE.size,
    vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT: vhost.VRING_STATE.size,
}

Piece = tuple[int, int]
"""(address, bytes) of the caller's memory."""


class NeedsMemory(Exception):
    """The ioctl touched what is not here: have it come again with these pieces."""

    def __init__(self, into_us: list[Piece], from_us: list[Piece]) -> None:
        super().__init__(f"needs {into_us}, {from_us}")
        self.into_us = into_us
        self.from_us = from_us


class IoctlArgument:
    """The caller's memory as far as this round can see it.

    Args:
        number: of the ioctl.
        address: its argument.
        data: the bytes from *address* on; empty in the first round.
        room: bytes that the kernel will write for us.

    Attributes:
        written: what it shall write.
    """

    def __init__(self, number: int, address: int, data: bytes, room: int) -> None:
        self._number = number
        self._address = address
        self._data = data
        self._room = room
        self.written = b""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the caller's memory.  Raises NeedsMemory, PeerError EFAULT."""
        if size == 0:
            return b""
        start = address - self._address
        end = start + size
        if start < 0:
            raise _fault(address, size)
        if end > len(self._data):
            back = _WRITTEN_BACK.get(self._number, 0)
            wanted = max(end, _encoded_size(self._number)) if not self._data else end
            raise self._needs(wanted, [(self._address, back)] if back else [])
        return self._data[start:end]

    def write(self, address: int, data: bytes) -> None:
        """Into the caller's memory, once, when all else is done.  As `read`."""
        if not data:
            return
        if self.written:
            raise ValueError("an ioctl of vhost writes once")
        if len(data) > self._room:
            raise self._needs(len(self._data), [(address, len(data))])
        self.written = data

    def _needs(self, size: int, from_us: list[Piece]) -> NeedsMemory | PeerError:
        into_us = [(self._address, size)] if size else []
        for at, length in (*into_us, *from_us):
            if at + length > _ADDRESS_LIMIT:
                return _fault(at, length)
            if length > FUSE_IOCTL_MAX_DATA:
                return PeerError(f"an argument of {length} bytes", errno.ENOMEM)
        return NeedsMemory(into_us, from_us)


def _encoded_size(number: int) -> int:
    """What the number says that is read; 0 for a number that is no ioctl of vhost."""
    if number not in vhost.IOCTL_NAMES or not number >> 30 & _IOC_WRITE:
        return 0
    return number >> 16 & 0x3FFF


def _fault(address: int, size: int) -> PeerError:
    return PeerError(f"{size} bytes at {address:#x} of the caller", errno.EFAULT)

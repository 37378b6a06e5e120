"""Reading the memory of a guest from outside of the data path, without trusting a byte of it.

Every byte comes through the kernel (`/proc/self/mem`, or the owner's for memory that is not mapped
here): what cannot be read is an error to handle, never a fault, and no pointer is made of a number
that a guest wrote.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhostnet.device.vhost_net import VhostNet
    from vhostnet.device.vring import Vring

SYSCALLS = ("pread64",)  # of /proc/self/mem


class GuestBytes:
    """The memory that a ring's descriptors speak of.

    Args:
        fd: of a /proc/PID/mem; `table`'s host addresses are that process's.
        table: MAPPED_REGION[] or IOTLB_ENTRY[], as the data path has it.
        is_virtual: it is an IOTLB's.
    """

    def __init__(self, fd: int, table: Any, is_virtual: bool) -> None:
        self._fd = fd
        self.is_virtual = is_virtual
        self._ranges: list[tuple[int, ...]] = sorted(table.tolist())
        self._starts = [entry[0] for entry in self._ranges]

    def at_host(self, hva: int, size: int) -> bytes | None:
        """Bytes of ours (or of the owner's); None if they cannot be read."""
        try:
            data = os.pread(self._fd, size, hva)
        except (OSError, OverflowError):
            return None
        return data if len(data) == size else None

    def pieces(self, address: int, size: int, access: int, most: int) -> tuple[int, str | None]:
        """How many ranges of ours a buffer lies in, up to *most*; and what is wrong, if it is not
        all there: "missing" or "forbidden".
        """
        n = 0
        for n, (_, _, why) in enumerate(self._pieces(address, size, access), 1):
            if why is not None or n >= most:
                return n, why
        return n, None

    def read(self, address: int, size: int, access: int) -> bytes | None:
        """The bytes of a buffer that a descriptor names; None if they are not all there."""
        found = b""
        for hva, length, why in self._pieces(address, size, access):
            piece = None if why else self.at_host(hva, length)
            if piece is None:
                return None
            found += piece
        return found

    def _pieces(
        self, address: int, size: int, access: int
    ) -> Iterator[tuple[int, int, str | None]]:
        """(host address, bytes, what is wrong) of each range that it lies in, to the first bad."""
        while size > 0:
            at = bisect.bisect_right(self._starts, address) - 1
            start, length, hva, *perm = self._ranges[at] if at >= 0 else (0, 0, 0)
            if not start <= address < start + length:
                yield 0, size, "missing"
                return
            if perm and perm[0] & access != access:
                yield 0, size, "forbidden"
                return
            piece = min(size, start + length - address)
            yield hva + address - start, piece, None
            address, size = address + piece, size - piece


def own_memory() -> int:
    """Our own memory, to be read through the kernel; opened once, a sealed process cannot."""
    return _memory_of(os.getpid())


@functools.cache
def _memory_of(pid: int) -> int:
    return os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)


def guest_bytes(net: VhostNet, ring: Vring) -> GuestBytes:
    """The memory of a ring's guest; OSError if it cannot be opened."""
    table = net.memory.array if net.iotlb is None else net.iotlb.array
    if ring.is_remote:
        return GuestBytes(int(ring.vq["owner_mem_fd"]), table, net.iotlb is not None)
    return GuestBytes(own_memory(), table, net.iotlb is not None)

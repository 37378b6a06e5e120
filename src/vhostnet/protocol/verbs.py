"""What a vhost-user session asks of the device behind it: vhost's verbs as a Protocol.

The session calls these and keeps nothing about rings or memory itself.  Every method raises
`PeerError` with a one-line message for a bad value; the session adds the message's name.
Ring indices have been checked against `n_rings` before a method is called.

Descriptors: `set_vring_kick`, `set_vring_call` and `set_vring_err` own the descriptor they are
given from the call on, even if they raise.  `set_mem_table` and `add_mem_reg` only borrow
theirs: they map them and the caller closes them afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vhostnet.uapi.vhost_user import MemoryRegion, VringAddr

__all__ = ["MemoryRegion", "VhostUserVerbs", "VringAddr"]


class VhostUserVerbs(Protocol):
    """One device, as the vhost-user protocol sees it."""

    @property
    def n_rings(self) -> int:
        """Rings that the device has: two for each queue pair."""

    @property
    def max_mem_slots(self) -> int:
        """Memory regions that may be mapped at once; never less than in an earlier session."""

    @property
    def iommu(self) -> bool:
        """Whether ACCESS_PLATFORM is on offer, and with it the back-end channel."""

    def get_features(self) -> int:
        """All virtio feature bits on offer, bit 30 (PROTOCOL_FEATURES) among them."""

    def set_features(self, features: int) -> None:
        """Take the front-end's choice, a subset of what was offered, bit 30 as it was sent."""

    def set_owner(self) -> None:
        """Mark the start of a session."""

    def reset_owner(self) -> None:
        """Disable the rings; nothing else is lost (the message is deprecated)."""

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace the whole memory table; `fds[i]` backs `regions[i]` and is only borrowed."""

    def add_mem_reg(self, region: MemoryRegion, fd: int) -> None:
        """Add one region; `fd` is only borrowed."""

    def rem_mem_reg(self, region: MemoryRegion) -> None:
        """Remove the region with this guest address, user address and size."""

    def set_backend_req_fd(self, fd: int) -> None:
        """Send requests of our own (IOTLB misses) on this socket.  Owns `fd`."""

    def iotlb_update(self, iova: int, size: int, uva: int, perm: int) -> None:
        """Let the rings use a range of I/O virtual addresses; `perm` has VHOST_ACCESS_* bits."""

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Take a range away again; (0, 0) is everything."""

    def set_log_base(self, size: int, offset: int, fd: int) -> None:
        """Log written pages in `size` bytes at `offset` of `fd`, which is only borrowed."""

    def set_log_fd(self, fd: int) -> None:
        """Signal `fd` after writes to the log.  Owns `fd`."""

    def set_vring_num(self, index: int, num: int) -> None:
        """Set the ring's size in entries."""

    def set_vring_addr(self, addr: VringAddr) -> None:
        """Set where the ring's three parts are, in the front-end's address space."""

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the index at which processing starts (32 bits: packed rings use both halves)."""

    def get_vring_base(self, index: int) -> int:
        """Stop the ring and return the index at which processing would go on."""

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Start the ring; the driver kicks through `fd` (None: poll).  Owns `fd`."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Interrupt the driver through `fd` from now on (None: not at all).  Owns `fd`."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Report a broken ring through `fd` (None: not at all).  Owns `fd`."""

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Remember whether the ring is enabled; legal in any state of the ring."""

    def set_mtu(self, mtu: int) -> None:
        """Learn the MTU, in bytes, that the guest was told: 68 to 65535."""

    def send_rarp(self, mac: bytes) -> None:
        """Announce the guest's MAC (6 bytes) to the network, as soon as that is possible."""

    def set_status(self, status: int) -> None:
        """Store virtio's device status byte."""

    def get_status(self) -> int:
        """Return the device status byte."""

    def reset_device(self) -> None:
        """Reset and disable the rings; keep memory, err descriptors and the connection."""

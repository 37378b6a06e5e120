"""What the driver rings of both formats have in common: buffers in, buffers back.

stdlib only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from vhostnet.uapi.vhost_user import VringAddr


class Buffer(NamedTuple):
    """A piece of guest memory in a chain: readable ones (device reads) come first."""

    gpa: int
    size: int
    writable: bool = False


class Used(NamedTuple):
    """A chain that came back.

    Attributes:
        id: head (split) or buffer id (packed).
        length: bytes the device says it has written.
        token: what `add` was given; None for an id that was not in flight.
        buffers: the chain's.
    """

    id: int
    length: int
    token: Any = None
    buffers: Sequence[Buffer] = ()


class RingFull(Exception):
    """Not enough free descriptors for the chain."""


class DriverRing(Protocol):
    """The well-behaved half of a driver ring; see `SplitRing` and `PackedRing`."""

    num: int

    @property
    def base(self) -> int:
        """What SET_VRING_BASE has to say before the device starts on the ring as it is."""

    @property
    def n_free(self) -> int:
        """Free descriptors."""

    def addr(self, index: int, *, log: bool = False) -> VringAddr:
        """The argument of SET_VRING_ADDR."""

    def add(self, buffers: Sequence[Buffer], token: Any = None, *, indirect: bool = False) -> int:
        """Fill descriptors with a chain; the device sees it after `publish`."""

    def publish(self) -> None:
        """Let the device see what was added."""

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was published since the last call."""

    def has_used(self) -> bool:
        """Whether `collect` would return something."""

    def collect(self, limit: int | None = None) -> list[Used]:
        """Take back what the device has used."""

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask to be interrupted; True if there is something to collect already."""

    def disable_interrupts(self) -> None:
        """Ask not to be interrupted."""

    def outstanding(self) -> list[Used]:
        """What was added and has not come back, oldest first."""


def full_length(buffers: Sequence[Buffer]) -> int:
    """Bytes of a chain that a device can write."""
    return sum(buffer.size for buffer in buffers if buffer.writable)

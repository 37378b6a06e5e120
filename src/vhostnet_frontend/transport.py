"""The verbs of a vhost device, the same whatever carries them.

A transport is one open vhost device as its front-end holds it.  Three exist: a vhost-user
socket, a vhost character device, and an object in this process.  A scenario written against
`Transport` runs on all of them.

Descriptors are always the caller's: a transport duplicates what it keeps.  Every method
raises `VerbError`; one that this transport has no way to say raises `NoSuchVerb`.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence
from typing import Protocol

from vhostnet.uapi.vhost import IotlbMsg
from vhostnet.uapi.vhost_user import VringAddr

from .guest_memory import DirtyLog, Region

__all__ = ["IotlbMsg", "NoSuchVerb", "Region", "Transport", "VerbError", "VringAddr"]


def errno_name(number: int) -> str:
    """The name that Linux's own sources use: 95 has two."""
    if number == _errno.EOPNOTSUPP:
        return "EOPNOTSUPP"
    return _errno.errorcode.get(number, str(number))


class VerbError(Exception):
    """The back-end refused.

    Attributes:
        errno: why.  EREMOTEIO from a transport that carries no more than "no" (vhost-user),
            ECONNRESET when the other side closed.
    """

    def __init__(self, errno: int, message: str = "") -> None:
        self.errno = errno
        super().__init__(f"{errno_name(errno)}: {message or os.strerror(errno)}")


class NoSuchVerb(VerbError):
    """This transport, or this back-end, does not have the verb at all (ENOTTY)."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ENOTTY, message)


class Transport(Protocol):
    """One vhost device.  Ring 0 is RX (to the guest), ring 1 TX, and so on in pairs."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def n_rings(self) -> int:
        """Rings that may be used."""

    def get_features(self) -> int:
        """The virtio features on offer, bits 0 to 63."""

    def set_features(self, features: int) -> None:
        """Acknowledge a subset of them."""

    def get_features_array(self, count: int) -> list[int]:
        """The features on offer as *count* words of 64 bits."""

    def set_features_array(self, words: Sequence[int]) -> None:
        """Acknowledge features in words of 64 bits."""

    def get_backend_features(self) -> int:
        """Features of the vhost interface itself."""

    def set_backend_features(self, features: int) -> None:
        """Acknowledge a subset of them."""

    def set_owner(self) -> None:
        """Become the owner."""

    def reset_owner(self) -> None:
        """Stop and forget everything."""

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        """Replace the memory table."""

    def set_vring_num(self, index: int, num: int) -> None:
        """Set a ring's size in entries."""

    def set_vring_base(self, index: int, base: int) -> None:
        """Set where processing starts (packed: both wrap counters are in it)."""

    def get_vring_base(self, index: int) -> int:
        """Where processing would go on; final only once the ring is stopped."""

    def set_vring_addr(self, addr: VringAddr) -> None:
        """Set where a ring lies (uva), and whether writes to it are logged."""

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Set the eventfd by which the driver kicks; None: none."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Set the eventfd by which the device interrupts; None: none."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Set the eventfd by which the device reports a broken ring; None: none."""

    def set_log_base(self, log: DirtyLog) -> None:
        """Set the bitmap of written pages (used once VHOST_F_LOG_ALL is acknowledged)."""

    def set_log_fd(self, fd: int | None) -> None:
        """Set the eventfd that is signalled when the bitmap was written; None: none."""

    def set_busyloop(self, index: int, timeout_us: int) -> None:
        """Set how long the device may spin on a ring before it sleeps."""

    def get_busyloop(self, index: int) -> int:
        """What `set_busyloop` has set."""

    def set_backend(self, index: int, fd: int | None) -> None:
        """Start a ring on a backend (a TAP or packet socket), or stop it (None).

        Where the back-end has its own network side (vhost-user) the descriptor's value means
        nothing: any number starts the ring.
        """

    def send_iotlb(self, message: IotlbMsg) -> None:
        """Give or take back a translation."""

    def receive_iotlb(self, timeout: float = 0.0) -> IotlbMsg | None:
        """The next miss that the device reports; None: none within *timeout* seconds."""

    def close(self) -> None:
        """Give the device up; what it held of us is free afterwards."""

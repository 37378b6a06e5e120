"""What a backend is to the device and to a door; the methods' defaults suit memory backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vhostnet.datapath.layout import BACKEND_COUNTERS


@dataclass(eq=False)
class BackendQueue:
    """One queue of a backend: what a queue pair is attached to.

    Attributes:
        record: the backend's record[1] (datapath/layout.py); its dtype chooses the kernel.
        poll_fd: descriptor whose readiness means packets or room, -1 if there is none.
        keep: buffers that the record points at.
    """

    record: Any
    poll_fd: int = -1
    keep: list[Any] = field(default_factory=list)

    def holds_packet(self) -> bool:
        """Whether a packet was read and not delivered: no poll will tell of it."""
        return "hold_len" in (self.record.dtype.names or ()) and self.record[0]["hold_len"] > 0

    def counters(self) -> dict[str, int]:
        """Those of BACKEND_COUNTERS that it has, by name; from any thread, at any time."""
        names = self.record.dtype.names or ()
        return {name: int(self.record[0][name]) for name in BACKEND_COUNTERS if name in names}


class Backend:
    """The network side of one card, with as many queues as the card has queue pairs."""

    kind = "?"
    #: VIRTIO_NET_F_* bits (a mask) that this backend lets the device offer
    features = 0

    def __init__(self, queues: list[BackendQueue]) -> None:
        self.queues = queues

    def negotiate(self, hdr_len: int, features: int) -> None:
        """Learn what the driver acked; no ring is active.  Raises HostError."""

    def set_link(self, up: bool) -> None:
        """The driver is there, or gone."""

    def attach_queue(self, index: int, attach: bool) -> None:
        """The pair is in use, or not: the network must not choose a queue nobody serves."""

    def discard_pending(self) -> int:
        """Throw away what was meant for the last driver; returns packets."""
        return 0

    def interface_drops(self) -> dict[str, int]:
        """Packets that the host's interface dropped, by the guest's direction; from any thread."""
        return {}

    def send_frame(self, frame: bytes) -> None:
        """Put one frame of our own on the network (an announcement); errors are not told."""

    def close(self) -> None:
        """Give everything back; the backend is of no use afterwards."""

"""Two guests whose cards are joined, in this process."""

from __future__ import annotations

import contextlib
from typing import Any

from beds import OFFERED, in_process

from vhostnet.backends.port import PortBackend
from vhostnet.device.port_net import PortNet, join_ports
from vhostnet.uapi.virtio import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_MRG_RXBUF,
    mask,
)
from vhostnet_frontend import NetDriver

LEGACY = 0
V1 = mask(VIRTIO_F_VERSION_1)
MRG = V1 | mask(VIRTIO_NET_F_MRG_RXBUF)
PACKED = V1 | mask(VIRTIO_F_RING_PACKED)
PACKED_MRG = PACKED | MRG
CSUM = mask(VIRTIO_NET_F_GUEST_CSUM)
OFFLOADS = CSUM | mask(
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
)


class PortBed:
    """Two cards of *pairs* queue pairs each; every pair has a driver and a memory of its own."""

    def __init__(self, pairs: int = 1) -> None:
        self.cards = tuple(
            [PortNet(f"{name}{pair}") for pair in range(pairs)] for name in ("a", "b")
        )
        self._queues = [PortBackend(pairs).queues for _ in self.cards]
        self._backends = self._queues  # they hold what the records point at
        join_ports(*self.cards)
        self._stack = contextlib.ExitStack()

    def open(self, card: int, features: int = MRG, *, pair: int = 0, **options: Any) -> NetDriver:
        """A guest on card 0 or 1, not started."""
        transport = in_process(self._queues[card][pair], self.cards[card][pair])
        transport._features = OFFERED | OFFLOADS
        driver = NetDriver(transport, features=features, **options)
        assert driver.features == features
        self._stack.callback(driver.close)
        return driver

    def both(
        self, a_features: int = MRG, b_features: int = MRG, **options: Any
    ) -> tuple[NetDriver, NetDriver]:
        """Two guests, started."""
        a, b = self.open(0, a_features, **options), self.open(1, b_features, **options)
        return a.start(), b.start()

    def flush(self) -> None:
        self.cards[0][0].flush()

    def tx(self, card: int, pair: int = 0) -> dict[str, int]:
        """What card's TX ring counted."""
        return self.cards[card][pair].tx.counters()

    def rx(self, card: int, pair: int = 0) -> dict[str, int]:
        return self.cards[card][pair].rx.counters()

    def close(self) -> None:
        self._stack.close()


def received(driver: NetDriver, timeout: float = 0.0) -> list[bytes]:
    """All frames that are there."""
    frames = []
    while (frame := driver.receive(timeout=timeout)) is not None:
        frames.append(frame)
    return frames

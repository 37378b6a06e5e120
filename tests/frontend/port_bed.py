"""Two guests whose cards are joined, in this process."""

from __future__ import annotations

from typing import Any

from beds import OFFERED, in_process

from vhostnet.backends.port import PortBackend
from vhostnet.device.port_net import PortNet, join_ports, part_ports
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
        self.pairs = pairs
        self.cards: list[list[PortNet]] = [[], []]
        self._backends: list[list[PortBackend]] = [[], []]  # they hold what the records point at
        self._drivers: list[list[NetDriver]] = [[], []]
        for card in (0, 1):
            self.add(card)

    def add(self, card: int) -> None:
        """As device-add: joined to the other one, if that is there."""
        self.cards[card] = [PortNet(f"{'ab'[card]}{pair}") for pair in range(self.pairs)]
        self._backends[card].append(PortBackend(self.pairs))
        part_ports(self.cards[card])
        if self.cards[1 - card]:
            join_ports(self.cards[1 - card], self.cards[card])

    def remove(self, card: int) -> None:
        """As device-del: its guests lose their sessions and take their memory with them."""
        while self._drivers[card]:
            self._drivers[card].pop().close()
        part_ports(self.cards[card])
        self.cards[card] = []

    def open(self, card: int, features: int = MRG, *, pair: int = 0, **options: Any) -> NetDriver:
        """A guest on card 0 or 1, not started."""
        queue = self._backends[card][-1].queues[pair]
        transport = in_process(queue, self.cards[card][pair])
        transport._features = OFFERED | OFFLOADS
        driver = NetDriver(transport, features=features, **options)
        assert driver.features == features
        self._drivers[card].append(driver)
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
        for driver in self._drivers[0] + self._drivers[1]:
            driver.close()


def received(driver: NetDriver, timeout: float = 0.0) -> list[bytes]:
    """All frames that are there."""
    frames = []
    while (frame := driver.receive(timeout=timeout)) is not None:
        frames.append(frame)
    return frames

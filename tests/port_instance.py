"""`Instance` with another guest in the place of its wire: `backend=port:NAME` in this process.

The other guest is honest: it has a few large buffers and gives them back at once.
"""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from driver_ring import WRITE, DriverRing, Memory
from instance import RX, TX, V1, Instance
from vhostnet.backends.port import PortBackend
from vhostnet.datapath.layout import HOLD_SIZE
from vhostnet.device.port_net import PortNet, join_ports
from vhostnet.uapi.virtio import (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    mask,
)

NUM = 16
HDR_LEN = 12


class Partner:
    """The other guest, not mergeable; every frame it sends is one chain of one buffer."""

    def __init__(self, features: int) -> None:
        self.memory = Memory(4 << 20)
        self.net = PortNet("partner")
        self.net.set_owner(os.getpid())
        self.net.set_features(features)
        self.table = self.memory.table()
        self.net.set_mem_table(self.table)
        self.rx, self.tx = rings = [DriverRing(self.memory, NUM) for _ in (RX, TX)]
        self.buffers = [self.memory.alloc(HOLD_SIZE) for _ in range(NUM)]
        self.outgoing = self.memory.alloc(HOLD_SIZE)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        for index, ring in enumerate(rings):
            self.net.set_vring_num(index, NUM)
            self.net.set_vring_base(index, 0)
            self.net.set_vring_addr(index, ring.addresses())
        self.net.set_vring_kick(TX, os.dup(self.kick))
        for slot, gpa in enumerate(self.buffers):
            self.rx.set_desc(slot, gpa, HOLD_SIZE, WRITE, 0)
            self.rx.offer(slot)

    def start(self) -> None:
        self.queue = PortBackend(1).queues[0]
        for index in (RX, TX):
            self.net.set_backend(index, self.queue)

    def received(self) -> list[bytes]:
        """Frames without headers; their buffers are posted again."""
        frames = []
        for used in self.rx.collect():
            data = self.memory.read(self.buffers[used.head], used.length)
            frames.append(data[HDR_LEN:])
            self.rx.offer(used.head)
        return frames

    def send(self, frame: bytes) -> None:
        """Send a frame that is handled on return."""
        data = bytes(HDR_LEN) + frame
        self.memory.write(self.outgoing, data)
        self.tx.offer(self.tx.chain([(self.outgoing, len(data), 0)]))
        os.eventfd_write(self.kick, 1)
        self.net.flush()
        assert len(self.tx.collect()) == 1, "the partner did not get its buffer back"

    def close(self) -> None:
        self.net.reset_owner()
        self.table.release()
        os.close(self.kick)
        self.memory.close()


class _Wire:
    """What stands for the socket: a packet that is lost may be sent again."""

    def __init__(self, pair: PortInstance) -> None:
        self._pair = pair

    def send(self, packet: bytes) -> int:
        self._pair.partner.send(packet[self._pair.hdr_len :])
        return 0


class PortInstance(Instance):
    """A started queue pair; `sent` is what the partner received, `arrive` what it sends."""

    #: Whatever the other one leaves to its card is done in software.
    partner_features = V1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with mock.patch("instance.VhostNet", PortNet):
            super().__init__(*args, **kwargs)
        self._socket = self.wire
        self.wire = _Wire(self)
        self.queue = PortBackend(1).queues[0]
        self.partner = Partner(self.partner_features)
        join_ports([self.net], [self.partner.net])
        self.partner.start()

    def sent(self) -> list[bytes]:
        return [bytes(self.hdr_len) + frame for frame in self.partner.received()]

    def close(self) -> None:
        self.partner.close()
        self.wire = self._socket
        super().close()


class AblePortInstance(PortInstance):
    """The partner takes everything as it comes: no byte is changed on the way."""

    partner_features = V1 | mask(
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    )

"""One VhostNet instance with a guest on one side and a socket for a TAP on the other."""

from __future__ import annotations

import os
import socket

from driver_ring import DriverRing, Memory
from vhostnet.backends.tap import tap_queue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import RemoteOwner
from vhostnet.uapi.virtio import (
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    mask,
)

MRG = mask(VIRTIO_NET_F_MRG_RXBUF)
V1 = mask(VIRTIO_F_VERSION_1)
EVENT_IDX = mask(VIRTIO_RING_F_EVENT_IDX)
RX, TX = 0, 1


class OneCard:
    """A queue pair as an observer sees it: the backend is its client's."""

    backend = None

    def __init__(self, net: VhostNet) -> None:
        self.name = net.name
        self.nets = (net,)


class Instance:
    """A started queue pair.

    A SOCK_SEQPACKET socket stands in for the TAP: it keeps packet borders, blocks when full
    and is polled alike.  `flush` returns when every kick and packet of before is handled.
    """

    def __init__(
        self,
        features: int = MRG | V1,
        num: int = 16,
        base: int = 0,
        memory: Memory | None = None,
        coalesce: bool = False,
    ) -> None:
        self.memory = memory or Memory()
        self._mem_fd = -1
        self.hdr_len = 12 if features & (MRG | V1) else 10
        self.wire, device_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.wire.setblocking(False)
        device_end.setblocking(False)
        self._device_end = device_end
        self.queue = tap_queue(device_end.fileno(), fill_checksums=False, coalesce=coalesce)
        self.queue.record[0]["tap_hdr_len"] = self.hdr_len
        self.net = VhostNet("test")
        self.net.set_owner(os.getpid())
        self.net.set_features(features)
        self.table = self.memory.table()
        self.net.set_mem_table(self.table)
        self.rings = [DriverRing(self.memory, num, base) for _ in (RX, TX)]
        self.rx, self.tx = self.rings
        self.kicks, self.calls, self.errs = [], [], []
        for index, ring in enumerate(self.rings):
            kick, call, err = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
            self.kicks.append(kick)
            self.calls.append(call)
            self.errs.append(err)
            self.net.set_vring_num(index, num)
            self.net.set_vring_base(index, base)
            self.net.set_vring_addr(index, ring.addresses())
            self.net.set_vring_kick(index, os.dup(kick))
            self.net.set_vring_call(index, os.dup(call))
            self.net.set_vring_err(index, os.dup(err))

    def put_out_of_reach(self, *, batched: bool) -> None:
        """Have the device work on the same memory as that of another process: by system calls."""
        self._mem_fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        owner = RemoteOwner(os.getpid(), self._mem_fd, batched)
        self.net.set_remote(owner, self.table, self.table)

    def start(self) -> Instance:
        for index in (RX, TX):
            self.net.set_backend(index, self.queue)
        self.flush()
        return self

    def flush(self) -> None:
        self.net.flush()

    def kick(self, index: int) -> None:
        os.eventfd_write(self.kicks[index], 1)
        self.flush()

    @staticmethod
    def _count(fd: int) -> int:
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    def called(self, index: int) -> int:
        """Signals on the call eventfd since the last look."""
        return self._count(self.calls[index])

    def erred(self, index: int) -> int:
        """Signals on the error eventfd since the last look."""
        return self._count(self.errs[index])

    def sent(self) -> list[bytes]:
        """What came out on the wire."""
        packets = []
        while True:
            try:
                packets.append(self.wire.recv(1 << 20))
            except BlockingIOError:
                return packets

    def arrive(self, *packets: bytes) -> None:
        """Packets come in from the wire."""
        for packet in packets:
            self.wire.send(packet)
        self.flush()

    def counter(self, index: int, name: str) -> int:
        return int(self.net.vqs[index].vq[name])

    def close(self) -> None:
        self.net.reset_owner()
        self.table.release()
        self.wire.close()
        self._device_end.close()
        if self._mem_fd >= 0:
            os.close(self._mem_fd)
        for fd in self.kicks + self.calls + self.errs:
            os.close(fd)
        self.memory.close()

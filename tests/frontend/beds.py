"""Devices for the driver half: our own in this process, `vhostnet serve`, pretended ones."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from vhostnet.backends.tap import tap_queue
from vhostnet.device.memory import MemoryTable, map_region
from vhostnet.device.ring_formats import VringAddresses
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import RemoteOwner
from vhostnet.protocol.vhost_user_codec import Codec, Request, encode_message
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)
from vhostnet_frontend import Conversions, InProcessTransport, NetDriver, Region, VhostUserTransport

OFFERED = mask(
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)


def frame(number: int, size: int = 60) -> bytes:
    """A frame that no other number has."""
    head = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5" + number.to_bytes(4, "big")
    return (head + bytes((number + i) & 0xFF for i in range(size)))[:size]


def mem_table(regions: Sequence[Region]) -> MemoryTable:
    return MemoryTable(
        [map_region(r.gpa, r.size, r.uva, r.offset, -1 if r.fd is None else r.fd) for r in regions]
    )


def in_process(queue: Any, net: VhostNet | None = None) -> InProcessTransport:
    """Our device in this process, on one backend queue."""
    return InProcessTransport(
        net or VhostNet("under test"),
        Conversions(
            mem_table=mem_table,
            vring_addr=lambda addr: VringAddresses(
                desc_uva=addr.desc_user_addr,
                avail_uva=addr.avail_user_addr,
                used_uva=addr.used_user_addr,
            ),
            backend=lambda _index, _fd: queue,
        ),
        features=OFFERED,
    )


class SocketTap:
    """A SOCK_SEQPACKET socket that stands in for a TAP, as in tests/instance.py."""

    def __init__(self, hdr_len: int = 12, *, coalesce: bool = False) -> None:
        self.wire, self._device_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.wire.setblocking(False)
        self._device_end.setblocking(False)
        self.queue = tap_queue(self._device_end.fileno(), fill_checksums=False, coalesce=coalesce)
        self.queue.record[0]["tap_hdr_len"] = hdr_len

    def sent(self) -> list[bytes]:
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self.wire.recv(1 << 18))
        return packets

    def close(self) -> None:
        self.wire.close()
        self._device_end.close()


class InProcessBed:
    """Our device with a socket for a TAP; what comes out goes back in when `echo` is called."""

    name = "in process"

    def __init__(self) -> None:
        self.tap = SocketTap()
        self.transport: InProcessTransport | None = None

    def open(self, **options: Any) -> NetDriver:
        self.transport = in_process(self.tap.queue)
        driver = NetDriver(self.transport, **options)
        self.tap.queue.record[0]["tap_hdr_len"] = driver.hdr_len
        return driver

    def echo(self) -> None:
        assert self.transport is not None
        self.transport.flush()
        for packet in self.tap.sent():
            self.tap.wire.send(packet)

    def close(self) -> None:
        self.tap.close()


class OutOfReachBed(InProcessBed):
    """The same device, which reaches the guest's memory with system calls.

    Args:
        batched: by pid, else through /proc/PID/mem.
    """

    name = "out of reach"

    def __init__(self, *, batched: bool) -> None:
        super().__init__()
        self._mem_fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        self._owner = RemoteOwner(os.getpid(), self._mem_fd, batched)

    def open(self, **options: Any) -> NetDriver:
        driver = super().open(**options)
        assert self.transport is not None
        net = self.transport.net
        net.set_remote(self._owner, net.memory, net.memory)
        return driver

    def close(self) -> None:
        super().close()
        os.close(self._mem_fd)


class VhostUserBed:
    """`vhostnet serve --backend loop`, which sends back by itself."""

    name = "vhost-user"

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, **options: Any) -> NetDriver:
        return NetDriver(VhostUserTransport.connect(self.path, wait=5.0), **options)

    def echo(self) -> None:
        pass

    def close(self) -> None:
        pass


Bed = InProcessBed | VhostUserBed


class PretendedBackend:
    """A vhost-user back-end that answers what a test tells it to, and writes down the rest.

    Args:
        features, protocol_features: on offer.
        refuse: requests (numbers) that get a non-zero ack.
        hang_up_on: requests at which it closes.
    """

    def __init__(
        self,
        features: int = 1 << 32 | 1 << 30,
        protocol_features: int = 0,
        refuse: Sequence[int] = (),
        hang_up_on: Sequence[int] = (),
    ) -> None:
        self.features, self.protocol_features = features, protocol_features
        self.refuse, self.hang_up_on = set(refuse), set(hang_up_on)
        self.requests: list[Request] = []
        self.fds: list[int] = []
        self.channel: socket.socket | None = None
        self.front, self._sock = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def names(self) -> list[str]:
        return [request.name for request in self.requests]

    def payloads(self, name: str) -> list[bytes]:
        return [request.payload for request in self.requests if request.name == name]

    def _serve(self) -> None:
        codec = Codec()
        with self._sock:
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(self._sock, codec.wanted, 32)
                except OSError:
                    return
                if not data:
                    return
                for request in codec.feed(data, fds):
                    self.fds += request.fds
                    self.requests.append(request)
                    if request.number in self.hang_up_on:
                        return
                    answer = self._answer(request)
                    if answer is not None:
                        flags = vu.VHOST_USER_VERSION | vu.VHOST_USER_REPLY_MASK
                        self._sock.sendall(encode_message(request.number, flags, answer))

    def _answer(self, request: Request) -> bytes | None:
        number: dict[int, Callable[[], int]] = {
            vu.VHOST_USER_GET_FEATURES: lambda: self.features,
            vu.VHOST_USER_GET_PROTOCOL_FEATURES: lambda: self.protocol_features,
            vu.VHOST_USER_GET_QUEUE_NUM: lambda: 4,
            vu.VHOST_USER_GET_MAX_MEM_SLOTS: lambda: 32,
            vu.VHOST_USER_GET_STATUS: lambda: 15,
            vu.VHOST_USER_SET_LOG_BASE: lambda: 0,
        }
        if request.number in number:
            return number[request.number]().to_bytes(8, "little")
        if request.number == vu.VHOST_USER_GET_VRING_BASE:
            index = vu.VRING_STATE.unpack(request.payload).index
            return vu.VRING_STATE.pack(vu.VringState(index, 100 + index))
        if request.number == vu.VHOST_USER_SET_BACKEND_REQ_FD:
            self.channel = socket.socket(fileno=self.fds.pop())
        if request.needs_reply:
            return int(request.number in self.refuse).to_bytes(8, "little")
        return None

    def close(self) -> None:
        self.front.close()
        self._thread.join(60.0)
        if self.channel is not None:
            self.channel.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

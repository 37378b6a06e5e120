"""A vhost-user front-end in plain Python: what a VMM does to a back-end, step by step.

`FrontEnd` speaks the protocol over one connection; it takes only the declarations of
`vhostnet.uapi` from the program under test.  `Guest` is what stands behind it: memory in a
memfd and rings (`driver_ring`) with their eventfds, which outlive connections as a VMM's do.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
from collections.abc import Sequence

from driver_ring import GPA, UVA, WRITE, DriverRing, Memory, Used
from serve_process import PATIENCE_S
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import (
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)

VERSION, REPLY, NEED_REPLY = 0x1, 0x4, 0x8
HEADER_SIZE = 12
FEATURES = mask(
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_INDIRECT_DESC,
    vu.VHOST_USER_F_PROTOCOL_FEATURES,
)
PROTOCOL_FEATURES = mask(
    vu.VHOST_USER_PROTOCOL_F_MQ,
    vu.VHOST_USER_PROTOCOL_F_RARP,
    vu.VHOST_USER_PROTOCOL_F_REPLY_ACK,
    vu.VHOST_USER_PROTOCOL_F_MTU,
    vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    vu.VHOST_USER_PROTOCOL_F_STATUS,
)

RX, TX = 0, 1
HDR = bytes(12)
NO_FD = vu.VHOST_USER_VRING_NOFD_MASK


class SessionClosed(Exception):
    """The back-end has hung up."""


def u64(value: int) -> bytes:
    return vu.NUMBER.pack(vu.Number(value))


def state(index: int, num: int) -> bytes:
    return vu.VRING_STATE.pack(vu.VringState(index, num))


def addresses(index: int, desc: int, used: int, avail: int, flags: int = 0) -> bytes:
    return vu.VRING_ADDR.pack(vu.VringAddr(index, flags, desc, used, avail, 0))


def region(gpa: int, size: int, uva: int, offset: int = 0) -> bytes:
    return vu.MEMORY_REGION.pack(vu.MemoryRegion(gpa, size, uva, offset))


def table(*regions: bytes) -> bytes:
    return vu.MEMORY_TABLE_HEAD.pack(vu.MemoryTableHead(len(regions), 0)) + b"".join(regions)


def message(number: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    return vu.HEADER.pack(vu.Header(number, flags, len(payload))) + payload


class FrontEnd:
    """One connection to a back-end; every wait ends after PATIENCE_S."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A full backlog makes a connect wait, but one with Python's timeout fail at once.
        patience = struct.pack("ll", int(PATIENCE_S), 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self.socket.connect(path)
        self.socket.settimeout(PATIENCE_S)

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- bytes --------------------------------------------------------------------------------

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are, descriptors with the first of them."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.socket.sendmsg([data], rights)
            if sent < len(data):
                self.socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SessionClosed from error

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                chunk = self.socket.recv(size - len(data))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise SessionClosed
            data += chunk
        return data

    def wait_for_close(self) -> None:
        """Read until the back-end hangs up; what it says before that is lost."""
        with contextlib.suppress(SessionClosed):
            while True:
                self.receive(1)

    # --- messages -----------------------------------------------------------------------------

    def send(
        self, number: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION
    ) -> None:
        self.send_bytes(message(number, payload, flags), fds)

    def reply_to(self, number: int) -> bytes:
        """Read the reply to this request and return its payload."""
        header = vu.HEADER.unpack(self.receive(HEADER_SIZE))
        assert (header.request, header.flags) == (number, VERSION | REPLY)
        return self.receive(header.size)

    def ask(self, number: int, payload: bytes = b"") -> bytes:
        """A request with a reply of its own."""
        self.send(number, payload)
        return self.reply_to(number)

    def number(self, number: int) -> int:
        """A request whose reply is a number."""
        return vu.NUMBER.unpack(self.ask(number)).u64

    def acked(self, number: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A request with NEED_REPLY; returns the ack, 0 for success."""
        self.send(number, payload, fds, VERSION | NEED_REPLY)
        return vu.NUMBER.unpack(self.reply_to(number)).u64

    def tell(self, number: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A request with NEED_REPLY that must succeed."""
        assert self.acked(number, payload, fds) == 0, vu.REQUEST_NAMES[number]

    # --- conversations ------------------------------------------------------------------------

    def negotiate(self, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES) -> FrontEnd:
        """From the first message to SET_FEATURES."""
        assert self.number(vu.VHOST_USER_GET_FEATURES) & features == features
        assert self.number(vu.VHOST_USER_GET_PROTOCOL_FEATURES) & protocol == protocol
        self.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, u64(protocol))
        self.send(vu.VHOST_USER_SET_OWNER)
        self.tell(vu.VHOST_USER_SET_FEATURES, u64(features))
        return self

    def share(self, guest: Guest) -> FrontEnd:
        """Let the back-end map the guest's memory."""
        self.tell(vu.VHOST_USER_SET_MEM_TABLE, table(guest.region()), [guest.memory.fd])
        return self

    def set_ring(self, queue: Queue, base: int | None = None) -> None:
        """Size, base and addresses of one ring."""
        ring, index = queue.ring, queue.index
        where = ring.addresses()
        self.tell(vu.VHOST_USER_SET_VRING_NUM, state(index, ring.num))
        self.tell(
            vu.VHOST_USER_SET_VRING_BASE, state(index, ring.avail_idx if base is None else base)
        )
        self.tell(
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(index, where.desc_uva, where.used_uva, where.avail_uva),
        )

    def start_ring(self, queue: Queue, base: int | None = None) -> None:
        """Everything that makes one ring run."""
        index = queue.index
        self.set_ring(queue, base)
        self.tell(vu.VHOST_USER_SET_VRING_CALL, u64(index), [queue.call])
        self.tell(vu.VHOST_USER_SET_VRING_ERR, u64(index), [queue.err])
        self.tell(vu.VHOST_USER_SET_VRING_KICK, u64(index), [queue.kick_fd])
        self.tell(vu.VHOST_USER_SET_VRING_ENABLE, state(index, 1))

    def start(self, guest: Guest, protocol: int = PROTOCOL_FEATURES) -> FrontEnd:
        """Connect a guest from negotiation to running rings."""
        self.negotiate(protocol=protocol)
        self.share(guest)
        for queue in guest.queues:
            self.start_ring(queue)
        return self

    def stop_ring(self, queue: Queue) -> int:
        """GET_VRING_BASE; returns the base."""
        reply = vu.VRING_STATE.unpack(self.ask(vu.VHOST_USER_GET_VRING_BASE, state(queue.index, 0)))
        assert reply.index == queue.index
        return reply.num


class Queue:
    """A ring with its eventfds and one buffer for each descriptor, used again and again."""

    def __init__(self, memory: Memory, index: int, num: int, buffer_size: int) -> None:
        self.index = index
        self.ring = DriverRing(memory, num)
        self.buffer_size = buffer_size
        self.buffers = [memory.alloc(buffer_size) for _ in range(num)]
        self.kick_fd, self.call, self.err = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        self._next = 0
        # Frames in the buffers that `received` has found.
        self._heads: list[Used] = []

    def reset(self) -> None:
        """As after a device reset: nothing available, nothing used, no signals."""
        ring = self.ring
        ring.avail_idx = ring.used_seen = self._next = 0
        self._heads.clear()
        for at in (ring.avail, ring.used):
            ring.memory.write(at, bytes(4))
        for fd in (self.kick_fd, self.call, self.err):
            read_eventfd(fd)

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def _offer(self, length: int, flags: int) -> int:
        slot = self._next % self.ring.num
        self._next += 1
        self.ring.set_desc(slot, self.buffers[slot], length, flags, 0)
        self.ring.offer(slot)
        return self.buffers[slot]

    def send(self, *frames: bytes) -> None:
        """Make frames available to the device, a zero header before each, and kick."""
        for frame in frames:
            slot = self._next % self.ring.num
            self.ring.memory.write(self.buffers[slot], HDR + frame)
            self._offer(len(HDR) + len(frame), 0)
        self.kick()

    def post(self, n: int) -> None:
        """Offer n empty buffers and kick."""
        for _ in range(n):
            self._offer(self.buffer_size, WRITE)
        self.kick()

    def wait_used(self, n: int) -> list[Used]:
        """Wait for n used entries."""
        used: list[Used] = []
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        while True:
            used += self.ring.collect()
            if len(used) >= n:
                return used
            assert poll.poll(PATIENCE_S * 1000), f"ring {self.index}: {len(used)} of {n} used"
            read_eventfd(self.call)

    def wait_frames(self, n: int) -> list[bytes]:
        """Wait for n received frames, each in one buffer."""
        return [self.frame(used) for used in self.wait_used(n)]

    def frame(self, used: Used) -> bytes:
        """What the device wrote, without header."""
        return self.ring.memory.read(self.buffers[used.head], used.length)[len(HDR) :]

    def close(self) -> None:
        for fd in (self.kick_fd, self.call, self.err):
            os.close(fd)


class Guest:
    """Memory and one ring pair (or more) for a front-end to share."""

    def __init__(
        self, num: int = 16, queue_pairs: int = 1, buffer_size: int = 2048, size: int = 1 << 20
    ) -> None:
        self.memory = Memory(size)
        self.queues = [Queue(self.memory, k, num, buffer_size) for k in range(2 * queue_pairs)]
        self.rx, self.tx = self.queues[:2]

    def region(self) -> bytes:
        return region(GPA, self.memory.size, UVA)

    def reset(self) -> None:
        for queue in self.queues:
            queue.reset()

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        self.memory.close()


def read_eventfd(fd: int) -> int:
    """Take the count of an eventfd, 0 if there is none."""
    try:
        return struct.unpack("=Q", os.read(fd, 8))[0]
    except BlockingIOError:
        return 0


def wait_signal(fd: int) -> int:
    """Wait for an eventfd and take its count."""
    assert select.select([fd], [], [], PATIENCE_S)[0], "no signal"
    return read_eventfd(fd)

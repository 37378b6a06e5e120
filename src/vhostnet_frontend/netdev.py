"""`NetDriver`: a whole virtio network driver and its VMM, over any transport; stdlib only.

Theory of operation
-------------------
Negotiation is offered ∧ wanted.  Each queue pair has an RX ring that is kept full of buffers and
a TX ring with a pool of buffers; a frame longer than one buffer takes several, as one chain.
`receive` puts mergeable buffers together by num_buffers and posts them again.

    NEW        the transport is open
        Operations:  `start`
    RUNNING    rings set up and attached to their backend
        Operations:  `send`, `receive`, `stop`
    STOPPED    bases are known; whatever the device had taken is back
        Operations:  `start` goes on where the device stopped; `close`
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VNET_HDR_NUM_BUFFERS,
    mask,
)

from .guest_memory import GuestMemory
from .packed_ring import PackedRing
from .ring import Buffer, RingFull, Used
from .split_ring import SplitRing
from .transport import Transport
from .vnet_header import VnetHeader, header_size

if TYPE_CHECKING:
    from .fast_ring import FastReceiver, FastSender

DEFAULT_FEATURES = mask(
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
_NUM_BUFFERS_END = VNET_HDR_NUM_BUFFERS + 2


@dataclass(frozen=True, slots=True)
class Packet:
    """A received packet.

    Attributes:
        header: the vnet header's bytes.
        frame: from the Ethernet header on.
        lengths: bytes in each buffer that it took.
    """

    header: bytes
    frame: bytes
    lengths: tuple[int, ...]


@dataclass(slots=True)
class Queue:
    """A ring with its eventfds and buffers.

    Attributes:
        index: the ring's, as in the transport's verbs.
        buffers: gpa of each buffer; TX only: those that are free.
    """

    index: int
    ring: SplitRing | PackedRing
    buffer_size: int
    kick_fd: int
    call_fd: int
    err_fd: int
    buffers: list[int] = field(default_factory=list)
    pending: list[Used] = field(default_factory=list)

    def kick(self) -> None:
        """Publish, and write the eventfd if the device asks for it."""
        self.ring.publish()
        if self.ring.needs_kick():
            os.eventfd_write(self.kick_fd, 1)

    def wait(self, timeout: float) -> bool:
        """Sleep until the device has used something; False: not within *timeout* seconds."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.call_fd, select.POLLIN)
        try:
            while not self.ring.enable_interrupts():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
                signals(self.call_fd)
            return True
        finally:
            self.ring.disable_interrupts()

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def signals(fd: int) -> int:
    """Empty a non-blocking eventfd; returns how often it was signalled."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class NetDriver:
    """A virtio network card's driver.  Use as a context manager.

    Args:
        transport: an open device, closed with the driver.
        backend: what `set_backend` is given, a descriptor a queue pair; transports whose
            back-end has a network side of its own take any number.
        features: wanted; those not offered are left out.
        queue_pairs: RX/TX pairs to use.
        num: entries of each ring.
        rx_size, tx_size: bytes of each buffer.
        memory: the guest's; None: as much as is needed, freed with the driver.

    Attributes:
        features: acknowledged.
        hdr_len: bytes of vnet header.
        rx, tx: the queues, one of each a pair.
    """

    def __init__(
        self,
        transport: Transport,
        backend: int | Sequence[int] = 0,
        *,
        features: int = DEFAULT_FEATURES,
        queue_pairs: int = 1,
        num: int = 256,
        rx_size: int = 2048,
        tx_size: int = 2048,
        memory: GuestMemory | None = None,
    ) -> None:
        self.transport = transport
        self._backends = [backend] * queue_pairs if isinstance(backend, int) else list(backend)
        self.rx: list[Queue] = []
        self.tx: list[Queue] = []
        self.running = False
        self._stack = contextlib.ExitStack()
        try:
            transport.set_owner()
            self.features = transport.get_features() & features
            transport.set_features(self.features)
            self.hdr_len = header_size(self.features)
            if memory is None:
                ring_bytes = 32 * num + 64
                size = queue_pairs * (num * (rx_size + tx_size) + 2 * ring_bytes) + (1 << 20)
                memory = self._stack.enter_context(GuestMemory(-(-size // 4096) * 4096))
            self.memory = memory
            transport.set_mem_table(memory.regions)
            for pair in range(queue_pairs):
                self.rx.append(self._queue(2 * pair, num, rx_size))
                self.tx.append(self._queue(2 * pair + 1, num, tx_size))
                self.tx[-1].buffers = self._buffers(num, tx_size)
        except BaseException:
            self.close()
            raise

    def _queue(self, index: int, num: int, buffer_size: int) -> Queue:
        event_idx = self.has(VIRTIO_RING_F_EVENT_IDX)
        in_order = self.has(VIRTIO_F_IN_ORDER)
        ring: SplitRing | PackedRing
        if self.has(VIRTIO_F_RING_PACKED):
            ring = PackedRing(self.memory, num, event_idx=event_idx, in_order=in_order)
        else:
            ring = SplitRing(self.memory, num, event_idx=event_idx, in_order=in_order)
        queue = Queue(index, ring, buffer_size, _eventfd(), _eventfd(), _eventfd())
        self._stack.callback(queue.close)
        return queue

    def _buffers(self, count: int, size: int) -> list[int]:
        first = self.memory.alloc(count * size, 64)
        return [first + k * size for k in range(count)]

    def has(self, feature: int) -> bool:
        """Whether this feature (bit number) was acknowledged."""
        return bool(self.features >> feature & 1)

    @property
    def queues(self) -> list[Queue]:
        """All queues, by index."""
        return [queue for pair in zip(self.rx, self.tx, strict=True) for queue in pair]

    # --- running ----------------------------------------------------------------------------

    def start(self, *, post_rx: bool = True) -> NetDriver:
        """Set the rings up, fill the RX rings, and attach them to their backends.

        Args:
            post_rx: False leaves the RX rings empty, for a `receiver`.
        """
        for queue in self.queues:
            self._set_up(queue)
        for queue in self.rx:
            if post_rx and not queue.buffers:
                queue.buffers = self._buffers(queue.ring.num, queue.buffer_size)
                for gpa in queue.buffers:
                    queue.ring.add([Buffer(gpa, queue.buffer_size, True)], gpa)
                queue.ring.publish()
        for queue in self.queues:
            self.transport.set_backend(queue.index, self._backends[queue.index // 2])
        self.running = True
        for queue in self.queues:
            if queue.ring.needs_kick():
                os.eventfd_write(queue.kick_fd, 1)
        return self

    def _set_up(self, queue: Queue) -> None:
        transport, index = self.transport, queue.index
        queue.ring.disable_interrupts()
        transport.set_vring_num(index, queue.ring.num)
        if not self.running and not queue.ring.outstanding() and not queue.ring.has_used():
            transport.set_vring_base(index, queue.ring.base)
        transport.set_vring_addr(queue.ring.addr(index))
        transport.set_vring_kick(index, queue.kick_fd)
        transport.set_vring_call(index, queue.call_fd)
        transport.set_vring_err(index, queue.err_fd)

    def stop(self) -> list[int]:
        """Detach all rings; returns the base of each, by index."""
        for queue in self.queues:
            self.transport.set_backend(queue.index, None)
        self.running = False
        return [self.transport.get_vring_base(queue.index) for queue in self.queues]

    def close(self) -> None:
        """Stop, and free everything: transport, eventfds, memory of our own."""
        self.running = False
        self.transport.close()  # first: the device still writes to the memory
        self._stack.close()

    def __enter__(self) -> NetDriver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- sending ----------------------------------------------------------------------------

    def send(
        self,
        frame: bytes,
        *,
        header: bytes | VnetHeader = b"",
        pair: int = 0,
        indirect: bool = False,
        timeout: float = 5.0,
    ) -> None:
        """Send one frame; waits for free buffers if there are none.

        Args:
            header: vnet header, zeros where it is shorter than `hdr_len`.
            indirect: describe its buffers in an indirect table.

        Raises:
            TimeoutError: the device gave no buffers back.
        """
        queue = self.tx[pair]
        if isinstance(header, VnetHeader):
            header = header.pack(self.hdr_len)
        data = header.ljust(self.hdr_len, b"\0") + frame
        size = queue.buffer_size
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        deadline = time.monotonic() + timeout
        self.reclaim(pair)
        while len(queue.buffers) < len(pieces) or queue.ring.n_free < len(pieces):
            if len(pieces) > queue.ring.num:
                raise RingFull(f"a frame of {len(frame)} bytes needs {len(pieces)} buffers")
            if not queue.wait(deadline - time.monotonic()):
                raise TimeoutError(f"ring {queue.index}: no buffer came back")
            self.reclaim(pair)
        taken = [queue.buffers.pop() for _ in pieces]
        for gpa, piece in zip(taken, pieces, strict=True):
            self.memory.write(gpa, piece)
        chain = [Buffer(gpa, len(piece)) for gpa, piece in zip(taken, pieces, strict=True)]
        queue.ring.add(chain, taken, indirect=indirect)
        queue.kick()

    def reclaim(self, pair: int = 0) -> int:
        """Take back the buffers of frames that were sent; returns how many frames."""
        queue = self.tx[pair]
        done = queue.ring.collect()
        for used in done:
            queue.buffers.extend(used.token or ())
        return len(done)

    def flush(self, pair: int = 0, timeout: float = 5.0) -> None:
        """Wait until the device has given back everything that was sent.

        Raises:
            TimeoutError: it did not.
        """
        queue = self.tx[pair]
        deadline = time.monotonic() + timeout
        self.reclaim(pair)
        while queue.ring.outstanding():
            if not queue.wait(deadline - time.monotonic()):
                raise TimeoutError(f"ring {queue.index}: frames did not come back")
            self.reclaim(pair)

    # --- receiving ----------------------------------------------------------------------------

    def receive(self, *, pair: int = 0, timeout: float = 1.0) -> bytes | None:
        """The next frame, None if there is none within *timeout* seconds."""
        packet = self.receive_packet(pair=pair, timeout=timeout)
        return None if packet is None else packet.frame

    def receive_packet(self, *, pair: int = 0, timeout: float = 1.0) -> Packet | None:
        """As `receive`, with the header and the buffers' lengths."""
        queue = self.rx[pair]
        deadline = time.monotonic() + timeout
        while True:
            packet = self._next_packet(queue)
            if packet is not None:
                return packet
            if not queue.wait(deadline - time.monotonic()):
                return None

    def _next_packet(self, queue: Queue) -> Packet | None:
        queue.pending += queue.ring.collect()
        # what the device gave back unused (length 0) is no packet
        while queue.pending and queue.pending[0].length == 0:
            self._repost(queue, [queue.pending.pop(0)])
        if not queue.pending:
            return None
        first = queue.pending[0]
        n_buffers = 1
        if self.has(VIRTIO_NET_F_MRG_RXBUF):
            start = self.memory.read(first.token, min(first.length, _NUM_BUFFERS_END))
            n_buffers = max(1, VnetHeader.unpack(start).num_buffers)
        if len(queue.pending) < n_buffers:
            return None
        parts = [queue.pending.pop(0) for _ in range(n_buffers)]
        data = b"".join(
            self.memory.read(part.token, min(part.length, queue.buffer_size)) for part in parts
        )
        self._repost(queue, parts)
        lengths = tuple(part.length for part in parts)
        return Packet(data[: self.hdr_len], data[self.hdr_len :], lengths)

    def _repost(self, queue: Queue, parts: Sequence[Used]) -> None:
        for part in parts:
            queue.ring.add([Buffer(part.token, queue.buffer_size, True)], part.token)
        queue.kick()

    # --- at full speed --------------------------------------------------------------------------

    def sender(
        self,
        frame: bytes,
        *,
        pair: int = 0,
        stamped: bool = False,
        others: Sequence[bytes] = (),
    ) -> FastSender:
        """The compiled sender on a pair's TX ring; call `flush` before, `finish` after."""
        from .fast_ring import FastSender

        queue = self.tx[pair]
        made = FastSender(
            queue.ring,
            frame,
            kick_fd=queue.kick_fd,
            call_fd=queue.call_fd,
            hdr_len=self.hdr_len,
            stamped=stamped,
            others=others,
        )
        self._stack.callback(made.close)
        return made

    def receiver(
        self, *, pair: int = 0, buffer_size: int | None = None, stamped: bool = False
    ) -> FastReceiver:
        """The compiled receiver on a pair's RX ring, which `start(post_rx=False)` left empty."""
        from .fast_ring import FastReceiver

        queue = self.rx[pair]
        made = FastReceiver(
            queue.ring,
            kick_fd=queue.kick_fd,
            call_fd=queue.call_fd,
            hdr_len=self.hdr_len,
            buffer_size=buffer_size or queue.buffer_size,
            stamped=stamped,
        )
        self._stack.callback(made.close)
        return made

    # --- what else can be seen ----------------------------------------------------------------

    def ring_errors(self) -> dict[int, int]:
        """Signals on the error eventfds since the last call, by ring; only those that had any."""
        found = {queue.index: signals(queue.err_fd) for queue in self.queues}
        return {index: n for index, n in found.items() if n}

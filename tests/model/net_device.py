"""A network device's two queues and its worker (VIRTIO 1.2 section 5.1.6, Linux's vhost_net)."""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from .chains import MOST_PIECES, Chain, Refusal, Refused
from .memory import GuestMemory
from .packed_ring import PackedRing
from .split_ring import SplitRing

RX, TX = 0, 1
KICK, NET = "kick", "net"
#: Linux: completions that are published together.
BATCH = 64
NEEDS_CSUM = 1


@dataclass
class Queue:
    """A ring and what it has told so far."""

    ring: SplitRing | PackedRing
    calls: int = 0
    errors: int = 0
    last_refusal: Refusal | None = None
    is_signal_due: bool = False
    waits_for_driver: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def signal(self) -> None:
        if self.is_signal_due:
            self.is_signal_due = False
            self.calls += self.ring.wants_signal()

    def publish(self) -> None:
        if self.ring.publish():
            self.is_signal_due = True

    def fault(self) -> None:
        self.errors += 1

    def refuse(self, refused: Refused) -> None:
        self.errors += 2 if refused.is_told_twice else 1
        self.last_refusal = refused.why
        self.counts["ring_errors"] += 1


class NetDevice:
    """Both rings, run by one worker.

    Args:
        hdr_len: bytes of virtio_net_hdr.
        mergeable: MRG_RXBUF.
        writes_num_buffers: MRG_RXBUF or VERSION_1 (section 5.1.6.4.1).
    """

    def __init__(
        self,
        memory: GuestMemory,
        rx: SplitRing | PackedRing,
        tx: SplitRing | PackedRing,
        hdr_len: int,
        mergeable: bool,
        writes_num_buffers: bool,
    ) -> None:
        self.memory = memory
        self.queues = Queue(rx), Queue(tx)
        self.rx, self.tx = self.queues
        self.hdr_len, self.mergeable = hdr_len, mergeable
        self.writes_num_buffers = writes_num_buffers
        self.wire: deque[bytes] = deque()
        #: A TAP has no peek: one packet is read before there are buffers for it.
        self.held: bytes | None = None
        self.sent: list[bytes] = []
        #: What the next wake-up has to do already.
        self.planned: list[tuple[int, str]] = []

    def wake(self, kicked: list[int], is_backend_ready: bool) -> None:
        """Everything that happens from a wake-up until the worker sleeps again.

        Args:
            kicked: the rings whose driver has notified.
            is_backend_ready: a packet has come in, or there is room to send again.
        """
        if is_backend_ready:
            if self.wire:
                self._plan(RX, NET)
            self._plan(TX, NET)
        for index in sorted(kicked):
            self._plan(index, KICK)
        planned, self.planned = self.planned, []
        for index, _ in planned:
            if index == RX:
                self._receive()
            else:
                self._transmit()
        self.tx.signal()
        for index, queue in enumerate(self.queues):
            if queue.waits_for_driver and queue.ring.listen():
                queue.ring.be_quiet()
                self._plan(index, KICK)

    def _plan(self, index: int, why: str) -> None:
        if (index, why) not in self.planned:
            self.planned.append((index, why))

    # --- section 5.1.6.2, packet transmission -------------------------------------------------

    def _transmit(self) -> None:
        queue, ring = self.tx, self.tx.ring
        ring.be_quiet()
        queue.waits_for_driver = False
        while True:
            if ring.unpublished >= BATCH:
                queue.publish()
                queue.signal()
            try:
                chain = ring.take()
            except Refused as refused:
                queue.publish()
                queue.refuse(refused)
                return
            if chain is None:
                queue.publish()
                queue.waits_for_driver = True
                return
            self._send(chain)
            ring.complete([chain], [0])

    def _send(self, chain: Chain) -> None:
        """One chain: a packet, or a mistake that is told and completed (docs/differences.md)."""
        if chain.writable:
            self.tx.counts["drop_malformed"] += 1
            self.tx.fault()
        elif chain.out_len <= self.hdr_len:
            self.tx.counts["drop_short"] += 1
            if chain.out_len == 0:
                self.tx.fault()
        else:
            packet = chain.read()
            self.sent.append(self._corrected(packet))
            self.tx.counts["packets"] += 1
            self.tx.counts["bytes"] += len(packet)

    def _corrected(self, packet: bytes) -> bytes:
        """Linux does not look at hdr_len where it is only a hint, and a TAP would refuse it."""
        flags, gso_type, hdr_len = struct.unpack_from("<BBH", packet)
        is_hint = not gso_type and not flags & NEEDS_CSUM
        if is_hint and hdr_len > len(packet) - self.hdr_len:
            return packet[:2] + bytes(2) + packet[4:]
        return packet

    # --- section 5.1.6.3 and 5.1.6.4, receiving -----------------------------------------------

    def _receive(self) -> None:
        queue, ring = self.rx, self.rx.ring
        ring.be_quiet()
        queue.waits_for_driver = False
        while self._hold():
            assert self.held is not None
            try:
                chains = self._buffers_for(len(self.held))
            except Refused as refused:
                queue.refuse(refused)
                break
            if chains is None:
                queue.waits_for_driver = True
                break
            if chains:
                self._deliver(self.held, chains)
                self.held = None
            if ring.unpublished > BATCH:
                queue.publish()
                queue.signal()
        queue.publish()
        queue.signal()

    def _hold(self) -> bool:
        """Have the next packet at hand; one without a frame is none."""
        while self.held is None and self.wire:
            packet = self.wire.popleft()
            if len(packet) > self.hdr_len:
                self.held = packet
        return self.held is not None

    def _buffers_for(self, need: int) -> list[Chain] | None:
        """Chains with room for so many bytes.

        Returns:
            None: the driver has not offered enough.  []: those that were looked at are of no
            use, or the packet was thrown away; go on.
        """
        queue, ring = self.rx, self.rx.ring
        chains: list[Chain] = []
        try:
            while sum(chain.in_len for chain in chains) < need:
                chain = ring.take()
                if chain is None:
                    ring.give_back(chains)
                    return None
                chains.append(chain)
                if chain.readable or not chain.writable:
                    # Linux leaks them; we complete all of them empty (docs/differences.md).
                    queue.counts["drop_malformed"] += 1
                    queue.fault()
                    for one in chains:
                        ring.complete([one], [0])
                    return []
                if sum(len(one.writable) for one in chains) > MOST_PIECES:
                    raise Refused(Refusal.TOO_MANY)
                if chain.in_len < need and not self.mergeable:
                    ring.give_back(chains)
                    queue.counts["drop_too_small"] += 1
                    self.held = None
                    return []
        except Refused:
            ring.give_back(chains)
            raise
        return chains

    def _deliver(self, packet: bytes, chains: list[Chain]) -> None:
        """Section 5.1.6.4: fill the buffers one after the other."""
        if self.writes_num_buffers:
            packet = packet[:10] + struct.pack("<H", len(chains)) + packet[12:]
        at = 0
        lengths = []
        for chain in chains:
            before = at
            for gpa, size in chain.writable:
                part = packet[at : at + size]
                self.memory.write(gpa, part)
                at += len(part)
            lengths.append(at - before)
        self.rx.ring.complete(chains, lengths)
        self.rx.counts["packets"] += 1
        self.rx.counts["bytes"] += len(packet)

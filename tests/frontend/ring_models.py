"""Slow, readable devices for both ring formats: what a driver's ring is tested against.

Written from VIRTIO 1.2 sections 2.7 and 2.8, device side, with none of the device's code.  A
model reads guest memory through the ring's own `memory` and keeps its position itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vhostnet_frontend import GuestMemory, PackedRing, SplitRing

NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass(frozen=True)
class Chain:
    id: int
    n_descs: int
    buffers: tuple[tuple[int, int, bool], ...]


def parse_desc(memory: GuestMemory, gpa: int) -> tuple[int, int, int, int]:
    a, b, c, d = struct.unpack("<QIHH", memory.read(gpa, 16))
    return a, b, c, d


class SplitModel:
    """The device's side of a split ring."""

    def __init__(self, ring: SplitRing, base: int = 0, *, event_idx: bool = False) -> None:
        self.ring, self.memory = ring, ring.memory
        self.avail = self.used = base
        self.signalled = base
        self.event_idx = event_idx

    def get(self) -> Chain | None:
        ring = self.ring
        if ring.read_avail_idx() == self.avail:
            return None
        head = ring.read_avail(self.avail)
        self.avail = (self.avail + 1) & 0xFFFF
        at, n, buffers = head, 0, []
        while True:
            gpa, size, flags, next_ = parse_desc(self.memory, ring.desc_gpa + 16 * at)
            n += 1
            if flags & INDIRECT:
                for k in range(size // 16):
                    entry = parse_desc(self.memory, gpa + 16 * k)
                    buffers.append((entry[0], entry[1], bool(entry[2] & WRITE)))
                    assert bool(entry[2] & NEXT) == (16 * (k + 1) < size)
            else:
                buffers.append((gpa, size, bool(flags & WRITE)))
            if not flags & NEXT:
                return Chain(head, n, tuple(buffers))
            at = next_

    def put(self, id_: int, length: int, n_chains: int = 1) -> None:
        """Use *n_chains*, the last of them *id_*: more than 1 is an in-order batch."""
        self.ring.write_used(self.used, id_, length)
        self.used = (self.used + n_chains) & 0xFFFF
        self.ring.write_used_idx(self.used)

    def wants_signal(self) -> bool:
        old, self.signalled = self.signalled, self.used
        if self.event_idx:
            event = self.ring.read_used_event()
            return (self.used - event - 1) & 0xFFFF < (self.used - old) & 0xFFFF
        return not self.ring.read_avail_flags() & 1

    def ask_for_kick(self) -> None:
        if self.event_idx:
            self.ring.write_avail_event(self.avail)
        else:
            self.ring.write_used_flags(0)

    def refuse_kicks(self) -> None:
        if not self.event_idx:
            self.ring.write_used_flags(1)


class PackedModel:
    """The device's side of a packed ring."""

    def __init__(self, ring: PackedRing, *, event_idx: bool = False) -> None:
        self.ring, self.memory = ring, ring.memory
        self.event_idx = event_idx
        self.avail, self.avail_wrap = 0, 1
        self.used, self.used_wrap = 0, 1
        self.used_since_signal = 0

    def get(self) -> Chain | None:
        ring = self.ring
        buffers: list[tuple[int, int, bool]] = []
        n = 0
        while True:
            gpa, size, id_, flags = parse_desc(self.memory, ring.desc_gpa + 16 * self.avail)
            available = bool(flags & 0x80) == bool(self.avail_wrap) and bool(
                flags & 0x8000
            ) != bool(self.avail_wrap)
            if not available:
                assert n == 0, "a chain that is not available as a whole"
                return None
            n += 1
            assert n <= ring.num, "a chain without end"
            self.avail += 1
            if self.avail == ring.num:
                self.avail, self.avail_wrap = 0, 1 - self.avail_wrap
            if flags & INDIRECT:
                assert size % 16 == 0
                for k in range(size // 16):
                    entry = parse_desc(self.memory, gpa + 16 * k)
                    buffers.append((entry[0], entry[1], bool(entry[3] & WRITE)))
            else:
                buffers.append((gpa, size, bool(flags & WRITE)))
            if not flags & NEXT:
                return Chain(id_, n, tuple(buffers))

    def put(self, id_: int, length: int, n_descs: int) -> None:
        """Use *n_descs* descriptors with one entry: more than one chain is an in-order batch."""
        flags = 0x8080 if self.used_wrap else 0
        at = self.ring.desc_gpa + 16 * self.used
        self.memory.write(at + 8, struct.pack("<IH", length, id_))
        self.memory.write(at + 14, struct.pack("<H", flags))
        self.used += n_descs
        self.used_since_signal += n_descs
        if self.used >= self.ring.num:
            self.used, self.used_wrap = self.used - self.ring.num, 1 - self.used_wrap

    def wants_signal(self) -> bool:
        off_wrap, flags = self.ring.read_driver_event()
        moved, self.used_since_signal = self.used_since_signal, 0
        if flags != 2:
            return flags == 0
        event = off_wrap & 0x7FFF
        if (off_wrap >> 15) != self.used_wrap:
            event -= self.ring.num
        return (self.used - event - 1) & 0xFFFF < moved

    def ask_for_kick(self) -> None:
        if self.event_idx:
            self.ring.write_device_event(self.avail | self.avail_wrap << 15, 2)
        else:
            self.ring.write_device_event(0, 0)

    def refuse_kicks(self) -> None:
        self.ring.write_device_event(0, 1)

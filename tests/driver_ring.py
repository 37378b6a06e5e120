"""A guest in a few plain lines: shared memory and a split ring's driver side.

Written from the specification, slow and readable, without any of the device's code.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from vhostnet.device.memory import MemoryTable, Region, map_region
from vhostnet.device.ring_formats import VringAddresses

NEXT, WRITE, INDIRECT = 1, 2, 4
GPA = 0x4000_0000
UVA = 0x7F00_0000_0000


class Memory:
    """Guest memory of `size` bytes at GPA / UVA, in a memfd."""

    def __init__(self, size: int = 1 << 20, gpa: int = GPA, uva: int = UVA) -> None:
        self.size, self.gpa, self.uva = size, gpa, uva
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)
        self._next = 0x1000

    def region(self) -> Region:
        return map_region(self.gpa, self.size, self.uva, 0, self.fd)

    def table(self) -> MemoryTable:
        return MemoryTable([self.region()])

    def alloc(self, size: int, align: int = 16) -> int:
        """Guest physical address of `size` fresh bytes."""
        at = -(-self._next // align) * align
        self._next = at + size
        assert self._next <= self.size
        return self.gpa + at

    def write(self, gpa: int, data: bytes) -> None:
        at = gpa - self.gpa
        self.bytes[at : at + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        at = gpa - self.gpa
        return bytes(self.bytes[at : at + size])

    def u16(self, gpa: int) -> int:
        return int(struct.unpack("<H", self.read(gpa, 2))[0])

    def truncate(self, size: int) -> None:
        """Cut the file short under whoever maps it; what is gone must not be touched any more."""
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


@dataclass
class Used:
    head: int
    length: int


class DriverRing:
    """The driver's half of one split ring."""

    def __init__(self, memory: Memory, num: int, base: int = 0) -> None:
        self.memory, self.num = memory, num
        self.desc = memory.alloc(16 * num)
        self.avail = memory.alloc(6 + 2 * num, 2)
        self.used = memory.alloc(6 + 8 * num, 4)
        self.avail_idx = self.used_seen = base
        self._free = 0
        memory.write(self.avail + 2, struct.pack("<H", base))
        memory.write(self.used + 2, struct.pack("<H", base))

    def addresses(self) -> VringAddresses:
        shift = self.memory.uva - self.memory.gpa
        return VringAddresses(self.desc + shift, self.avail + shift, self.used + shift)

    def set_desc(self, i: int, gpa: int, length: int, flags: int, next_: int) -> None:
        self.memory.write(
            self.desc + 16 * i,
            struct.pack("<QIHH", gpa & (2**64 - 1), length & 0xFFFFFFFF, flags, next_ & 0xFFFF),
        )

    def chain(self, buffers: list[tuple[int, int, int]]) -> int:
        """Fill descriptors (gpa, length, flags without NEXT) as one chain; returns the head."""
        slots = [(self._free + k) % self.num for k in range(len(buffers))]
        self._free = (self._free + len(buffers)) % self.num
        for k, (gpa, length, flags) in enumerate(buffers):
            more = k + 1 < len(buffers)
            self.set_desc(
                slots[k], gpa, length, flags | (NEXT if more else 0), slots[k + 1] if more else 0
            )
        return slots[0]

    def indirect(self, entries: list[tuple[int, int, int, int]], flags: int = 0) -> int:
        """One descriptor that points at a table of (gpa, length, flags, next)."""
        table = self.memory.alloc(16 * max(len(entries), 1))
        for k, (gpa, length, entry_flags, next_) in enumerate(entries):
            self.memory.write(table + 16 * k, struct.pack("<QIHH", gpa, length, entry_flags, next_))
        return self.chain([(table, 16 * len(entries), INDIRECT | flags)])

    def offer(self, *heads: int) -> None:
        """Make chains available."""
        for head in heads:
            self.memory.write(
                self.avail + 4 + 2 * (self.avail_idx % self.num), struct.pack("<H", head)
            )
            self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.avail_idx))

    def send(self, *pieces: bytes) -> int:
        """Offer one chain of readable buffers with these bytes."""
        buffers = []
        for piece in pieces:
            gpa = self.memory.alloc(len(piece), 1)
            self.memory.write(gpa, piece)
            buffers.append((gpa, len(piece), 0))
        head = self.chain(buffers)
        self.offer(head)
        return head

    def post(self, *sizes: int) -> list[int]:
        """Offer one chain of writable buffers of these sizes; returns their addresses."""
        buffers = [self.memory.alloc(size, 1) for size in sizes]
        self.offer(
            self.chain([(gpa, size, WRITE) for gpa, size in zip(buffers, sizes, strict=True)])
        )
        return buffers

    def used_idx(self) -> int:
        return self.memory.u16(self.used + 2)

    def used_flags(self) -> int:
        return self.memory.u16(self.used)

    def avail_event(self) -> int:
        return self.memory.u16(self.used + 4 + 8 * self.num)

    def set_used_event(self, value: int) -> None:
        self.memory.write(self.avail + 4 + 2 * self.num, struct.pack("<H", value))

    def set_avail_flags(self, value: int) -> None:
        self.memory.write(self.avail, struct.pack("<H", value))

    def collect(self) -> list[Used]:
        """The used entries since the last call."""
        entries = []
        while self.used_seen != self.used_idx():
            at = self.used + 4 + 8 * (self.used_seen % self.num)
            head, length = struct.unpack("<II", self.memory.read(at, 8))
            entries.append(Used(head, length))
            self.used_seen = (self.used_seen + 1) & 0xFFFF
        return entries

    def collect_in_order(self) -> list[Used]:
        """With IN_ORDER one entry stands for all completions up to it; it fills the gap."""
        entries = []
        seen, idx = self.used_seen, self.used_idx()
        while seen != idx:
            at = self.used + 4 + 8 * (seen % self.num)
            head, length = struct.unpack("<II", self.memory.read(at, 8))
            # the entry names the last head of its batch; heads here are one descriptor each
            n = (head - seen) % self.num + 1
            entries.append(Used(head, length))
            seen = (seen + n) & 0xFFFF
        self.used_seen = seen
        return entries

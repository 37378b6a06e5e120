"""Guest memory whose borders can be seen: regions of odd places and sizes between canaries.

Every byte of the file that no region holds is a canary.  Regions neither begin nor end at page
borders, so the device has canaries mapped right before and right after each of them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from driver_ring import GPA, UVA, Memory
from vhostnet.device.memory import MemoryTable, map_region

CANARY = 0xA7


@dataclass(frozen=True)
class Island:
    """One region: guest address, bytes, offset in the file."""

    gpa: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


# The second follows the first without a gap, the others do not; the last but one is smaller than
# a descriptor and follows the one before, so that a table can lie across both.
MAIN = Island(GPA, 0x1A02, 0x1200)
NEXT_TO_MAIN = Island(MAIN.end, 0x904, 0x4442)
DISTANT = Island(NEXT_TO_MAIN.end + 0x6FA, 0x1008, 0x6800)
TINY = Island(DISTANT.end, 8, 0x9FF8)
HIGH = Island((1 << 63) - 0x1000, 0x400, 0xB0C0)
ISLANDS = (MAIN, NEXT_TO_MAIN, DISTANT, TINY, HIGH)
FILE_SIZE = 0xD000


def _without(island: Island, holes: Sequence[tuple[int, int]]) -> list[Island]:
    """The parts of an island that are in no hole; a hole of 0 bytes is a border."""
    parts, at = [], island.gpa
    for gpa, size in sorted(holes):
        if at < gpa < island.end or at < gpa + size <= island.end:
            parts.append((at, max(at, gpa)))
            at = max(at, min(gpa + size, island.end))
    parts.append((at, island.end))
    return [
        Island(start, end - start, island.offset + start - island.gpa)
        for start, end in parts
        if end > start
    ]


class Islands(Memory):
    """`driver_ring.Memory` with a region for each of ISLANDS.

    Args:
        holes: (gpa, bytes) within islands that the device is not given; what is left of an
            island is a region or two.
    """

    def __init__(self, holes: Sequence[tuple[int, int]] = ()) -> None:
        self.regions = [part for island in ISLANDS for part in _without(island, holes)]
        self.size, self.gpa, self.uva = FILE_SIZE, GPA, UVA
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, FILE_SIZE)
        self.bytes = mmap.mmap(self.fd, FILE_SIZE)
        self._next = GPA
        self.bytes[:] = bytes([CANARY]) * FILE_SIZE
        for island in ISLANDS:
            self.bytes[island.offset : island.offset + island.size] = bytes(island.size)

    def table(self) -> MemoryTable:
        # One distance between guest and front-end addresses, as `DriverRing` expects; the last
        # region is far beyond and has no ring.
        shift = UVA - GPA
        return MemoryTable(
            [
                map_region(
                    i.gpa,
                    i.size,
                    i.gpa + shift if i.gpa < HIGH.gpa else i.gpa - HIGH.gpa,
                    i.offset,
                    self.fd,
                )
                for i in self.regions
            ]
        )

    def alloc(self, size: int, align: int = 16) -> int:
        gpa = -(-self._next // align) * align
        self._next = gpa + size
        assert self._next <= MAIN.end
        return gpa

    def _offset(self, gpa: int) -> int:
        for island in ISLANDS:
            if island.gpa <= gpa < island.end:
                return island.offset + gpa - island.gpa
        raise ValueError(f"{gpa:#x} is in no region")

    def write(self, gpa: int, data: bytes) -> None:
        at = self._offset(gpa)
        self.bytes[at : at + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        at = self._offset(gpa)
        return bytes(self.bytes[at : at + size])

    def scatter(self, gpa: int, data: bytes) -> None:
        """Write what regions hold of *data*, byte by byte; the rest would be in none."""
        for k, byte in enumerate(data):
            with contextlib.suppress(ValueError):
                self.bytes[self._offset(gpa + k)] = byte

    def fill(self, data: bytes) -> None:
        """Write *data* again and again over all regions, without a byte that is a canary's."""
        clean = data.replace(bytes([CANARY]), b"\x00")
        for island in ISLANDS:
            piece = (clean * (island.size // len(clean) + 1))[: island.size]
            self.bytes[island.offset : island.offset + island.size] = piece

    def damage(self) -> list[str]:
        """Where canaries have changed."""
        found, at = [], 0
        for island in [*sorted(ISLANDS, key=lambda i: i.offset), Island(0, 0, FILE_SIZE)]:
            gap = self.bytes[at : island.offset]
            if gap.count(CANARY) != len(gap):
                found += [f"{at + k:#x}" for k, byte in enumerate(gap) if byte != CANARY]
            at = island.offset + island.size
        return found


def desc(gpa: int, length: int, flags: int, next_: int) -> bytes:
    """One descriptor."""
    return struct.pack(
        "<QIHH", gpa & (1 << 64) - 1, length & 0xFFFFFFFF, flags & 0xFFFF, next_ & 0xFFFF
    )

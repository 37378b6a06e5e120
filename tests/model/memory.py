"""Guest memory: bytes of which some regions are the device's to use."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class GuestMemory:
    """All bytes that exist, and what of them the device was given.

    Attributes:
        blocks: guest address -> bytes; everything that can be compared afterwards.
        regions: (guest address, bytes), sorted, without overlaps; each lies in one block.
    """

    blocks: dict[int, bytearray]
    regions: list[tuple[int, int]]
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._order = sorted(self.blocks)

    def _place(self, gpa: int) -> tuple[bytearray, int]:
        start = max(start for start in self._order if start <= gpa)
        return self.blocks[start], gpa - start

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes that lie in one region."""
        block, at = self._place(gpa)
        return bytes(block[at : at + size])

    def write(self, gpa: int, data: bytes) -> None:
        """The other way round."""
        block, at = self._place(gpa)
        block[at : at + len(data)] = data

    def u16(self, gpa: int) -> int:
        return int(struct.unpack("<H", self.read(gpa, 2))[0])

    def put_u16(self, gpa: int, value: int) -> None:
        self.write(gpa, struct.pack("<H", value & 0xFFFF))

    def run(self, gpa: int, size: int) -> int:
        """How many of the bytes [gpa, gpa + size) follow each other in the region of the first.

        0: no region has the first byte.
        """
        for start, length in self.regions:
            if start <= gpa < start + length:
                return min(size, start + length - gpa)
        return 0

    def gather(self, gpa: int, size: int) -> bytes | None:
        """Bytes over any number of regions, None if one of them is in none."""
        data = b""
        while len(data) < size:
            n = self.run(gpa + len(data), size - len(data))
            if n == 0:
                return None
            data += self.read(gpa + len(data), n)
        return data

"""Descriptor chains: buffers in order, readable ones first; and each reason to refuse one."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR_SIZE = 16
#: Section 2.7.5.3 has no limit for a table; this and the next one are Linux's.
MOST_TABLE_ENTRIES = 65536
#: Of a chain: descriptors (ours, docs/differences.md), and pieces that lie in one region each.
MOST_PIECES = 1024


class Refusal(enum.Enum):
    """Why a ring cannot be gone on with."""

    AVAIL_JUMP = "more chains were made available than the ring has entries"
    BAD_HEAD = "the avail ring names a descriptor that does not exist"
    BAD_NEXT = "the next descriptor does not exist, or is not the device's"
    LOOP = "more descriptors than the ring has"
    UNMAPPED = "a buffer is not in memory"
    OUT_AFTER_IN = "a readable buffer after a writable one"
    TOO_MANY = "more than 1024 descriptors or pieces"
    TABLE_LENGTH = "a table of a broken number of descriptors"
    TABLE_UNMAPPED = "a table is not in memory"
    TABLE_TOO_BIG = "a table of more than 65536 descriptors"
    TABLE_OVERRUN = "a table says that there is more behind its end, or is empty"
    TABLE_NESTED = "a table in a table"


class Refused(Exception):
    """The ring is broken here; nothing of the chain was taken."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.value)
        self.why = why
        #: Linux's get_indirect() tells the error eventfd of what it finds, and so does its caller.
        self.is_told_twice = False


@dataclass
class Chain:
    """One chain: pieces of guest memory as (address, bytes).

    Attributes:
        id: what the used entry will name.
        n_ring: descriptors of the ring itself that it takes.
    """

    memory: GuestMemory
    id: int = 0
    n_ring: int = 0
    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)
    _n_descriptors: int = 0

    @property
    def out_len(self) -> int:
        return sum(n for _, n in self.readable)

    @property
    def in_len(self) -> int:
        return sum(n for _, n in self.writable)

    def read(self) -> bytes:
        """All readable bytes."""
        return b"".join(self.memory.read(gpa, n) for gpa, n in self.readable)

    def add(self, addr: int, length: int, flags: int) -> None:
        """Section 2.7.4: append a buffer; device-readable ones come first."""
        self._n_descriptors += 1
        if self._n_descriptors > MOST_PIECES:
            raise Refused(Refusal.TOO_MANY)
        pieces = []
        done = 0
        while done < length:
            if len(self.readable) + len(self.writable) + len(pieces) >= MOST_PIECES:
                raise Refused(Refusal.TOO_MANY)
            n = self.memory.run(addr + done, length - done)
            if n == 0:
                raise Refused(Refusal.UNMAPPED)
            pieces.append((addr + done, n))
            done += n
        if flags & WRITE:
            self.writable += pieces
        elif self.writable:
            raise Refused(Refusal.OUT_AFTER_IN)
        else:
            self.readable += pieces

    def add_table(self, addr: int, length: int, is_packed: bool) -> None:
        """Sections 2.7.5.3 and 2.8.7: append what an indirect table holds."""
        for buffer in self._table(addr, length, is_packed):
            self.add(*buffer)

    def _table(self, addr: int, length: int, is_packed: bool) -> Iterator[tuple[int, int, int]]:
        if length % DESCRIPTOR_SIZE:
            raise Refused(Refusal.TABLE_LENGTH)
        count = length // DESCRIPTOR_SIZE
        if count > MOST_TABLE_ENTRIES:
            raise Refused(Refusal.TABLE_TOO_BIG)
        table = self.memory.gather(addr, length)
        if table is None:
            raise Refused(Refusal.TABLE_UNMAPPED)
        for k in range(count):
            if self._n_descriptors >= MOST_PIECES:
                raise Refused(Refusal.TOO_MANY)
            # Not from `table`: a device that writes to its own tables reads what it wrote.
            entry = self.memory.gather(addr + DESCRIPTOR_SIZE * k, DESCRIPTOR_SIZE)
            assert entry is not None
            buffer, size, flags, is_last = unpack(entry, is_packed)
            if flags & INDIRECT:
                raise Refused(Refusal.TABLE_NESTED)
            yield buffer, size, flags
            # Split: entries are taken in order and `next` is ignored, as Linux does; packed
            # tables have no NEXT.
            if is_last and not is_packed:
                return
        if not is_packed or count == 0:
            raise Refused(Refusal.TABLE_OVERRUN)


def unpack(descriptor: bytes, is_packed: bool) -> tuple[int, int, int, bool]:
    """(address, length, flags, no NEXT flag) of 16 bytes."""
    addr, length, low, high = struct.unpack("<QIHH", descriptor)
    flags = high if is_packed else low
    return addr, length, flags, not flags & NEXT

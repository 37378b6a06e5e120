"""The memory that a vhost-user front-end shares: from its messages to the table that follows.

Each verb makes a table and leaves the one in use alone; who has seen to it that nobody uses the old
one any more `take`s the new one.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence

from vhostnet.device.memory import (
    MemoryTable,
    Region,
    drop_unheld,
    map_region,
    same_region,
)
from vhostnet.errors import PeerError
from vhostnet.protocol.verbs import MemoryRegion

#: As libvhost-user; QEMU itself stops at 256 on x86.
MAX_MEM_SLOTS = 509


class SharedMemory:
    """The regions of one session after the other.

    Attributes:
        table: what is in use.
    """

    def __init__(self) -> None:
        self.table = MemoryTable()
        # QEMU before 8.1 adds, and later removes, each region once a queue pair
        self._repeated: Counter[tuple[int, int, int]] = Counter()

    def take(self, table: MemoryTable) -> None:
        """Use *table* from now on; what only the old one held is unmapped."""
        old, self.table = self.table, table
        old.release()

    def release(self) -> None:
        """Forget everything; the session is over."""
        self.take(MemoryTable())
        self._repeated.clear()

    def with_regions(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> MemoryTable:
        """A table of these; PeerError if one of them cannot be mapped."""
        return self._made([], list(zip(regions, fds, strict=True)))

    def with_region(self, region: MemoryRegion, fd: int) -> MemoryTable | None:
        """A table with one more, None if it is there already; PeerError."""
        if self._find_mapped(region, fd) is not None:
            self._repeated[region.key] += 1
            return None
        if len(self.table.regions) >= MAX_MEM_SLOTS:
            raise PeerError(f"more than {MAX_MEM_SLOTS} memory slots", errno.E2BIG)
        return self._made(list(self.table.regions), [(region, fd)])

    def without_region(self, region: MemoryRegion) -> MemoryTable | None:
        """A table with one less, None if it was added more often; PeerError if it is not there."""
        kept = [r for r in self.table.regions if (r.gpa, r.uva, r.size) != region.key]
        if len(kept) < len(self.table.regions):
            return self._made(kept, [])
        if self._repeated[region.key] > 0:
            self._repeated[region.key] -= 1
            return None
        raise PeerError(f"there is no region at gpa {region.guest_phys_addr:#x} like this")

    def _made(self, kept: list[Region], offered: list[tuple[MemoryRegion, int]]) -> MemoryTable:
        regions = list(kept)
        new: list[Region] = []
        try:
            for wire, fd in offered:
                region = self._find_mapped(wire, fd)
                if region is None:
                    region = map_region(
                        wire.guest_phys_addr,
                        wire.memory_size,
                        wire.userspace_addr,
                        wire.mmap_offset,
                        fd,
                    )
                    new.append(region)
                regions.append(region)
            return MemoryTable(regions)
        except PeerError:
            drop_unheld(new)
            raise

    def _find_mapped(self, wire: MemoryRegion, fd: int) -> Region | None:
        for region in self.table.regions:
            if same_region(
                region,
                wire.guest_phys_addr,
                wire.memory_size,
                wire.userspace_addr,
                wire.mmap_offset,
                fd,
            ):
                return region
        return None

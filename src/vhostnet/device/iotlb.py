"""The device's IOTLB: which I/O virtual addresses a virtual IOMMU lets it use.

Theory of operation
-------------------
The front-end owns the translation; we cache what it tells us.  An address that is not in the
cache is a *miss*: the ring that met it waits, the front-end is told, and its *update* lets the
ring go on.  An *invalidate* takes whole entries away.

Entries may overlap, as in Linux: the one with the lower start wins where they do, until it is
invalidated.  Kernels get `array`, the same without overlaps: sorted, cut where a lower entry
wins and where the front-end's memory changes from one region to the next.  It is replaced, never
changed, so a table that a parked worker will not see again may still be held.

Source: Linux vhost_process_iotlb_msg(), vhost_iotlb_add_range().
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vhostnet.datapath.layout import IOTLB_ENTRY
from vhostnet.errors import PeerError

from .memory import MemoryTable

#: Linux vhost.max_iotlb_entries: beyond it the oldest entry is retired.
MAX_IOTLB_ENTRIES = 2048
_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Entry:
    """One update as it came."""

    iova: int
    size: int
    uva: int
    perm: int

    @property
    def end(self) -> int:
        return self.iova + self.size


class Iotlb:
    """A set of entries, and the table that kernels read.

    Args:
        memory: where the front-end's addresses are in our process.
    """

    def __init__(self, memory: MemoryTable) -> None:
        self._memory = memory
        self._entries: list[Entry] = []  # by age
        self.array: npt.NDArray[Any] = np.zeros(0, IOTLB_ENTRY)

    def set_memory(self, memory: MemoryTable) -> None:
        """The front-end's memory has changed: the same entries lie elsewhere in ours."""
        self._memory = memory
        self._rebuild()

    def update(self, iova: int, size: int, uva: int, perm: int) -> None:
        """Add a range; PeerError for one that is empty, wraps, or lies in no region."""
        if size == 0:
            raise PeerError("IOTLB update of no bytes")
        if iova + size > _LIMIT or uva + size > 1 << 64:
            raise PeerError(f"IOTLB update iova={iova:#x} size={size:#x} wraps")
        entry = Entry(iova, size, uva, perm)
        rows = self._rows(entry, iova)
        if perm and not rows:
            raise PeerError(f"IOTLB update iova={iova:#x}: {uva:#x} is in no memory region")
        if len(self._entries) >= MAX_IOTLB_ENTRIES:
            del self._entries[0]
            self._entries.append(entry)
            self._rebuild()
            return
        self._entries.append(entry)
        starts = self.array["iova"]
        at = bisect.bisect_left(starts, iova)
        lower_ends = at == 0 or starts[at - 1] + self.array["iova_size"][at - 1] <= iova
        higher_begins = at == len(starts) or starts[at] >= entry.end
        if lower_ends and higher_begins:
            self.array = np.insert(self.array, at, np.array(rows, IOTLB_ENTRY))
        else:
            self._rebuild()

    def invalidate(self, iova: int, size: int) -> None:
        """Drop every entry that overlaps the range; (0, 0) is everything."""
        end = iova + size if (iova, size) != (0, 0) else 1 << 64
        kept = [e for e in self._entries if e.end <= iova or e.iova >= end]
        if len(kept) != len(self._entries):
            self._entries = kept
            self._rebuild()

    def lookup(self, iova: int, size: int, access: int) -> tuple[int | None, int]:
        """Our address of [iova, iova + size), if it is there and in one piece.

        Returns:
            (hva, 0), or (None, first address that is missing or not in the same piece).
        """
        at = bisect.bisect_right(self.array["iova"], iova) - 1
        if at < 0:
            return None, iova
        hva, here = None, iova
        while here < iova + size:
            row = self.array[at] if at < len(self.array) else None
            if row is None or not row["iova"] <= here < row["iova"] + row["iova_size"]:
                return None, here
            if row["perm"] & access != access:
                return None, here
            row_hva = int(row["iova_hva"]) + here - int(row["iova"])
            if hva is None:
                hva = row_hva
            elif row_hva != hva + here - iova:
                return None, here
            here = int(row["iova"] + row["iova_size"])
            at += 1
        return hva, 0

    def _rows(self, entry: Entry, start: int) -> list[tuple[int, int, int, int]]:
        """The pieces of *entry* from iova *start* on that lie in regions of our process."""
        rows = []
        first = entry.uva + start - entry.iova
        for region in self._memory.regions_at(first, entry.uva + entry.size):
            low = max(entry.uva + start - entry.iova, region.uva)
            high = min(entry.uva + entry.size, region.uva + region.size)
            if low < high:
                iova = entry.iova + low - entry.uva
                rows.append((iova, high - low, region.hva + low - region.uva, entry.perm))
        return sorted(rows)

    def _rebuild(self) -> None:
        rows: list[tuple[int, int, int, int]] = []
        covered = 0
        for entry in sorted(self._entries, key=lambda e: e.iova):  # stable: older first
            if entry.end > covered:
                rows += self._rows(entry, max(entry.iova, covered))
                covered = entry.end
        self.array = np.array(rows, IOTLB_ENTRY) if rows else np.zeros(0, IOTLB_ENTRY)

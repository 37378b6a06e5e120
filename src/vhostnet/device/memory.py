"""The guest memory that a front-end shares, mapped into our process.

A table is built whole and then swapped in; it never changes while a worker can see it.  A
new table takes over the mappings of regions that did not change, because front-ends send the
same table again at every start.

Not here: finding a guest address (`datapath/guest_memory_raw.py`).
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vhostnet.datapath.layout import MAPPED_REGION
from vhostnet.errors import HostError, PeerError
from vhostnet.native import mmap_raw

#: Kernels compute with signed 64-bit addresses; guests live far below.
_GPA_LIMIT = 1 << 63
_UVA_LIMIT = 1 << 64
#: TASK_SIZE_MAX of x86-64 with four levels of page tables.
USER_LIMIT = (1 << 47) - 4096


def user_range(address: int, size: int) -> bool:
    """Linux access_ok(): may a process have this range at all?"""
    return address + size <= USER_LIMIT


@dataclass(slots=True)
class Mapping:
    """One mmap of ours; several tables may hold it one after the other."""

    map_hva: int
    map_size: int
    holders: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether its file was cut short under us, and zeros stand in its place."""
        return mmap_raw.is_lost(self.map_hva)

    def release(self) -> None:
        self.holders -= 1
        if self.holders == 0:
            mmap_raw.unmap(self.map_hva, self.map_size)


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest memory: where the guest, the front-end and we see its first byte."""

    gpa: int
    size: int
    uva: int
    #: (device, inode) of the file and offset in it: the same file at the same place?
    identity: tuple[int, int, int]
    hva: int
    mapping: Mapping


def map_region(gpa: int, size: int, uva: int, mmap_offset: int, fd: int) -> Region:
    """Map one region of a front-end's memory; the descriptor stays the caller's.

    Raises PeerError for a region that wraps, is empty, or reaches beyond its file (a file that
    is cut short later is `Mapping.is_lost`), HostError if the mapping is refused.
    """
    where = f"region gpa={gpa:#x} size={size:#x}"
    if size == 0:
        raise PeerError(f"{where}: is empty")
    if gpa + size > _GPA_LIMIT or uva + size > _UVA_LIMIT:
        raise PeerError(f"{where}: wraps around the address space")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise PeerError(
            f"{where}: its descriptor is not a file that can be mapped; the VMM's memory is "
            "not shared: add memory-backend-memfd,share=on"
        )
    if mmap_offset + size > status.st_size:
        raise PeerError(
            f"{where}: offset {mmap_offset:#x} + size is beyond its file of "
            f"{status.st_size:#x} bytes"
        )
    start, end = mmap_raw.whole_pages(status, mmap_offset, size)
    try:
        map_hva = mmap_raw.map_shared(fd, end - start, start)
    except HostError as e:
        raise PeerError(f"{where}: {e}", e.errno) from e
    return Region(
        gpa=gpa,
        size=size,
        uva=uva,
        identity=(status.st_dev, status.st_ino, mmap_offset),
        hva=map_hva + mmap_offset - start,
        mapping=Mapping(map_hva, end - start),
    )


def same_region(old: Region, gpa: int, size: int, uva: int, mmap_offset: int, fd: int) -> bool:
    """Whether an offered region is the one that is mapped already."""
    if (old.gpa, old.size, old.uva) != (gpa, size, uva):
        return False
    status = os.fstat(fd)
    return old.identity == (status.st_dev, status.st_ino, mmap_offset)


class MemoryTable:
    """An immutable set of regions, as kernels and rings see it.

    Attributes:
        regions: sorted by gpa.
        array: MAPPED_REGION[n], what `translate` reads.
    """

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        """Take a hold on *regions*; raises PeerError, holding nothing, if two overlap."""
        self.regions: tuple[Region, ...] = tuple(sorted(regions, key=lambda r: r.gpa))
        for low, high in zip(self.regions, self.regions[1:], strict=False):
            if low.gpa + low.size > high.gpa:
                raise PeerError(
                    f"regions gpa={low.gpa:#x} size={low.size:#x} and gpa={high.gpa:#x} "
                    f"size={high.size:#x} overlap"
                )
        self._by_uva = sorted(self.regions, key=lambda r: r.uva)
        self._uvas = [r.uva for r in self._by_uva]
        # the front-end's ranges may overlap: how far back one that reaches here may begin
        self._longest = max((r.size for r in self.regions), default=0)
        self.array: npt.NDArray[Any] = np.zeros(len(self.regions), MAPPED_REGION)
        for i, r in enumerate(self.regions):
            self.array[i] = (r.gpa, r.size, r.hva)
            r.mapping.holders += 1

    def release(self) -> None:
        """Let go of the mappings; the last table that holds one unmaps it."""
        for r in self.regions:
            r.mapping.release()
        self.regions = ()
        self._by_uva, self._uvas = [], []
        self.array = np.zeros(0, MAPPED_REGION)

    def lookup(self, uva: int, size: int, access: int) -> tuple[int | None, int]:  # noqa: ARG002
        """As `Iotlb.lookup`: (hva, 0), or (None, *uva*).  Regions allow every access."""
        hva = self.uva_to_hva(uva, size)
        return hva, 0 if hva is not None else uva

    def regions_at(self, uva: int, end: int) -> list[Region]:
        """The regions that hold any of the front-end's bytes [uva, end)."""
        low = bisect.bisect_left(self._uvas, uva - self._longest + 1)
        high = bisect.bisect_left(self._uvas, end)
        return [r for r in self._by_uva[low:high] if r.uva + r.size > uva]

    def check_not_lost(self) -> None:
        """Raise PeerError EFAULT if the file of a region was cut short under us."""
        for r in self.regions:
            if r.mapping.is_lost:
                raise PeerError(
                    f"region gpa={r.gpa:#x} size={r.size:#x}: its memory file was truncated, "
                    "or has no page to give",
                    errno.EFAULT,
                )

    def hva_to_gpa(self, hva: int) -> int:
        """The guest physical address of a byte of ours, 0 if it is in no region."""
        for r in self.regions:
            if r.hva <= hva < r.hva + r.size:
                return r.gpa + (hva - r.hva)
        return 0

    def uva_to_hva(self, uva: int, size: int) -> int | None:
        """Our address of the front-end's bytes [uva, uva + size), if one region holds them."""
        for r in self.regions:
            if r.uva <= uva and uva + size <= r.uva + r.size:
                return r.hva + (uva - r.uva)
        return None


def drop_unheld(regions: Sequence[Region]) -> None:
    """Unmap regions that no table came to hold (an error stopped the table's making)."""
    for r in regions:
        if r.mapping.holders == 0:
            mmap_raw.unmap(r.mapping.map_hva, r.mapping.map_size)

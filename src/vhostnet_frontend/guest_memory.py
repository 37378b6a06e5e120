"""Guest memory: what a VMM gives its guest, and what it shares with a back-end.

Every byte has three addresses: where the guest sees it (gpa), where the front-end says that it
has it (uva) and where this process really has it (hva).  Rings are announced by uva, buffers
by gpa.  A back-end that is another process maps the file; a back-end that is the kernel uses
uva as it is, so there uva must be hva (the default).

Two nets for a back-end that writes where it must not:
    guards     unmapped pages around our mapping: whoever shares our address space faults
    canaries   bytes of the file before and behind the region, and around every allocation
               that asks for them: `check_canaries` names those that changed

Not here: rings.  stdlib only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from vhostnet.uapi.vhost import VHOST_PAGE_SIZE

from . import memory_raw
from .memory_raw import PAGE

#: Guest memory starts above what a careless translation would take for an offset.
DEFAULT_GPA = 0x4000_0000
CANARY = b"\xc5\x5c\xa3\x3a\x0f\xf0\x96\x69"
_CANARY_SIZE = 64


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A region to be made.

    Attributes:
        size: bytes, need not be whole pages.
        gpa: where the guest sees it.
        uva: what back-ends are told; None: the true address in this process.
    """

    size: int
    gpa: int = DEFAULT_GPA
    uva: int | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest memory.

    Attributes:
        gpa, size, uva, hva: see the module.
        fd: the file that holds it, None if it is private to this process.
        offset: where in the file it starts, whole pages.
    """

    gpa: int
    size: int
    uva: int
    hva: int
    fd: int | None
    offset: int


@dataclass(slots=True)
class _Mapping:
    hva: int
    size: int
    file_size: int


class OutOfGuestMemory(Exception):
    """No region has that much room left."""


class NotGuestMemory(Exception):
    """The guest has nothing at this address."""


class GuestMemory:
    """One or more regions, an allocator for each, reading and writing by gpa.

    Args:
        regions: a size (one region at DEFAULT_GPA), or what to make.
        private: anonymous memory of this process instead of memfds; only a kernel back-end
            can use it.
        canaries: surround each region with canary pages in its file.
    """

    def __init__(
        self,
        regions: int | Sequence[RegionSpec] = 1 << 20,
        *,
        private: bool = False,
        canaries: bool = False,
    ) -> None:
        if private and canaries:
            raise ValueError("canary pages need a file: private memory has guard pages only")
        self.regions: list[Region] = []
        self._mappings: list[_Mapping] = []
        self._next: list[int] = []
        self._canaries: list[tuple[str, int, bytes]] = []
        specs = [RegionSpec(regions)] if isinstance(regions, int) else list(regions)
        try:
            for spec in specs:
                self._add(spec, private, canaries)
        except BaseException:
            self.close()
            raise

    def _add(self, spec: RegionSpec, private: bool, canaries: bool) -> None:
        whole = -(-spec.size // PAGE) * PAGE
        margin = PAGE if canaries else 0
        file_size = margin + whole + margin
        hva = memory_raw.reserve(file_size + 2 * PAGE)
        self._mappings.append(_Mapping(hva, file_size + 2 * PAGE, file_size))
        fd = None
        if not private:
            fd = os.memfd_create("guest-memory")
        start = hva + PAGE + margin
        uva = start if spec.uva is None else spec.uva
        self.regions.append(Region(spec.gpa, spec.size, uva, start, fd, margin))
        self._next.append(0)
        if fd is not None:
            os.ftruncate(fd, file_size)
        memory_raw.map_into(hva + PAGE, file_size, fd, 0)
        if canaries:
            name = f"region gpa={spec.gpa:#x}"
            self._plant(f"before {name}", start - margin, margin)
            self._plant(f"behind {name}", start + spec.size, whole - spec.size + margin)

    def _plant(self, name: str, hva: int, size: int) -> None:
        pattern = (CANARY * (size // len(CANARY) + 1))[:size]
        memory_raw.write_bytes(hva, pattern)
        self._canaries.append((name, hva, pattern))

    def check_canaries(self) -> list[str]:
        """The canaries that changed, one line each; empty is good."""
        harmed = []
        for name, hva, pattern in self._canaries:
            found = memory_raw.read_bytes(hva, len(pattern))
            if found != pattern:
                first = next(i for i in range(len(pattern)) if found[i] != pattern[i])
                harmed.append(f"{name}: byte {first} of {len(pattern)} changed")
        return harmed

    # --- addresses ---------------------------------------------------------------------

    def _pieces(self, gpa: int, size: int) -> Iterator[tuple[int, int]]:
        """Where [gpa, gpa + size) is: (hva, bytes), over as many regions as it takes."""
        while size > 0:
            region = self._region_at(gpa)
            piece = min(size, region.gpa + region.size - gpa)
            yield region.hva + gpa - region.gpa, piece
            gpa += piece
            size -= piece

    def _region_at(self, gpa: int) -> Region:
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return region
        raise NotGuestMemory(f"the guest has no memory at {gpa:#x}")

    def hva(self, gpa: int) -> int:
        """Our address of a guest byte."""
        region = self._region_at(gpa)
        return region.hva + gpa - region.gpa

    def uva(self, gpa: int) -> int:
        """The address of a guest byte that back-ends are told."""
        region = self._region_at(gpa)
        return region.uva + gpa - region.gpa

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of guest memory."""
        return b"".join(memory_raw.read_bytes(hva, n) for hva, n in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Copy *data* into guest memory."""
        at = 0
        for hva, n in self._pieces(gpa, len(data)):
            memory_raw.write_bytes(hva, data[at : at + n])
            at += n

    # --- allocation --------------------------------------------------------------------

    def alloc(
        self, size: int, align: int = 16, *, region: int | None = None, canary: bool = False
    ) -> int:
        """The gpa of *size* fresh bytes, all in one region.

        Args:
            region: its index; None: the first that has room.
            canary: guard the bytes on both sides (`check_canaries`).

        Raises:
            OutOfGuestMemory: there is no room.
        """
        margin = _CANARY_SIZE if canary else 0
        for k in range(len(self.regions)) if region is None else (region,):
            here = self.regions[k]
            gpa = -(-(here.gpa + self._next[k] + margin) // align) * align
            end = gpa + size + margin - here.gpa
            if end > here.size:
                continue
            self._next[k] = end
            if canary:
                self._plant(f"before gpa={gpa:#x}", self.hva(gpa) - margin, margin)
                self._plant(f"behind gpa={gpa:#x}+{size}", self.hva(gpa) + size, margin)
            return gpa
        raise OutOfGuestMemory(f"no room for {size} bytes")

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Take back, at the end of the block, what is allocated in it."""
        before, n_canaries = list(self._next), len(self._canaries)
        try:
            yield
        finally:
            self._next = before
            del self._canaries[n_canaries:]

    # --- the end, and worse --------------------------------------------------------------

    def truncate_file(self, size: int = 0, *, region: int = 0) -> None:
        """Misbehave: cut the file of a region under everybody who has mapped it."""
        fd = self.regions[region].fd
        if fd is None:
            raise ValueError("private memory has no file")
        os.ftruncate(fd, size)

    def close(self) -> None:
        """Unmap everything and close the files."""
        for region in self.regions:
            if region.fd is not None:
                os.close(region.fd)
        for mapping in self._mappings:
            memory_raw.unmap(mapping.hva, mapping.size)
        self.regions, self._mappings, self._canaries = [], [], []

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class DirtyLog:
    """The bitmap in which a back-end notes which guest pages it has written.

    Args:
        top_gpa: the end of the guest's memory: the bitmap has a bit for each page below it.
    """

    def __init__(self, top_gpa: int) -> None:
        n_pages = -(-top_gpa // VHOST_PAGE_SIZE)
        #: bytes, whole 64-bit words: some back-ends set bits a word at a time
        self.size = -(-n_pages // 64) * 8
        self._memory = GuestMemory([RegionSpec(self.size, gpa=0)])
        region = self._memory.regions[0]
        assert region.fd is not None
        self.fd, self.offset, self.uva = region.fd, region.offset, region.uva

    def pages(self) -> set[int]:
        """Numbers (gpa / 4096) of the pages that are marked."""
        bits = self._memory.read(0, self.size)
        return {
            8 * at + bit
            for at, byte in enumerate(bits)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        }

    def clear(self) -> None:
        """Forget all marks."""
        self._memory.write(0, bytes(self.size))

    def close(self) -> None:
        """Free the bitmap; the back-end must have let go of it."""
        self._memory.close()

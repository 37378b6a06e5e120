"""The memory of the process that owns a character device.

Theory of operation
-------------------
Linux's driver works in the owner's address space.  We are another process, and have two ways
into it.  What the owner maps shared (a memfd, hugetlbfs, a file) we map too; that is as fast as
memory can be.  What is private (QEMU's default, a heap) is reached with system calls, see
`datapath/owner_memory_raw.py`.  A device starts with the first, and changes to the second, for
all of its memory, when it is given something that is not in a shared mapping.

    MAPPED   everything asked for so far is shared
        Operations:  `regions` and `maps` go on here, or to REMOTE for good
        Caveats:     what the owner unmaps later stays mapped here until the next memory table
    REMOTE   system calls
        Operations:  none back; RESET_OWNER ends it
        Caveats:     after exec or exit of the owner nothing is there any more

A pid is not an address space: /proc/PID/mem and maps, opened here once, are.  They also say whether
the pid that we were given was the caller's: it is stopped in its SET_OWNER while they are opened.
"""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Sequence

from vhostnet.errors import HostError, PeerError, reason_of
from vhostnet.uapi.vhost import MemoryRegion

from .kernel_verbs import without_overlaps
from .memory import USER_LIMIT, Mapping, MemoryTable, Region, drop_unheld, map_region
from .owner_files import open_mapped_file, open_memory
from .owner_maps import Vma, shared_vmas
from .vring import RemoteOwner

#: What a region of size 0 at gpa 0 means, cut to what a signed address can say.
_EVERYTHING = (1 << 63) - 1


class OwnerMemory:
    """The address space of process *pid*, from now on; see the module.

    Args:
        pid: the owner's thread group; a thread of it is in a call to us.
        batched: exec of it, and another process with its pid, cannot come unannounced.

    Raises:
        PeerError: EPERM if we may not look into it.

    Source: Linux vhost_dev_set_owner(), vhost_attach_mm().
    """

    def __init__(self, pid: int, *, batched: bool = False) -> None:
        self.pid = pid
        self.remote: RemoteOwner | None = None
        self._batched = batched
        self._mapped: list[Region] = []
        #: keeps mappings between one table and the next
        self._table = MemoryTable()
        try:
            self._mem_fd, self._maps_fd = open_memory(pid)[1]
        except (OSError, HostError) as e:
            raise PeerError(
                f"the memory of process {pid} cannot be opened: {reason_of(e)}", errno.EPERM
            ) from e

    def stop_batching(self) -> None:
        """Exec or exit is near: a later change to REMOTE must not name the pid.

        For doors: KernelVerbs.stop_batching, which also tells a device that runs.
        """
        self._batched = False

    def release(self) -> None:
        """Nobody will ask any more; the tables that were made stay valid."""
        os.close(self._mem_fd)
        os.close(self._maps_fd)
        self._table.release()

    @property
    def n_mapped(self) -> int:
        """How many ranges are mapped."""
        return len(self._mapped)

    def maps(self, uva: int, size: int) -> bool:
        """Whether the range lies in what is mapped here; if not, `remote` is something now."""
        if self.remote is not None:
            return False
        if any(r.uva <= uva and uva + size <= r.uva + r.size for r in self._mapped):
            return True
        try:
            self._mapped.append(self._map(uva, uva, size))
        except PeerError:
            self._go_remote()
            return False
        self._hold(self._mapped)
        return True

    def space(self) -> MemoryTable:
        """All that is mapped, or all there is, by uva."""
        if self.remote is not None:
            return MemoryTable([_owners_own(0, USER_LIMIT, 0)])
        return MemoryTable(without_overlaps([_by_uva(r) for r in self._mapped]))

    def regions(self, wanted: Sequence[MemoryRegion]) -> list[Region]:
        """The regions of a memory table; all of them mapped, or none."""
        cut = [
            (r.guest_phys_addr, r.userspace_addr, _size_of(r))
            for r in wanted
            if r.guest_phys_addr < _EVERYTHING
        ]
        if self.remote is None:
            mapped: list[Region] = []
            try:
                for gpa, uva, size in cut:
                    mapped.append(self._map(gpa, uva, size))
            except PeerError:
                drop_unheld(mapped)
                self._go_remote()
            else:
                self._mapped = mapped
                self._hold(mapped)
                return list(mapped)
        return [_owners_own(gpa, size, uva) for gpa, uva, size in cut if uva < USER_LIMIT]

    def log(self, address: int) -> tuple[int, int]:
        """(hva, bytes) of what is mapped from *address* on; (0, 0): nothing."""
        for r in self._mapped:
            if r.uva <= address < r.uva + r.size:
                return r.hva + address - r.uva, r.uva + r.size - address
        return 0, 0

    @property
    def mem_fd(self) -> int:
        """Its /proc/PID/mem."""
        return self._mem_fd

    def _go_remote(self) -> None:
        self.remote = RemoteOwner(self.pid, self._mem_fd, self._batched)
        self._mapped = []
        self._hold([])

    def _hold(self, regions: Sequence[Region]) -> None:
        """Keep these mappings, and no others, beyond the tables that use them."""
        old, self._table = self._table, MemoryTable()
        self._table = MemoryTable(without_overlaps([_by_uva(r) for r in regions]))
        old.release()

    def _map(self, gpa: int, uva: int, size: int) -> Region:
        """The owner's [uva, uva + size) in our process; PeerError if it is not one shared file."""
        for r in (*self._mapped, *self._table.regions):
            if r.uva <= uva and uva + size <= r.uva + r.size and self._is_still(r, uva, size):
                return Region(gpa, size, uva, r.identity, r.hva + uva - r.uva, r.mapping)
        vma = self._shared_file_at(uva, size)
        try:
            [fd] = open_mapped_file(self.pid, vma.start, vma.end, vma.dev, vma.inode)[1]
        except (OSError, HostError) as e:
            raise PeerError(reason_of(e), errno.EFAULT) from e
        try:
            return map_region(gpa, size, uva, vma.offset + uva - vma.start, fd)
        finally:
            os.close(fd)

    def _is_still(self, known: Region, uva: int, size: int) -> bool:
        """Whether the owner has the same part of the same file where it was mapped before."""
        try:
            vma = self._shared_file_at(uva, size)
        except PeerError:
            return False
        offset = vma.offset + known.uva - vma.start
        return known.identity == (vma.dev, vma.inode, offset)

    def _shared_file_at(self, uva: int, size: int) -> Vma:
        """The mapping of one shared file that [uva, uva + size) lies in.

        Neighbours that go on in the same file count as one (guests' memory that was split by
        mprotect or madvise).
        """
        try:
            vmas = list(shared_vmas(self._maps_fd))
        except OSError as e:  # it has ended
            raise PeerError(f"the maps of the owner: {e.strerror}", errno.EFAULT) from e
        at = bisect.bisect_right([v.start for v in vmas], uva) - 1
        nowhere = PeerError(f"{uva:#x} of process {self.pid} is not shared", errno.EFAULT)
        if at < 0:
            raise nowhere
        first = vmas[at]
        end = first.end
        for v in vmas[at + 1 :]:
            goes_on = v.start == end and v.offset == first.offset + v.start - first.start
            if end >= uva + size or not goes_on or (v.dev, v.inode) != (first.dev, first.inode):
                break
            end = v.end
        if not first.start <= uva or end < uva + size:
            raise nowhere
        return first


def _size_of(region: MemoryRegion) -> int:
    size = region.memory_size or _EVERYTHING
    return min(size, _EVERYTHING - region.guest_phys_addr, USER_LIMIT)


def _owners_own(gpa: int, size: int, uva: int) -> Region:
    """A region that is not mapped: its "hva" is the owner's address."""
    size = min(size, USER_LIMIT - uva)
    return Region(gpa, size, uva, (0, 0, uva), uva, Mapping(0, 0, holders=1))


def _by_uva(r: Region) -> Region:
    return Region(r.uva, r.size, r.uva, r.identity, r.hva, r.mapping)

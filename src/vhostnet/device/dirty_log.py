"""The dirty bitmap that a front-end shares for live migration.

Not here: setting bits (`datapath/dirty_log_raw.py`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from vhostnet.errors import HostError, PeerError
from vhostnet.native import mmap_raw


@dataclass(slots=True)
class DirtyLog:
    """A mapped bitmap.

    Attributes:
        hva: our address of its first byte.
        size: bytes; one holds eight pages.
    """

    hva: int
    size: int
    _map_hva: int
    _map_size: int

    @classmethod
    def map(cls, fd: int, size: int, offset: int) -> DirtyLog:
        """Map *size* bytes at *offset* of *fd*, which stays the caller's; PeerError.

        The sum is checked without wrapping (CVE-2020-10722), and against the file.
        """
        where = f"dirty log size={size:#x} offset={offset:#x}"
        if size == 0:
            raise PeerError(f"{where}: is empty")
        status = os.fstat(fd)
        if size + offset > status.st_size:
            raise PeerError(f"{where}: is beyond its file of {status.st_size:#x} bytes")
        start, end = mmap_raw.whole_pages(status, offset, size)
        try:
            map_hva = mmap_raw.map_shared(fd, end - start, start)
        except HostError as e:
            raise PeerError(f"{where}: {e}", e.errno) from e
        return cls(map_hva + offset - start, size, map_hva, end - start)

    def check_not_lost(self) -> None:
        """Raise PeerError EFAULT if its file was cut short under us."""
        if mmap_raw.is_lost(self._map_hva):
            raise PeerError("dirty log: its memory file was truncated", errno.EFAULT)

    def release(self) -> None:
        """Unmap; nothing may log any more."""
        mmap_raw.unmap(self._map_hva, self._map_size)

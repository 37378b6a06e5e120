"""The dirty bitmap that a front-end shares for live migration.

Not here: setting bits (`datapath/dirty_log_raw.py`).
"""

from __future__ import annotations

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

        The sum is checked without wrapping (CVE-2020-10722), and against the file: touching
        memory beyond its end would be a SIGBUS.
        """
        where = f"dirty log size={size:#x} offset={offset:#x}"
        if size == 0:
            raise PeerError(f"{where}: is empty")
        if size + offset > os.fstat(fd).st_size:
            raise PeerError(f"{where}: is beyond its file of {os.fstat(fd).st_size:#x} bytes")
        try:
            map_hva = mmap_raw.map_shared(fd, size + offset, 0)
        except HostError as e:
            raise PeerError(f"{where}: {e}", e.errno) from e
        return cls(map_hva + offset, size, map_hva, size + offset)

    def release(self) -> None:
        """Unmap; nothing may log any more."""
        mmap_raw.unmap(self._map_hva, self._map_size)

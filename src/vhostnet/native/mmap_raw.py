"""Mapping of files that another process shares with us.

Python's `mmap` keeps a duplicate of the descriptor for as long as the mapping lives (until
3.13) and cannot place guards; the guest's memory needs neither.

Every mapping made here is listed in `lost_memory_raw`: its file may be cut short under us.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from vhostnet.errors import HostError

from .lost_memory_raw import is_lost, list_mapping, unlist_mapping

__all__ = ["is_lost", "map_shared", "unmap", "whole_pages"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_MAP_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = 0x4000


def map_shared(fd: int, size: int, offset: int) -> int:
    """Map *size* bytes of *fd* at *offset* (page aligned) shared and writable; returns the hva.

    The pages stay out of our core dumps: they are the guest's.  Raises HostError.
    """
    hva = _libc.mmap(
        None,
        size,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED | _MAP_NORESERVE,
        fd,
        offset,
    )
    if hva == _MAP_FAILED or hva is None:
        number = ctypes.get_errno()
        raise HostError(f"mmap of {size} bytes at {offset:#x}: {os.strerror(number)}", number)
    _libc.madvise(hva, size, mmap.MADV_DONTDUMP)
    try:
        list_mapping(int(hva), size)
    except HostError:
        _libc.munmap(hva, size)
        raise
    return int(hva)


def unmap(hva: int, size: int) -> None:
    """Undo `map_shared`."""
    unlist_mapping(hva)
    _libc.munmap(hva, size)


def whole_pages(status: os.stat_result, offset: int, size: int) -> tuple[int, int]:
    """(start, end) of the pages of a file that hold *size* bytes at *offset*.

    hugetlbfs maps whole huge pages only, and its st_blksize is their size.
    """
    page = max(mmap.PAGESIZE, status.st_blksize)
    return offset - offset % page, -(-(offset + size) // page) * page

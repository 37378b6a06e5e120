"""Mapping, reading and writing memory by address, for the driver half; stdlib only.

The other half of the machine works on the same memory at the same time.  A 16- or 32-bit
word is therefore loaded and stored in one access; everything longer is plain bytes.  As in
`vhostnet.native.ordering`, on x86 only `smp_mb` needs an instruction: loads keep their order
with loads, stores with stores, and the interpreter reorders nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

PAGE = mmap.PAGESIZE

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

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value
_barrier = threading.Lock()


def _mmap(hva: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    got = _libc.mmap(hva, size, prot, flags, fd, offset)
    if got == _FAILED or got is None:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
    return int(got)


def reserve(size: int) -> int:
    """Take *size* bytes of address space that nobody can touch: guard pages."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return _mmap(None, size, _PROT_NONE, flags, -1, 0)


def map_into(hva: int, size: int, fd: int | None, offset: int) -> None:
    """Put *size* bytes at *hva*: of the file *fd*, shared, or (None) private and anonymous."""
    flags = _MAP_FIXED | (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd is None else mmap.MAP_SHARED)
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    _mmap(hva, size, prot, flags, -1 if fd is None else fd, offset)


def unmap(hva: int, size: int) -> None:
    """Give the address space back."""
    _libc.munmap(hva, size)


def read_bytes(hva: int, size: int) -> bytes:
    """A copy of *size* bytes."""
    return ctypes.string_at(hva, size)


def write_bytes(hva: int, data: bytes) -> None:
    """Copy *data* to *hva*."""
    ctypes.memmove(hva, data, len(data))


def load_u16(hva: int) -> int:
    """Read a u16 in one access."""
    return ctypes.c_uint16.from_address(hva).value


def load_u32(hva: int) -> int:
    """Read a u32 in one access."""
    return ctypes.c_uint32.from_address(hva).value


def store_u16(hva: int, value: int) -> None:
    """Write a u16 in one access; what was written before is visible before it."""
    ctypes.c_uint16.from_address(hva).value = value


def smp_mb() -> None:
    """Full barrier: no load or store crosses it."""
    with _barrier:  # an uncontended lock is an atomic exchange: a full barrier
        pass

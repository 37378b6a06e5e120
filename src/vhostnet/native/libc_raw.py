"""libc as kernels call it: integers in, a result or a negative errno out.

In compiled code these are direct calls by symbol name (`types.ExternalFunction`), which
survive Numba's disk cache; a ctypes object would bake in an address.  The interpreter's
bodies go through ctypes.  Blocking calls return -EINTR; nothing here retries.

libc's read, write and writev are cancellation points: in a process that has threads each of them
makes two atomic changes to the thread's state, a seventh of what an empty write takes.  So compiled
code makes these three through syscall(2), which is none.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from numba import types
from numba.extending import overload

from vhostnet.errors import HostError

from .ordering import load_relaxed_i32, load_relaxed_i64, store_i64

_POLLIN, _POLLOUT = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)
for _name in (
    "read",
    "write",
    "writev",
    "pread",
    "pwrite",
    "process_vm_readv",
    "process_vm_writev",
):
    getattr(_libc, _name).restype = ctypes.c_ssize_t


def _result(value: int) -> int:
    return value if value >= 0 else -ctypes.get_errno()


def read(fd: int, hva: int, size: int) -> int:
    """read(2) into *hva*: bytes read, or -errno."""
    return _result(_libc.read(ctypes.c_int(fd), ctypes.c_void_p(int(hva)), ctypes.c_size_t(size)))


def write(fd: int, hva: int, size: int) -> int:
    """write(2) from *hva*: bytes written, or -errno."""
    return _result(_libc.write(ctypes.c_int(fd), ctypes.c_void_p(int(hva)), ctypes.c_size_t(size)))


def writev(fd: int, iov_hva: int, n_iov: int) -> int:
    """writev(2) of *n_iov* struct iovec at *iov_hva*: bytes written, or -errno."""
    return _result(
        _libc.writev(ctypes.c_int(fd), ctypes.c_void_p(int(iov_hva)), ctypes.c_int(n_iov))
    )


def pread(fd: int, hva: int, size: int, offset: int) -> int:
    """pread(2) into *hva*: bytes read, or -errno."""
    return _result(
        _libc.pread(
            ctypes.c_int(fd),
            ctypes.c_void_p(int(hva)),
            ctypes.c_size_t(size),
            ctypes.c_int64(offset),
        )
    )


def pwrite(fd: int, hva: int, size: int, offset: int) -> int:
    """pwrite(2) from *hva*: bytes written, or -errno."""
    return _result(
        _libc.pwrite(
            ctypes.c_int(fd),
            ctypes.c_void_p(int(hva)),
            ctypes.c_size_t(size),
            ctypes.c_int64(offset),
        )
    )


def process_vm_readv(pid: int, local_hva: int, remote_hva: int, n: int) -> int:
    """process_vm_readv(2) of *n* struct iovec on either side: bytes read, or -errno."""
    return _result(
        _libc.process_vm_readv(
            ctypes.c_int(pid),
            ctypes.c_void_p(int(local_hva)),
            ctypes.c_ulong(n),
            ctypes.c_void_p(int(remote_hva)),
            ctypes.c_ulong(n),
            ctypes.c_ulong(0),
        )
    )


def process_vm_writev(pid: int, local_hva: int, remote_hva: int, n: int) -> int:
    """process_vm_writev(2) of *n* struct iovec on either side: bytes written, or -errno."""
    return _result(
        _libc.process_vm_writev(
            ctypes.c_int(pid),
            ctypes.c_void_p(int(local_hva)),
            ctypes.c_ulong(n),
            ctypes.c_void_p(int(remote_hva)),
            ctypes.c_ulong(n),
            ctypes.c_ulong(0),
        )
    )


def epoll_wait(epfd: int, events_hva: int, n_events: int, timeout_ms: int) -> int:
    """epoll_wait(2): number of events stored at *events_hva*, or -errno."""
    return _result(
        _libc.epoll_wait(
            ctypes.c_int(epfd),
            ctypes.c_void_p(int(events_hva)),
            ctypes.c_int(n_events),
            ctypes.c_int(timeout_ms),
        )
    )


def is_readable(fd: int, pollfd_hva: int) -> bool:
    """poll(2) for POLLIN (or an error) without waiting; *pollfd_hva*: 8 bytes of scratch."""
    store_i64(pollfd_hva, fd | _POLLIN << 32)
    return bool(
        _libc.poll(ctypes.c_void_p(int(pollfd_hva)), ctypes.c_ulong(1), ctypes.c_int(0)) > 0
    )


def is_writable(fd: int, pollfd_hva: int) -> bool:
    """poll(2) for POLLOUT without waiting; *pollfd_hva*: 8 bytes of scratch.

    Besides the answer this tells a TUN/TAP to report the next room: it does so only to somebody
    who has asked since it was full, and an edge-triggered epoll set does not ask.
    """
    store_i64(pollfd_hva, fd | _POLLOUT << 32)
    return bool(
        _libc.poll(ctypes.c_void_p(int(pollfd_hva)), ctypes.c_ulong(1), ctypes.c_int(0)) > 0
    )


def monotonic_ns(timespec_hva: int) -> int:
    """clock_gettime(2) of CLOCK_MONOTONIC in nanoseconds; *timespec_hva*: 16 bytes of scratch."""
    _libc.clock_gettime(ctypes.c_int(1), ctypes.c_void_p(int(timespec_hva)))
    return load_relaxed_i64(timespec_hva) * 1_000_000_000 + load_relaxed_i64(timespec_hva + 8)


def realtime_ns(timespec_hva: int) -> int:
    """clock_gettime(2) of CLOCK_REALTIME in nanoseconds; *timespec_hva*: 16 bytes of scratch."""
    _libc.clock_gettime(ctypes.c_int(0), ctypes.c_void_p(int(timespec_hva)))
    return load_relaxed_i64(timespec_hva) * 1_000_000_000 + load_relaxed_i64(timespec_hva + 8)


def copy_bytes(dst_hva: int, src_hva: int, size: int) -> None:
    """memcpy(3)."""
    ctypes.memmove(int(dst_hva), int(src_hva), int(size))


_i32, _i64 = types.int32, types.int64
_GENERIC = 63, 64, 66  # asm-generic/unistd.h
_NUMBERS = {"x86_64": (0, 1, 20), "aarch64": _GENERIC, "riscv64": _GENERIC}
if platform.machine() not in _NUMBERS:
    raise HostError(f"the data path does not know the system calls of {platform.machine()}")
_SYS_READ, _SYS_WRITE, _SYS_WRITEV = _NUMBERS[platform.machine()]
_c_syscall: Any = types.ExternalFunction("syscall", _i64(_i64, _i64, _i64, _i64))
_c_pread: Any = types.ExternalFunction("pread", _i64(_i32, _i64, _i64, _i64))
_c_pwrite: Any = types.ExternalFunction("pwrite", _i64(_i32, _i64, _i64, _i64))
_c_process_vm_readv: Any = types.ExternalFunction(
    "process_vm_readv", _i64(_i32, _i64, _i64, _i64, _i64, _i64)
)
_c_process_vm_writev: Any = types.ExternalFunction(
    "process_vm_writev", _i64(_i32, _i64, _i64, _i64, _i64, _i64)
)
_c_epoll_wait: Any = types.ExternalFunction("epoll_wait", _i32(_i32, _i64, _i32, _i32))
_c_poll: Any = types.ExternalFunction("poll", _i32(_i64, _i64, _i32))
_c_clock_gettime: Any = types.ExternalFunction("clock_gettime", _i32(_i32, _i64))
_c_memcpy: Any = types.ExternalFunction("memcpy", _i64(_i64, _i64, _i64))
_c_errno_location: Any = types.ExternalFunction("__errno_location", _i64())


@overload(read)
def _ol_read(fd, hva, size):  # type: ignore[no-untyped-def]
    def impl(fd, hva, size):  # type: ignore[no-untyped-def]
        result = _c_syscall(_SYS_READ, fd, hva, size)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(write)
def _ol_write(fd, hva, size):  # type: ignore[no-untyped-def]
    def impl(fd, hva, size):  # type: ignore[no-untyped-def]
        result = _c_syscall(_SYS_WRITE, fd, hva, size)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(writev)
def _ol_writev(fd, iov_hva, n_iov):  # type: ignore[no-untyped-def]
    def impl(fd, iov_hva, n_iov):  # type: ignore[no-untyped-def]
        result = _c_syscall(_SYS_WRITEV, fd, iov_hva, n_iov)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(pread)
def _ol_pread(fd, hva, size, offset):  # type: ignore[no-untyped-def]
    def impl(fd, hva, size, offset):  # type: ignore[no-untyped-def]
        result = _c_pread(fd, hva, size, offset)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(pwrite)
def _ol_pwrite(fd, hva, size, offset):  # type: ignore[no-untyped-def]
    def impl(fd, hva, size, offset):  # type: ignore[no-untyped-def]
        result = _c_pwrite(fd, hva, size, offset)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(process_vm_readv)
def _ol_process_vm_readv(pid, local_hva, remote_hva, n):  # type: ignore[no-untyped-def]
    def impl(pid, local_hva, remote_hva, n):  # type: ignore[no-untyped-def]
        result = _c_process_vm_readv(pid, local_hva, n, remote_hva, n, 0)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(process_vm_writev)
def _ol_process_vm_writev(pid, local_hva, remote_hva, n):  # type: ignore[no-untyped-def]
    def impl(pid, local_hva, remote_hva, n):  # type: ignore[no-untyped-def]
        result = _c_process_vm_writev(pid, local_hva, n, remote_hva, n, 0)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(epoll_wait)
def _ol_epoll_wait(epfd, events_hva, n_events, timeout_ms):  # type: ignore[no-untyped-def]
    def impl(epfd, events_hva, n_events, timeout_ms):  # type: ignore[no-untyped-def]
        result = _c_epoll_wait(epfd, events_hva, n_events, timeout_ms)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return _i64(result)

    return impl


@overload(is_readable)
def _ol_is_readable(fd, pollfd_hva):  # type: ignore[no-untyped-def]
    def impl(fd, pollfd_hva):  # type: ignore[no-untyped-def]
        store_i64(pollfd_hva, fd | _POLLIN << 32)
        return _c_poll(pollfd_hva, 1, 0) > 0

    return impl


@overload(is_writable)
def _ol_is_writable(fd, pollfd_hva):  # type: ignore[no-untyped-def]
    def impl(fd, pollfd_hva):  # type: ignore[no-untyped-def]
        store_i64(pollfd_hva, fd | _POLLOUT << 32)
        return _c_poll(pollfd_hva, 1, 0) > 0

    return impl


@overload(monotonic_ns)
def _ol_monotonic_ns(timespec_hva):  # type: ignore[no-untyped-def]
    def impl(timespec_hva):  # type: ignore[no-untyped-def]
        _c_clock_gettime(1, timespec_hva)
        seconds = load_relaxed_i64(timespec_hva)
        return seconds * 1_000_000_000 + load_relaxed_i64(timespec_hva + 8)

    return impl


@overload(realtime_ns)
def _ol_realtime_ns(timespec_hva):  # type: ignore[no-untyped-def]
    def impl(timespec_hva):  # type: ignore[no-untyped-def]
        _c_clock_gettime(0, timespec_hva)
        seconds = load_relaxed_i64(timespec_hva)
        return seconds * 1_000_000_000 + load_relaxed_i64(timespec_hva + 8)

    return impl


@overload(copy_bytes)
def _ol_copy_bytes(dst_hva, src_hva, size):  # type: ignore[no-untyped-def]
    def impl(dst_hva, src_hva, size):  # type: ignore[no-untyped-def]
        _c_memcpy(dst_hva, src_hva, size)

    return impl

"""File and socket calls as kernels call them, told not to wait: EAGAIN instead.

For descriptors whose flags are not ours to set.  As in `libc_raw`: integers in, a result or a
negative errno out, and nothing retries.
"""

from __future__ import annotations

import ctypes
from typing import Any

from numba import types
from numba.extending import overload

from .libc_raw import _c_errno_location, _result
from .ordering import load_relaxed_i32

#: uapi/linux/fs.h: of preadv2 and pwritev2.
RWF_NOWAIT = 8
_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("preadv2", "pwritev2", "recvmsg", "sendmsg"):
    getattr(_libc, _name).restype = ctypes.c_ssize_t


def preadv2(fd: int, iov_hva: int, n_iov: int, offset: int, flags: int) -> int:
    """preadv2(2), offset -1: as readv(2): bytes read, or -errno."""
    return _result(
        _libc.preadv2(
            ctypes.c_int(fd),
            ctypes.c_void_p(int(iov_hva)),
            ctypes.c_int(n_iov),
            ctypes.c_int64(offset),
            ctypes.c_int(flags),
        )
    )


def pwritev2(fd: int, iov_hva: int, n_iov: int, offset: int, flags: int) -> int:
    """pwritev2(2), offset -1: as writev(2): bytes written, or -errno."""
    return _result(
        _libc.pwritev2(
            ctypes.c_int(fd),
            ctypes.c_void_p(int(iov_hva)),
            ctypes.c_int(n_iov),
            ctypes.c_int64(offset),
            ctypes.c_int(flags),
        )
    )


def recvmsg(fd: int, msg_hva: int, flags: int) -> int:
    """recvmsg(2) with the struct msghdr at *msg_hva*: bytes received, or -errno."""
    return _result(
        _libc.recvmsg(ctypes.c_int(fd), ctypes.c_void_p(int(msg_hva)), ctypes.c_int(flags))
    )


def sendmsg(fd: int, msg_hva: int, flags: int) -> int:
    """sendmsg(2) of the struct msghdr at *msg_hva*: bytes sent, or -errno."""
    return _result(
        _libc.sendmsg(ctypes.c_int(fd), ctypes.c_void_p(int(msg_hva)), ctypes.c_int(flags))
    )


_i32, _i64 = types.int32, types.int64
_c_preadv2: Any = types.ExternalFunction("preadv2", _i64(_i32, _i64, _i32, _i64, _i32))
_c_pwritev2: Any = types.ExternalFunction("pwritev2", _i64(_i32, _i64, _i32, _i64, _i32))
_c_recvmsg: Any = types.ExternalFunction("recvmsg", _i64(_i32, _i64, _i32))
_c_sendmsg: Any = types.ExternalFunction("sendmsg", _i64(_i32, _i64, _i32))


@overload(preadv2)
def _ol_preadv2(fd, iov_hva, n_iov, offset, flags):  # type: ignore[no-untyped-def]
    def impl(fd, iov_hva, n_iov, offset, flags):  # type: ignore[no-untyped-def]
        result = _c_preadv2(fd, iov_hva, n_iov, offset, flags)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(pwritev2)
def _ol_pwritev2(fd, iov_hva, n_iov, offset, flags):  # type: ignore[no-untyped-def]
    def impl(fd, iov_hva, n_iov, offset, flags):  # type: ignore[no-untyped-def]
        result = _c_pwritev2(fd, iov_hva, n_iov, offset, flags)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(recvmsg)
def _ol_recvmsg(fd, msg_hva, flags):  # type: ignore[no-untyped-def]
    def impl(fd, msg_hva, flags):  # type: ignore[no-untyped-def]
        result = _c_recvmsg(fd, msg_hva, flags)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl


@overload(sendmsg)
def _ol_sendmsg(fd, msg_hva, flags):  # type: ignore[no-untyped-def]
    def impl(fd, msg_hva, flags):  # type: ignore[no-untyped-def]
        result = _c_sendmsg(fd, msg_hva, flags)
        if result < 0:
            return -load_relaxed_i32(_c_errno_location())
        return result

    return impl

"""Open files of other processes: looked at, and taken, without a word to their file systems.

A file of a file system in user space may be somebody's who never answers.  statx with
AT_STATX_DONT_SYNC tells what the kernel itself knows, and pidfd_getfd takes the open file as it
is: nothing is opened anew, so what was opened for reading stays so.

Source: Linux fs/fuse/dir.c fuse_update_get_attr(), kernel/pid.c pidfd_getfd().
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from dataclasses import dataclass

OPENER_SYSCALLS = ("statx", "pidfd_open", "pidfd_getfd")

_SYS_PIDFD_GETFD = 438
_AT_FDCWD, _AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = -100, 0x1000, 0x4000
_STATX_TYPE, _STATX_INO, _STATX_SIZE = 0x1, 0x100, 256
# of struct statx: stx_mode, stx_ino; stx_rdev_*, stx_dev_*
_MODE_INO, _NUMBERS = struct.Struct("=28xH2xQ"), struct.Struct("=128xIIII")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Known:
    """What the kernel knows of a file; all 0: nothing.

    Attributes:
        mode: of which the kind is known.
        number: major and minor, of a device.
        identity: st_dev and st_ino.
    """

    mode: int = 0
    number: tuple[int, int] = (0, 0)
    identity: tuple[int, int] = (0, 0)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


def look_at(fd: int = _AT_FDCWD, path: str = "") -> Known:
    """A file by its descriptor, or by a path whose look-up asks nobody (below /proc)."""
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_STATX_DONT_SYNC | (0 if path else _AT_EMPTY_PATH)
    if _libc.statx(fd, path.encode(), flags, _STATX_TYPE | _STATX_INO, answer) < 0:
        return Known()
    mode, inode = _MODE_INO.unpack_from(answer)
    rmajor, rminor, major, minor = _NUMBERS.unpack_from(answer)
    return Known(mode, (rmajor, rminor), (os.makedev(major, minor), inode))


def take(pidfd: int, fd: int) -> int:
    """A descriptor for the open file that is *fd* there; OSError."""
    ours: int = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0)
    )
    if ours < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return ours

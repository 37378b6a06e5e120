"""Numbers and structs of linux/seccomp.h, asm/unistd.h, asm/stat.h and linux/stat.h."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vhostnet.errors import HostError

# --- seccomp -----------------------------------------------------------------------------------
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
#: A caller whose notification was received is woken by fatal signals only.  Since Linux 5.19.
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000

#: struct seccomp_data: nr, arch, instruction_pointer, args[6]
DATA_NR: Final = 0
DATA_ARCH: Final = 4
DATA_ARGS: Final = 16

#: struct seccomp_notif: id, pid, flags, nr, arch, instruction_pointer, args[6]
NOTIF: Final = struct.Struct("=QIIiIQ6Q")
#: struct seccomp_notif_resp: id, val, error, flags
NOTIF_RESP: Final = struct.Struct("=QqiI")
#: struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
NOTIF_ADDFD: Final = struct.Struct("=QIIII")

SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_ADDFD_FLAG_SETFD: Final = 1
SECCOMP_ADDFD_FLAG_SEND: Final = 2
#: The caller is woken on the processor that answers.  Since Linux 6.6.
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1


def _ioc(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | number


SECCOMP_IOCTL_NOTIF_RECV: Final = _ioc(3, 0, NOTIF.size)
SECCOMP_IOCTL_NOTIF_SEND: Final = _ioc(3, 1, NOTIF_RESP.size)
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = _ioc(1, 2, 8)
SECCOMP_IOCTL_NOTIF_ADDFD: Final = _ioc(1, 3, NOTIF_ADDFD.size)
SECCOMP_IOCTL_NOTIF_SET_FLAGS: Final = _ioc(1, 4, 8)

# --- system calls ------------------------------------------------------------------------------
#: x86-64's numbers from here on are x32's.
X32_SYSCALL_BIT: Final = 0x40000000

AT_EMPTY_PATH: Final = 0x1000


@dataclass(frozen=True, slots=True)
class NodeStat:
    """What the stat family says of a character device."""

    dev: int
    ino: int
    mode: int
    rdev_major: int
    rdev_minor: int
    time_s: int
    blksize: int = 4096

    @property
    def rdev(self) -> int:
        return self.rdev_major << 8 | self.rdev_minor  # both are less than 256


_X86_64_STAT = struct.Struct("=QQQIIIIQqqq6Q24x")
_GENERIC_STAT = struct.Struct("=QQIIIIQ8xqi4xq6q8x")
_STATX = struct.Struct("=IIQIIIHxxQQQQ" + "qI4x" * 4 + "IIII112x")
_STATX_BASIC_STATS = 0x7FF


def _stat_of_x86_64(s: NodeStat) -> bytes:
    times = (s.time_s, 0) * 3
    return _X86_64_STAT.pack(s.dev, s.ino, 1, s.mode, 0, 0, 0, s.rdev, 0, s.blksize, 0, *times)


def _stat_of_others(s: NodeStat) -> bytes:
    times = (s.time_s, 0) * 3
    return _GENERIC_STAT.pack(s.dev, s.ino, s.mode, 1, 0, 0, s.rdev, 0, s.blksize, 0, *times)


def statx_bytes(s: NodeStat) -> bytes:
    """struct statx, without a time of birth."""
    times = (s.time_s, 0, 0, 0) + (s.time_s, 0) * 2
    device = (s.rdev_major, s.rdev_minor, s.dev >> 8 & 0xFFF, s.dev & 0xFF)
    head = (_STATX_BASIC_STATS, s.blksize, 0, 1, 0, 0, s.mode, s.ino, 0, 0, 0)
    return _STATX.pack(*head, *times, *device)


@dataclass(frozen=True)
class Architecture:
    """What a filter and its supervisor must know of a processor.

    Attributes:
        audit: AUDIT_ARCH_*, the kind of system calls.
        numbers: name of a call -> its number; a call that is not there does not exist.
        stat_bytes: struct stat.
        seccomp: number of seccomp(2).
        process_vm_readv: number of process_vm_readv(2).
    """

    name: str
    audit: int
    numbers: dict[str, int]
    stat_bytes: Callable[[NodeStat], bytes]
    seccomp: int
    process_vm_readv: int
    names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {nr: name for name, nr in self.numbers.items()})


X86_64: Final = Architecture(
    "x86_64",
    0xC000003E,
    {
        "read": 0,
        "write": 1,
        "open": 2,
        "stat": 4,
        "fstat": 5,
        "lstat": 6,
        "ioctl": 16,
        "readv": 19,
        "writev": 20,
        "access": 21,
        "execve": 59,
        "creat": 85,
        "readlink": 89,
        "getxattr": 191,
        "lgetxattr": 192,
        "listxattr": 194,
        "llistxattr": 195,
        "openat": 257,
        "newfstatat": 262,
        "readlinkat": 267,
        "faccessat": 269,
        "execveat": 322,
        "statx": 332,
        "openat2": 437,
        "faccessat2": 439,
    },
    _stat_of_x86_64,
    317,
    310,
)

AARCH64: Final = Architecture(
    "aarch64",
    0xC00000B7,
    {
        "getxattr": 8,
        "lgetxattr": 9,
        "listxattr": 11,
        "llistxattr": 12,
        "ioctl": 29,
        "faccessat": 48,
        "openat": 56,
        "read": 63,
        "write": 64,
        "readv": 65,
        "writev": 66,
        "readlinkat": 78,
        "newfstatat": 79,
        "fstat": 80,
        "execve": 221,
        "execveat": 281,
        "statx": 291,
        "openat2": 437,
        "faccessat2": 439,
    },
    _stat_of_others,
    277,
    270,
)

_ARCHITECTURES = {a.name: a for a in (X86_64, AARCH64)}


def native() -> Architecture:
    """The one that we run on.  Raises HostError for one that this door does not know."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        known = " and ".join(_ARCHITECTURES)
        raise HostError(f"vhostnet run knows the system calls of {known}, not of {machine}")
    return _ARCHITECTURES[machine]

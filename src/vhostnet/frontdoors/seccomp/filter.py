"""Which system calls of the tree come to us.

A filter sees numbers and arguments, not what pointers point to.  So every call that may be
about the path of the device comes, whatever its path; of the calls on descriptors only those
that can be told by their arguments: ioctls whose type byte is vhost's, and calls on a reserved
range of numbers, where our descriptors are put.

Calls of other kinds than the machine's own (32-bit programs on a 64-bit kernel, x32) go on
untouched: such programs do not see the device.
"""

from __future__ import annotations

import os

from vhostnet.confinement.bpf import Assembler

from .abi import (
    AT_EMPTY_PATH,
    DATA_ARCH,
    DATA_ARGS,
    DATA_NR,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_USER_NOTIF,
    X32_SYSCALL_BIT,
    X86_64,
    Architecture,
)

VHOST_VIRTIO = 0xAF

#: Calls whose first argument is a descriptor.
_ON_DESCRIPTORS = ("read", "write", "readv", "writev", "fstat")
#: Opens, and where their flags are (openat2 has them in memory).  A directory we are not.
_OPENS = {"open": 1, "openat": 2}
#: Calls that may name a descriptor in place of a path, and where their flags are.
_EMPTY_PATHS = {"newfstatat": 3, "statx": 2}
_OTHERS = (
    *("openat2", "creat", "stat", "lstat", "access", "faccessat", "faccessat2"),
    *("readlink", "readlinkat", "getxattr", "lgetxattr", "listxattr", "llistxattr"),
    *("execve", "execveat"),
)


def program(architecture: Architecture, reserved: range) -> bytes:
    """The filter.

    Args:
        reserved: numbers of the caller's descriptors whose calls all come to us.
    """
    a = Assembler()
    numbers = architecture.numbers
    a.load(DATA_ARCH)
    a.if_equal(architecture.audit, otherwise="allow")
    a.load(DATA_NR)
    if architecture is X86_64:
        a.if_at_least(X32_SYSCALL_BIT, "allow")
    for name in _ON_DESCRIPTORS:  # the frequent ones first
        a.if_equal(numbers[name], "on a descriptor")
    a.if_equal(numbers["ioctl"], "ioctl")
    for name in (*_OPENS, *_EMPTY_PATHS):
        if name in numbers:
            a.if_equal(numbers[name], name)
    for name in _OTHERS:
        if name in numbers:
            a.if_equal(numbers[name], "trap")
    a.finish(SECCOMP_RET_ALLOW)

    for name, flags in _OPENS.items():
        if name in numbers:
            a.label(name)
            a.load(_argument(flags))
            a.if_any_bit(os.O_DIRECTORY, "allow", "trap")
    for name, flags in _EMPTY_PATHS.items():
        a.label(name)
        a.load(_argument(flags))
        a.if_any_bit(AT_EMPTY_PATH, otherwise="trap")
        a.load(_argument(0))
        # AT_FDCWD and its like are large: there is a path, or it is wrong
        a.if_at_least(reserved.start, "trap", "allow")

    a.label("ioctl")
    a.load(_argument(1))
    a.shift_right(8)
    a.mask(0xFF)
    a.if_equal(VHOST_VIRTIO, "trap")
    a.label("on a descriptor")
    a.load(_argument(0))  # an int: what is above its 32 bits does not count
    a.if_at_least(reserved.start, otherwise="allow")
    a.if_at_least(reserved.stop, "allow", "trap")

    a.label("trap")
    a.finish(SECCOMP_RET_USER_NOTIF)
    a.label("allow")
    a.finish(SECCOMP_RET_ALLOW)
    return a.assemble()


def _argument(k: int) -> int:
    """Offset of the lower half of argument *k*; both architectures are little-endian."""
    return DATA_ARGS + 8 * k

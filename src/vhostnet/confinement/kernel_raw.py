"""The calls of the kernel that take rights away, as the stages make them.

Each raises OSError with the kernel's errno; nothing here decides anything. The numbers are those of
linux/prctl.h, linux/capability.h, linux/seccomp.h, linux/landlock.h, linux/sched.h, linux/mount.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from .syscall_numbers import native

PR_SET_DUMPABLE, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP = 4, 21, 23, 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 39, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_MDWE, PR_GET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 66, 1
PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_VMA = 15, 16, 3, 0x53564D41

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

_CAPABILITY_VERSION_3 = 0x20080522
_SET_MODE_FILTER = 1
_FILTER_TSYNC, _FILTER_LOG, _FILTER_SPEC_ALLOW = 1, 2, 4
_LANDLOCK_CREATE_RULESET_VERSION = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _call(name: str, *args: ctypes.c_ulong | ctypes.Array[ctypes.c_char] | None) -> int:
    """syscall(2); ENOSYS on a processor whose numbers we do not know."""
    calls = native()
    if calls is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result: int = _libc.syscall(ctypes.c_long(calls.number[name]), *args)
    return _checked(result)


def prctl(option: int, *args: int) -> int:
    """prctl(2)."""
    words = [ctypes.c_ulong(word) for word in (option, *args, 0, 0, 0, 0)[:5]]
    return _checked(int(_libc.prctl(*words)))


def set_thread_name(name: str) -> None:
    """What ps calls the calling thread; 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    _checked(int(_libc.prctl(ctypes.c_ulong(PR_SET_NAME), buffer, *[ctypes.c_ulong(0)] * 3)))


def capabilities() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread, as masks."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    _call("capget", header, data)
    low, high = struct.unpack_from("=3I", data, 0), struct.unpack_from("=3I", data, 12)
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def set_capabilities(mask: int) -> None:
    """Make *mask* the effective and permitted capabilities; none is inheritable."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0), 24)
    _call("capset", header, data)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", ctypes.c_ulong(flags))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    words = [ctypes.create_string_buffer(os.fsencode(word)) for word in (source, target, kind)]
    _call(
        "mount",
        *words,
        ctypes.c_ulong(flags),
        ctypes.create_string_buffer(options.encode()) if options else None,
    )


def root_is_here() -> None:
    """Make the working directory, a mount, the root, and let go of the old one."""
    here = ctypes.create_string_buffer(b".")
    _call("pivot_root", here, here)
    _call("umount2", here, ctypes.c_ulong(MNT_DETACH | UMOUNT_NOFOLLOW))


def landlock_abi() -> int:
    """The version of landlock that this kernel has."""
    version = ctypes.c_ulong(_LANDLOCK_CREATE_RULESET_VERSION)
    return _call("landlock_create_ruleset", None, ctypes.c_ulong(0), version)


def landlock_refuse(files: int, net: int, scoped: int, size: int) -> None:
    """Put the calling thread, and those that it makes, under a rule set that allows nothing.

    Args:
        files, net, scoped: what it is about, struct landlock_ruleset_attr.
        size: of that struct, as far as this kernel knows it.
    """
    attribute = ctypes.create_string_buffer(struct.pack("=QQQ", files, net, scoped), 24)
    fd = _call("landlock_create_ruleset", attribute, ctypes.c_ulong(size), ctypes.c_ulong(0))
    try:
        _call("landlock_restrict_self", ctypes.c_ulong(fd), ctypes.c_ulong(0))
    finally:
        os.close(fd)


def set_filter(program: bytes) -> None:
    """Put all threads of the process under a seccomp filter, and all that they will make.

    What it refuses is told to the kernel's log.  Speculative store bypass is left alone: a filter
    would otherwise slow all of the data path down, on kernels before 5.16.
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    flags = _FILTER_TSYNC | _FILTER_LOG | _FILTER_SPEC_ALLOW
    where = ctypes.cast(ctypes.byref(prog), ctypes.c_void_p).value or 0
    mode = ctypes.c_ulong(_SET_MODE_FILTER)
    if _call("seccomp", mode, ctypes.c_ulong(flags), ctypes.c_ulong(where)) > 0:
        raise OSError(errno.EBUSY, "a thread is under another filter")


def try_executable_page() -> None:
    """Map a page that can be written and executed, and give it back; OSError if that is refused."""
    page, anywhere, nothing = ctypes.c_ulong(mmap.PAGESIZE), ctypes.c_ulong(0), ctypes.c_ulong(-1)
    kind = ctypes.c_ulong(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    access = ctypes.c_ulong(mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    where = _call("mmap", anywhere, page, access, kind, nothing, ctypes.c_ulong(0))
    _call("munmap", ctypes.c_ulong(where), page)

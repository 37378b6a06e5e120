"""Open files of others: only kinds that cannot hold us up are looked at and closed by control.

A caller may name any file of its own as a kick or a backend.  To look at one of a file system in
user space (fstat), and to close the last reference to it, is to wait for that file system's
program: the caller's own.  Worst is a file of our own CUSE device: its last close waits for us.

So a file is first asked what it is in a way that asks nobody else (statx, AT_STATX_DONT_SYNC).
What can be of use here, an eventfd, a TUN/TAP, macvtap or ipvtap device, a packet socket, is let
through; for all else a file that is none of these stands in, with the same errno in the end, and
the other one is closed by a thread that may wait for as long as it likes.  In a sandbox that is the
opener, so that what is sealed never has it.

Source: Linux fs/fuse/dir.c fuse_update_get_attr(), file.c fuse_flush(), fuse_sync_release().
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import threading

from vhostnet.device.files_of_others import look_at
from vhostnet.errors import PeerError

OPENER_SYSCALLS = ("openat", "readlink", "readlinkat", "getsockname", "getsockopt")

#: Threads that close something at once; nobody honest has any.
MAX_CLOSING = 256
#: Descriptors of a caller, and callers; a million of them would take seconds a call.
MAX_LOOKED_AT, MAX_REMEMBERED = 1 << 14, 1 << 10

_TUN = (10, 200)
_TAPS = ("macvtap", "ipvtap")
#: Where a thread has the device open, as it was seen last: a number, looked at again each time.
_found_at: dict[int, str] = {}
_closing = threading.BoundedSemaphore(MAX_CLOSING)


def harmless(fd: int) -> int:
    """*fd*, or in its place a descriptor of a file that is of no use; *fd* is ours.

    Raises:
        PeerError: EMFILE, somebody keeps too many files from being closed.
    """
    if _is_of_use(fd):
        return fd
    stand_in = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    held = _closing
    if not held.acquire(blocking=False):
        os.close(stand_in)
        # one more that is never closed is better than to wait for it
        raise PeerError("too many files of others that cannot be closed", errno.EMFILE)
    threading.Thread(target=_close, args=(fd, held), name="closing", daemon=True).start()
    return stand_in


def _close(fd: int, held: threading.BoundedSemaphore) -> None:
    try:
        os.close(fd)
    finally:
        held.release()


def _is_of_use(fd: int) -> bool:
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")  # of the kernel's own making, asks nobody
    except OSError:
        return False
    if name.startswith("anon_inode:"):
        return name == "anon_inode:[eventfd]"
    file = look_at(fd)
    if stat.S_ISSOCK(file.mode):
        return domain_of(fd) == socket.AF_PACKET  # others may linger when they are closed
    return stat.S_ISCHR(file.mode) and (file.number == _TUN or _subsystem(file.number) in _TAPS)


def has_open(tid: int, device: tuple[int, int]) -> bool:
    """Whether the character device of this number is among the open files of thread *tid*: of its
    first MAX_LOOKED_AT, or where it was the last time.
    """
    folder = f"/proc/{tid}/fd"
    known = _found_at.get(tid)
    if known is not None and _is_device(f"{folder}/{known}", device):
        return True
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, MAX_LOOKED_AT):
                if _is_device(entry.path, device):
                    if len(_found_at) >= MAX_REMEMBERED:
                        _found_at.clear()
                    _found_at[tid] = entry.name
                    return True
    except OSError:
        pass
    return False


def _is_device(path: str, device: tuple[int, int]) -> bool:
    file = look_at(path=path)
    return file.number == device and stat.S_ISCHR(file.mode)


def domain_of(fd: int) -> int:
    """The address family of a socket; -1: it is none."""
    try:
        probe = socket.socket(fileno=fd)
    except OSError:
        return -1
    try:
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    except OSError:
        return -1
    finally:
        probe.detach()


def _subsystem(device: tuple[int, int]) -> str:
    try:
        return os.path.basename(os.readlink(f"/sys/dev/char/{device[0]}:{device[1]}/subsystem"))
    except OSError:
        return ""

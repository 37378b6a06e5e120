"""Files by which the memory of another process is reached: opened by who has the right to.

A process that is sealed has it no more (landlock, a user namespace and the loss of CAP_SYS_PTRACE
end it, each by itself), but what was opened goes on working.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy

from .files_of_others import Known, look_at, take
from .owner_maps import shared_vmas

OPENER_SYSCALLS = ("openat", "getdents64", "stat", "newfstatat")


@act(Policy.may_look_into)
def open_memory(tid: int) -> tuple[None, list[int]]:
    """`mem`, to read and write, and `maps` of thread *tid*: both stay with its address space now.

    Raises OSError.
    """
    mem = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        return None, [mem, os.open(f"/proc/{tid}/maps", os.O_RDONLY | os.O_CLOEXEC)]
    except OSError:
        os.close(mem)
        raise


@act(Policy.may_look_into, may_wait=True)
def open_mapped_file(
    pid: int, start: int, end: int, device: int, inode: int
) -> tuple[None, list[int]]:
    """The file behind a mapping, to read and write: as it is open there, or by the mapping (root).

    The process has to have just this mapping, shared and writable, of a regular file: it has
    opened that for writing itself then, and whoever asks gets no more than it has.

    Args:
        start, end: the mapping, a line of `maps`.
        device, inode: what the file is.

    Raises OSError if there is no way to it.
    """
    with contextlib.ExitStack() as opened:
        maps = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, maps)
        asked = (start, end, device, inode)
        if not any((v.start, v.end, v.dev, v.inode) == asked for v in shared_vmas(maps)):
            raise OSError(errno.EPERM, f"process {pid} has no such memory that is shared")
        pidfd = os.pidfd_open(pid)
        opened.callback(os.close, pidfd)
        for fd in _descriptors_of(pid, (device, inode)):
            with contextlib.suppress(OSError):
                return None, [_checked(take(pidfd, fd), (device, inode))]
    by_mapping = f"/proc/{pid}/map_files/{start:x}-{end:x}"
    if _is_it(look_at(path=by_mapping), (device, inode)):
        fd = os.open(by_mapping, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        return None, [_checked(fd, (device, inode))]
    raise OSError(errno.EFAULT, f"no descriptor of process {pid} leads to its memory")


def _descriptors_of(pid: int, identity: tuple[int, int]) -> Iterator[int]:
    """Those that are this file."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        if _is_it(look_at(path=f"/proc/{pid}/fd/{name}"), identity):
            yield int(name)


def _is_it(file: Known, identity: tuple[int, int]) -> bool:
    return file.is_regular and file.identity == identity


def _checked(fd: int, identity: tuple[int, int]) -> int:
    """*fd*, if it is this file to read and write; else it is closed, and OSError."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_RDWR and _is_it(look_at(fd), identity):
        return fd
    os.close(fd)
    raise OSError(errno.EACCES, "it is not open to be read and written")

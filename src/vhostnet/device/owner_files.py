"""Files by which the memory of another process is reached: opened by who has the right to.

A process that is sealed has it no more (landlock, a user namespace and the loss of CAP_SYS_PTRACE
end it, each by itself), but what was opened goes on working.
"""

from __future__ import annotations

import contextlib
import errno
import os

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy

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


@act(Policy.may_look_into)
def open_mapped_file(
    pid: int, start: int, end: int, device: int, inode: int
) -> tuple[None, list[int]]:
    """The file behind a mapping: by the mapping itself (root), or as one that is open there.

    Args:
        start, end: the mapping, a line of `maps`.
        device, inode: what the file is.

    Raises OSError if there is no way to it.
    """
    ways = [f"/proc/{pid}/map_files/{start:x}-{end:x}"]
    with contextlib.suppress(OSError):
        ways += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for way in ways:
        try:
            status = os.stat(way)
            if (status.st_dev, status.st_ino) != (device, inode):
                continue
            fd = os.open(way, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) == (device, inode):
            return None, [fd]
        os.close(fd)
    raise OSError(errno.EFAULT, f"no descriptor of process {pid} leads to its memory")

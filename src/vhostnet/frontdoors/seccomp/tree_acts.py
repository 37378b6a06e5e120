"""What is looked up of a process of the tree, by who may open files.

Each is asked of the kernel by the number of a thread that waits in a call; whether it was the right
thread is the door's to find out afterwards (`ForeignThread.still_waits`).
"""

from __future__ import annotations

import errno
import os
import re
import socket

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import PeerError
from vhostnet.frontdoors.foreign_file import domain_of, harmless
from vhostnet.frontdoors.foreign_process import descriptor_of, status_of

OPENER_SYSCALLS = ("openat", "stat", "newfstatat", "getdents64", "readlink", "readlinkat", "lstat")

_STARTS = re.compile(r"root|cwd|fd/[0-9]{1,10}")
#: More generations than a tree has; each is a small file.
_MAX_DEPTH = 4096
#: A parent may end, and its children be given to the supervisor, while we look.
_TURNS = 3


def is_below(tid: int, supervisor: int) -> bool:
    """Whether thread *tid* is of a process that descends from *supervisor*."""
    for _ in range(_TURNS):
        pid = tid
        for _ in range(_MAX_DEPTH):
            try:
                pid = status_of(pid, b"PPid")
            except OSError:
                break  # begin again
            if pid == supervisor:
                return True
            if pid == 0:
                return False
    return False


@act(Policy.may_look_into, may_wait=True)
def identify_folder(tid: int, start: str, path: str) -> tuple[list[int], list[int]]:
    """(device, inode) of what *path* leads to, from `root`, `cwd` or `fd/N` on; OSError."""
    if not _STARTS.fullmatch(start):
        raise OSError(errno.EINVAL, f"{start!r} is no place to begin at")
    status = os.stat(f"/proc/{tid}/{start}{path}")
    return [status.st_dev, status.st_ino], []


@act(Policy.may_look_into)
def find_free_descriptor(tid: int, start: int, stop: int) -> tuple[int, list[int]]:
    """The first number from *start* on that the thread does not use; -1 if there is none, or if
    the one below *start* is used.
    """
    folder = f"/proc/{tid}/fd"
    if not os.path.lexists(f"{folder}/{start - 1}"):
        for number in range(start, stop):
            if not os.path.lexists(f"{folder}/{number}"):
                return number, []
    return -1, []


@act(Policy.may_look_into)
def take_socket(tid: int, fd: int) -> tuple[int, list[int]]:
    """The inode of the unix socket that is *fd* of the thread, with a descriptor for it; 0 without
    one if it is none; OSError.
    """
    # of the kernel's own making: asks no file system
    if not os.readlink(f"/proc/{tid}/fd/{fd}").startswith("socket:"):
        return 0, []
    taken = descriptor_of(tid, fd)
    if domain_of(taken) == socket.AF_UNIX:
        return os.fstat(taken).st_ino, [taken]
    try:  # another one by now, perhaps one that is slow to close
        os.close(harmless(taken))
    except PeerError as e:
        raise OSError(e.errno, str(e)) from e
    return 0, []


@act(Policy.may_look_into)
def count_threads(pid: int) -> tuple[int, list[int]]:
    """How many threads a process has; OSError."""
    return len(os.listdir(f"/proc/{pid}/task")), []


@act(Policy.may_look_into)
def find_parent(pid: int) -> tuple[int, list[int]]:
    """The parent of a process; OSError."""
    return status_of(pid, b"PPid"), []

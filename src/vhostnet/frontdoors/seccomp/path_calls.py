"""Calls that name a path: is it the device's?"""

from __future__ import annotations

from collections.abc import Sequence

from vhostnet.errors import PeerError
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread

from .abi import Architecture
from .listener_raw import PathReader
from .node import Node

_AT_FDCWD = -100
_PATH_MAX = 4096

#: name -> which arguments are the folder's descriptor (None: there is none) and the path.
ARGUMENTS: dict[str, tuple[int | None, int]] = {
    "open": (None, 0),
    "creat": (None, 0),
    "openat": (0, 1),
    "openat2": (0, 1),
    "stat": (None, 0),
    "lstat": (None, 0),
    "newfstatat": (0, 1),
    "statx": (0, 1),
    "access": (None, 0),
    "faccessat": (0, 1),
    "faccessat2": (0, 1),
    "readlink": (None, 0),
    "readlinkat": (0, 1),
    "getxattr": (None, 0),
    "lgetxattr": (None, 0),
    "listxattr": (None, 0),
    "llistxattr": (None, 0),
}
OPENS = ("open", "creat", "openat", "openat2")


class PathCalls:
    """Tells calls that name the node from the many that do not."""

    def __init__(self, node: Node, architecture: Architecture) -> None:
        self.node = node
        self._reader = PathReader(architecture)
        #: process_vm_readv(2) is allowed
        self.remote = self._reader.remote

    def names_node(self, thread: ForeignThread, call: str, args: Sequence[int]) -> bool:
        """Whether the call is about the node.  Raises CallerIsGone."""
        folder, at = ARGUMENTS[call]
        if not self.node.may_be(self._reader.read(thread.tid, args[at])):
            return False
        dirfd = _AT_FDCWD if folder is None else as_int(args[folder])
        try:
            path = thread.read_string(args[at], _PATH_MAX)
        except CallerIsGone:
            raise
        except PeerError:
            return False  # the kernel has its own words for such a path
        return self.node.is_at(thread, dirfd, path)


def as_int(argument: int) -> int:
    """What a C int is that was passed in a register."""
    argument &= 0xFFFFFFFF
    return argument - (1 << 32) if argument >> 31 else argument

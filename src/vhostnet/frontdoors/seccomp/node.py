"""The node of the device: which paths lead to it, and what stat says of it."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from vhostnet.errors import HostError
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread

from .abi import NodeStat
from .tree_acts import identify_folder

MISC_MAJOR = 10
VHOST_NET_MINOR = 238
#: Where Linux has it.
VHOST_NET_PATH = b"/dev/vhost-net"

_AT_FDCWD = -100
#: Everybody in the tree may open it.
_MODE = stat.S_IFCHR | 0o666


@dataclass(frozen=True)
class Node:
    """A character device that is nowhere but in what we answer.

    Args:
        path: absolute, as a process in the tree would say it.
    """

    path: bytes = VHOST_NET_PATH

    def __post_init__(self) -> None:
        folder, _, name = self.path.rpartition(b"/")
        object.__setattr__(self, "_folder", folder)
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_made_s", int(time.time()))

    _folder: bytes = b""
    _name: bytes = b""
    _made_s: int = 0

    def may_be(self, path: bytes) -> bool:
        """Whether a path can lead here at all, by its last word."""
        return path.endswith(self._name)

    def is_at(self, thread: ForeignThread, dirfd: int, path: bytes) -> bool:
        """Whether *path*, from *dirfd* on, leads here for that thread.

        By its folder, which may be reached in any way (links, "..", another root); the last word
        has to be the node's own name: links to the node are not followed.

        Raises CallerIsGone.
        """
        folder, slash, name = path.rpartition(b"/")
        if name != self._name:
            return False
        if path.startswith(b"/"):
            start = "root"
        elif dirfd == _AT_FDCWD:
            start = "cwd"
        else:
            start = f"fd/{dirfd}"
        try:
            ours = identify_folder(thread.tid, "root", os.fsdecode(self._folder))
            theirs = identify_folder(thread.tid, start, os.fsdecode(slash + folder))
        except (OSError, ValueError, HostError):
            return False
        if not thread.still_waits():
            raise CallerIsGone(thread.tid)
        return ours == theirs

    def stat(self, thread: ForeignThread) -> NodeStat:
        """What the stat family says of it."""
        try:
            dev, _ = identify_folder(thread.tid, "root", os.fsdecode(self._folder))[0]
        except (OSError, HostError):
            dev = 0
        return NodeStat(
            dev & 0xFFFFFFFF, VHOST_NET_MINOR, _MODE, MISC_MAJOR, VHOST_NET_MINOR, self._made_s
        )

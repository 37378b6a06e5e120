"""The node of the device: which paths lead to it, and what stat says of it."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread

from .abi import NodeStat

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
        root = b"/proc/%d/root" % thread.tid
        if path.startswith(b"/"):
            start = root
        elif dirfd == _AT_FDCWD:
            start = b"/proc/%d/cwd" % thread.tid
        else:
            start = b"/proc/%d/fd/%d" % (thread.tid, dirfd)
        try:
            ours = os.stat(root + self._folder)
            theirs = os.stat(b"/".join((start, folder)) if slash else start)
        except (OSError, ValueError):
            return False
        if not thread.still_waits():
            raise CallerIsGone(thread.tid)
        return os.path.samestat(ours, theirs)

    def stat(self, thread: ForeignThread) -> NodeStat:
        """What the stat family says of it."""
        try:
            dev = os.stat(b"/proc/%d/root" % thread.tid + self._folder).st_dev
        except OSError:
            dev = 0
        return NodeStat(
            dev & 0xFFFFFFFF, VHOST_NET_MINOR, _MODE, MISC_MAJOR, VHOST_NET_MINOR, self._made_s
        )

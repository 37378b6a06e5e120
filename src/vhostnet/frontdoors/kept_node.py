"""The node of a CUSE device, kept by who has the right to: making it, dressing it, restoring it.

A sealed process asks for the steps; which node that is, and how it is dressed, is known on the
other side since before the seal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy

from .cuse_node import CuseNode
from .foreign_file import has_open

OPENER_SYSCALLS = (
    *("openat", "stat", "lstat", "newfstatat", "mknod", "mknodat", "rename", "renameat"),
    *("renameat2", "chmod", "fchmodat", "chown", "fchownat", "unlink", "unlinkat"),
)

_kept: CuseNode | None = None


@act(Policy.may_keep_node)
def keep_node(step: str) -> tuple[None, list[int]]:
    """Take a step of `CuseNode`; HostError, OSError."""
    assert _kept is not None
    steps: dict[str, Callable[[], None]] = {
        "prepare": _kept.prepare,
        "settle": _kept.settle,
        "dress": _kept.dress,
        "restore": _kept.restore,
    }
    steps[step]()
    return None, []


class KeptNode:
    """A `CuseNode`, wherever its steps are taken.  There is one in a process.

    Args:
        node: to be given before the opener is forked.

    Attributes:
        path: of the node.
    """

    def __init__(self, node: CuseNode) -> None:
        global _kept
        _kept = node
        self.path: Path = node.path
        self._number = node.number

    def is_open_in(self, tid: int) -> bool:
        """Whether thread *tid* has the device open; False while there is none."""
        number = self._number()
        return number is not None and has_open(tid, number)

    def prepare(self) -> None:
        """As `CuseNode.prepare`."""
        keep_node("prepare")

    def settle(self) -> None:
        """As `CuseNode.settle`."""
        keep_node("settle")

    def dress(self) -> None:
        """As `CuseNode.dress`."""
        keep_node("dress")

    def restore(self) -> None:
        """As `CuseNode.restore`."""
        keep_node("restore")

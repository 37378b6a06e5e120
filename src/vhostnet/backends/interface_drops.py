"""What the kernel itself dropped at a network interface, beside what we count.

Source: proc_pid_net(5); the fields are those of struct rtnl_link_stats64.
"""

from __future__ import annotations

import contextlib
import os

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError

SYSCALLS = ("pread64",)
OPENER_SYSCALLS = ("openat",)

_NET_DEV = "/proc/thread-self/net/dev"
#: More than thousands of interfaces.
_MAX_SIZE = 1 << 20
#: Columns behind the name: of what the interface received (its host's view), of what it sent.
_RX_DROP, _TX_DROP = 3, 11


@act(Policy.may_count)
def open_interface_counts() -> tuple[None, list[int]]:
    """The file, of the network namespace that TAPs are made in; OSError."""
    return None, [os.open(_NET_DEV, os.O_RDONLY | os.O_CLOEXEC)]


class InterfaceDrops:
    """The counts of one interface, read as often as wanted.

    The file is opened once: it stays with the network namespace that it was opened in, which is the
    one that TAPs are made in, and can be read where no file may be opened any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = -1
        with contextlib.suppress(OSError, HostError):  # no /proc: then there are no counts
            [self._fd] = open_interface_counts()[1]

    def read(self) -> dict[str, int]:
        """Packets by direction as the guest sees it; {} if there is no such interface."""
        for line in self._lines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._name:
                fields = numbers.split()
                return {"rx": int(fields[_TX_DROP]), "tx": int(fields[_RX_DROP])}
        return {}

    def _lines(self) -> list[str]:
        text = b""
        if self._fd >= 0:
            # a read ends at the end of a line, not of the file
            with contextlib.suppress(OSError):
                while len(text) < _MAX_SIZE and (
                    piece := os.pread(self._fd, _MAX_SIZE - len(text), len(text))
                ):
                    text += piece
        return text.decode(errors="replace").splitlines()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""What the opener does for the sealed process, by what the operator has configured.

A request may come from a guest that has taken the sealed process over, so nothing in it is
believed: paths and names are compared with those of the command line and the file of --config.
Clients of the control socket, where there is one, may name others; they reach the opener through
the same process, so for them the rule is where: in the directories that the operator has named, not
below them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from vhostnet.errors import HostError

from . import capabilities

_ROTATED = re.compile(r"\.[1-9][0-9]{0,9}\Z")
_ALWAYS = (
    *(capabilities.CAP_CHOWN, capabilities.CAP_DAC_OVERRIDE, capabilities.CAP_FOWNER),
    capabilities.CAP_NET_ADMIN,
)
#: What a pcapng file begins with.
_PCAPNG = b"\n\r\r\n"


@dataclass(slots=True)
class Policy:
    """What is allowed.

    Attributes:
        sockets: paths where the daemon listens.
        peers: paths that it connects to.
        taps: interfaces.
        captures: files of --pcap.
        config: the file of --config.
        schedulings: of worker threads: policy and number.
        has_control: whether control clients may add devices and start captures.
        directories: where they may have files and sockets.
        peer_directories: where they may have the daemon connect: only what the operator has named,
            since in a folder such as /run there is also who does anything for root.
        processes: whether a process may be looked into, by the number of a thread; None: none may.
        has_node: whether the daemon has a device node to keep.
        made: sockets that the opener has made: device and inode by path.
        sealed: the process that asks; it makes the policy.
        is_outdated: the file of --config was read again: another one holds from now on.
    """

    sockets: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()
    taps: frozenset[str] = frozenset()
    captures: frozenset[str] = frozenset()
    config: str | None = None
    schedulings: frozenset[tuple[str, int]] = frozenset()
    has_control: bool = False
    directories: frozenset[str] = frozenset()
    peer_directories: frozenset[str] = frozenset()
    processes: Callable[[int], bool] | None = None
    has_node: bool = False
    made: dict[str, tuple[int, int]] = field(default_factory=dict)
    is_outdated: bool = False
    sealed: int = field(default_factory=os.getpid)

    def may_listen(self, path: str, *_: object) -> None:
        """HostError, as all of these, if not."""
        if path not in self.sockets:
            self._check_directory(path, self.directories)

    def may_remove(self, path: str, device: int, inode: int) -> None:
        if path in self.sockets or self.made.get(path) == (device, inode):
            return
        raise HostError(f"{path}: not a socket of this daemon's", errno.EPERM)

    def may_connect(self, path: str) -> None:
        if path not in self.peers:
            self._check_directory(path, self.peer_directories)

    def may_open_tap(self, name: str, *_: object) -> None:
        if name not in self.taps and not self.has_control:
            raise HostError(f"TAP {name}: is not in the daemon's configuration", errno.EPERM)

    def may_count(self) -> None:
        if not self.taps and not self.has_control:
            raise HostError("the daemon has no TAPs", errno.EPERM)

    def may_schedule(self, tid: int, policy: str, number: int) -> None:
        if (policy, number) not in self.schedulings and not self.has_control:
            raise HostError(f"{policy}:{number}: is not in the configuration", errno.EPERM)
        if not os.path.isdir(f"/proc/{self.sealed}/task/{tid}"):
            raise HostError(f"{tid} is no thread of the daemon's", errno.ESRCH)

    @property
    def capabilities(self) -> int:
        """What the opener needs, if the daemon has it: a mask."""
        wanted = list(_ALWAYS)
        if self.schedulings or self.has_control:
            wanted += [capabilities.CAP_SYS_NICE]
        if self.processes is not None:
            wanted += [capabilities.CAP_SYS_PTRACE, capabilities.CAP_CHECKPOINT_RESTORE]
        if self.has_node:
            wanted += [capabilities.CAP_MKNOD]
        return sum(1 << number for number in wanted)

    def may_look_into(self, tid: int, *_: object) -> None:
        if self._is_own(tid):  # whatever it has open: its memory is code that it may not change
            raise HostError(f"thread {tid} is the daemon's own", errno.EPERM)
        if self.processes is not None and self.processes(tid):
            return
        if not os.path.isdir(f"/proc/{tid}"):
            raise HostError(f"thread {tid} is gone", errno.ESRCH)
        raise HostError(f"thread {tid} is not one that this daemon serves", errno.EPERM)

    def may_keep_node(self, step: str) -> None:
        if not self.has_node:
            raise HostError(f"{step}: the daemon has no device node", errno.EPERM)

    def may_capture(self, path: str) -> None:
        if path in self.captures or _ROTATED.sub("", path) in self.captures:
            return
        self._check_directory(path, self.directories)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise HostError(f"{path}: is neither a file nor a pipe", errno.EPERM)
        if status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise HostError(f"{path}: belongs to somebody else", errno.EPERM)
        if stat.S_ISREG(status.st_mode) and not _is_capture(path):
            raise HostError(f"{path}: is there, and is no capture; not replacing it", errno.EEXIST)

    def may_read_config(self, path: str) -> None:
        if path != self.config:
            raise HostError(f"{path}: is not the file of --config", errno.EPERM)

    def has_made(self, inode: list[int], path: str, *_: object) -> None:
        """A socket: it may be removed, whatever else is said of its directory."""
        self.made[path] = (inode[0], inode[1])

    def has_read_config(self, *_: object) -> None:
        """The file, as it is now, is what counts."""
        self.is_outdated = True

    def may_look_up(self, _name: str) -> None:
        if self.config is None:
            raise HostError("there is no --config that could name a group", errno.EPERM)

    def _is_own(self, tid: int) -> bool:
        """Whether a thread is of the sealed process, or of who does this for it."""
        return any(os.path.isdir(f"/proc/{pid}/task/{tid}") for pid in (self.sealed, os.getpid()))

    def _check_directory(self, path: str, allowed: frozenset[str]) -> None:
        if not os.path.isabs(path):  # whose folder it would be in is not known here
            raise HostError(f"{path}: the sandbox needs an absolute path", errno.EPERM)
        where = os.path.dirname(os.path.abspath(path))
        if where in allowed:
            return
        if not self.has_control:
            raise HostError(f"{path}: is not in the daemon's configuration", errno.EPERM)
        known = ", ".join(sorted(allowed)) or "no folder"
        raise HostError(
            f"{path}: outside of what the sandbox allows, {known} (--sandbox-dirs)", errno.EPERM
        )


def _is_capture(path: str) -> bool:
    """Whether a file is one, or is empty."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, len(_PCAPNG)) in (b"", _PCAPNG)
    finally:
        os.close(fd)

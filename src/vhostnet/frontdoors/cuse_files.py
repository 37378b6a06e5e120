"""Open files of a CUSE device: each is an instance of the driver, with its owner's process.

What the session (`protocol/cuse_session.py`) cannot know is here: which process a thread
belongs to, its descriptors, and when the owner is gone.

The owner is held by a pidfd from SET_OWNER on, which tells of its end.  An open `/proc/PID/mem`
stays with the address space that it was opened for; reading nothing from it means that the owner
has called exec (its address space, which was the owner in Linux's sense, is gone).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from vhostnet.device.owner_files import open_memory
from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.protocol.cuse_ioctl import IoctlArgument
from vhostnet.uapi import vhost

if TYPE_CHECKING:  # it imports numba
    from vhostnet.frontdoors.vhost_ioctl import VhostFile

log = logging.getLogger("vhostnet.cuse")

SYSCALLS = ("pidfd_open", "pread64", "eventfd2")

#: Open files at once: each may become two rings, a thread and a dozen descriptors.
MAX_FILES = 1024


class _Caller:
    """A thread in its ioctl: its process is the kernel's business, its argument the session's."""

    def __init__(self, thread: ForeignThread, memory: IoctlArgument) -> None:
        self._thread = thread
        self.read = memory.read
        self.write = memory.write
        self.descriptor = thread.descriptor

    @property
    def pid(self) -> int:
        if not self._thread.tid:
            raise PeerError(
                "a process in a pid namespace that we cannot see can not be an owner", errno.EPERM
            )
        return self._thread.pid


class CuseFile:
    """One open file; what `protocol.cuse_session.OpenFile` asks for.

    Args:
        fh: its number, for log lines.
        device: the instance of the driver behind it, ours from now on.
        loop: watches the owner.
        log: of the door.
        on_release: told at the end.

    Attributes:
        device: as given.
    """

    def __init__(
        self,
        fh: int,
        device: VhostFile,
        loop: Loop,
        log: PeerLog,
        on_release: Callable[[], object] = lambda: None,
    ) -> None:
        self._fh = fh
        self.device = device
        self._loop = loop
        self._log = log
        self._on_release = on_release
        self._owner = -1
        self._owner_mm = -1
        self.read = device.read
        self.write = device.write
        self.readable = device.readable
        self.would_sleep_for_ever = device.would_sleep_for_ever

    def ioctl(self, tid: int, memory: IoctlArgument, number: int, argument: int) -> int:
        """As `VhostFile.ioctl`, by thread *tid*."""
        self._look_for_exec()
        try:
            with ForeignThread(tid) as thread:
                caller = _Caller(thread, memory)
                result = self.device.ioctl(caller, number, argument)
                if number == vhost.VHOST_SET_OWNER:
                    self._hold_owner(caller.pid)
                elif number == vhost.VHOST_RESET_OWNER:
                    self._let_go()
                return result
        except PeerError as e:
            name = vhost.IOCTL_NAMES.get(number, f"ioctl {number:#x}")
            log.debug("file %d: %s: %s (%s)", self._fh, name, e, errno.errorcode.get(e.errno))
            if e.errno == errno.EPERM and not tid:
                self._log.warning(f"file {self._fh}: {name}: {e}")
            raise
        except (OSError, HostError) as e:
            # ours, not the caller's: no descriptor left, no thread
            self._log.warning(f"file {self._fh}: this host refused: {e}")
            raise PeerError(str(e), e.errno or errno.EIO) from e

    def release(self) -> None:
        """Nobody has it open any more."""
        self._let_go()
        self._on_release()
        self.device.release()
        log.debug("file %d: closed", self._fh)

    def check_memory(self) -> None:
        """End the instance if the memory that its owner shares was cut short."""
        try:
            self.device.verbs.net.memory.check_not_lost()
        except PeerError as e:
            self._log.warning(f"file {self._fh}: {e}")
            self._end()

    def _hold_owner(self, pid: int) -> None:
        try:
            self._owner = os.pidfd_open(pid)
            self._owner_mm, maps = open_memory(pid)[1]
            os.close(maps)
        except (OSError, HostError) as e:
            self._let_go()
            self.device.owner_is_gone()
            if e.errno in (errno.ESRCH, errno.ENOENT):
                raise CallerIsGone(pid) from e
            raise
        self._loop.watch(self._owner, READABLE, self._owner_ended)
        self._log.info(f"file {self._fh}: process {pid} is the owner")

    def _let_go(self) -> None:
        if self._owner >= 0:
            self._loop.unwatch(self._owner)
            os.close(self._owner)
        if self._owner_mm >= 0:
            os.close(self._owner_mm)
        self._owner = self._owner_mm = -1

    def _owner_ended(self, _ready: int) -> None:
        log.debug("file %d: the owner has ended, the file is open elsewhere", self._fh)
        self._end()

    def _look_for_exec(self) -> None:
        if self._owner_mm < 0:
            return
        with contextlib.suppress(OSError):  # nothing is mapped there: it is alive
            if not os.pread(self._owner_mm, 1, 0):
                log.debug("file %d: the owner has run another program", self._fh)
                self._end()

    def _end(self) -> None:
        self._let_go()
        self.device.owner_is_gone()


class CuseFiles:
    """All open files of one CUSE device.

    Args:
        make_device: a fresh instance of the driver, given its name for log lines.
        loop: of the daemon.
        log: of the door.

    Attributes:
        wake: told (fh) in the loop when a file has something to read (`CuseSession.wake`).
    """

    def __init__(self, make_device: Callable[[str], VhostFile], loop: Loop, log: PeerLog) -> None:
        self.wake: Callable[[int], None] = lambda _fh: None
        self._make_device = make_device
        self._loop = loop
        self._log = log
        self._files: dict[int, CuseFile] = {}
        self._readable: deque[int] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._bell, READABLE, self._ring)

    def open(self, fh: int, tid: int) -> CuseFile:
        """A file for thread *tid*; PeerError ENFILE."""
        if len(self._files) >= MAX_FILES:
            self._log.warning(f"more than {MAX_FILES} open files")
            raise PeerError("too many open files", errno.ENFILE)
        device = self._make_device(f"file {fh}")
        device.verbs.on_readable = lambda: self._tell(fh)
        log.debug("file %d: opened by thread %d", fh, tid)
        file = CuseFile(fh, device, self._loop, self._log, lambda: self._files.pop(fh, None))
        self._files[fh] = file
        return file

    def devices(self) -> list[VhostFile]:
        """Those that are open."""
        return [file.device for file in self._files.values()]

    def check_memory(self) -> None:
        """The alarm of `native.lost_memory_raw` has sounded."""
        for file in list(self._files.values()):
            file.check_memory()

    def close(self) -> None:
        """The files are closed already."""
        self._loop.unwatch(self._bell)
        os.close(self._bell)

    def _tell(self, fh: int) -> None:
        """In a worker's or the control thread."""
        self._readable.append(fh)
        os.eventfd_write(self._bell, 1)

    def _ring(self, _ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        while self._readable:
            self.wake(self._readable.popleft())

"""The calls of the tree, answered one by one.

A call is let go on (PROCEED), answered with a value, or with an errno.  Nobody of the tree does
anything in a call that waits for us, so nothing here waits for anybody of the tree.

One thread answers; a device's worker only puts messages into a socket.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread
from vhostnet.uapi import vhost

from .abi import Architecture, statx_bytes
from .listener_raw import Listener, Notification
from .open_file import OpenFile
from .path_calls import ARGUMENTS, OPENS, PathCalls, as_int
from .tree_acts import count_threads, find_free_descriptor, take_socket

if TYPE_CHECKING:
    from vhostnet.frontdoors.vhost_ioctl import VhostFile

log = logging.getLogger("vhostnet")

SYSCALLS = ("pidfd_open", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait")

#: The most of a message that is looked at.
_MESSAGE = 72
_IOV_MAX = 1024
_O_TMPFILE_BIT = 0o20000000
_RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x08, 0x10
_IOVEC = struct.Struct("=QQ")
#: ioctls that are the open file's, whatever it is: FIONCLEX, FIOCLEX, FIONBIO, FIOASYNC, FIOQSIZE,
#: FIGETBSZ.  Linux asks no driver about them.
_OF_ALL_FILES = (0x5450, 0x5451, 0x5421, 0x5452, 0x5460, 0x00000002)
_X_OK = 1


class _Proceed:
    """Let the call go on as if it had not been trapped."""


class _Given:
    """The call has had its answer."""


PROCEED: Final = _Proceed()
GIVEN: Final = _Given()
Verdict = int | _Proceed | _Given
Handler = Callable[[Notification, ForeignThread], Verdict]


class _Caller:
    """A thread in its ioctl; what it names as a kick or a backend may be any file of its own."""

    def __init__(self, thread: ForeignThread) -> None:
        self._thread = thread
        self.read = thread.read
        self.write = thread.write
        self.descriptor = thread.descriptor

    @property
    def pid(self) -> int:
        """Its thread group."""
        return self._thread.pid


class Devices(Protocol):
    """What is behind the open files; see devices.py."""

    @property
    def memory_alarm(self) -> int | None:
        """An eventfd that tells when an owner's memory file was cut short."""

    def serving(self, loop: Loop, supervisor: Supervisor) -> AbstractContextManager[object]:
        """What is entered while calls are answered."""

    def open(self, name: str) -> VhostFile:
        """A device of its own for a new open file."""

    def before_exec(self, pid: int, has_other_threads: bool) -> None:
        """A thread of process *pid* is about to run exec (which may fail)."""

    def process_is_gone(self, pid: int) -> None:
        """Process *pid* has ended, and its number is not free yet."""


class Supervisor:
    """Answers all calls of a tree, until nobody is left in it.

    Args:
        loop: that we run in.
        listener: of the tree's filter, ours from now on.
        architecture: whose numbers the filter was made of.
        reserved: the descriptors that the filter traps; see filter.py.
        paths: what tells the node.
        devices: what is behind open files.
        on_end: told when nobody is left.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        architecture: Architecture,
        reserved: range,
        paths: PathCalls,
        devices: Devices,
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._architecture = architecture
        self._reserved = reserved
        self._paths = paths
        self._devices = devices
        self._on_end = on_end
        self._files: dict[int, OpenFile] = {}
        # Our ends: whatever has been written and closed before a call is seen before the call.
        self._ends = select.epoll()
        self._by_end: dict[int, OpenFile] = {}
        loop.watch(self._ends.fileno(), READABLE, lambda _ready: self._look_at_ends())
        self._opened = 0
        self._owners: dict[int, int] = {}
        handlers: dict[str, Handler] = {
            **dict.fromkeys(OPENS, self._open),
            **dict.fromkeys(("stat", "lstat", "newfstatat", "statx"), self._stat),
            **dict.fromkeys(("access", "faccessat", "faccessat2"), self._access),
            **dict.fromkeys(("readlink", "readlinkat"), self._readlink),
            **dict.fromkeys(("getxattr", "lgetxattr"), self._getxattr),
            **dict.fromkeys(("listxattr", "llistxattr"), self._listxattr),
            **dict.fromkeys(("execve", "execveat"), self._exec),
            "ioctl": self._ioctl,
            "fstat": self._fstat,
            "read": self._read,
            "readv": self._read,
            "write": self._write,
            "writev": self._write,
        }
        self._handlers = {nr: (name, handlers[name]) for name, nr in architecture.numbers.items()}
        loop.watch(listener.fd, READABLE, self._on_call)
        if devices.memory_alarm is not None:
            loop.watch(devices.memory_alarm, READABLE, self._check_memory)

    def _check_memory(self, _ready: int) -> None:
        """End the instances whose owner has cut its memory file short (see lost_memory_raw)."""
        if self._devices.memory_alarm is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._devices.memory_alarm)
        for file in self._files.values():
            try:
                file.vhost.verbs.net.memory.check_not_lost()
            except PeerError as e:
                log.warning("%s: %s", file.name, e)
                file.vhost.owner_is_gone()

    @property
    def n_files(self) -> int:
        """Open files of the device, now."""
        return len(self._files)

    def files(self) -> list[VhostFile]:
        """Those that are open."""
        return [file.vhost for file in self._files.values()]

    def close(self) -> None:
        """Nobody is left."""
        self._loop.unwatch(self._listener.fd)
        if self._devices.memory_alarm is not None:
            self._loop.unwatch(self._devices.memory_alarm)
        for file in list(self._files.values()):
            self._close(file)
        self._loop.unwatch(self._ends.fileno())
        self._ends.close()
        for pidfd in self._owners.values():
            self._loop.unwatch(pidfd)
            os.close(pidfd)
        self._owners.clear()
        self._listener.close()

    def process_is_gone(self, pid: int) -> None:
        """A process has ended and its number is not free yet: devices that it owned end too."""
        pidfd = self._owners.pop(pid, None)
        if pidfd is not None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
        for file in self._files.values():
            if file.vhost.verbs.owner_pid == pid:
                log.info("%s: its owner, process %d, has ended", file.name, pid)
                file.vhost.owner_is_gone()
        self._devices.process_is_gone(pid)

    # --- one call -----------------------------------------------------------------------------

    def _on_call(self, ready: int) -> None:  # noqa: ARG002
        call = self._listener.receive()
        if call is not None:
            self._answer(call)
        elif self._listener.is_over():
            self._on_end()

    def _answer(self, call: Notification) -> None:
        name, handler = self._handlers[call.nr]
        verdict: Verdict
        if self._files:
            self._look_at_ends()
        with ForeignThread(call.tid, lambda: self._listener.still_waits(call.id)) as thread:
            try:
                verdict = handler(call, thread)
            except CallerIsGone:
                return
            except PeerError as e:
                verdict = -e.errno
                log.debug("process %d: %s: %s", call.tid, name, e)
            except Exception:
                log.exception("bug in this program: %s of process %d", name, call.tid)
                verdict = -errno.EIO
        if isinstance(verdict, _Proceed):
            self._listener.proceed(call.id)
        elif isinstance(verdict, int):
            self._listener.answer(call.id, verdict)

    def _name(self, call: Notification) -> str:
        return self._architecture.names[call.nr]

    def _is_node(self, call: Notification, thread: ForeignThread) -> bool:
        return self._paths.names_node(thread, self._name(call), call.args)

    def _file(self, thread: ForeignThread, number: int) -> tuple[OpenFile, int] | None:
        """What is behind descriptor *number*, if it is ours, and a descriptor for it to close."""
        if not self._files:
            return None
        try:
            inode, taken = take_socket(thread.tid, as_int(number))
        except (OSError, HostError):
            return None
        file = self._files.get(inode) if thread.still_waits() else None
        if file is None:
            for fd in taken:
                os.close(fd)
            return None
        return file, taken[0]

    # --- paths --------------------------------------------------------------------------------

    def _open(self, call: Notification, thread: ForeignThread) -> Verdict:
        if not self._is_node(call, thread):
            return PROCEED
        name = self._name(call)
        if name == "openat2":
            flags, _, resolve = struct.unpack("=QQQ", thread.read(call.args[2], 24))
            if resolve & (_RESOLVE_BENEATH | _RESOLVE_IN_ROOT):
                return PROCEED  # where the path begins is not what it seems
        elif name == "creat":
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        else:
            flags = call.args[2 if name == "openat" else 1]
        if flags & os.O_PATH:
            return PROCEED
        if flags & (os.O_DIRECTORY | _O_TMPFILE_BIT):
            return -errno.ENOTDIR
        if flags & os.O_CREAT and flags & os.O_EXCL:
            return -errno.EEXIST
        return self._open_device(call, thread, flags)

    def _open_device(self, call: Notification, thread: ForeignThread, flags: int) -> Verdict:
        name = f"open{self._opened}"
        self._opened += 1
        try:
            file = OpenFile(self._devices.open(name), flags, name)
        except OSError as e:
            log.error("the device could not be opened: %s", e.strerror)
            return -(e.errno or errno.EIO)
        number = self._free_number(thread.tid)
        cloexec = bool(flags & os.O_CLOEXEC)
        theirs = file.theirs.fileno()
        given = -errno.EBADF
        if number is not None:
            given = self._listener.answer_with_descriptor(
                call.id, theirs, number=number, cloexec=cloexec
            )
        if given == -errno.EBADF:  # no such number, or the process may not have so many
            given = self._listener.answer_with_descriptor(
                call.id, theirs, number=None, cloexec=cloexec
            )
        if given < 0:
            file.close()
            return given
        file.given()
        self._files[file.inode] = file
        self._by_end[file.fd] = file
        self._ends.register(file.fd, select.EPOLLIN)
        log.info("%s: opened by process %d", file.name, call.tid)
        return GIVEN

    def _free_number(self, tid: int) -> int | None:
        """A number of the reserved range that the process does not use, nor will at once.

        The kernel gives the lowest that is free: while the one below the range is free, no other
        thread of the process is given one of the range.
        """
        try:
            number = find_free_descriptor(tid, self._reserved.start, self._reserved.stop)[0]
        except (OSError, HostError):
            return None
        return None if number < 0 else number

    def _stat(self, call: Notification, thread: ForeignThread) -> Verdict:
        name = self._name(call)
        if self._is_node(call, thread):
            return self._tell_stat(call, thread, name)
        if name in ("newfstatat", "statx") and as_int(call.args[0]) in self._reserved:
            path = call.args[1]  # empty, or nothing at all: the descriptor's own
            if not path or thread.read(path, 1) == b"\0":
                return self._fstat(call, thread)
        return PROCEED

    def _fstat(self, call: Notification, thread: ForeignThread) -> Verdict:
        found = self._file(thread, call.args[0])
        if found is None:
            return PROCEED
        os.close(found[1])
        return self._tell_stat(call, thread, self._name(call))

    def _tell_stat(self, call: Notification, thread: ForeignThread, name: str) -> Verdict:
        node = self._paths.node.stat(thread)
        if name == "statx":
            thread.write(call.args[4], statx_bytes(node))
        else:
            at = call.args[2 if name == "newfstatat" else 1]
            thread.write(at, self._architecture.stat_bytes(node))
        return 0

    def _access(self, call: Notification, thread: ForeignThread) -> Verdict:
        if not self._is_node(call, thread):
            return PROCEED
        mode = as_int(call.args[ARGUMENTS[self._name(call)][1] + 1])
        if mode & ~7:
            return -errno.EINVAL
        return -errno.EACCES if mode & _X_OK else 0

    def _readlink(self, call: Notification, thread: ForeignThread) -> Verdict:
        return -errno.EINVAL if self._is_node(call, thread) else PROCEED

    def _getxattr(self, call: Notification, thread: ForeignThread) -> Verdict:
        return -errno.ENODATA if self._is_node(call, thread) else PROCEED

    def _listxattr(self, call: Notification, thread: ForeignThread) -> Verdict:
        return 0 if self._is_node(call, thread) else PROCEED

    # --- descriptors --------------------------------------------------------------------------

    def _ioctl(self, call: Notification, thread: ForeignThread) -> Verdict:
        number = call.args[1] & 0xFFFFFFFF
        if number in _OF_ALL_FILES:
            return PROCEED
        found = self._file(thread, call.args[0])
        if found is None:
            return PROCEED
        file, fd = found
        what = vhost.IOCTL_NAMES.get(number, hex(number))
        try:
            if number in (vhost.VHOST_NET_SET_BACKEND, vhost.VHOST_RESET_OWNER):
                file.recall(fd)  # they drop messages that were not read
            result = file.vhost.ioctl(_Caller(thread), number, call.args[2])
            log.debug("%s: %s", file.name, what)
            if number == vhost.VHOST_NET_SET_BACKEND:
                self._log_rings(file)
            return result
        except CallerIsGone:
            raise
        except PeerError as e:
            log.debug("%s: %s: %s (%s)", file.name, what, e, errno.errorcode.get(e.errno, "?"))
            return -e.errno
        except HostError as e:
            log.warning("%s: %s", file.name, e)
            return -(e.errno or errno.EIO)
        finally:
            os.close(fd)
            file.deliver()
            self._watch_owner(file)

    def _log_rings(self, file: OpenFile) -> None:
        """Say it when the first ring starts, and when the last one stops."""
        runs = file.vhost.runs()
        if runs != file.runs:
            file.runs = runs
            log.info("%s: %s", file.name, "its first ring starts" if runs else "its rings stop")

    def _read(self, call: Notification, thread: ForeignThread) -> Verdict:
        found = self._file(thread, call.args[0])
        if found is None:
            return PROCEED
        file, fd = found
        try:
            spans = self._spans(call, thread)
            data = file.read(fd, sum(size for _, size in spans))
        finally:
            os.close(fd)
        if data is None:
            return PROCEED  # it waits there by itself
        left = data
        for address, size in spans:
            thread.write(address, left[:size])
            left = left[size:]
        return len(data)

    def _write(self, call: Notification, thread: ForeignThread) -> Verdict:
        found = self._file(thread, call.args[0])
        if found is None:
            return PROCEED
        file, fd = found
        os.close(fd)
        data = b""
        for address, size in self._spans(call, thread):
            data += thread.read(address, min(size, _MESSAGE - len(data)))
        return file.write(data)

    def _spans(self, call: Notification, thread: ForeignThread) -> list[tuple[int, int]]:
        """(address, size) of what is to be read to, or written from."""
        address, size = call.args[1], call.args[2]
        if self._name(call) in ("read", "write"):
            return [(address, size)]
        if size > _IOV_MAX:
            raise PeerError(f"{size} pieces")
        data = thread.read(address, size * _IOVEC.size)
        return [_IOVEC.unpack_from(data, k * _IOVEC.size) for k in range(size)]

    def _look_at_ends(self) -> None:
        for fd, _ in self._ends.poll(0):
            file = self._by_end[fd]
            if not file.take_writes():
                self._close(file)

    def _close(self, file: OpenFile) -> None:
        del self._files[file.inode], self._by_end[file.fd]
        self._ends.unregister(file.fd)
        file.close()
        log.info("%s: closed", file.name)

    # --- processes ----------------------------------------------------------------------------

    def _exec(self, call: Notification, thread: ForeignThread) -> Verdict:  # noqa: ARG002
        pid = thread.pid
        try:
            threads = count_threads(pid)[0]
        except (OSError, HostError):
            threads = 2
        for file in self._files.values():
            if file.vhost.verbs.owner_pid == pid:
                file.vhost.verbs.stop_batching()
        self._devices.before_exec(pid, threads > 1)
        return PROCEED

    def _watch_owner(self, file: OpenFile) -> None:
        """Know when the owner ends: its file may be open elsewhere still."""
        pid = file.vhost.verbs.owner_pid
        if not pid or pid in self._owners:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self.process_is_gone(pid)
            return
        self._owners[pid] = pidfd
        self._loop.watch(pidfd, READABLE, lambda _ready: self.process_is_gone(pid))

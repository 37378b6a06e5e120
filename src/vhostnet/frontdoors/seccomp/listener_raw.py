"""A filter's listener: installing it, and receiving and answering the calls that it traps.

A call that was received has to be answered by somebody: if the receiver dies, its caller waits
for ever.  So the call that is being answered lies in memory that is shared with the keeper
(see keeper.py), where the kernel itself writes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
from dataclasses import dataclass

from vhostnet.device.owner_files import open_memory
from vhostnet.errors import HostError

from .abi import (
    NOTIF,
    NOTIF_ADDFD,
    NOTIF_RESP,
    SECCOMP_ADDFD_FLAG_SEND,
    SECCOMP_ADDFD_FLAG_SETFD,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_ID_VALID,
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS,
    SECCOMP_SET_MODE_FILTER,
    SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    Architecture,
)

_PR_SET_NO_NEW_PRIVS = 38
SYSCALLS = ("process_vm_readv", "pread64", "poll", "ppoll")
IOCTLS = (
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_IOCTL_NOTIF_ID_VALID,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS,
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_WORD = struct.Struct("=Q")
_ZEROES = bytes(NOTIF.size)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Notification:
    """One call: who, which, and its arguments."""

    id: int
    tid: int
    nr: int
    args: tuple[int, ...]


def new_slot() -> mmap.mmap:
    """Memory for the call that is being answered, shared with processes forked from now on."""
    return mmap.mmap(-1, mmap.PAGESIZE)


def install(program: bytes, architecture: Architecture) -> int:
    """Put the calling thread, and all that it will start, under a filter.

    Takes the ability to gain privileges by exec (set-uid programs) away only where the kernel
    wants it: from callers without CAP_SYS_ADMIN.

    Returns:
        The listener, close-on-exec.

    Raises:
        HostError: the kernel refuses; EBUSY if we are under such a filter already.
    """
    for flags in (
        SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        SECCOMP_FILTER_FLAG_NEW_LISTENER,
    ):
        listener = _seccomp(program, architecture, flags)
        if listener == -errno.EACCES:
            _libc.prctl(*(ctypes.c_ulong(word) for word in (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
            listener = _seccomp(program, architecture, flags)
        if listener != -errno.EINVAL:
            break
    if listener >= 0:
        return listener
    if listener == -errno.EBUSY:
        why = "this process is under a listener already: vhostnet run cannot be nested"
    elif listener in (-errno.EINVAL, -errno.ENOSYS):
        why = "this kernel has no seccomp listeners (Linux 5.14 has, if built with them)"
    else:
        why = f"seccomp: {os.strerror(-listener)}"
    raise HostError(why, -listener)


def _seccomp(program: bytes, architecture: Architecture, flags: int) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    result: int = _libc.syscall(
        ctypes.c_long(architecture.seccomp),
        ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(flags),
        ctypes.byref(prog),
    )
    return result if result >= 0 else -ctypes.get_errno()


class Listener:
    """The supervisor's end.

    Args:
        fd: of the listener, ours from now on.
        slot: see `new_slot`.
    """

    def __init__(self, fd: int, slot: mmap.mmap) -> None:
        self.fd = fd
        self._slot = slot
        self._slot_hva = ctypes.addressof(ctypes.c_char.from_buffer(slot))
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        with contextlib.suppress(OSError):  # faster; before Linux 6.6 it is not there
            fcntl.ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def is_over(self) -> bool:
        """Whether nobody is left under the filter."""
        return bool(self._ready() & select.POLLHUP)

    def _ready(self) -> int:
        return sum(events for _, events in self._poll.poll(0))

    def receive(self) -> Notification | None:
        """The next call; None if there is none after all (its thread was killed)."""
        if not self._ready() & select.POLLIN:
            return None  # there is nobody left, for whom older kernels would wait for ever
        self._slot[: NOTIF.size] = _ZEROES  # the kernel insists
        if (
            _libc.ioctl(
                ctypes.c_int(self.fd),
                ctypes.c_ulong(SECCOMP_IOCTL_NOTIF_RECV),
                ctypes.c_void_p(self._slot_hva),
            )
            != 0
        ):
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return None
            raise HostError(f"seccomp listener: {os.strerror(code)}", code)
        return self._in_slot()

    def unanswered(self) -> Notification | None:
        """The call that was received last and perhaps not answered."""
        found = self._in_slot()
        return found if found.id else None

    def _in_slot(self) -> Notification:
        id_, pid, _, nr, _, _, *args = NOTIF.unpack_from(self._slot)
        return Notification(id_, pid, nr, tuple(args))

    def still_waits(self, id_: int) -> bool:
        """Whether the caller is there, waiting, and its tid is still its own."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ID_VALID, _WORD.pack(id_))
        except OSError:
            return False
        return True

    def proceed(self, id_: int) -> None:
        """Let the call go on as if it had not been trapped."""
        self._send(NOTIF_RESP.pack(id_, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))

    def answer(self, id_: int, value: int) -> None:
        """The call's result: *value*, or -errno if it is negative."""
        self._send(NOTIF_RESP.pack(id_, max(value, 0), min(value, 0), 0))

    def answer_with_descriptor(
        self, id_: int, fd: int, *, number: int | None, cloexec: bool
    ) -> int:
        """Give the caller our *fd*, as *number* or the lowest that is free, as its result.

        Both in one step: the caller has the descriptor if and only if it learns of it.

        Returns:
            The caller's number for it; negative: -errno, nothing was given, and the call waits
            on (unless the caller is gone, ENOENT).
        """
        flags = SECCOMP_ADDFD_FLAG_SEND | (0 if number is None else SECCOMP_ADDFD_FLAG_SETFD)
        newfd_flags = os.O_CLOEXEC if cloexec else 0
        request = bytearray(NOTIF_ADDFD.pack(id_, flags, fd, number or 0, newfd_flags))
        # It waits until the caller has taken the descriptor.  A signal to us meanwhile would
        # take the descriptor back but let the caller go, with 0 as what its open has given.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            given: int = fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ADDFD, request)
        except OSError as e:
            return -(e.errno or errno.EIO)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return given

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, response)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EINPROGRESS):  # killed, or answered already
                raise HostError(f"seccomp listener: {e.strerror}", e.errno or 0) from e


class PathReader:
    """The path that a call names, read in one go.

    What comes of it is a guess (the thread may be gone, and its number a stranger's): good
    enough to let a call go on, and for nothing else.

    Attributes:
        remote: process_vm_readv(2) is allowed; some containers forbid it.
    """

    SIZE = 4096

    def __init__(self, architecture: Architecture) -> None:
        self._nr = ctypes.c_long(architecture.process_vm_readv)
        self._buffer = ctypes.create_string_buffer(self.SIZE)
        self._local = _Iovec(ctypes.addressof(self._buffer), self.SIZE)
        self._remote = (_Iovec * 2)()
        self.remote = self._read(os.getpid(), ctypes.addressof(self._local)) > 0

    def read(self, tid: int, address: int) -> bytes:
        """The bytes before the zero; as many as there are, or none, if there is no zero."""
        if self.remote:
            size = self._read(tid, address)
            data = self._buffer.raw[: max(size, 0)]
        else:
            data = self._through_file(tid, address)
        return data.partition(b"\0")[0]

    def _read(self, tid: int, address: int) -> int:
        """Up to the end of one page, or of a second one if it is there."""
        first = mmap.PAGESIZE - address % mmap.PAGESIZE
        self._remote[0].base, self._remote[0].len = address, first
        self._remote[1].base, self._remote[1].len = address + first, self.SIZE - first
        size: int = _libc.syscall(
            self._nr,
            ctypes.c_int(tid),
            ctypes.byref(self._local),
            ctypes.c_ulong(1),
            ctypes.byref(self._remote),
            ctypes.c_ulong(2),
            ctypes.c_ulong(0),
        )
        return size

    def _through_file(self, tid: int, address: int) -> bytes:
        try:
            fd, maps = open_memory(tid)[1]
        except (OSError, HostError):
            return b""
        os.close(maps)
        try:
            return os.pread(fd, self.SIZE, address)  # what there is, to the first hole
        except (OSError, OverflowError):
            return b""
        finally:
            os.close(fd)

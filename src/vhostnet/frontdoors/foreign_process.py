"""A thread of another process that waits for our answer: its memory, its descriptors.

The `Caller` of a door through which the kernel hands us a system call of somebody else.

A pid is not a process, and a process is not an address space.  Between the call and our look
the thread may have been killed and its number given to a stranger; while we look, another
thread of its process may run exec.  So each thing is taken hold of first (an open
`/proc/TID/mem` stays with the address space that it was opened for, a descriptor with its file),
then the door is asked whether the thread still waits (what was taken is then the right one),
and only then is anything read or written through it.

Taking hold is an act (`confinement.acts`): sealed, we may not look into anybody ourselves.

`/proc/TID/mem` ignores the protection of pages, which a system call does not: what a call may
not read or write is looked up first, and is EFAULT.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from types import TracebackType

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.device.files_of_others import take
from vhostnet.device.owner_files import open_memory
from vhostnet.device.owner_maps import read_maps
from vhostnet.errors import HostError, PeerError, reason_of

from .foreign_file import harmless

#: pidfd_open(2): the thread, not its process.  Since Linux 6.9.
_PIDFD_THREAD = os.O_EXCL

#: Where the addresses of a process end, at most (five levels of page tables).
_END = 1 << 56
_READ, _WRITE = 1, 2

# struct procmap_query of linux/fs.h: size, query_flags, query_addr, vma_start, vma_end,
# vma_flags; what follows we do not ask for.
_PROCMAP_QUERY_SIZE = 104
_PROCMAP_QUERY = 3 << 30 | _PROCMAP_QUERY_SIZE << 16 | ord("f") << 8 | 17
_QUERY = struct.Struct("=6Q")
IOCTLS = (_PROCMAP_QUERY,)
OPENER_SYSCALLS = ("openat", "pidfd_open")
_PAGE = os.sysconf("SC_PAGESIZE")


class CallerIsGone(PeerError):
    """The thread does not wait any more; nobody will see the answer."""

    def __init__(self, tid: int) -> None:
        super().__init__(f"thread {tid} is gone", errno.ESRCH)


def check_descriptors() -> None:
    """Whether descriptors of other processes can be taken at all.

    Raises HostError: a container's rules forbid it, or Linux is older than 5.6.
    """
    pidfd = os.pidfd_open(os.getpid())
    try:
        os.close(take(pidfd, pidfd))
    except OSError as e:
        if e.errno == errno.ENOSYS:
            raise HostError(
                "pidfd_getfd is missing: Linux 5.6 has it, some containers hide it", e.errno
            ) from e
        raise HostError(
            f"pidfd_getfd is forbidden here ({e.strerror}): a container's seccomp profile, "
            "which Docker's --cap-add SYS_PTRACE makes wider",
            e.errno or 0,
        ) from e
    finally:
        os.close(pidfd)


@act(Policy.may_look_into)
def find_process(tid: int) -> tuple[int, list[int]]:
    """The process (thread group) of thread *tid*; OSError."""
    return status_of(tid, b"Tgid"), []


@act(Policy.may_look_into)
def take_descriptor(tid: int, fd: int) -> tuple[None, list[int]]:
    """One for the open file that is *fd* of thread *tid*, or what stands in for it (see
    `foreign_file`); OSError.
    """
    try:
        return None, [harmless(descriptor_of(tid, fd))]
    except PeerError as e:
        raise OSError(e.errno, str(e)) from e


def status_of(tid: int, name: bytes) -> int:
    """A number in /proc/TID/status; OSError."""
    with open(f"/proc/{tid}/status", "rb", buffering=0) as file:
        for line in file.read().splitlines():
            if line.startswith(name + b":"):
                return int(line.split()[1])
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def descriptor_of(tid: int, fd: int) -> int:
    """One for whatever open file is *fd* of thread *tid*; OSError."""
    pidfd = _open_pidfd(tid)
    try:
        return take(pidfd, fd)
    finally:
        os.close(pidfd)


def _open_pidfd(tid: int) -> int:
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError as e:
        if e.errno == errno.ESRCH:
            raise
    # Linux before 6.9: a process only, whose threads share descriptors as a rule
    return os.pidfd_open(status_of(tid, b"Tgid"))


def thread_group(tid: int) -> int:
    """The process (thread group) of thread *tid*.  Raises CallerIsGone."""
    try:
        return find_process(tid)[0]
    except (OSError, HostError):
        raise CallerIsGone(tid) from None


class ForeignThread:
    """One call of thread *tid*, which waits for us.  A context manager; opens what it needs.

    Args:
        tid: the thread, in our pid namespace.
        still_waits: asked after something was opened by *tid* and before it is used; False:
            the thread was interrupted or killed, and *tid* may be somebody else.
    """

    def __init__(self, tid: int, still_waits: Callable[[], bool] = lambda: True) -> None:
        self.tid = tid
        #: whether the thread waits for us, and its number is its own
        self.still_waits = still_waits
        self._pid = 0
        self._mem = self._maps = -1

    def __enter__(self) -> ForeignThread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the process.  Harmless when repeated."""
        for fd in (self._mem, self._maps):
            if fd >= 0:
                os.close(fd)
        self._mem = self._maps = -1

    @property
    def pid(self) -> int:
        """The thread's process (thread group).  Raises CallerIsGone."""
        if not self._pid:
            pid = thread_group(self.tid)
            self._check()
            self._pid = pid
        return self._pid

    def read(self, address: int, size: int) -> bytes:
        """*size* bytes of its memory; PeerError EFAULT, CallerIsGone."""
        if size == 0:
            return b""
        self._check_range(address, size, _READ)
        try:
            data = os.pread(self._mem, size, address)
        except OSError as e:
            raise _fault(address, size) from e
        if len(data) != size:
            raise _fault(address, size)
        return data

    def read_string(self, address: int, limit: int) -> bytes:
        """The bytes before a zero; PeerError EFAULT, ENAMETOOLONG beyond *limit* bytes."""
        found = bytearray()
        while len(found) < limit:  # a page at a time: the next one may not be there
            size = min(_PAGE - (address + len(found)) % _PAGE, limit - len(found))
            piece, end, _ = self.read(address + len(found), size).partition(b"\0")
            found += piece
            if end:
                return bytes(found)
        raise PeerError(f"a string of more than {limit} bytes", errno.ENAMETOOLONG)

    def write(self, address: int, data: bytes) -> None:
        """Into its memory; PeerError EFAULT, CallerIsGone."""
        if not data:
            return
        self._check_range(address, len(data), _WRITE)
        try:
            written = os.pwrite(self._mem, data, address)
        except OSError as e:
            raise _fault(address, len(data)) from e
        if written != len(data):
            raise _fault(address, len(data))

    def descriptor(self, fd: int) -> int:
        """A descriptor of ours, close-on-exec, for the open file that is its *fd*, if that can
        be of use here; else for one that cannot hold us up (see `foreign_file`).

        Raises PeerError: EBADF, CallerIsGone, or EPERM where we may not look into it.
        """
        try:
            [ours] = take_descriptor(self.tid, fd)[1]
        except (OSError, HostError) as e:
            if e.errno == errno.ESRCH:
                raise CallerIsGone(self.tid) from e
            why = f"descriptor {fd} of thread {self.tid}: {reason_of(e)}"
            raise PeerError(why, e.errno or errno.EPERM) from e
        try:
            self._check()
        except CallerIsGone:
            os.close(ours)
            raise
        return ours

    # --- taking hold --------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.still_waits():
            self.close()  # it may be a stranger's
            raise CallerIsGone(self.tid)

    def _open_memory(self) -> None:
        try:
            self._mem, self._maps = open_memory(self.tid)[1]
        except (OSError, HostError) as e:
            if e.errno in (errno.ENOENT, errno.ESRCH):
                raise CallerIsGone(self.tid) from e
            raise PeerError(
                f"we may not look into the memory of thread {self.tid}: {reason_of(e)}",
                errno.EFAULT,
            ) from e
        self._check()

    def _check_range(self, address: int, size: int, access: int) -> None:
        """EFAULT unless every page of the range is mapped for *access*."""
        if not 0 <= address <= address + size <= _END:
            raise _fault(address, size)
        if self._mem < 0:
            self._open_memory()
        at = address
        while at < address + size:
            end, allowed = self._mapping_of(at)
            if not allowed & access:
                raise _fault(address, size)
            at = end

    def _mapping_of(self, address: int) -> tuple[int, int]:
        """(end, what is allowed) of the mapping that holds *address*; nothing: no mapping."""
        query = bytearray(_PROCMAP_QUERY_SIZE)
        _QUERY.pack_into(query, 0, _PROCMAP_QUERY_SIZE, 0, address, 0, 0, 0)
        try:
            fcntl.ioctl(self._maps, _PROCMAP_QUERY, query)
        except OSError as e:
            if e.errno == errno.ENOTTY:  # Linux before 6.11
                return self._mapping_in_text(address)
            return _END, 0
        _, _, _, _, end, allowed = _QUERY.unpack_from(query)
        return end, allowed

    def _mapping_in_text(self, address: int) -> tuple[int, int]:
        for line in read_maps(self._maps).splitlines():
            span, protection = line.split()[:2]
            start, end = (int(word, 16) for word in span.split(b"-"))
            if start <= address < end:
                allowed = _READ * protection.startswith(b"r") | _WRITE * (b"w" in protection)
                return end, allowed
        return _END, 0


def _fault(address: int, size: int) -> PeerError:
    return PeerError(f"{size} bytes at {address:#x} of the caller cannot be reached", errno.EFAULT)

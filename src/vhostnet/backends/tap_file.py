"""A TAP that a client hands over with SET_BACKEND: what Linux's get_tap_socket() looks at.

The client has opened and configured it: nothing of it is changed here.  We hold a descriptor of
our own, so that the interface lives until the ring is detached.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from vhostnet.errors import PeerError
from vhostnet.uapi.tun import IFF_VNET_HDR, IFREQ_SIZE, TUNGETIFF, TUNGETVNETHDRSZ

from .backend import BackendQueue
from .tap import tap_queue

_TUN_DEVICE = os.makedev(10, 200)
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)
_KCMP_FILE = 0
_libc = ctypes.CDLL(None, use_errno=True)


class TapFile(BackendQueue):
    """A client's TAP as a backend queue.

    Attributes:
        ifname: the interface.
        tap_hdr_len: bytes of header that it speaks now.
    """

    def __init__(self, fd: int, ifname: str, tap_hdr_len: int) -> None:
        made = tap_queue(fd, fill_checksums=False)
        super().__init__(made.record, fd, made.keep)
        self.ifname = ifname
        self.tap_hdr_len = tap_hdr_len

    def set_header(self, vhost_hlen: int, sock_hlen: int) -> None:
        """What was negotiated: bytes that we make, bytes that the TAP makes."""
        record = self.record[0]
        record["made_hdr_len"] = vhost_hlen
        record["tap_hdr_len"] = self.tap_hdr_len
        record["hdr_mismatch"] = self.tap_hdr_len != sock_hlen

    def held(self) -> bytes:
        """The packet that was read and not delivered; empty: none."""
        record = self.record[0]
        return ctypes.string_at(int(record["hold_hva"]), int(record["hold_len"]))

    def hold(self, packet: bytes) -> None:
        """Keep a packet that was read from the same interface before."""
        ctypes.memmove(int(self.record[0]["hold_hva"]), packet, len(packet))
        self.record[0]["hold_len"] = len(packet)

    def is_file(self, fd: int) -> bool:
        """Whether *fd* is the same open file."""
        pid = os.getpid()
        if _SYS_KCMP >= 0:
            answer = _libc.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, fd, self.poll_fd)
            if answer >= 0:
                return bool(answer == 0)
        try:  # where kcmp is not permitted: a queue of the same interface
            return _interface(fd)[0] == self.ifname
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the interface; nothing may poll it any more."""
        if self.poll_fd >= 0:
            os.close(self.poll_fd)
            self.poll_fd = -1


def _interface(fd: int) -> tuple[str, int]:
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ_SIZE))
    name, flags = struct.unpack_from("=16sH", answer)
    return name.rstrip(b"\0").decode(errors="replace"), flags


def tap_file(fd: int) -> TapFile:
    """The TAP behind a descriptor, which stays the caller's.

    The copy is taken first and only the copy is looked at: the caller may change what its
    number means meanwhile (CVE-2023-1838).

    Raises:
        PeerError: ENOTSOCK, it is no TUN/TAP descriptor (packet sockets and macvtap are not
            served yet); EINVAL, it has no interface.
    """
    refused = PeerError(f"backend {fd}: is not a TUN/TAP descriptor", errno.ENOTSOCK)
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0) if fd >= 0 else -1
    except OSError:
        raise refused from None
    if copy < 0:
        raise refused
    try:
        status = os.fstat(copy)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _TUN_DEVICE:
            raise refused
        try:
            name, flags = _interface(copy)
        except OSError:
            raise PeerError(f"backend {fd}: has no interface", errno.EINVAL) from None
        hdr_len = 0
        if flags & IFF_VNET_HDR:
            answer = fcntl.ioctl(copy, TUNGETVNETHDRSZ, bytes(4))
            hdr_len = int(struct.unpack("=i", answer)[0])
        return TapFile(copy, name, hdr_len)
    except BaseException:
        os.close(copy)
        raise

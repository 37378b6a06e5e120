"""What a client hands over with SET_BACKEND: what Linux's get_socket() looks at.

That is a raw packet socket, or a queue of a TUN/TAP, macvtap or ipvtap device.  The client has
opened and configured it, and it is its to use further: descriptor flags and header sizes are
taken as they are.  We hold a descriptor of our own, so that the interface lives until the ring is
detached.  Whether the client's descriptor waits is its choice; ours never does, see
`datapath/frame_io.py`.

Not here: TAPs that we open (`tap.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import select
import socket
import stat
import struct

from vhostnet.datapath.layout import IO_NOWAIT, IO_PACKET_SOCKET
from vhostnet.errors import PeerError
from vhostnet.uapi.packet import PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_VNET_HDR_SZ, SOL_PACKET
from vhostnet.uapi.tun import IFF_VNET_HDR, IFREQ_SIZE, TUNGETIFF, TUNGETVNETHDRSZ
from vhostnet.uapi.virtio import VNET_HDR_LEN

from .backend import BackendQueue
from .tap import tap_queue

_TUN_DEVICE = os.makedev(10, 200)
#: Character devices of Linux's drivers/net/tap.c; their major numbers are given out at run time.
_TAP_DRIVERS = ("macvtap", "ipvtap")
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)
_KCMP_FILE = 0
_A_READ = 4096
SYSCALLS = ("kcmp", "pread64", "poll", "ppoll", "getsockname", "getsockopt", "setsockopt")
IOCTLS = (TUNGETIFF, TUNGETVNETHDRSZ)
_libc = ctypes.CDLL(None, use_errno=True)


class ClientFile(BackendQueue):
    """A client's packet socket or TAP as a backend queue.

    Args:
        fd: ours from now on.
        source: where its packets come from: an interface's name, or a socket's.
        file_hdr_len: bytes of header that it speaks now.
        io: layout.IO_*.
    """

    def __init__(self, fd: int, source: str, file_hdr_len: int, io: int) -> None:
        made = tap_queue(fd, fill_checksums=False)
        super().__init__(made.record, fd, made.keep)
        self.record[0]["io"] = io
        self.source = source
        self.file_hdr_len = file_hdr_len

    def set_header(self, vhost_hlen: int, sock_hlen: int) -> None:
        """What was negotiated: bytes that we make, bytes that the file makes."""
        record = self.record[0]
        record["made_hdr_len"] = vhost_hlen
        record["tap_hdr_len"] = self.file_hdr_len
        record["hdr_mismatch"] = self.file_hdr_len != sock_hlen

    def held(self) -> bytes:
        """The packet that was read and not delivered; empty: none."""
        record = self.record[0]
        return ctypes.string_at(int(record["hold_hva"]), int(record["hold_len"]))

    def hold(self, packet: bytes) -> None:
        """Keep a packet that was read from the same source before."""
        ctypes.memmove(int(self.record[0]["hold_hva"]), packet, len(packet))
        self.record[0]["hold_len"] = len(packet)

    def is_file(self, fd: int) -> bool:
        """Whether *fd* is the same open file."""
        pid = os.getpid()
        if _SYS_KCMP >= 0:
            answer = _libc.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, fd, self.poll_fd)
            if answer >= 0:
                return bool(answer == 0)
        try:  # where kcmp is not permitted: the same socket, or a queue of the same interface
            return _source(fd) == self.source
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the interface; nothing may poll it any more."""
        if self.poll_fd >= 0:
            os.close(self.poll_fd)
            self.poll_fd = -1


def client_file(fd: int) -> ClientFile:
    """The packet socket or TAP behind a descriptor, which stays the caller's.

    The copy is taken first and only the copy is looked at: the caller may change what its
    number means meanwhile (CVE-2023-1838).

    Raises:
        PeerError: ENOTSOCK, it is neither (CVE-2020-10942: nor are other sockets); EINVAL, it
            has no interface or an error is pending.
    """
    refused = PeerError(
        f"backend {fd}: is neither a raw packet socket nor a TUN/TAP or macvtap descriptor",
        errno.ENOTSOCK,
    )
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0) if fd >= 0 else -1
    except OSError:
        raise refused from None
    if copy < 0:
        raise refused
    try:
        status = os.fstat(copy)
        if stat.S_ISSOCK(status.st_mode) and _is_raw_packet_socket(copy):
            hdr_len, io = _socket_hdr_len(copy), IO_PACKET_SOCKET
        elif stat.S_ISCHR(status.st_mode) and _is_tap(status.st_rdev):
            hdr_len, io = _tap_hdr_len(copy), IO_NOWAIT
        else:
            raise refused
        if _has_error(copy):
            raise PeerError(f"backend {fd}: its poll says error")
        return ClientFile(copy, _source(copy), hdr_len, io)
    except OSError as e:
        os.close(copy)
        raise PeerError(f"backend {fd}: has no interface ({e.strerror})") from None
    except BaseException:
        os.close(copy)
        raise


def _source(fd: int) -> str:
    """The interface of a TAP, or the name that the kernel gives a socket."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return f"socket:[{os.fstat(fd).st_ino}]"
    return _interface(fd)[0]


def _has_error(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


# --- TUN/TAP, macvtap, ipvtap ---------------------------------------------------------------------


def _is_tap(device: int) -> bool:
    if device == _TUN_DEVICE:
        return True
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.pread(device_numbers(), _A_READ, len(text)):
            text += piece
    characters, _, _ = text.decode().partition("Block devices:")
    for line in characters.splitlines():
        words = line.split()
        if len(words) == 2 and words[1] in _TAP_DRIVERS and int(words[0]) == os.major(device):
            return True
    return False


@functools.cache
def device_numbers() -> int:
    """/proc/devices, which says what is loaded now; opened once, a sealed process cannot."""
    return os.open("/proc/devices", os.O_RDONLY | os.O_CLOEXEC)


def _interface(fd: int) -> tuple[str, int]:
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ_SIZE))
    name, flags = struct.unpack_from("=16sH", answer)
    return name.rstrip(b"\0").decode(errors="replace"), flags


def _tap_hdr_len(fd: int) -> int:
    if not _interface(fd)[1] & IFF_VNET_HDR:
        return 0
    return int(struct.unpack("=i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4)))[0])


# --- packet sockets -------------------------------------------------------------------------------


def _is_raw_packet_socket(fd: int) -> bool:
    made = socket.socket(fileno=fd)
    try:
        return (made.family, made.type) == (socket.AF_PACKET, socket.SOCK_RAW)
    finally:
        made.detach()


def _socket_hdr_len(fd: int) -> int:
    """Bytes of virtio_net_hdr that the socket speaks; OSError.

    The one thing that is changed of a client's socket: with PACKET_AUXDATA the kernel says, to
    those who ask, whether it took a VLAN tag off.  Without, a frame of another VLAN could not be
    told from the guest's own.
    """
    made = socket.socket(fileno=fd)
    try:
        made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        try:
            return made.getsockopt(SOL_PACKET, PACKET_VNET_HDR_SZ)
        except OSError as e:  # before Linux 6.5
            if e.errno != errno.ENOPROTOOPT:
                raise
        return VNET_HDR_LEN if made.getsockopt(SOL_PACKET, PACKET_VNET_HDR) else 0
    finally:
        made.detach()

"""One frame in or out of a descriptor, by the call that never waits.

A descriptor that we opened is non-blocking.  One that a client shares with us is as the client
wants it, and its flags are the client's too: a call that would wait has to be told not to, each
time.  What was tried (Linux 6.18): preadv2 and pwritev2 with RWF_NOWAIT work on TUN/TAP and macvtap
descriptors; sockets take MSG_DONTWAIT.  Before Linux 6.4 TAPs refuse RWF_NOWAIT with EOPNOTSUPP;
then they are asked by poll before each read, and a write is tried: it waits only if the client
has limited the send buffer, and control's signal ends it (see device/worker.py).

A packet socket takes VLAN tags off what it receives and says so on the side.  Linux's vhost
expects such a frame to be four bytes longer than it turns out to be, and loses it.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper
from vhostnet.native.libc_nowait_raw import RWF_NOWAIT, preadv2, pwritev2, recvmsg, sendmsg
from vhostnet.native.libc_raw import is_readable, read, write, writev
from vhostnet.native.ordering import (
    load_relaxed_i32,
    load_relaxed_i64,
    store_i64,
)
from vhostnet.uapi.packet import (
    CMSG_DATA,
    CMSG_LEVEL,
    CMSG_TYPE,
    MSG_DONTWAIT,
    MSG_TRUNC,
    MSGHDR_CONTROL,
    MSGHDR_CONTROLLEN,
    MSGHDR_FLAGS,
    MSGHDR_IOV,
    MSGHDR_IOVLEN,
    MSGHDR_SIZE,
    PACKET_AUXDATA,
    SOL_PACKET,
    TP_STATUS_VLAN_VALID,
)

from .layout import (
    IO_NOWAIT,
    IO_OWN,
    IO_PACKET_SOCKET,
    IO_POLLED,
    IO_SCRATCH,
    IO_SCRATCH_CONTROL,
    IO_SCRATCH_CONTROL_SIZE,
    IO_SCRATCH_IOVEC,
    IO_SCRATCH_MSGHDR,
)

Record = Any
EAGAIN, EOPNOTSUPP = errno.EAGAIN, errno.EOPNOTSUPP


@helper
def read_frame(bk: Record, hva: int, size: int) -> int:
    """Read one frame: bytes (0: one that is to be thrown away), or -errno."""
    fd = int(bk["tap_fd"])
    io = int(bk["io"])
    if io == IO_OWN:
        return read(fd, hva, size)
    scratch_hva = int(bk["hdr_hva"]) + IO_SCRATCH
    iovec_hva = scratch_hva + IO_SCRATCH_IOVEC
    store_i64(iovec_hva, hva)
    store_i64(iovec_hva + 8, size)
    if io == IO_PACKET_SOCKET:
        return _receive(fd, scratch_hva)
    if io == IO_NOWAIT:
        got = preadv2(fd, iovec_hva, 1, -1, RWF_NOWAIT)
        if got != -EOPNOTSUPP:
            return got
        bk["io"] = IO_POLLED
    return read(fd, hva, size) if is_readable(fd, scratch_hva) else -EAGAIN


@helper
def write_frame(bk: Record, iov_hva: int, n_iov: int) -> int:
    """Write one frame: bytes, or -errno."""
    fd = int(bk["tap_fd"])
    io = int(bk["io"])
    if io == IO_OWN or io == IO_POLLED:
        if n_iov == 1:
            return write(fd, load_relaxed_i64(iov_hva), load_relaxed_i64(iov_hva + 8))
        return writev(fd, iov_hva, n_iov)
    if io == IO_PACKET_SOCKET:
        msg_hva = int(bk["hdr_hva"]) + IO_SCRATCH + IO_SCRATCH_MSGHDR
        _fill_msghdr(msg_hva, iov_hva, n_iov, 0, 0)
        return sendmsg(fd, msg_hva, MSG_DONTWAIT)
    put = pwritev2(fd, iov_hva, n_iov, -1, RWF_NOWAIT)
    if put != -EOPNOTSUPP:
        return put
    bk["io"] = IO_POLLED
    return writev(fd, iov_hva, n_iov)


@helper
def _fill_msghdr(msg_hva: int, iov_hva: int, n_iov: int, control_hva: int, size: int) -> None:
    for at in range(0, MSGHDR_SIZE, 8):
        store_i64(msg_hva + at, 0)
    store_i64(msg_hva + MSGHDR_IOV, iov_hva)
    store_i64(msg_hva + MSGHDR_IOVLEN, n_iov)
    store_i64(msg_hva + MSGHDR_CONTROL, control_hva)
    store_i64(msg_hva + MSGHDR_CONTROLLEN, size)


@helper
def _receive(fd: int, scratch_hva: int) -> int:
    msg_hva = scratch_hva + IO_SCRATCH_MSGHDR
    control_hva = scratch_hva + IO_SCRATCH_CONTROL
    _fill_msghdr(msg_hva, scratch_hva + IO_SCRATCH_IOVEC, 1, control_hva, IO_SCRATCH_CONTROL_SIZE)
    got = recvmsg(fd, msg_hva, MSG_DONTWAIT)
    if got < 0:
        return got
    if load_relaxed_i32(msg_hva + MSGHDR_FLAGS) & MSG_TRUNC:  # longer than any guest can take
        return 0
    controllen = load_relaxed_i64(msg_hva + MSGHDR_CONTROLLEN)
    return 0 if _lost_its_tag(control_hva, controllen) else got


@helper
def _lost_its_tag(control_hva: int, controllen: int) -> bool:
    """Whether the kernel says that it took a VLAN tag off."""
    at = 0
    while at + CMSG_DATA + 4 <= controllen:
        size = load_relaxed_i64(control_hva + at)
        if (
            load_relaxed_i32(control_hva + at + CMSG_LEVEL) == SOL_PACKET
            and load_relaxed_i32(control_hva + at + CMSG_TYPE) == PACKET_AUXDATA
        ):
            return load_relaxed_i32(control_hva + at + CMSG_DATA) & TP_STATUS_VLAN_VALID != 0
        if size < CMSG_DATA:
            break
        at += (size + 7) & ~7
    return False

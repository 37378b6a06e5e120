"""TUN/TAP, and what a client has in its place: one system call a packet, the header in front.

Sending: the header is copied to private memory first and corrected there; the frame goes to
the kernel from the guest's own pages, or with the header if it is small.  Receiving: a TAP has
no peek, so one packet is read into private memory and held until the guest has buffers for it.

A signal (control shakes a worker that is stuck) ends the run of a handler as EAGAIN does, so that a
descriptor that waits against all expectation cannot hold it.

The TAP is polled edge-triggered: `readable` says what is known since the last edge, and only
EAGAIN takes it back.  A write is always tried: an interface that is down is never writable, and
the write says so.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.libc_raw import is_readable, is_writable
from vhostnet.native.ordering import (
    load_relaxed_u16,
    load_u8,
    store_i64,
    store_relaxed_u16,
)
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VNET_HDR_FLAGS,
    VNET_HDR_GSO_TYPE,
    VNET_HDR_HDR_LEN,
)

from .backend_ops import (
    backend_consume,
    backend_peek,
    backend_ready,
    backend_send,
    backend_turns,
)
from .checksum import fill_partial_checksum
from .frame_io import read_frame, write_frame
from .iov import iov_skip, iov_to_buffer
from .layout import (
    COALESCING_TAP,
    HOLD_SIZE,
    IO_PACKET_SOCKET,
    IO_SCRATCH,
    IOVEC_SIZE,
    TAP,
    UIO_MAXIOV,
    VHOST_NET_PKT_WEIGHT,
)

Record = Any
#: Header and frame of at most so many bytes are copied and written as one piece: the kernel takes
#: longer for a second piece than this copy takes.
COPIED_FRAME = 512
EAGAIN, EINTR, EBADFD, EBADF = errno.EAGAIN, errno.EINTR, errno.EBADFD, errno.EBADF
EMSGSIZE, ENOBUFS, ENETDOWN = errno.EMSGSIZE, errno.ENOBUFS, errno.ENETDOWN


@helper
def correct_header(hdr_hva: int, frame_len: int) -> None:
    """Take away a header-length hint that the TAP would refuse and Linux vhost lets pass.

    Without a partial checksum and without GSO, hdr_len is a hint only; tun refuses one that
    is longer than the frame, while vhost_net's batched path never looks at it.
    """
    if load_u8(hdr_hva + VNET_HDR_GSO_TYPE) != 0:
        return
    if load_u8(hdr_hva + VNET_HDR_FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return
    if load_relaxed_u16(hdr_hva + VNET_HDR_HDR_LEN) > frame_len:
        store_relaxed_u16(hdr_hva + VNET_HDR_HDR_LEN, 0)


@helper
def send_frame(bk: Record, iov_hva: int, n_iov: int) -> int:
    """Write one frame; 0 or -errno as `backend_send`."""
    result = write_frame(bk, iov_hva, n_iov)
    if result >= 0:
        return 0
    if result == -EAGAIN or result == -EINTR:
        # Ask before waiting for an edge: a TAP announces room only to those who asked.
        scratch_hva = int(bk["hdr_hva"]) + IO_SCRATCH
        return -ENOBUFS if is_writable(int(bk["tap_fd"]), scratch_hva) else -EAGAIN
    if result == -EBADFD or result == -EBADF:
        bk["gone"] = 1
        result = -EBADFD
    bk["write_errors"] += 1
    bk["write_errno"] = -result
    return result


@helper
def send_from_iov(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    """`backend_send` for a packet that goes out by itself, as it is."""
    if total <= COPIED_FRAME and not bk["made_hdr_len"]:
        packet_hva = int(bk["bounce_hva"])
        iov_to_buffer(iov, at, n, packet_hva, total)
        if int(bk["io"]) != IO_PACKET_SOCKET:
            correct_header(packet_hva, total - hdr_len)
        iov[at]["iov_base"] = packet_hva
        iov[at]["iov_len"] = total
        return send_frame(bk, iov.ctypes.data + at * IOVEC_SIZE, 1)
    hdr_hva = int(bk["hdr_hva"])
    iov_to_buffer(iov, at, n, hdr_hva, hdr_len)  # before the pieces are changed
    first = iov_skip(iov, at, n, hdr_len)
    if not bk["made_hdr_len"]:
        if int(bk["io"]) != IO_PACKET_SOCKET:  # Linux's vhost does not batch those
            correct_header(hdr_hva, total - hdr_len)
        first -= 1  # the piece before the frame becomes the header
        iov[first]["iov_base"] = hdr_hva
        iov[first]["iov_len"] = hdr_len
    pieces = at + n - first
    if pieces > UIO_MAXIOV:  # the header made it one too many: gather it
        if total > HOLD_SIZE:
            return -EMSGSIZE
        bounce_hva = int(bk["bounce_hva"])
        iov_to_buffer(iov, first, pieces, bounce_hva, total)
        iov[first]["iov_base"] = bounce_hva
        iov[first]["iov_len"] = total
        pieces = 1
    return send_frame(bk, iov.ctypes.data + first * IOVEC_SIZE, pieces)


@implements(backend_send, TAP)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    return send_from_iov(bk, iov, at, n, hdr_len, total)


@helper
def _note_read_error(bk: Record, result: int) -> None:
    bk["read_errors"] += 1
    bk["read_errno"] = -result


@implements(backend_peek, TAP, COALESCING_TAP)
def _peek(bk: Record) -> tuple[int, int]:
    hold_hva = int(bk["hold_hva"])
    held = int(bk["hold_len"])
    if held > 0:
        return hold_hva, held
    made = int(bk["made_hdr_len"])
    hdr_len = int(bk["tap_hdr_len"])
    thrown_away = 0
    while bk["readable"]:
        if thrown_away >= VHOST_NET_PKT_WEIGHT:  # a flood of these must not hold the worker
            return 0, -EAGAIN
        # Older kernels leave header bytes beyond 10 as they were: they must not carry
        # anything from the packet before.
        if made + hdr_len > 0:
            store_i64(hold_hva, 0)
            store_i64(hold_hva + made + hdr_len - 8, 0)
        got = read_frame(bk, hold_hva + made, HOLD_SIZE - made)
        if got == -EINTR and is_readable(int(bk["tap_fd"]), int(bk["hdr_hva"]) + IO_SCRATCH):
            continue
        if got == -ENETDOWN:  # a socket says it once; what it received before is still there
            continue
        if got == -EBADFD or got == -EBADF:
            bk["readable"] = 0
            bk["gone"] = 1
            _note_read_error(bk, got)
            return 0, -EBADFD
        if got < 0:  # EAGAIN, EINTR; anything else would be new, and an edge tells when to retry
            bk["readable"] = 0
            if got != -EAGAIN and got != -EINTR:
                _note_read_error(bk, got)
            break
        if got <= hdr_len or bk["hdr_mismatch"]:
            thrown_away += 1
            bk["thrown_away"] += 1
            continue
        got += made
        if bk["fill_checksums"]:
            fill_partial_checksum(hold_hva, hdr_len, got, int(bk["guest_csum"]))
        bk["hold_len"] = got
        return hold_hva, got
    return 0, 0


@implements(backend_consume, TAP, COALESCING_TAP)
def _consume(bk: Record) -> None:
    bk["hold_len"] = 0


@implements(backend_turns, TAP, COALESCING_TAP)
def _turns(bk: Record) -> bool:
    return False


@implements(backend_ready, TAP, COALESCING_TAP)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    if readable:
        bk["readable"] = 1

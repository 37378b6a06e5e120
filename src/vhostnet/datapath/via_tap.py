"""TUN/TAP: one system call a packet, the header in front.

Sending: the header is copied to private memory first and corrected there; the frame goes to
the kernel from the guest's own pages.  Receiving: a TAP has no peek, so one packet is read
into private memory and held until the guest has buffers for it.

The TAP is polled edge-triggered: `readable` says what is known since the last edge, and only
EAGAIN takes it back.  A write is always tried: an interface that is down is never writable, and
the write says so.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.libc_raw import is_writable, read, writev
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
from .iov import iov_skip, iov_to_buffer
from .layout import HOLD_SIZE, IOVEC_SIZE, TAP, UIO_MAXIOV

Record = Any
EAGAIN, EINTR, EBADFD, EBADF = errno.EAGAIN, errno.EINTR, errno.EBADFD, errno.EBADF
EMSGSIZE, ENOBUFS = errno.EMSGSIZE, errno.ENOBUFS
#: Behind the longest header, in the room for private copies of it.
HDR_SCRATCH = 32


@helper
def _correct_header(hdr_hva: int, frame_len: int) -> None:
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


@implements(backend_send, TAP)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    hdr_hva = int(bk["hdr_hva"])
    iov_to_buffer(iov, at, n, hdr_hva, hdr_len)  # before the pieces are changed
    first = iov_skip(iov, at, n, hdr_len)
    if not bk["made_hdr_len"]:
        _correct_header(hdr_hva, total - hdr_len)
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
    iov_hva = iov.ctypes.data + first * IOVEC_SIZE
    result = writev(int(bk["tap_fd"]), iov_hva, pieces)
    while result == -EINTR:
        result = writev(int(bk["tap_fd"]), iov_hva, pieces)
    if result >= 0:
        return 0
    if result == -EAGAIN:
        # Ask before waiting for an edge: a TAP announces room only to those who asked.
        scratch_hva = int(bk["hdr_hva"]) + HDR_SCRATCH
        return -ENOBUFS if is_writable(int(bk["tap_fd"]), scratch_hva) else -EAGAIN
    if result == -EBADFD or result == -EBADF:
        bk["gone"] = 1
        return -EBADFD
    return result


@implements(backend_peek, TAP)
def _peek(bk: Record) -> tuple[int, int]:
    hold_hva = int(bk["hold_hva"])
    held = int(bk["hold_len"])
    if held > 0:
        return hold_hva, held
    made = int(bk["made_hdr_len"])
    hdr_len = int(bk["tap_hdr_len"])
    while bk["readable"]:
        # Older kernels leave header bytes beyond 10 as they were: they must not carry
        # anything from the packet before.
        if made + hdr_len > 0:
            store_i64(hold_hva, 0)
            store_i64(hold_hva + made + hdr_len - 8, 0)
        got = read(int(bk["tap_fd"]), hold_hva + made, HOLD_SIZE - made)
        if got == -EINTR:
            continue
        if got == -EBADFD or got == -EBADF:
            bk["readable"] = 0
            bk["gone"] = 1
            return 0, -EBADFD
        if got < 0:  # EAGAIN; anything else would be new, and an edge tells when to retry
            bk["readable"] = 0
            break
        if got <= hdr_len or bk["hdr_mismatch"]:
            continue
        got += made
        if bk["fill_checksums"]:
            fill_partial_checksum(hold_hva, hdr_len, got, int(bk["guest_csum"]))
        bk["hold_len"] = got
        return hold_hva, got
    return 0, 0


@implements(backend_consume, TAP)
def _consume(bk: Record) -> None:
    bk["hold_len"] = 0


@implements(backend_turns, TAP)
def _turns(bk: Record) -> bool:
    return False


@implements(backend_ready, TAP)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    if readable:
        bk["readable"] = 1

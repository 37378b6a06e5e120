"""One frame from one guest's buffers into the other's, whatever the two negotiated.

The way of nearly every frame is one copy, from buffer to buffer: `put_frame`.  Its header is never
the sender's: it is made anew, with what the receiver may see of a private copy.  Only a frame that
the receiver could not read goes through memory of ours, to have a checksum filled in or to be cut.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, hot
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import (
    load_relaxed_u16,
    load_u8,
    store_i64,
    store_relaxed_u16,
    store_u8,
)
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VNET_HDR_CSUM_OFFSET,
    VNET_HDR_CSUM_START,
    VNET_HDR_FLAGS,
    VNET_HDR_GSO_SIZE,
    VNET_HDR_GSO_TYPE,
    VNET_HDR_HDR_LEN,
    VNET_HDR_LEN,
    VNET_HDR_NUM_BUFFERS,
)

from .capture import capture_begin, capture_end
from .checksum import fill_partial_checksum
from .dirty_log_raw import log_data
from .iov import iov_from_buffer, iov_to_buffer, iov_to_iov
from .layout import HOLD_SIZE, IOVEC_SIZE, PORT_OUT_HDR, VHOST_NET_BATCH
from .rx import MALFORMED, NO_BUFFERS, TOO_SMALL, complete, get_rx_bufs
from .segment import frame_headers, make_segment
from .vring_ops import publish_used, signal_used
from .work import ring_error

Record = Any
EFAULT, EINVAL, EMSGSIZE = errno.EFAULT, errno.EINVAL, errno.EMSGSIZE
ENOSPC, ENOTCONN = errno.ENOSPC, errno.ENOTCONN
#: Linux's tun takes no less either.
ETH_HLEN = 14
#: `read_header`: how a frame has to go.
AS_IT_IS = 0
FILL_CHECKSUM = 1
CUT = 2


@hot
def put_frame(
    out: Record,
    regions: Any,
    link: Record,
    src: Any,
    at: int,
    n: int,
    skip: int,
    frame_len: int,
    dst: Any,
    heads: Any,
) -> int:
    """Copy a frame, behind the receiver's header at link's PORT_OUT_HDR, into its buffers.

    Args:
        out: the receiver's ring.
        regions: its memory.
        src: the frame is src[at:at + n] without the first *skip* bytes, *frame_len* of them.
        dst, heads: scratch, as `get_rx_bufs` takes them.

    Returns:
        0; -ENOSPC: no buffers; -EMSGSIZE: they are too small; -EFAULT: one cannot be written;
        -ENOTCONN: the ring is broken.
    """
    hdr_hva = int(link["port_hdr_hva"]) + PORT_OUT_HDR
    hdr_len = int(out["hdr_len"])
    need = hdr_len + frame_len
    n_heads, n_iov = get_rx_bufs(out, regions, dst, heads, need)
    if n_heads <= 0:
        if n_heads == NO_BUFFERS:
            return -ENOSPC
        if n_heads == TOO_SMALL:
            out["drop_too_small"] += 1
            return -EMSGSIZE
        if n_heads == MALFORMED:
            return -EFAULT
        ring_error(out, n_heads)
        return -ENOTCONN
    if hdr_len > VNET_HDR_LEN:
        n_buffers = n_heads if out["set_num_buffers"] else 0
        store_relaxed_u16(hdr_hva + VNET_HDR_NUM_BUFFERS, n_buffers)
    capture_hva = int(out["capture_hva"])
    if capture_hva != 0:
        piece_hva = src.ctypes.data + at * IOVEC_SIZE
        capture_begin(capture_hva, hdr_hva, piece_hva, n, skip, skip + frame_len)
        capture_end(capture_hva, 0)
    iov_from_buffer(dst, 0, n_iov, hdr_hva, hdr_len)
    iov_to_iov(src, at, n, skip, dst, 0, n_iov, hdr_len, frame_len)
    if out["log_all"]:
        log_data(out, regions, dst, n_iov, need)
    complete(out, heads, n_heads, need)
    out["packets"] += 1
    out["bytes"] += need
    if load_u8(hdr_hva + VNET_HDR_GSO_TYPE) != 0:
        out["gso_packets"] += 1
    if int(out["done_idx"]) >= VHOST_NET_BATCH:
        publish_used(out)
        signal_used(out)
    return 0


@hot
def read_header(link: Record, frame_len: int) -> int:
    """Make the receiver's header of the private copy of the sender's.

    Returns:
        AS_IT_IS, FILL_CHECKSUM or CUT (the header made is then not for use); -EINVAL for one that
        does not fit its frame, which Linux's tun would refuse as well.
    """
    hdr_hva = int(link["port_hdr_hva"])
    out_hva = hdr_hva + PORT_OUT_HDR
    store_i64(out_hva, 0)
    store_i64(out_hva + 8, 0)
    flags = load_u8(hdr_hva + VNET_HDR_FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM
    gso = load_u8(hdr_hva + VNET_HDR_GSO_TYPE)
    if flags == 0 and gso == VIRTIO_NET_HDR_GSO_NONE:
        return AS_IT_IS
    start = load_relaxed_u16(hdr_hva + VNET_HDR_CSUM_START)
    offset = load_relaxed_u16(hdr_hva + VNET_HDR_CSUM_OFFSET)
    # a frame to be cut tells by csum_start where its transport header is: without it, nobody could
    if flags == 0 or start + offset + 2 > frame_len:
        return -EINVAL
    store_u8(out_hva + VNET_HDR_FLAGS, flags)
    store_relaxed_u16(out_hva + VNET_HDR_CSUM_START, start)
    store_relaxed_u16(out_hva + VNET_HDR_CSUM_OFFSET, offset)
    if gso == VIRTIO_NET_HDR_GSO_NONE:
        return AS_IT_IS if link["peer_csum"] else FILL_CHECKSUM
    kind = gso & ~VIRTIO_NET_HDR_GSO_ECN
    if (
        kind != VIRTIO_NET_HDR_GSO_TCPV4
        and kind != VIRTIO_NET_HDR_GSO_TCPV6
        and kind != VIRTIO_NET_HDR_GSO_UDP_L4
    ):
        return -EINVAL
    size = load_relaxed_u16(hdr_hva + VNET_HDR_GSO_SIZE)
    headers = load_relaxed_u16(hdr_hva + VNET_HDR_HDR_LEN)
    if size == 0 or headers > frame_len:
        return -EINVAL
    if not int(link["peer_gso"]) >> kind & 1 or (gso != kind and not link["peer_ecn"]):
        return CUT
    store_u8(out_hva + VNET_HDR_GSO_TYPE, gso)
    store_relaxed_u16(out_hva + VNET_HDR_HDR_LEN, headers)
    store_relaxed_u16(out_hva + VNET_HDR_GSO_SIZE, size)
    return AS_IT_IS


@helper
def put_segments(
    out: Record,
    regions: Any,
    link: Record,
    frame_hva: int,
    frame_len: int,
    src: Any,
    dst: Any,
    heads: Any,
) -> tuple[int, int]:
    """Cut a frame that lies in private memory, and put the pieces.

    Each segment is made in its place: its headers go over the end of the payload before it, which
    has been put by then.

    Returns:
        (as `put_frame`, of the first piece that failed: the rest is dropped with it; pieces).
    """
    hdr_hva = int(link["port_hdr_hva"])
    kind = load_u8(hdr_hva + VNET_HDR_GSO_TYPE) & ~VIRTIO_NET_HDR_GSO_ECN
    is_udp = kind == VIRTIO_NET_HDR_GSO_UDP_L4
    start = load_relaxed_u16(hdr_hva + VNET_HDR_CSUM_START)
    offset = load_relaxed_u16(hdr_hva + VNET_HDR_CSUM_OFFSET)
    mss = load_relaxed_u16(hdr_hva + VNET_HDR_GSO_SIZE)
    l3, l4, headers = frame_headers(frame_hva, frame_len, kind, start, offset)
    payload = frame_len - headers
    if l3 < 0 or headers - l3 + min(mss, payload) > 0xFFFF:
        return -EINVAL, 1
    template_hva = int(link["template_hva"])
    copy_bytes(template_hva, frame_hva, headers)
    out_hva = hdr_hva + PORT_OUT_HDR
    store_i64(out_hva, 0)  # what a segment needs is done; 0 stays of the rest of the header
    store_i64(out_hva + 8, 0)
    at = 0
    index = 0
    while True:
        size = min(mss, payload - at)
        hva = frame_hva + at
        is_last = at + size >= payload
        make_segment(hva, template_hva, l3, l4, headers, is_udp, at, size, index, is_last)
        src[0]["iov_base"] = hva
        src[0]["iov_len"] = headers + size
        result = put_frame(out, regions, link, src, 0, 1, 0, headers + size, dst, heads)
        index += 1
        if result < 0 or is_last:
            return result, index
        at += size


@hot
def forward_frame(
    vq: Record,
    out: Record,
    regions: Any,
    link: Record,
    src: Any,
    n: int,
    total: int,
    dst: Any,
    heads: Any,
) -> tuple[int, int]:
    """Give the receiver one packet of the sender's.

    Args:
        vq: the sender's ring.
        src: the packet is src[1:1 + n], header first; src[0] is free to use.
        total: bytes of header and frame, more than the header.

    Returns:
        (0 or -errno as `put_frame`; frames made of it, for the weight).
    """
    hdr_len = int(vq["hdr_len"])
    frame_len = total - hdr_len
    if frame_len < ETH_HLEN:
        return -EINVAL, 1
    if total > HOLD_SIZE:
        return -EMSGSIZE, 1
    hdr_hva = int(link["port_hdr_hva"])
    iov_to_buffer(src, 1, n, hdr_hva, hdr_len)
    way = read_header(link, frame_len)
    if way < 0:
        return way, 1
    at = 1
    skip = hdr_len
    if way != AS_IT_IS:
        bounce_hva = int(link["frame_bounce_hva"])
        iov_to_buffer(src, 1, n, bounce_hva, total)
        # the frame may be another one by now, the header is the one that was checked
        copy_bytes(bounce_hva, hdr_hva, hdr_len)
        frame_hva = bounce_hva + hdr_len
        if way == CUT:
            return put_segments(out, regions, link, frame_hva, frame_len, src, dst, heads)
        fill_partial_checksum(bounce_hva, hdr_len, total, 0)
        out_hva = hdr_hva + PORT_OUT_HDR
        store_i64(out_hva, 0)
        store_i64(out_hva + 8, 0)
        src[0]["iov_base"] = frame_hva
        src[0]["iov_len"] = frame_len
        at = 0
        n = 1
        skip = 0
    return put_frame(out, regions, link, src, at, n, skip, frame_len, dst, heads), 1

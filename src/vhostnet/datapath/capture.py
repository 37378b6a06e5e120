"""What a handler does for a capture: put a packet into a ring of blocks that another thread writes.

Theory of operation
-------------------
A queue that is captured has a CAPTURE record and in it a ring of pcapng Enhanced Packet Blocks,
just as they will be in the file: the thread that writes has nothing to format (`capture_merge`).
The worker is the only one to fill the ring, that thread the only one to empty it; neither ever
waits for the other.  A packet for which there is no room is counted, and the next block says how
many there were.

A packet is captured in two steps, since what becomes of it is known only after it was sent, and
its bytes may be gone by then:

    NONE    `capture_begin`: the time, and the frame's beginning copied behind the ring's head
    OPEN    `capture_end`: comments and the end of the block; the head moves over it
        Operations:  another `capture_begin` forgets it: the packet goes back to the ring and
                     will be captured when it comes again
        Caveats:     nobody else sees it

The filter is applied here, to the copy: what it keeps is what it looked at, whatever the guest does
with its pages, and a rare flow can be found at a rate that no disk could follow.  A filter sees at
least FILTER_BYTES of a packet, however few are kept.

The handlers test one word of the ring's record; all of this is machine code that they call by its
address (native/code_address.py), so that it is compiled once and is not within their loops.

Source: pcapng (draft-ietf-opsawg-pcapng), section 4.3.
"""

from __future__ import annotations

from vhostnet.native._jit import helper
from vhostnet.native.code_address import call_code
from vhostnet.native.libc_raw import copy_bytes, realtime_ns
from vhostnet.native.ordering import (
    load_i64_at,
    load_relaxed_i64,
    load_relaxed_u16,
    load_u8,
    smp_rmb,
    store_i64,
    store_relaxed_u32,
    store_release_i64,
    store_u8,
)
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VNET_HDR_CSUM_OFFSET,
    VNET_HDR_CSUM_START,
    VNET_HDR_FLAGS,
    VNET_HDR_GSO_SIZE,
    VNET_HDR_GSO_TYPE,
    VNET_HDR_MRG_LEN,
)

from .bpf import run_filter
from .layout import (
    CAPTURE,
    CAPTURE_SCRATCH_HDR,
    CAPTURE_SCRATCH_IOVEC,
    CAPTURE_TEXT_SIZE,
    IOVEC_SIZE,
    MAX_FRAME,
    field_offset,
)

#: What became of a packet that was not sent, beside negative errnos.
DROPPED_MALFORMED = -200
DROPPED_DISABLED = -201
DROPPED_SHORT = -202
DROPPED_TOO_SMALL = -203
#: Of texts: 0 to 7 by GSO type, these, and from TEXT_DROPPED on by what became of the packet.
TEXT_ECN = 8
TEXT_PARTIAL = 9
TEXT_VALID = 10
TEXT_PLUS = 11
TEXT_AND = 12
TEXT_DROPPED = 16
N_TEXTS = TEXT_DROPPED + 256

#: A filter sees so many bytes: Ethernet, VLAN tags, IPv6 with extension headers, TCP.
FILTER_BYTES = 256
#: An Enhanced Packet Block: before the frame, and at most behind it (padding, options, length).
EPB_HEAD = 28
EPB_TAIL = 256
#: Before a jump to the ring's beginning: no block has this type.
JUMP = 0xFFFFFFFF
_EPB = 6
_OPT_COMMENT, _EPB_FLAGS, _EPB_DROPCOUNT = 1, 2, 4

_BEGIN_CODE = field_offset(CAPTURE, "begin_code")
_END_CODE = field_offset(CAPTURE, "end_code")
_BLOCKS = field_offset(CAPTURE, "blocks_hva")
_SIZE = field_offset(CAPTURE, "blocks_size")
_INTERFACE = field_offset(CAPTURE, "interface_id")
_FLAGS = field_offset(CAPTURE, "packet_flags")
_SNAPLEN = field_offset(CAPTURE, "snaplen")
_FILTER = field_offset(CAPTURE, "filter_hva")
_FILTER_LEN = field_offset(CAPTURE, "filter_len")
_FILTER_MEMORY = field_offset(CAPTURE, "filter_memory_hva")
_TEXTS = field_offset(CAPTURE, "texts_hva")
_SCRATCH = field_offset(CAPTURE, "capture_scratch_hva")
_WANTED = field_offset(CAPTURE, "wanted")
_TAIL = field_offset(CAPTURE, "blocks_tail")
_HEAD = field_offset(CAPTURE, "blocks_head")
_OPEN_AT = field_offset(CAPTURE, "open_at")
_OPEN_LEN = field_offset(CAPTURE, "open_len")
_LOST_SINCE = field_offset(CAPTURE, "lost_since")
_SEEN = field_offset(CAPTURE, "seen")
_ACCEPTED = field_offset(CAPTURE, "accepted")
_LOST = field_offset(CAPTURE, "lost")


# --- what handlers call -------------------------------------------------------------------------


@helper
def capture_begin(
    capture_hva: int, hdr_hva: int, iov_hva: int, n: int, skip: int, total: int
) -> None:
    """Copy a packet's beginning; nobody sees it before `capture_end`.

    Args:
        capture_hva: the ring's CAPTURE record.
        hdr_hva: its virtio_net_hdr; 0: that is the first *skip* bytes of the pieces.
        iov_hva: IOVEC[n], memory of ours or mapped.
        skip: bytes before the frame.
        total: bytes of the pieces, or more than MAX_FRAME: then they are not looked at.
    """
    call_code(load_i64_at(capture_hva, _BEGIN_CODE), capture_hva, hdr_hva, iov_hva, n, skip, total)


@helper
def capture_end(capture_hva: int, result: int) -> None:
    """Publish what `capture_begin` has copied.

    Args:
        result: what became of it: not negative if it was sent, else DROPPED_* or -errno.
    """
    call_code(load_i64_at(capture_hva, _END_CODE), capture_hva, result, 0, 0, 0, 0)


@helper
def capture_packet(capture_hva: int, hva: int, hdr_len: int, total: int, result: int) -> None:
    """Both steps, for a packet in one piece of private memory, header first."""
    piece_hva = load_i64_at(capture_hva, _SCRATCH) + CAPTURE_SCRATCH_IOVEC
    store_i64(piece_hva, hva)
    store_i64(piece_hva + 8, total)
    capture_begin(capture_hva, hva, piece_hva, 1, hdr_len, total)
    capture_end(capture_hva, result)


# --- the machine code behind it -----------------------------------------------------------------


@helper
def _count(capture_hva: int, offset: int) -> None:
    store_release_i64(capture_hva + offset, load_i64_at(capture_hva, offset) + 1)


@helper
def _gather(dst_hva: int, iov_hva: int, n: int, skip: int, size: int) -> int:
    """Copy up to *size* bytes of the pieces behind the first *skip*; returns bytes copied."""
    done = 0
    for k in range(n):
        if done >= size:
            break
        base = load_i64_at(iov_hva, k * IOVEC_SIZE)
        left = load_i64_at(iov_hva, k * IOVEC_SIZE + 8)
        if skip >= left:
            skip -= left
            continue
        piece = min(left - skip, size - done)
        copy_bytes(dst_hva + done, base + skip, piece)
        done += piece
        skip = 0
    return done


@helper
def _place(capture_hva: int, need: int) -> int:
    """Position of *need* bytes in one piece, behind the head; -1 if there is no room."""
    size = load_i64_at(capture_hva, _SIZE)
    head = load_i64_at(capture_hva, _HEAD)
    at = head & (size - 1)
    rest = size - at
    begin = head if need <= rest else head + rest
    tail = load_relaxed_i64(capture_hva + _TAIL)
    smp_rmb()  # what the tail has left is read no more before we write there
    if begin + need - tail > size:
        return -1
    if begin != head:
        store_relaxed_u32(load_i64_at(capture_hva, _BLOCKS) + at, JUMP)
    return begin


def begin_code(capture_hva: int, hdr_hva: int, iov_hva: int, n: int, skip: int, total: int) -> int:
    """`capture_begin`."""
    store_i64(capture_hva + _OPEN_LEN, -1)
    if load_relaxed_i64(capture_hva + _WANTED) == 0:
        return 0
    _count(capture_hva, _SEEN)
    n_filter = load_i64_at(capture_hva, _FILTER_LEN)
    snaplen = load_i64_at(capture_hva, _SNAPLEN)
    frame_len = max(total - skip, 0)
    room = min(frame_len, max(snaplen, FILTER_BYTES if n_filter > 0 else 0))
    at = _place(capture_hva, EPB_HEAD + ((room + 3) & ~3) + EPB_TAIL)
    if at < 0:
        _count(capture_hva, _LOST)
        _count(capture_hva, _LOST_SINCE)
        return 0
    scratch_hva = load_i64_at(capture_hva, _SCRATCH)
    header_hva = scratch_hva + CAPTURE_SCRATCH_HDR
    store_i64(header_hva, 0)
    store_i64(header_hva + 8, 0)
    hva = load_i64_at(capture_hva, _BLOCKS) + (at & (load_i64_at(capture_hva, _SIZE) - 1))
    got = 0
    if total <= MAX_FRAME:
        if hdr_hva != 0:
            copy_bytes(header_hva, hdr_hva, min(skip, VNET_HDR_MRG_LEN))
        else:
            _gather(header_hva, iov_hva, n, 0, min(skip, VNET_HDR_MRG_LEN))
        got = _gather(hva + EPB_HEAD, iov_hva, n, skip, room)
    if n_filter > 0:
        filter_hva = load_i64_at(capture_hva, _FILTER)
        memory_hva = load_i64_at(capture_hva, _FILTER_MEMORY)
        if run_filter(filter_hva, n_filter, memory_hva, hva + EPB_HEAD, got, frame_len) == 0:
            return 0
    _count(capture_hva, _ACCEPTED)
    now = realtime_ns(scratch_hva)
    got = min(got, snaplen)
    store_relaxed_u32(hva, _EPB)
    store_relaxed_u32(hva + 8, load_i64_at(capture_hva, _INTERFACE))
    store_relaxed_u32(hva + 12, now >> 32)
    store_relaxed_u32(hva + 16, now & 0xFFFFFFFF)
    store_relaxed_u32(hva + 20, got)
    store_relaxed_u32(hva + 24, frame_len)
    store_i64(capture_hva + _OPEN_AT, at)
    store_i64(capture_hva + _OPEN_LEN, got)
    return 0


@helper
def _text(capture_hva: int, k: int, to_hva: int) -> int:
    """Append a text of the table; returns where it ends."""
    text_hva = load_i64_at(capture_hva, _TEXTS) + k * CAPTURE_TEXT_SIZE
    size = load_u8(text_hva)
    copy_bytes(to_hva, text_hva + 1, size)
    return to_hva + size


@helper
def _number(number: int, to_hva: int) -> int:
    """Append a number of up to five digits; returns where it ends."""
    unit = 10000
    while unit > 1 and number < unit:
        unit //= 10
    while unit > 0:
        store_u8(to_hva, 48 + number // unit % 10)
        to_hva += 1
        unit //= 10
    return to_hva


@helper
def _and(capture_hva: int, begin_hva: int, to_hva: int) -> int:
    return to_hva if to_hva == begin_hva else _text(capture_hva, TEXT_AND, to_hva)


@helper
def _comment(capture_hva: int, result: int, begin_hva: int) -> int:
    """Say what the header does, and why the packet was dropped; returns where it ends."""
    header_hva = load_i64_at(capture_hva, _SCRATCH) + CAPTURE_SCRATCH_HDR
    gso = load_u8(header_hva + VNET_HDR_GSO_TYPE)
    flags = load_u8(header_hva + VNET_HDR_FLAGS)
    to_hva = begin_hva
    if gso != 0:
        to_hva = _text(capture_hva, gso & 7, to_hva)
        to_hva = _number(load_relaxed_u16(header_hva + VNET_HDR_GSO_SIZE), to_hva)
        if gso & VIRTIO_NET_HDR_GSO_ECN:
            to_hva = _text(capture_hva, TEXT_ECN, to_hva)
    if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        to_hva = _and(capture_hva, begin_hva, to_hva)
        to_hva = _text(capture_hva, TEXT_PARTIAL, to_hva)
        to_hva = _number(load_relaxed_u16(header_hva + VNET_HDR_CSUM_START), to_hva)
        to_hva = _text(capture_hva, TEXT_PLUS, to_hva)
        to_hva = _number(load_relaxed_u16(header_hva + VNET_HDR_CSUM_OFFSET), to_hva)
    if flags & VIRTIO_NET_HDR_F_DATA_VALID:
        to_hva = _and(capture_hva, begin_hva, to_hva)
        to_hva = _text(capture_hva, TEXT_VALID, to_hva)
    if result < 0:
        to_hva = _and(capture_hva, begin_hva, to_hva)
        to_hva = _text(capture_hva, TEXT_DROPPED + (-result & 0xFF), to_hva)
    return to_hva


@helper
def _pad(hva: int, size: int) -> int:
    """Zero the bytes up to a multiple of four; returns where they end."""
    for k in range(size, (size + 3) & ~3):
        store_u8(hva + k, 0)
    return hva + ((size + 3) & ~3)


def end_code(capture_hva: int, result: int, _c: int, _d: int, _e: int, _f: int) -> int:
    """`capture_end`."""
    got = load_i64_at(capture_hva, _OPEN_LEN)
    if got < 0:
        return 0
    store_i64(capture_hva + _OPEN_LEN, -1)
    at = load_i64_at(capture_hva, _OPEN_AT)
    hva = load_i64_at(capture_hva, _BLOCKS) + (at & (load_i64_at(capture_hva, _SIZE) - 1))
    to_hva = _pad(hva + EPB_HEAD, got)
    store_relaxed_u32(to_hva, _EPB_FLAGS | 4 << 16)
    store_relaxed_u32(to_hva + 4, load_i64_at(capture_hva, _FLAGS))
    to_hva += 8
    lost = load_i64_at(capture_hva, _LOST_SINCE)
    if lost > 0:
        store_relaxed_u32(to_hva, _EPB_DROPCOUNT | 8 << 16)
        store_relaxed_u32(to_hva + 4, lost & 0xFFFFFFFF)
        store_relaxed_u32(to_hva + 8, lost >> 32)
        store_i64(capture_hva + _LOST_SINCE, 0)
        to_hva += 12
    size = _comment(capture_hva, result, to_hva + 4) - (to_hva + 4)
    if size > 0:
        store_relaxed_u32(to_hva, _OPT_COMMENT | size << 16)
        to_hva = _pad(to_hva + 4, size)
    store_relaxed_u32(to_hva, 0)
    total = to_hva + 8 - hva
    store_relaxed_u32(to_hva + 4, total)
    store_relaxed_u32(hva + 4, total)
    store_release_i64(capture_hva + _HEAD, at + ((total + 7) & ~7))
    return 0

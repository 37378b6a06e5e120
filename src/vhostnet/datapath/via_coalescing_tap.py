"""A TAP to which consecutive TCP segments of one flow are written as one GSO frame.

Theory of operation
-------------------
A write costs some hundred nanoseconds, and the host's stack works once a frame.  A guest without
offloads sends a frame a segment.  So a segment that may be merged (`coalesce`) is *held*: its
headers are copied, its payload stays in the guest's pages, and it waits for the next one of its
flow.  Nothing waits longer than the run of the handler: `backend_flush` comes before completions
are published, and until then the guest leaves the pages alone.

A frame that cannot be merged is written at once, after what is held of its own flow; one of
which the flow cannot be told, after everything that is held.  Within a flow nothing overtakes;
between flows it may, as with GRO.

    not held ──segment, checksums right, no PSH──▶ held, n = 1
    held     ──the next segment──▶ held, n + 1;  with PSH, short or full: written
    held     ──anything else of the flow, a flush, the end of the run──▶ written

A merged frame that the TAP refuses is tried segment by segment, each as it came.  One for which
the TAP has no room cannot go back to the ring, where chains between its own are done.  So all
that is held is copied to the *stash*, its chains are complete, and nothing else is sent until the
stash is empty.  It stays over a stop of the ring, as a received packet does that found no buffers.

The payload is summed in the guest's pages, and the guest can change it before it is written.  What
it gets then is its own bytes with a checksum that is right, which it could have sent anyway.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, hot, implements
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import load_i64_at, load_u8, store_i64
from vhostnet.uapi.virtio import VNET_HDR_FLAGS, VNET_HDR_GSO_TYPE

from .backend_ops import HELD, backend_batch, backend_flush, backend_send
from .checksum import fold, sum_of, swap16
from .coalesce import (
    MERGED_MAX,
    NOT_TCP,
    UNCLEAR,
    checksum_is_right,
    find_tcp,
    flow_hash,
    goes_on,
    headers_of_mergeable,
    is_pushed,
    is_same_flow,
    make_merged_headers,
    sequence_of,
)
from .counting import count_drop
from .layout import (
    COALESCE_BATCH,
    COALESCE_BATCH_PER_FLOW,
    COALESCE_HEADERS,
    COALESCE_PIECES,
    COALESCE_ROOM,
    COALESCE_SEGMENTS,
    COALESCE_SLOTS,
    COALESCING_TAP,
    FLOW,
    IOVEC_SIZE,
    SEGMENT,
    STASH_SIZE,
    UIO_MAXIOV,
    VHOST_NET_BATCH,
    field_offset,
)
from .via_tap import correct_header, send_frame, send_from_iov

Record = Any
EAGAIN, ENOMEM, ENOBUFS, EBADFD = errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EBADFD
#: Of `_send_or_hold`: no errno, and not HELD.
_ALONE = 2
_FLOW_SIZE = FLOW.itemsize
_KNOWN, _HASH = field_offset(FLOW, "flow_known"), field_offset(FLOW, "flow_hash")
_N, _FIRST = field_offset(FLOW, "flow_n"), field_offset(FLOW, "flow_first")
_LAST, _NEXT_SEQ = field_offset(FLOW, "flow_last"), field_offset(FLOW, "flow_next_seq")
_MSS, _PAYLOAD = field_offset(FLOW, "flow_mss"), field_offset(FLOW, "flow_payload")
_HEADERS, _PUSH = field_offset(FLOW, "flow_headers"), field_offset(FLOW, "flow_push")
_SEGMENT_SIZE = SEGMENT.itemsize
_SEGMENT_NEXT = field_offset(SEGMENT, "segment_next")
_SEGMENT_N = field_offset(SEGMENT, "segment_n")
_SEGMENT_TOTAL = field_offset(SEGMENT, "segment_total")


@hot
def is_no_room(result: int) -> bool:
    """Whether a backend's answer means: the same again, later."""
    return result == -EAGAIN or result == -ENOMEM or result == -ENOBUFS


# --- what is held ------------------------------------------------------------------------------


@hot
def _segment(bk: Record, k: int) -> int:
    return int(bk["segments_hva"]) + k * _SEGMENT_SIZE


@hot
def _headers_of(bk: Record, k: int) -> int:
    """Our address of a held segment's virtio_net_hdr and headers."""
    return int(bk["held_hdr_hva"]) + k * COALESCE_ROOM


@hot
def _pieces_of(bk: Record, k: int) -> int:
    return int(bk["held_pieces_hva"]) + k * COALESCE_PIECES * IOVEC_SIZE


@helper
def _flow_in_order(bk: Record, k: int) -> int:
    """The *k*th flow since all was written."""
    slot = load_i64_at(int(bk["flow_order_hva"]), 8 * k)
    return int(bk["flows_hva"]) + slot * _FLOW_SIZE


@hot
def _find_flow(bk: Record, frame_hva: int, tcp: int, hash_of_it: int) -> tuple[int, int]:
    """(hva, slot) of the flow of a segment, or of a free slot for it."""
    slot = hash_of_it & (COALESCE_SLOTS - 1)
    flow = int(bk["flows_hva"]) + slot * _FLOW_SIZE
    for _ in range(COALESCE_SLOTS):  # half of them are free
        if not load_i64_at(flow, _KNOWN):
            break
        if load_i64_at(flow, _HASH) == hash_of_it:
            first = _headers_of(bk, load_i64_at(flow, _FIRST)) + int(bk["held_hdr_len"])
            if is_same_flow(first, frame_hva, tcp):
                break
        slot = (slot + 1) & (COALESCE_SLOTS - 1)
        flow = int(bk["flows_hva"]) + slot * _FLOW_SIZE
    return flow, slot


@helper
def _forget_flows(bk: Record) -> None:
    """Nothing is held any more."""
    for k in range(int(bk["n_flows"])):
        store_i64(_flow_in_order(bk, k) + _KNOWN, 0)
    bk["n_flows"] = 0
    bk["n_segments"] = 0


@hot
def _take_pieces(bk: Record, k: int, iov_hva: int, n: int, skip: int) -> tuple[int, int]:
    """Note where segment *k*'s payload lies, and sum it up.

    Args:
        iov_hva, n: the packet, as `_send_or_hold`.
        skip: bytes of it before the payload.

    Returns:
        (pieces, or -1 if there are too many; sum as `sum_of`).
    """
    pieces_hva = _pieces_of(bk, k)
    found = 0
    total = 0
    done = 0
    for i in range(n):
        base = load_i64_at(iov_hva, i * IOVEC_SIZE)
        size = load_i64_at(iov_hva, i * IOVEC_SIZE + 8)
        if size <= skip:
            skip -= size
            continue
        base += skip
        size -= skip
        skip = 0
        if found == COALESCE_PIECES:
            return -1, 0
        store_i64(pieces_hva + found * IOVEC_SIZE, base)
        store_i64(pieces_hva + found * IOVEC_SIZE + 8, size)
        found += 1
        part = fold(sum_of(base, size))
        total += swap16(part) if done & 1 else part
        done += size
    return found, total


@hot
def _hold(bk: Record, flow: int, k: int, n_pieces: int, total: int) -> None:
    """Make segment *k* the last of its flow."""
    store_i64(_segment(bk, k) + _SEGMENT_NEXT, -1)
    store_i64(_segment(bk, k) + _SEGMENT_N, n_pieces)
    store_i64(_segment(bk, k) + _SEGMENT_TOTAL, total)
    n = load_i64_at(flow, _N)
    if n == 0:
        store_i64(flow + _FIRST, k)
    else:
        store_i64(_segment(bk, load_i64_at(flow, _LAST)) + _SEGMENT_NEXT, k)
    store_i64(flow + _LAST, k)
    store_i64(flow + _N, n + 1)
    bk["n_segments"] += 1
    bk["n_held"] += 1


# --- writing it ----------------------------------------------------------------------------------


@helper
def _out(bk: Record, k: int, base: int, size: int) -> None:
    at = int(bk["out_hva"]) + k * IOVEC_SIZE
    store_i64(at, base)
    store_i64(at + 8, size)


@helper
def _out_payload(bk: Record, k: int, segment: int) -> int:
    """Append a segment's payload to the *k* pieces that are to be written; how many it is then."""
    n = load_i64_at(_segment(bk, segment), _SEGMENT_N)
    copy_bytes(int(bk["out_hva"]) + k * IOVEC_SIZE, _pieces_of(bk, segment), n * IOVEC_SIZE)
    return k + n


@helper
def _account(bk: Record, result: int, packets: int, total: int) -> None:
    if result == 0:
        bk["held_packets"] += packets
        bk["held_bytes"] += total
    else:
        bk["held_drops"] += packets
        count_drop(bk, result, packets)


@helper
def _write_merged(bk: Record, flow: int, n: int) -> int:
    """Write a flow's segments as one frame; 0 or -errno as `backend_send`."""
    first = load_i64_at(flow, _FIRST)
    headers = load_i64_at(flow, _HEADERS)
    hdr_len = int(bk["held_hdr_len"])
    hva = int(bk["merged_hdr_hva"])
    make_merged_headers(
        hva,
        _headers_of(bk, first),
        hdr_len,
        headers,
        load_i64_at(flow, _PAYLOAD),
        load_i64_at(flow, _MSS),
        load_i64_at(flow, _PUSH),
    )
    _out(bk, 0, hva, hdr_len + headers)
    pieces = 1
    total = 0
    k = first
    for _ in range(n):
        pieces = _out_payload(bk, pieces, k)
        total += load_i64_at(_segment(bk, k), _SEGMENT_TOTAL)
        k = load_i64_at(_segment(bk, k), _SEGMENT_NEXT)
    result = send_frame(bk, int(bk["out_hva"]), pieces)
    if result == 0:
        bk["merged_frames"] += 1
        bk["merged_segments"] += n
        _account(bk, 0, n, total)
    return result


@helper
def _write_segment(bk: Record, k: int, headers: int) -> int:
    """Write one segment as it came; 0, or -errno if there is no room."""
    hdr_len = int(bk["held_hdr_len"])
    total = load_i64_at(_segment(bk, k), _SEGMENT_TOTAL)
    correct_header(_headers_of(bk, k), total - hdr_len)
    _out(bk, 0, _headers_of(bk, k), hdr_len + headers)
    pieces = _out_payload(bk, 1, k)
    result = send_frame(bk, int(bk["out_hva"]), pieces)
    if is_no_room(result):
        return result
    _account(bk, result, 1, total)
    return 0


@helper
def _write_flow(bk: Record, flow: int) -> int:
    """Write what is held of a flow; if there is no room, stash all that is held of any.

    Returns:
        0, or -errno if there was no room.
    """
    n = load_i64_at(flow, _N)
    if n == 0:
        return 0
    k = load_i64_at(flow, _FIRST)
    headers = load_i64_at(flow, _HEADERS)
    result = -EAGAIN
    if n > 1:
        result = _write_merged(bk, flow, n)
        if result == 0:
            bk["n_held"] -= n
            store_i64(flow + _N, 0)
            return 0
    if n == 1 or not is_no_room(result):
        while n > 0:
            result = _write_segment(bk, k, headers)
            if result < 0:
                break
            bk["n_held"] -= 1
            n -= 1
            k = load_i64_at(_segment(bk, k), _SEGMENT_NEXT)
    if n > 0:
        _stash_flow(bk, k, n, headers)
        store_i64(flow + _N, 0)
        _stash_all(bk)
        return result
    store_i64(flow + _N, 0)
    return 0


@helper
def _write_all(bk: Record) -> int:
    """Write all that is held, flow by flow; as `_write_flow`."""
    result = 0
    if int(bk["n_held"]) > 0:
        for k in range(int(bk["n_flows"])):
            result = _write_flow(bk, _flow_in_order(bk, k))
            if result < 0:
                break
    _forget_flows(bk)
    return result


# --- the stash -----------------------------------------------------------------------------------


@helper
def _stash_flow(bk: Record, k: int, n: int, headers: int) -> None:
    """Copy *n* segments of a flow from *k* on, as they came, behind what is in the stash."""
    hdr_len = int(bk["held_hdr_len"])
    for _ in range(n):
        total = load_i64_at(_segment(bk, k), _SEGMENT_TOTAL)
        record = 8 + ((total + 7) & ~7)
        at = int(bk["stash_hva"]) + int(bk["stash_end"])
        if int(bk["stash_end"]) + record <= STASH_SIZE:  # always: see `_send`
            store_i64(at, total)
            copy_bytes(at + 8, _headers_of(bk, k), hdr_len + headers)
            at += 8 + hdr_len + headers
            for i in range(load_i64_at(_segment(bk, k), _SEGMENT_N)):
                piece = _pieces_of(bk, k) + i * IOVEC_SIZE
                size = load_i64_at(piece, 8)
                copy_bytes(at, load_i64_at(piece, 0), size)
                at += size
            bk["stash_end"] += record
            bk["stashed_segments"] += 1
        else:
            _account(bk, -ENOBUFS, 1, total)
        bk["n_held"] -= 1
        k = load_i64_at(_segment(bk, k), _SEGMENT_NEXT)


@helper
def _stash_all(bk: Record) -> None:
    """Copy all that is held."""
    for i in range(int(bk["n_flows"])):
        flow = _flow_in_order(bk, i)
        n = load_i64_at(flow, _N)
        _stash_flow(bk, load_i64_at(flow, _FIRST), n, load_i64_at(flow, _HEADERS))
        store_i64(flow + _N, 0)


@helper
def _empty_stash(bk: Record) -> int:
    """Write what is in the stash; 0, or -errno if there is still no room."""
    while int(bk["stash_at"]) < int(bk["stash_end"]):
        at = int(bk["stash_hva"]) + int(bk["stash_at"])
        total = load_i64_at(at, 0)
        correct_header(at + 8, total - int(bk["held_hdr_len"]))
        _out(bk, 0, at + 8, total)
        result = send_frame(bk, int(bk["out_hva"]), 1)
        if is_no_room(result):
            return result
        _account(bk, result, 1, total)
        bk["stash_at"] += 8 + ((total + 7) & ~7)
    bk["stash_at"] = 0
    bk["stash_end"] = 0
    return 0


# --- what the handlers ask -----------------------------------------------------------------------


@hot
def _copy_front(iov_hva: int, n: int, dst_hva: int, size: int) -> None:
    """Copy up to *size* bytes of a packet, as `_send_or_hold` has it, to *dst_hva*."""
    done = 0
    for i in range(n):
        if done >= size:
            break
        piece = min(load_i64_at(iov_hva, i * IOVEC_SIZE + 8), size - done)
        copy_bytes(dst_hva + done, load_i64_at(iov_hva, i * IOVEC_SIZE), piece)
        done += piece


@implements(backend_send, COALESCING_TAP, is_hot=True)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    # Addresses and no array for all that is not simple: Numba counts references of arrays, with
    # atomic instructions, wherever it does not see through the flow of control.
    result = _send_or_hold(bk, iov.ctypes.data + at * IOVEC_SIZE, n, hdr_len, total)
    if result == _ALONE:
        return send_from_iov(bk, iov, at, n, hdr_len, total)
    return result


@hot
def _send_or_hold(bk: Record, iov_hva: int, n: int, hdr_len: int, total: int) -> int:
    """Hold a packet, or write what has to go before it.

    Args:
        iov_hva, n: the packet in struct iovec[n], which is not changed.
        hdr_len, total: as `backend_send`.

    Returns:
        _ALONE: the packet is to be written now, as it is; else as `backend_send`.
    """
    if int(bk["stash_end"]) > 0:
        result = _empty_stash(bk)
        if result < 0:
            return result
    k = int(bk["n_segments"])
    if k == COALESCE_SEGMENTS:
        result = _write_all(bk)
        if result < 0:
            return result
        k = 0
    bk["held_hdr_len"] = hdr_len
    hdr_hva = _headers_of(bk, k)
    frame_hva = hdr_hva + hdr_len
    frame_len = total - hdr_len
    _copy_front(iov_hva, n, hdr_hva, hdr_len + COALESCE_HEADERS)
    tcp = find_tcp(frame_hva, frame_len)
    if tcp == NOT_TCP:
        return _ALONE
    if tcp == UNCLEAR:
        result = _write_all(bk)
        return result if result < 0 else _ALONE
    headers = 0
    if load_u8(hdr_hva + VNET_HDR_FLAGS) | load_u8(hdr_hva + VNET_HDR_GSO_TYPE) == 0:
        headers = headers_of_mergeable(frame_hva, frame_len, tcp)
    if headers == 0 and int(bk["n_held"]) == 0:
        return _ALONE
    hash_of_it = flow_hash(frame_hva, tcp)
    flow, slot = _find_flow(bk, frame_hva, tcp, hash_of_it)
    payload = frame_len - headers
    held = load_i64_at(flow, _N) if load_i64_at(flow, _KNOWN) else 0
    n_pieces = -1
    payload_sum = 0
    pushed = False
    if headers > 0:
        if held > 0 and not _is_next(bk, flow, frame_hva, tcp, headers, payload, held):
            result = _write_flow(bk, flow)
            if result < 0:
                return result
            held = 0
        pushed = is_pushed(frame_hva, tcp)
        if held > 0 or not pushed:
            n_pieces, payload_sum = _take_pieces(bk, k, iov_hva, n, hdr_len + headers)
            if n_pieces > 0 and not checksum_is_right(
                frame_hva, frame_len, tcp, headers, payload_sum
            ):
                n_pieces = -1
    if n_pieces < 0:
        if held > 0:
            result = _write_flow(bk, flow)
            if result < 0:
                return result
        return _ALONE
    if not load_i64_at(flow, _KNOWN):
        store_i64(flow + _KNOWN, 1)
        store_i64(flow + _HASH, hash_of_it)
        store_i64(flow + _N, 0)
        store_i64(int(bk["flow_order_hva"]) + 8 * int(bk["n_flows"]), slot)
        bk["n_flows"] += 1
    if held == 0:
        store_i64(flow + _MSS, payload)
        store_i64(flow + _HEADERS, headers)
        store_i64(flow + _PAYLOAD, 0)
        store_i64(flow + _PUSH, 0)
    _hold(bk, flow, k, n_pieces, total)
    together = load_i64_at(flow, _PAYLOAD) + payload
    store_i64(flow + _PAYLOAD, together)
    store_i64(flow + _NEXT_SEQ, (sequence_of(frame_hva, tcp) + payload) & 0xFFFFFFFF)
    mss = load_i64_at(flow, _MSS)
    if pushed:
        store_i64(flow + _PUSH, 1)
    if pushed or payload < mss or headers + together + mss > MERGED_MAX:
        _write_flow(bk, flow)  # if there is no room it is in the stash, and the next one waits
    return HELD


@hot
def _is_next(
    bk: Record, flow: int, frame_hva: int, tcp: int, headers: int, payload: int, held: int
) -> bool:
    """Whether a segment continues what is held of its flow."""
    first = _headers_of(bk, load_i64_at(flow, _FIRST)) + int(bk["held_hdr_len"])
    return (
        sequence_of(frame_hva, tcp) == load_i64_at(flow, _NEXT_SEQ)
        and payload <= load_i64_at(flow, _MSS)
        and (held + 1) * COALESCE_PIECES < UIO_MAXIOV
        and goes_on(first, frame_hva, tcp, headers, held)
    )


@helper
def _tell_drops(bk: Record, vq: Record) -> None:
    """Let the ring have what was counted of held segments that were refused (counting.py)."""
    vq["drop_bad_header"] += int(bk["drop_bad_header"])
    vq["drop_too_long"] += int(bk["drop_too_long"])
    vq["drop_down"] += int(bk["drop_down"])
    vq["drop_gone"] += int(bk["drop_gone"])
    vq["drop_refused"] += int(bk["drop_refused"])
    bk["drop_bad_header"] = 0
    bk["drop_too_long"] = 0
    bk["drop_down"] = 0
    bk["drop_gone"] = 0
    bk["drop_refused"] = 0
    bk["held_drops"] = 0


@implements(backend_flush, COALESCING_TAP)
def _flush(bk: Record, vq: Record) -> int:
    result = 0
    if int(bk["stash_end"]) > 0:
        result = _empty_stash(bk)
    elif int(bk["n_held"]) > 0:
        result = _write_all(bk)
    _forget_flows(bk)
    vq["packets"] += int(bk["held_packets"])
    vq["bytes"] += int(bk["held_bytes"])
    bk["held_packets"] = 0
    bk["held_bytes"] = 0
    if int(bk["held_drops"]) > 0:
        _tell_drops(bk, vq)
        if bk["gone"] and result == 0:
            return -EBADFD
    return result


@implements(backend_batch, COALESCING_TAP)
def _batch(bk: Record) -> int:
    if int(bk["n_held"]) == 0:
        return VHOST_NET_BATCH
    return max(COALESCE_BATCH, COALESCE_BATCH_PER_FLOW * int(bk["n_flows"]))

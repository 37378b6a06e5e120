"""handle_rx: from the backend into the guest's buffers."""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, hot
from vhostnet.native.ordering import load_u8, store_relaxed_u16
from vhostnet.uapi.virtio import VNET_HDR_GSO_TYPE, VNET_HDR_NUM_BUFFERS

from .backend_ops import backend_consume, backend_peek
from .capture import DROPPED_TOO_SMALL, capture_packet
from .codes import HANDLED, HANDLED_BACKEND_GONE, RING_EMPTY, RING_TOO_MANY_IOVS
from .counting import end_run, publish
from .dirty_log_raw import log_data
from .layout import UIO_MAXIOV, VHOST_ACCESS_WO, VHOST_NET_BATCH, WORK_RX_NET
from .look_ahead import MOST_BYTES, look_ahead
from .ring_access import deliver
from .vring_ops import (
    add_used,
    disable_notify,
    discard_vq_desc,
    get_vq_desc,
    signal_used,
)
from .work import exceeds_weight, ring_error, ring_fault, work_queue

Record = Any
EAGAIN = errno.EAGAIN
NO_BUFFERS = 0
TOO_SMALL = -100
MALFORMED = -101


@helper
def _hand_back(vq: Record, heads: Any, n: int) -> None:
    """Complete heads[:n] with length 0: nothing was written to them."""
    for k in range(n):
        add_used(vq, int(heads[k]["id"]), 0, 1, int(heads[k]["descs"]))
    vq["chains"] += n


@hot
def get_rx_bufs(vq: Record, mem: Any, iov: Any, heads: Any, need: int) -> tuple[int, int]:
    """Take as many chains as *need* bytes take: one, or several where mergeable.

    Args:
        iov: IOVEC array, filled from 0.
        heads: RX_HEAD[UIO_MAXIOV]: id and capacity of each chain taken.
        need: bytes of header and frame.

    Returns:
        (n_heads, n_iov) on success; (NO_BUFFERS, 0): the ring has too few, none was kept;
        (TOO_SMALL, 0): not mergeable and the one buffer is too small, it was given back;
        (MALFORMED, 0): a chain that no packet can be written to (a readable part, or no bytes)
        was handed back with length 0, together with those taken before it; Linux leaks them;
        (a ring error, 0).

    Source: Linux get_rx_bufs().
    """
    n_heads = 0
    n_descs = 0
    n_iov = 0
    room = 0
    look_ahead(vq, mem, min(need, MOST_BYTES), VHOST_ACCESS_WO)
    while room < need:
        if n_heads >= UIO_MAXIOV:
            discard_vq_desc(vq, n_heads, n_descs)
            return RING_TOO_MANY_IOVS, 0
        head, n_out, n_in, _out_len, in_len = get_vq_desc(vq, mem, iov, n_iov)
        if head < 0:
            if n_heads > 0:
                discard_vq_desc(vq, n_heads, n_descs)
            return (NO_BUFFERS if head == RING_EMPTY else head), 0
        heads[n_heads]["id"] = head
        heads[n_heads]["room"] = in_len
        heads[n_heads]["descs"] = vq["chain_descs"]
        n_heads += 1
        n_descs += int(vq["chain_descs"])
        if n_out > 0 or n_in == 0:
            vq["drop_malformed"] += 1
            ring_fault(vq)
            _hand_back(vq, heads, n_heads)
            return MALFORMED, 0
        n_iov += n_in
        room += in_len
        if n_iov > UIO_MAXIOV:
            discard_vq_desc(vq, n_heads, n_descs)
            return RING_TOO_MANY_IOVS, 0
        if room < need and not vq["mergeable"]:
            discard_vq_desc(vq, n_heads, n_descs)
            return TOO_SMALL, 0
    return n_heads, n_iov


@hot
def complete(vq: Record, heads: Any, n: int, total: int) -> None:
    """Used entries for one packet of *total* bytes in heads[:n]: each full but the last."""
    left = total
    n_descs = 0
    for k in range(n):
        length = min(left, int(heads[k]["room"]))
        left -= length
        if not vq["in_order"]:
            add_used(vq, int(heads[k]["id"]), length, 1, int(heads[k]["descs"]))
        else:
            n_descs += int(heads[k]["descs"])
            if k == n - 1:
                add_used(vq, int(heads[k]["id"]), length, n, n_descs)
    vq["chains"] += n


@helper
def handle_rx(
    worker: Record, vq: Record, mem: Any, regions: Any, bk: Record, iov: Any, heads: Any
) -> int:
    """Deliver what the backend has, at most one weight of it.

    Returns:
        HANDLED_*.

    Two ways to wait, as in Linux: for a packet (the backend's poll wakes us, notifications
    stay off) or for buffers (a kick wakes us, the packet stays with the backend).

    Source: Linux handle_rx().
    """
    disable_notify(vq)
    vq["wants_kick"] = 0
    hdr_len = int(vq["hdr_len"])
    has_gso_type = hdr_len > VNET_HDR_GSO_TYPE
    capture_hva = int(vq["capture_hva"])
    chains_before = int(vq["chains"])
    taken = 0
    taken_bytes = 0
    outcome = HANDLED
    while True:
        packet_hva, need = backend_peek(bk)
        if need <= 0:
            if need == -EAGAIN:
                work_queue(worker, WORK_RX_NET)
            elif need < 0:
                outcome = HANDLED_BACKEND_GONE
            break
        n_heads, n_iov = get_rx_bufs(vq, mem, iov, heads, need)
        if n_heads == NO_BUFFERS:
            vq["wants_kick"] = 1
            vq["waits_no_buffers"] += 1
            break
        if n_heads == TOO_SMALL:
            vq["drop_too_small"] += 1
            if capture_hva != 0:
                capture_packet(capture_hva, packet_hva, hdr_len, need, DROPPED_TOO_SMALL)
            backend_consume(bk)
        elif n_heads == MALFORMED:
            pass  # the packet tries the next one; a run of nothing else ends by its weight
        elif n_heads < 0:
            outcome = ring_error(vq, n_heads)
            break
        else:
            if vq["set_num_buffers"]:
                store_relaxed_u16(packet_hva + VNET_HDR_NUM_BUFFERS, n_heads)
            if has_gso_type and load_u8(packet_hva + VNET_HDR_GSO_TYPE) != 0:
                vq["gso_packets"] += 1
            if capture_hva != 0:
                capture_packet(capture_hva, packet_hva, hdr_len, need, 0)
            deliver(vq, iov, n_iov, packet_hva, need)
            if vq["log_all"]:
                log_data(vq, regions, iov, n_iov, need)
            backend_consume(bk)
            complete(vq, heads, n_heads, need)
            vq["packets"] += 1
            vq["bytes"] += need
        if int(vq["done_idx"]) > VHOST_NET_BATCH:
            publish(vq)
            signal_used(vq)
        taken += 1
        taken_bytes += need
        if exceeds_weight(taken, taken_bytes):
            work_queue(worker, WORK_RX_NET)
            break
    publish(vq)
    signal_used(vq)
    end_run(vq, taken, int(vq["chains"]) - chains_before)
    worker["unasked"] += taken
    return outcome

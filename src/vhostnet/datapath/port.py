"""handle_port: from one guest's TX ring to another guest's RX ring.

One worker does all of it, and nobody else touches either ring, so the path of a packet has no
lock.  (Only where fewer of the receiver's pairs run than of the sender's do several workers share
a ring: then `lock_hva` says who is at it, for a run.)

A wire does not wait: a receiver that has no buffers, is not there, or has a broken ring costs the
sender nothing but its packets, which are counted.  So nobody ever waits for the receiver, and its
kicks are not asked for.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import atomic_swap_i64, cpu_relax_for_lock, load_u8
from vhostnet.uapi.virtio import VNET_HDR_GSO_TYPE

from .backend_ops import backend_ready
from .capture import (
    DROPPED_DISABLED,
    DROPPED_MALFORMED,
    DROPPED_SHORT,
    capture_begin,
    capture_end,
)
from .codes import HANDLED, HANDLED_PEER_ERROR, RING_EMPTY
from .counting import count_drop, end_run, publish
from .layout import IOVEC_SIZE, PORT, VHOST_ACCESS_RO, VHOST_NET_BATCH
from .look_ahead import MOST_BYTES, look_ahead
from .port_frame import forward_frame
from .vring_ops import add_used, disable_notify, get_vq_desc, publish_used, signal_used
from .work import exceeds_weight, ring_error, ring_fault, work_queue

Record = Any
ENOTCONN = errno.ENOTCONN


@implements(backend_ready, PORT)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    pass


@helper
def _try_lock(link: Record) -> bool:
    """Be the one at the receiver's ring; false if another worker is."""
    lock_hva = int(link["lock_hva"])
    return lock_hva == 0 or atomic_swap_i64(lock_hva, 1) == 0


@helper
def _unlock(link: Record) -> None:
    if int(link["lock_hva"]) != 0:
        atomic_swap_i64(int(link["lock_hva"]), 0)


@helper
def _count(vq: Record, link: Record, total: int, result: int) -> None:
    """What became of a packet of *total* bytes, on the sender's ring."""
    if result < 0:
        count_drop(vq, result, 1)
        return
    vq["packets"] += 1
    vq["bytes"] += total
    if load_u8(int(link["port_hdr_hva"]) + VNET_HDR_GSO_TYPE) != 0:
        vq["gso_packets"] += 1


@helper
def handle_port(
    worker: Record,
    item: int,
    vq: Record,
    mem: Any,
    out: Record,
    out_regions: Any,
    link: Record,
    src: Any,
    dst: Any,
    heads: Any,
) -> int:
    """Forward what one guest has made available to the other, at most one weight of it.

    Args:
        item: the work item that this is, for more of it.

    Every chain that is taken is handed back.  A chain is taken and looked at before the receiver's
    buffers are, so whatever is wrong with it costs the receiver nothing.

    Returns:
        HANDLED_*; HANDLED_PEER_ERROR is about the ring *out*.
    """
    if not _try_lock(link):
        cpu_relax_for_lock()
        work_queue(worker, item)
        return HANDLED
    disable_notify(vq)
    vq["wants_kick"] = 0
    connected = bool(out["active"])
    error_before = int(out["last_error"])
    if connected:
        disable_notify(out)
    usable = connected  # a broken ring is not looked at again in this run
    hdr_len = int(vq["hdr_len"])
    capture_hva = int(vq["capture_hva"])
    chains_before = int(vq["chains"])
    out_chains_before = int(out["chains"])
    out_packets_before = int(out["packets"])
    taken = 0
    taken_bytes = 0
    outcome = HANDLED
    while True:
        if int(vq["done_idx"]) >= VHOST_NET_BATCH:
            publish(vq)
            signal_used(vq)
        look_ahead(vq, mem, MOST_BYTES, VHOST_ACCESS_RO)
        head, n_out, n_in, out_len, _in_len = get_vq_desc(vq, mem, src, 1)
        if head < 0:
            publish(vq)
            if head == RING_EMPTY:
                vq["wants_kick"] = 1
            else:
                outcome = ring_error(vq, head)
            break
        if capture_hva != 0:
            iov_hva = src.ctypes.data + IOVEC_SIZE
            capture_begin(capture_hva, 0, iov_hva, n_out, hdr_len, out_len)
        n_frames = 1
        result = 0
        if n_in > 0:
            result = DROPPED_MALFORMED
            vq["drop_malformed"] += 1
            ring_fault(vq)
        elif vq["discard"]:
            result = DROPPED_DISABLED
            vq["drop_disabled"] += 1
        elif out_len <= hdr_len:
            result = DROPPED_SHORT
            vq["drop_short"] += 1
            if out_len == 0:
                ring_fault(vq)
        elif not usable:
            result = -ENOTCONN
            vq["drop_no_peer"] += 1
        else:
            result, n_frames = forward_frame(
                vq, out, out_regions, link, src, n_out, out_len, dst, heads
            )
            _count(vq, link, out_len, result)
            usable = result != -ENOTCONN
        if capture_hva != 0:
            capture_end(capture_hva, result)
        add_used(vq, head, 0, 1, int(vq["chain_descs"]))
        vq["chains"] += 1
        taken += n_frames
        taken_bytes += out_len
        if exceeds_weight(taken, taken_bytes):
            publish(vq)
            signal_used(vq)
            work_queue(worker, item)
            break
    chains = int(vq["chains"]) - chains_before
    end_run(vq, chains, chains)
    if connected:
        publish_used(out)
        signal_used(out)
        chains = int(out["chains"]) - out_chains_before
        end_run(out, int(out["packets"]) - out_packets_before, chains)
        if outcome == HANDLED and int(out["last_error"]) != error_before:
            outcome = HANDLED_PEER_ERROR
    _unlock(link)
    worker["unasked"] += taken
    return outcome

"""handle_tx: from the guest's ring to the backend."""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper
from vhostnet.uapi.virtio import VNET_HDR_GSO_TYPE

from .backend_ops import (
    HELD,
    backend_batch,
    backend_flush,
    backend_reads,
    backend_send,
)
from .capture import (
    DROPPED_DISABLED,
    DROPPED_MALFORMED,
    DROPPED_SHORT,
    capture_begin,
    capture_end,
)
from .codes import HANDLED, HANDLED_BACKEND_GONE, RING_EMPTY
from .counting import count_drop, end_run, publish
from .iov import iov_byte
from .layout import IOVEC_SIZE, MAX_FRAME, VHOST_ACCESS_RO, WORK_TX_KICK, WORK_TX_NET
from .look_ahead import copied_ahead, look_ahead
from .vring_ops import (
    add_used,
    disable_notify,
    discard_vq_desc,
    get_vq_desc,
    signal_used,
)
from .work import exceeds_weight, ring_error, ring_fault, work_queue

Record = Any
EMSGSIZE = errno.EMSGSIZE
EAGAIN, ENOMEM, ENOBUFS = errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS
EBADFD = errno.EBADFD


@helper
def _flush(worker: Record, vq: Record, bk: Record) -> int:
    """Have the backend write what it holds.

    Returns:
        HANDLED_* or, if it has no room, the negative errno: the handler has to end.
    """
    result = backend_flush(bk, vq)
    if result == -EBADFD:
        return HANDLED_BACKEND_GONE
    if result == -ENOMEM or result == -ENOBUFS:
        work_queue(worker, WORK_TX_NET)
    return result if result < 0 else HANDLED


@helper
def handle_tx(worker: Record, vq: Record, mem: Any, bk: Record, iov: Any) -> int:
    """Send what the guest has made available, at most one weight of it.

    Every chain that is taken is handed back, sent or not: a packet that can never be sent
    is counted by cause and completed.  Only a backend without room keeps it: the chain goes
    back to the ring and is tried again when the backend can be written.  What the backend holds
    back to merge it is written before its completion is published.

    When the ring is empty, kicks are not asked for yet, and the last completions are published
    but not signalled: the worker does both before it sleeps (see `worker_loop`).

    Returns:
        HANDLED_*.

    Source: Linux handle_tx_copy().
    """
    disable_notify(vq)
    vq["wants_kick"] = 0
    hdr_len = int(vq["hdr_len"])
    has_gso_type = hdr_len > VNET_HDR_GSO_TYPE
    capture_hva = int(vq["capture_hva"])
    reads = backend_reads(bk)
    taken = 0
    taken_bytes = 0
    outcome = _flush(worker, vq, bk)  # of an earlier run
    if outcome < 0:
        return HANDLED
    while True:
        if int(vq["done_idx"]) >= backend_batch(bk):
            flushed = _flush(worker, vq, bk)
            publish(vq)
            signal_used(vq)
            if flushed < 0:
                break
            outcome = max(outcome, flushed)
        ahead = max(reads, copied_ahead(vq))
        if ahead > 0:
            look_ahead(vq, mem, ahead, VHOST_ACCESS_RO)
        head, n_out, n_in, out_len, _in_len = get_vq_desc(vq, mem, iov, 1)
        if head < 0:
            # Completions first: the driver may wait for them before it kicks again.
            outcome = max(outcome, _flush(worker, vq, bk))
            publish(vq)
            if head == RING_EMPTY:
                vq["wants_kick"] = 1
            else:
                outcome = ring_error(vq, head)
            break
        if capture_hva != 0:
            iov_hva = iov.ctypes.data + IOVEC_SIZE
            capture_begin(capture_hva, 0, iov_hva, n_out, hdr_len, out_len)
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
            if out_len == 0:  # a header without a frame is no fault of the ring, in Linux
                ring_fault(vq)
        elif out_len > MAX_FRAME:
            result = -EMSGSIZE
            vq["drop_too_long"] += 1
        else:
            is_gso = has_gso_type and iov_byte(iov, 1, n_out, VNET_HDR_GSO_TYPE) != 0
            result = backend_send(bk, iov, 1, n_out, hdr_len, out_len)
            if result == 0:
                vq["packets"] += 1
                vq["bytes"] += out_len
                if is_gso:
                    vq["gso_packets"] += 1
            elif result == HELD:
                pass
            elif result == -EAGAIN or result == -ENOMEM or result == -ENOBUFS:
                vq["waits_backend_full"] += 1
                # Notifications stay off: the socket, not the driver, says when to go on.
                discard_vq_desc(vq, 1, int(vq["chain_descs"]))
                outcome = max(outcome, _flush(worker, vq, bk))
                publish(vq)
                if result != -EAGAIN:
                    work_queue(worker, WORK_TX_NET)
                break
            else:
                count_drop(vq, result, 1)
                if result == -EBADFD:
                    outcome = HANDLED_BACKEND_GONE
        if capture_hva != 0:
            capture_end(capture_hva, result)
        add_used(vq, head, 0, 1, int(vq["chain_descs"]))
        taken += 1
        taken_bytes += out_len
        if exceeds_weight(taken, taken_bytes):
            outcome = max(outcome, _flush(worker, vq, bk))
            publish(vq)
            signal_used(vq)
            work_queue(worker, WORK_TX_KICK)
            break
    vq["chains"] += taken
    end_run(vq, taken, taken)
    worker["unasked"] += taken
    return outcome

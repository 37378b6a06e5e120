"""The worker's list of work, its budgets, and what every handler does about a bad ring.

vhost_work_queue(), vhost_exceeds_weight() and vq_err() of Linux.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper
from vhostnet.native.ordering import load_i64_at, store_i64

from .codes import HANDLED, HANDLED_MISS, HANDLED_RING_ERROR, RING_AVAIL_JUMP, RING_MISS
from .layout import VHOST_NET_PKT_WEIGHT, VHOST_NET_WEIGHT
from .ring_access import forget_ring
from .vring_ops import signal_eventfd

Record = Any


@helper
def work_queue(worker: Record, item: int) -> None:
    """Put a work item at the end of the list, unless it is on it already."""
    bit = 1 << item
    if int(worker["queued"]) & bit:
        return
    worker["queued"] |= bit
    worker["work_list"] |= item << (4 * int(worker["n_work"]))
    worker["n_work"] += 1


@helper
def work_take(worker: Record) -> int:
    """Take the first item; its bit is cleared before it runs, so it may queue itself again."""
    item = int(worker["work_list"]) & 15
    worker["work_list"] >>= 4
    worker["n_work"] -= 1
    worker["queued"] &= ~(1 << item)
    return item


@helper
def exceeds_weight(packets: int, total_bytes: int) -> bool:
    """Whether one run of a handler has had its share, so that the other direction gets its."""
    return packets >= VHOST_NET_PKT_WEIGHT or total_bytes >= VHOST_NET_WEIGHT


@helper
def ring_fault(vq: Record) -> None:
    """Tell the error eventfd that the driver made a mistake."""
    signal_eventfd(int(vq["err_fd"]), int(vq["one_hva"]))


@helper
def ring_error(vq: Record, code: int) -> int:
    """Note a ring that cannot go on; HANDLED_RING_ERROR if its cause is new since the start.

    The handler stops with notifications off and the head not consumed; the next kick looks
    again (Linux does the same: the queue is dead until then, but not for ever).
    """
    if code == RING_MISS:  # no mistake: the front-end knows, and its answer is a kick
        vq["iotlb_misses"] += 1
        return HANDLED_MISS
    forget_ring(vq)
    vq["ring_errors"] += 1
    rule_hva = int(vq["errors_hva"]) + 8 * (RING_AVAIL_JUMP - code)
    store_i64(rule_hva, load_i64_at(rule_hva, 0) + 1)
    ring_fault(vq)
    if int(vq["last_error"]) == code:
        return HANDLED
    vq["last_error"] = code
    return HANDLED_RING_ERROR

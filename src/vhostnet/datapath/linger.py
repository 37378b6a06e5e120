"""Waiting a moment for a driver that sends flat out, before it is asked to kick.

A driver that has just had a batch of packets taken is about to send more.  Asked for a kick it pays
a system call, and we a wake-up.  So it gets LINGER_NS to get ahead, once after each such run, and
then its ring is looked at again.  Meanwhile nothing of the guest is looked at: whoever watches the
ring all the time takes the driver's cache lines away, and finds small batches (docs/benchmarks.md
has what was tried).  A guest that sends packet by packet is never waited for.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements
from vhostnet.native.libc_raw import monotonic_ns
from vhostnet.native.ordering import cpu_relax

from .layout import PACKED_VRING, REMOTE_PACKED_VRING, REMOTE_VRING, SPLIT_VRING
from .vring_ops import vq_avail_changed
from .work import work_queue

Record = Any
LINGER_NS = 2000
#: Chains of a run after which it is worth it.
LINGER_CHAINS = 32


@family
def linger(tx: Record, other: Record, worker: Record, tx_item: int, other_item: int) -> None:
    """Wait, if *tx* ran empty after a batch; what either ring has then is queued.

    Args:
        other: the other ring that the worker serves.
        tx_item, other_item: WORK_* of a kick of the two.
    """
    raise NotImplementedError


@implements(linger, SPLIT_VRING, PACKED_VRING)
def _linger(tx: Record, other: Record, worker: Record, tx_item: int, other_item: int) -> None:
    if not tx["active"] or not tx["wants_kick"] or int(tx["run_chains"]) < LINGER_CHAINS:
        return
    tx["run_chains"] = 0
    timespec_hva = int(worker["timespec_hva"])
    until_ns = monotonic_ns(timespec_hva) + LINGER_NS
    while monotonic_ns(timespec_hva) < until_ns:
        cpu_relax()
    if vq_avail_changed(tx):
        work_queue(worker, tx_item)
    if other["active"] and other["wants_kick"] and vq_avail_changed(other):
        work_queue(worker, other_item)


@implements(linger, REMOTE_VRING, REMOTE_PACKED_VRING)
def _linger_remote(
    tx: Record, other: Record, worker: Record, tx_item: int, other_item: int
) -> None:
    pass  # each look is a system call

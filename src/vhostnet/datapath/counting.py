"""What the handlers count beside their work: drops by cause, runs, and two histograms.

A counter is a word of a record that only its worker writes, plainly: no lock and no atomic
operation, since a reader who sees an aligned word sees a whole one.  Per packet there are a few
additions and no clock: the clock is read twice a kick, which costs a system call anyway.

A histogram is i8[2 + n]: the sum of what was observed, then n counts by powers of two, then the
count of all that was larger.  Count k is of values up to `1 << (shift + k)` and above the one
before.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper
from vhostnet.native.libc_raw import monotonic_ns
from vhostnet.native.ordering import load_i64_at, store_i64

from .layout import BATCH_BUCKETS, BATCH_SHIFT, LATENCY_BUCKETS, LATENCY_SHIFT
from .vring_ops import publish_used

Record = Any
EBADFD, EINVAL, EIO, EMSGSIZE = errno.EBADFD, errno.EINVAL, errno.EIO, errno.EMSGSIZE
ENETDOWN, ENOSPC, ENOTCONN = errno.ENETDOWN, errno.ENOSPC, errno.ENOTCONN


@helper
def count_drop(counts: Record, result: int, n: int) -> None:
    """Count *n* packets that `backend_send` refused for good with *result*, by cause.

    Args:
        counts: a record with the fields of `layout.DROPS_BY_ERRNO`.
    """
    if result == -ENOSPC:
        counts["drop_full"] += n
    elif result == -ENOTCONN:
        counts["drop_no_peer"] += n
    elif result == -EINVAL:
        counts["drop_bad_header"] += n
    elif result == -EMSGSIZE:
        counts["drop_too_long"] += n
    elif result == -EIO or result == -ENETDOWN:
        counts["drop_down"] += n
    elif result == -EBADFD:
        counts["drop_gone"] += n
    else:
        counts["drop_refused"] += n


@helper
def observe(histogram_hva: int, shift: int, n_buckets: int, value: int) -> None:
    """Put one value into a histogram."""
    k = 0
    while k < n_buckets and value > 1 << (shift + k):
        k += 1
    store_i64(histogram_hva, load_i64_at(histogram_hva, 0) + value)
    count_hva = histogram_hva + 8 * (1 + k)
    store_i64(count_hva, load_i64_at(count_hva, 0) + 1)


@helper
def note_kick(vq: Record) -> None:
    """A kick of the ring has been seen."""
    vq["kicks"] += 1
    vq["kicked"] = 1
    vq["kick_ns"] = monotonic_ns(int(vq["timespec_hva"]))


@helper
def publish(vq: Record) -> None:
    """`publish_used`; the first one after a kick is what the driver has waited for."""
    if int(vq["kick_ns"]) != 0 and int(vq["done_idx"]) > 0:
        waited_ns = monotonic_ns(int(vq["timespec_hva"])) - int(vq["kick_ns"])
        observe(int(vq["latency_hva"]), LATENCY_SHIFT, LATENCY_BUCKETS, waited_ns)
        vq["kick_ns"] = 0
    publish_used(vq)


@helper
def end_run(vq: Record, packets: int, chains: int) -> None:
    """A run of a handler is over, which moved or dropped *packets* and handed *chains* back."""
    if chains > 0:
        vq["run_chains"] = chains
        vq["kicks_avoided"] += chains - int(vq["kicked"])
        if packets > 0:
            observe(int(vq["batch_hva"]), BATCH_SHIFT, BATCH_BUCKETS, packets)
    vq["kicked"] = 0
    vq["kick_ns"] = 0  # it had nothing to complete

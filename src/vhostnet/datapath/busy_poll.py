"""Looking at the rings for a while before sleeping (VHOST_SET_VRING_BUSYLOOP_TIMEOUT).

A driver on another core that works in small bursts costs a kick, a wake-up and a sleep for each
burst; looking on for some microseconds costs none of these, and a processor.  Off by default.

Adaptive: the time doubles, up to the limit, each time that looking found something and is
halved each time that it did not.  A guest at rest is then left alone after a few tries, and a
busy one is watched.

Source: Linux vhost_net_busy_poll().
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper
from vhostnet.native.libc_raw import monotonic_ns
from vhostnet.native.ordering import cpu_relax

from .layout import WORK_RX_KICK, WORK_TX_KICK
from .vring_ops import vq_avail_changed
from .work import work_queue

Record = Any
#: Looks at the rings between two looks at the clock and at epoll.
LOOKS = 32
#: Adaptive spinning never falls below this: otherwise it could not find out.
SPIN_MIN_NS = 1000


@helper
def _limit(rx: Record, tx: Record) -> int:
    return max(int(rx["busyloop_ns"]), int(tx["busyloop_ns"]))


@helper
def spin_until(worker: Record, rx: Record, tx: Record) -> int:
    """When to stop looking (monotonic, nanoseconds); 0: do not spin at all."""
    limit = _limit(rx, tx)
    if limit == 0:
        return 0
    worker["spins"] += 1
    if worker["adaptive"]:
        limit = min(limit, max(int(worker["spin_ns"]), SPIN_MIN_NS))
    return monotonic_ns(int(worker["timespec_hva"])) + limit


@helper
def spin_once(worker: Record, rx: Record, tx: Record, deadline_ns: int) -> int:
    """Look at both rings some times; a change queues its work.

    Returns:
        The deadline, or 0 when it has passed.
    """
    for _ in range(LOOKS):
        if tx["active"] and tx["wants_kick"] and vq_avail_changed(tx):
            work_queue(worker, WORK_TX_KICK)
            return deadline_ns
        if rx["active"] and rx["wants_kick"] and vq_avail_changed(rx):
            work_queue(worker, WORK_RX_KICK)
            return deadline_ns
        cpu_relax()
    if monotonic_ns(int(worker["timespec_hva"])) >= deadline_ns:
        return 0
    return deadline_ns


@helper
def spin_result(worker: Record, rx: Record, tx: Record, found: bool) -> None:
    """Learn from one spin."""
    spin_ns = max(int(worker["spin_ns"]), SPIN_MIN_NS)
    if found:
        worker["spin_hits"] += 1
        worker["spin_ns"] = min(2 * spin_ns, _limit(rx, tx))
    else:
        worker["spin_ns"] = spin_ns // 2

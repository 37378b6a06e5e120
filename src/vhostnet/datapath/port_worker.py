"""The worker of a port: what a guest sends goes into another guest's ring (see `port`).

It waits and works as `worker_loop` says, with one work item: the guest's TX ring was kicked.  Its
RX ring is the business of the other guest's worker.  A kick of it, which nobody asked for, is read
and forgotten.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, kernel

from .codes import (
    HANDLED,
    HANDLED_PEER_ERROR,
    WORKER_RX_ERROR,
    WORKER_STOPPED,
    WORKER_TX_ERROR,
)
from .layout import POLL_MS, WORK_TX_KICK, WORK_TX_NET
from .port import handle_port
from .work import work_queue, work_take
from .worker_loop import busy_poll, poll_edges, prepare_to_wait

Record = Any


@helper
def run_port_work(
    worker: Record,
    tx: Record,
    tx_mem: Any,
    out: Record,
    out_regions: Any,
    link: Record,
    src: Any,
    dst: Any,
    heads: Any,
) -> int:
    """Run the first work item; HANDLED, or the codes.WORKER_* that Python should hear."""
    item = work_take(worker)
    worker["runs"] += 1
    worker["unasked"] += 1
    if (item != WORK_TX_KICK and item != WORK_TX_NET) or not tx["active"]:
        return HANDLED
    result = handle_port(worker, tx, tx_mem, out, out_regions, link, src, dst, heads)
    if result == HANDLED:
        return HANDLED
    return WORKER_RX_ERROR if result == HANDLED_PEER_ERROR else WORKER_TX_ERROR


@kernel
def port_worker(
    worker_array: Any,
    rx_array: Any,
    tx_array: Any,
    tx_mem: Any,
    out_array: Any,
    out_regions: Any,
    link_array: Any,
    src: Any,
    dst: Any,
    heads: Any,
) -> int:
    """Serve one guest's TX ring and another's RX ring until control asks to stop.

    Args:
        worker_array: WORKER[1].
        rx_array: the guest's own RX ring [1]: its kick only.
        tx_array: its TX ring [1], of the same dtype.
        tx_mem: its region table.
        out_array: the other guest's RX ring [1], of any dtype.
        out_regions: that guest's region table.
        link_array: PORT[1].
        src, dst: IOVEC[2 * UIO_MAXIOV + 1], scratch.
        heads: RX_HEAD[UIO_MAXIOV], scratch.

    Returns:
        codes.WORKER_*, RX errors being the other guest's; or -errno of epoll_edges.
    """
    worker = worker_array[0]
    rx = rx_array[0]
    tx = tx_array[0]
    out = out_array[0]
    link = link_array[0]
    while True:
        timeout_ms = 0
        if int(worker["n_work"]) == 0:
            stop = busy_poll(worker, rx, tx, link, link)
            if int(worker["n_work"]) == 0 and stop == 0:
                prepare_to_wait(worker, rx, tx)
                if int(worker["n_work"]) == 0:
                    timeout_ms = POLL_MS if tx["polled"] else -1
        stop = poll_edges(worker, rx, tx, link, link, timeout_ms)
        if stop < 0:
            return stop
        if tx["polled"]:
            work_queue(worker, WORK_TX_KICK)
        for _ in range(int(worker["n_work"])):
            result = run_port_work(worker, tx, tx_mem, out, out_regions, link, src, dst, heads)
            if result != HANDLED:
                return result
        if stop > 0:
            prepare_to_wait(worker, rx, tx)
            return WORKER_STOPPED

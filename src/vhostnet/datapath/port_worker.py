"""The worker of a port: what a guest sends goes into another guest's ring (see `port`).

It waits and works as `worker_loop` says.  Where two guests have only each other, one worker serves
both ways: the other guest's TX ring takes the place of the RX ring that other workers have, and
the epoll set of the other guest's own worker, which rests, is a source of edges.  Otherwise the
way back has an inactive ring here, and its own worker.

A kick of a RX ring, which nobody asked for, is counted and forgotten.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, kernel
from vhostnet.native.libc_raw import epoll_wait
from vhostnet.native.ordering import load_relaxed_i64

from .busy_poll import spin_once, spin_result, spin_until
from .codes import (
    HANDLED,
    HANDLED_PEER_ERROR,
    WORKER_BACK_RX_ERROR,
    WORKER_BACK_TX_ERROR,
    WORKER_RX_ERROR,
    WORKER_STOPPED,
    WORKER_TX_ERROR,
)
from .layout import (
    EPOLL_BATCH,
    EPOLL_EVENT_DATA,
    EPOLL_EVENT_SIZE,
    POLL_MS,
    WORK_BACK_KICK,
    WORK_RX_KICK,
    WORK_TX_KICK,
    WORK_TX_NET,
)
from .linger import linger
from .port import handle_port
from .vring_ops import signal_used
from .work import work_queue, work_take
from .worker_loop import poll_edges, prepare_to_wait, take_kick

Record = Any


@helper
def _poll_both(
    worker: Record,
    rx: Record,
    tx: Record,
    back_rx: Record,
    back_tx: Record,
    link: Record,
    timeout_ms: int,
) -> int:
    """As `poll_edges`, for both guests."""
    stop = poll_edges(worker, rx, tx, link, link, timeout_ms)
    if not worker["back_ready"]:
        return stop
    worker["back_ready"] = 0
    events_hva = int(worker["events_hva"])
    n = epoll_wait(int(link["back_epfd"]), events_hva, EPOLL_BATCH, 0)
    rx_kick = False
    tx_kick = False
    for i in range(n):
        source = load_relaxed_i64(events_hva + i * EPOLL_EVENT_SIZE + EPOLL_EVENT_DATA)
        if source == WORK_RX_KICK:
            rx_kick = True
        elif source == WORK_TX_KICK:
            tx_kick = True
    # after the loop: reading a pipe borrows the events' memory
    if rx_kick:
        take_kick(back_rx, events_hva)
    if tx_kick:
        take_kick(back_tx, events_hva)
        work_queue(worker, WORK_BACK_KICK)
    return stop


@helper
def _busy_poll(
    worker: Record, rx: Record, tx: Record, back_rx: Record, back_tx: Record, link: Record
) -> int:
    """As `worker_loop.busy_poll`, for both guests."""
    deadline_ns = spin_until(worker, back_tx, tx)
    stop = 0
    while deadline_ns > 0:
        deadline_ns = spin_once(worker, back_tx, tx, deadline_ns)
        stop = _poll_both(worker, rx, tx, back_rx, back_tx, link, 0)
        if int(worker["n_work"]) > 0:
            spin_result(worker, back_tx, tx, True)
            return stop
        if stop != 0:
            return stop
        if deadline_ns == 0:
            spin_result(worker, back_tx, tx, False)
    return stop


@helper
def _prepare_to_wait(worker: Record, tx: Record, back_tx: Record) -> None:
    if back_tx["active"]:
        signal_used(back_tx)
    prepare_to_wait(worker, back_tx, tx)


@helper
def _run_work(
    worker: Record,
    rx: Record,
    tx: Record,
    mem: Any,
    back_rx: Record,
    back_tx: Record,
    back_mem: Any,
    link: Record,
    back_link: Record,
    src: Any,
    dst: Any,
    heads: Any,
) -> int:
    """Run the first work item; HANDLED, or the codes.WORKER_* that Python should hear."""
    item = work_take(worker)
    worker["runs"] += 1
    worker["unasked"] += 1
    if item == WORK_TX_KICK or item == WORK_TX_NET:
        if not tx["active"]:
            return HANDLED
        result = handle_port(
            worker, WORK_TX_KICK, tx, mem, back_rx, back_mem, link, src, dst, heads
        )
        if result == HANDLED:
            return HANDLED
        return WORKER_RX_ERROR if result == HANDLED_PEER_ERROR else WORKER_TX_ERROR
    if not back_tx["active"]:
        return HANDLED
    result = handle_port(
        worker, WORK_BACK_KICK, back_tx, back_mem, rx, mem, back_link, src, dst, heads
    )
    if result == HANDLED:
        return HANDLED
    return WORKER_BACK_RX_ERROR if result == HANDLED_PEER_ERROR else WORKER_BACK_TX_ERROR


@kernel
def port_worker(
    worker_array: Any,
    rx_array: Any,
    tx_array: Any,
    mem: Any,
    back_rx_array: Any,
    back_tx_array: Any,
    back_mem: Any,
    link_array: Any,
    back_link_array: Any,
    src: Any,
    dst: Any,
    heads: Any,
) -> int:
    """Carry what one guest sends to another, or what both send, until control asks to stop.

    Args:
        worker_array: WORKER[1].
        rx_array, tx_array: a guest's rings [1] of one dtype; RX is used for the way back only.
        mem: its region table.
        back_rx_array, back_tx_array, back_mem: those of the other guest, of any dtype; the TX ring
            is one that is not active if its own worker serves it.
        link_array, back_link_array: PORT[1] of either way.
        src, dst: IOVEC[2 * UIO_MAXIOV + 1], scratch.
        heads: RX_HEAD[UIO_MAXIOV], scratch.

    Returns:
        codes.WORKER_*, or -errno of epoll_wait.  RX errors are about the ring that the way leads
        to: the other guest's, or on the way back the first one's.
    """
    worker = worker_array[0]
    rx = rx_array[0]
    tx = tx_array[0]
    back_rx = back_rx_array[0]
    back_tx = back_tx_array[0]
    link = link_array[0]
    back_link = back_link_array[0]
    while True:
        timeout_ms = 0
        if int(worker["n_work"]) == 0:
            stop = _busy_poll(worker, rx, tx, back_rx, back_tx, link)
            if int(worker["n_work"]) == 0 and stop == 0:
                linger(tx, back_tx, worker, WORK_TX_KICK, WORK_BACK_KICK)
            if int(worker["n_work"]) == 0 and stop == 0:
                linger(back_tx, tx, worker, WORK_BACK_KICK, WORK_TX_KICK)
            if int(worker["n_work"]) == 0 and stop == 0:
                _prepare_to_wait(worker, tx, back_tx)
                if int(worker["n_work"]) == 0:
                    timeout_ms = POLL_MS if tx["polled"] or back_tx["polled"] else -1
        stop = _poll_both(worker, rx, tx, back_rx, back_tx, link, timeout_ms)
        if stop < 0:
            return stop
        if tx["polled"]:
            work_queue(worker, WORK_TX_KICK)
        if back_tx["polled"]:
            work_queue(worker, WORK_BACK_KICK)
        for _ in range(int(worker["n_work"])):
            result = _run_work(
                worker,
                rx,
                tx,
                mem,
                back_rx,
                back_tx,
                back_mem,
                link,
                back_link,
                src,
                dst,
                heads,
            )
            if result != HANDLED:
                return result
        if stop > 0:
            _prepare_to_wait(worker, tx, back_tx)
            return WORKER_STOPPED

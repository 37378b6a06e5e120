"""The worker: one thread a queue pair, which waits and runs both directions.

Theory of operation
-------------------
As in Linux there are four work items on one list: a kick of either ring, and the backend
being readable or writable.  Something that is ready *queues* its work; the list is run in
order, each item at most once a turn; a handler that reaches its weight queues itself at the
end, so the other direction comes first.  RX and TX of one pair never run at the same time.

Waiting is one epoll set, edge-triggered: the kick eventfds are never read (each write is an
edge), and neither a backend that is readable while the guest has no buffers nor one that is
always writable costs a turn.  The kernel stays here, without the GIL, until the control
eventfd asks it to stop or something happens that Python should log.

    RUNNING   work queued; epoll is asked with timeout 0 once a batch of packets
        Caveats:     rings and memory may be changed by nobody else
    SPINNING  nothing queued, busy polling on: rings and epoll are looked at for a while
        Operations:  a ring that changed, or any edge, queues work
    LINGERING the driver has just sent a batch: it gets a moment to send more (see `linger`)
    WAITING   kicks were asked for, everything is signalled; in epoll_wait
        Operations:  any edge queues work and wakes us
    PARKED    this kernel has returned; see device/worker.py
        Operations:  control may change everything

Kicks and interrupts are what a guest pays for, so both are put off to the moment before
WAITING.  What a transmission brings back (a TCP acknowledgement) is there when the TAP's write
returns: TX completions are signalled after one more look at the backend, and the guest gets
one interrupt for both.  A driver that adds buffers meanwhile need not kick.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, kernel
from vhostnet.native.libc_raw import epoll_wait, read
from vhostnet.native.ordering import load_relaxed_i32, load_relaxed_i64

from . import (  # noqa: F401  (the bodies)
    owner_memory_raw,
    packed_ring,
    remote_packed_ring,
    remote_split_ring,
    split_ring,
    via_coalescing_tap,
    via_gen,
    via_loop,
    via_null,
    via_tap,
)
from .backend_ops import backend_ready, backend_turns
from .busy_poll import spin_once, spin_result, spin_until
from .codes import (
    HANDLED,
    HANDLED_BACKEND_GONE,
    HANDLED_MISS,
    WORKER_BACKEND_GONE,
    WORKER_RX_ERROR,
    WORKER_RX_MISS,
    WORKER_STOPPED,
    WORKER_TX_ERROR,
    WORKER_TX_MISS,
)
from .counting import note_kick
from .layout import (
    EPOLL_BATCH,
    EPOLL_EVENT_DATA,
    EPOLL_EVENT_SIZE,
    EVENT_BACK,
    EVENT_BACKEND,
    EVENT_CONTROL,
    POLL_MS,
    VHOST_NET_BATCH,
    WORK_RX_KICK,
    WORK_RX_NET,
    WORK_TX_KICK,
    WORK_TX_NET,
)
from .linger import linger
from .rx import handle_rx
from .tx import handle_tx
from .vring_ops import disable_notify, enable_notify, signal_used
from .work import work_queue, work_take

Record = Any
EINTR = errno.EINTR
EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP = 1, 4, 8, 16


@helper
def take_kick(vq: Record, events_hva: int) -> None:
    """Note a kick, and empty it if it is a pipe."""
    note_kick(vq)
    if vq["kick_is_pipe"]:
        read(int(vq["kick_fd"]), events_hva, EPOLL_BATCH * EPOLL_EVENT_SIZE)


@helper
def _kicked(worker: Record, vq: Record, item: int, events_hva: int) -> None:
    """A kick arrived: queue the handler."""
    take_kick(vq, events_hva)
    work_queue(worker, item)


@helper
def poll_wait(
    worker: Record, rx: Record, tx: Record, rx_bk: Record, tx_bk: Record, timeout_ms: int
) -> int:
    """Wait for edges and queue their work; 1 if control wants us to stop, else 0 or -errno."""
    events_hva = int(worker["events_hva"])
    if timeout_ms == 0:
        worker["polls"] += 1
    worker["unasked"] = 0
    n = epoll_wait(int(worker["epfd"]), events_hva, EPOLL_BATCH, timeout_ms)
    if timeout_ms != 0:
        worker["wakeups"] += 1
    if n < 0:
        return 0 if n == -EINTR else n
    stop = 0
    rx_kick = False
    tx_kick = False
    for i in range(n):
        at = events_hva + i * EPOLL_EVENT_SIZE
        source = load_relaxed_i64(at + EPOLL_EVENT_DATA)
        if source == WORK_RX_KICK:
            rx_kick = True
        elif source == WORK_TX_KICK:
            tx_kick = True
        elif source == EVENT_BACKEND:
            events = load_relaxed_i32(at)
            readable = events & (EPOLLIN | EPOLLERR | EPOLLHUP) != 0
            writable = events & (EPOLLOUT | EPOLLERR) != 0
            backend_ready(rx_bk, readable, False)
            backend_ready(tx_bk, False, writable)
            if readable:
                work_queue(worker, WORK_RX_NET)
            if writable:
                work_queue(worker, WORK_TX_NET)
        elif source == EVENT_CONTROL:
            stop = 1
        elif source == EVENT_BACK:
            worker["back_ready"] = 1
    # after the loop: reading a pipe borrows the events' memory
    if rx_kick:
        _kicked(worker, rx, WORK_RX_KICK, events_hva)
    if tx_kick:
        _kicked(worker, tx, WORK_TX_KICK, events_hva)
    return stop


@helper
def poll_edges(
    worker: Record, rx: Record, tx: Record, rx_bk: Record, tx_bk: Record, timeout_ms: int
) -> int:
    """As `poll_wait`, but work at hand comes first: it waits only once a batch of packets."""
    if int(worker["n_work"]) > 0 and int(worker["unasked"]) < VHOST_NET_BATCH:
        return 0
    return poll_wait(worker, rx, tx, rx_bk, tx_bk, timeout_ms)


@helper
def _ask_for_kicks(worker: Record, vq: Record, item: int) -> None:
    """Ask the driver to kick if its ring ran empty; if it was quicker, queue the handler."""
    if vq["wants_kick"] and vq["active"] and enable_notify(vq):
        disable_notify(vq)
        work_queue(worker, item)


@helper
def prepare_to_wait(worker: Record, rx: Record, tx: Record) -> None:
    """Everything the guest has to know before we sleep; may queue work instead."""
    if tx["active"]:
        signal_used(tx)
    _ask_for_kicks(worker, rx, WORK_RX_KICK)
    _ask_for_kicks(worker, tx, WORK_TX_KICK)


@helper
def busy_poll(worker: Record, rx: Record, tx: Record, rx_bk: Record, tx_bk: Record) -> int:
    """SPINNING: look until something queues work or the time is up; as `poll_wait`."""
    deadline_ns = spin_until(worker, rx, tx)
    stop = 0
    while deadline_ns > 0:
        deadline_ns = spin_once(worker, rx, tx, deadline_ns)
        stop = poll_edges(worker, rx, tx, rx_bk, tx_bk, 0)
        if int(worker["n_work"]) > 0:
            spin_result(worker, rx, tx, True)
            return stop
        if stop != 0:
            return stop
        if deadline_ns == 0:
            spin_result(worker, rx, tx, False)
    return stop


@helper
def handle_rx_kick(
    worker: Record, rx: Record, mem: Any, regions: Any, bk: Record, iov: Any, heads: Any
) -> int:
    """The guest has posted receive buffers."""
    return handle_rx(worker, rx, mem, regions, bk, iov, heads) if rx["active"] else HANDLED


@helper
def handle_tx_kick(worker: Record, tx: Record, mem: Any, bk: Record, iov: Any) -> int:
    """The guest has packets to send."""
    return handle_tx(worker, tx, mem, bk, iov) if tx["active"] else HANDLED


@helper
def handle_rx_net(
    worker: Record, rx: Record, mem: Any, regions: Any, bk: Record, iov: Any, heads: Any
) -> int:
    """The backend has packets for the guest."""
    return handle_rx(worker, rx, mem, regions, bk, iov, heads) if rx["active"] else HANDLED


@helper
def handle_tx_net(worker: Record, tx: Record, mem: Any, bk: Record, iov: Any) -> int:
    """The backend has room again."""
    return handle_tx(worker, tx, mem, bk, iov) if tx["active"] else HANDLED


@helper
def run_work(
    worker: Record,
    rx: Record,
    tx: Record,
    mem: Any,
    regions: Any,
    rx_bk: Record,
    tx_bk: Record,
    iov: Any,
    heads: Any,
) -> int:
    """Run the first work item; HANDLED, or the codes.WORKER_* that Python should hear."""
    item = work_take(worker)
    worker["runs"] += 1
    worker["unasked"] += 1
    if item == WORK_RX_KICK or item == WORK_RX_NET:
        if item == WORK_RX_KICK:
            result = handle_rx_kick(worker, rx, mem, regions, rx_bk, iov, heads)
        else:
            result = handle_rx_net(worker, rx, mem, regions, rx_bk, iov, heads)
        error = WORKER_RX_ERROR
        miss = WORKER_RX_MISS
    else:
        if item == WORK_TX_KICK:
            result = handle_tx_kick(worker, tx, mem, tx_bk, iov)
        else:
            result = handle_tx_net(worker, tx, mem, tx_bk, iov)
        error = WORKER_TX_ERROR
        miss = WORKER_TX_MISS
        if backend_turns(rx_bk):
            work_queue(worker, WORK_RX_NET)
    if result == HANDLED:
        return HANDLED
    if result == HANDLED_MISS:
        return miss
    return WORKER_BACKEND_GONE if result == HANDLED_BACKEND_GONE else error


@kernel
def vhost_worker(
    worker_array: Any,
    rx_array: Any,
    tx_array: Any,
    mem: Any,
    regions: Any,
    rx_bk_array: Any,
    tx_bk_array: Any,
    iov: Any,
    heads: Any,
) -> int:
    """Serve one queue pair until control asks to stop or Python has something to say.

    Args:
        worker_array: WORKER[1].
        rx_array, tx_array: a vring record [1] each, of one dtype.
        mem: what addresses in the rings mean: a region table or an IOTLB.
        regions: MAPPED_REGION[n], the guest's memory; for the dirty log.
        rx_bk_array, tx_bk_array: a backend record [1] each, of one dtype.
        iov: IOVEC[2 * UIO_MAXIOV + 1], scratch.
        heads: RX_HEAD[UIO_MAXIOV], scratch.

    Returns:
        codes.WORKER_*, or -errno of epoll_wait.

    Source: Linux vhost_worker() and the four handlers of drivers/vhost/net.c.
    """
    worker = worker_array[0]
    rx = rx_array[0]
    tx = tx_array[0]
    rx_bk = rx_bk_array[0]
    tx_bk = tx_bk_array[0]
    looked = False  # at the backend, since TX completions became due
    while True:
        timeout_ms = 0
        if int(worker["n_work"]) == 0:
            if tx["active"] and tx["signal_due"] and not looked:
                looked = True
            else:
                looked = False
                stop = busy_poll(worker, rx, tx, rx_bk, tx_bk)
                if int(worker["n_work"]) == 0 and stop == 0:
                    linger(tx, rx, worker, WORK_TX_KICK, WORK_RX_KICK)
                if int(worker["n_work"]) == 0 and stop == 0:
                    prepare_to_wait(worker, rx, tx)
                    if int(worker["n_work"]) == 0:
                        timeout_ms = POLL_MS if rx["polled"] or tx["polled"] else -1
        stop = poll_edges(worker, rx, tx, rx_bk, tx_bk, timeout_ms)
        if stop < 0:
            return stop
        if rx["polled"] or tx["polled"]:
            work_queue(worker, WORK_RX_KICK)
            work_queue(worker, WORK_TX_KICK)
        for _ in range(int(worker["n_work"])):
            result = run_work(worker, rx, tx, mem, regions, rx_bk, tx_bk, iov, heads)
            if result != HANDLED:
                return result
        if stop > 0:  # after the work: what was ready before control asked is done (a flush)
            prepare_to_wait(worker, rx, tx)
            return WORKER_STOPPED

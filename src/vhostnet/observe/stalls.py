"""Why a ring that should move does not: from what two looks at it have in common.

A *look* is what is known of one ring at a moment: words of records, what the driver has made
available, whether descriptors could be read or written.  Nothing is said about a single look, since
at any moment something is on its way.  What two of them, a second apart, both show with nothing
moved between is a stall, and the look says why.
"""

from __future__ import annotations

import select
from dataclasses import dataclass, field

from vhostnet.backends.backend import BackendQueue
from vhostnet.datapath.codes import RING_ERRORS
from vhostnet.datapath.layout import DROPS_BY_ERRNO
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import VHOST_NET_VQ_TX, Vring

SYSCALLS = ("poll", "ppoll")

#: Every cause, and what it means.
CAUSES = {
    "kick_lost": "chains are available, the driver was asked to kick, and no kick has come",
    "no_kick": "chains are available, and the front-end has given no kick descriptor",
    "no_buffers": "a packet waits, and the driver posts no buffers",
    "too_few_buffers": "a packet waits, and needs more than all buffers that are posted",
    "backend_full": "a packet waits for room in the backend",
    "wakeup_lost": "the backend could take or give a packet, and the worker does not know of it",
    "ring_broken": "the driver has broken a rule of the ring, and has not mended it",
    "backend_gone": "the backend was deleted",
    "all_dropped": "every packet is thrown away",
    "call_full": "nobody reads the call descriptor, so the driver hears of nothing",
    "front_end_gone": "a packet waits, and no front-end is there any more",
    "ring_stopped": "a packet waits, and the front-end has stopped this ring only",
    "iotlb_miss": "the front-end was asked for an address, and does not answer",
    "worker_stuck": "the worker does not come back from what it does",
    "worker_failed": "a bug in vhostnet has ended the worker's loop",
}

_DROP_TEXT = {
    "drop_full": "the other end has no room or no buffers",
    "drop_no_peer": "nobody is at the other end of the port, or its ring is broken",
    "drop_bad_header": "their headers do not fit their frames",
    "drop_too_long": "they are too long",
    "drop_down": "the interface is down",
    "drop_gone": "the backend was deleted",
    "drop_refused": "the backend refuses them",
    "drop_too_small": "the guest's buffers are too small",
}
assert DROPS_BY_ERRNO.keys() <= _DROP_TEXT.keys()


@dataclass(frozen=True, slots=True)
class Stall:
    """A cause of `CAUSES`, and one sentence about this case."""

    cause: str
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a ring at a moment.

    Attributes:
        chains, packets: counted so far.
        runs: of the worker's handlers.
        drops: by cause.
        active: the ring runs; `other_active`: that of the other direction.
        waiting, unseen: see Vring.look.
        packet: rx: a packet is there for the guest; tx: one of ours waits for room.
        packet_size: bytes of it, if it was read already.
        error: of the last error (codes.RING_*), while nothing has moved since; else 0.
        missing: the I/O virtual address that was asked for, or None.
        worker: "none", "gone" (there was one), "failed", "working" (has work), "waiting".
    """

    is_tx: bool
    chains: int
    packets: int
    runs: int
    drops: dict[str, int] = field(repr=False)
    active: bool
    other_active: bool
    waiting: int
    unseen: bool
    packet: bool
    packet_size: int
    wants_kick: bool
    has_kick: bool
    call_full: bool
    writable: bool
    gone: bool
    error: int
    missing: int | None
    worker: str


def look_at(net: VhostNet, ring: Vring, queue: BackendQueue | None, error: int) -> Look:
    """Look at a ring; in the control thread, since guest memory may be unmapped by it.

    Args:
        queue: of its backend, attached or not.
        error: see Look.
    """
    is_tx = ring.index == VHOST_NET_VQ_TX
    record = ring.record[0]
    active = bool(record["active"])
    waiting, unseen = ring.look() if active else (0, False)
    packet_size, packet, writable, gone = _look_at_backend(queue, is_tx)
    return Look(
        is_tx=is_tx,
        chains=int(record["chains"]),
        packets=int(record["packets"]),
        runs=net.worker_counters().get("runs", 0),
        drops={name: int(record[name]) for name in _DROP_TEXT},
        active=active,
        other_active=net.vqs[1 - ring.index].active,
        waiting=waiting,
        unseen=unseen,
        packet=packet,
        packet_size=packet_size,
        wants_kick=bool(record["wants_kick"]),
        has_kick=int(record["kick_fd"]) >= 0 or bool(record["polled"]),
        call_full=active and int(record["call_fd"]) >= 0 and not _is_ready(int(record["call_fd"])),
        writable=writable,
        gone=gone,
        error=error,
        missing=net.misses.get(ring.index),
        worker=net.worker_state,
    )


def _look_at_backend(queue: BackendQueue | None, is_tx: bool) -> tuple[int, bool, bool, bool]:
    """(bytes of a packet that was read, is there one, is there room, was it deleted)."""
    if queue is None or queue.poll_fd < 0:
        return 0, False, True, False
    record, names = queue.record[0], queue.record.dtype.names or ()
    gone = "gone" in names and bool(record["gone"])
    if is_tx:
        stashed = "stash_end" in names and int(record["stash_end"]) > 0
        return 0, stashed, _is_ready(queue.poll_fd), gone
    size = int(record["hold_len"]) if "hold_len" in names else 0
    return size, size > 0 or _is_ready(queue.poll_fd, select.POLLIN), True, gone


def _is_ready(fd: int, event: int = select.POLLOUT) -> bool:
    poll = select.poll()  # not select(): descriptors may be above 1023
    poll.register(fd, event)
    return any(ready & event for _, ready in poll.poll(0))


def explain(before: Look, now: Look) -> Stall | None:
    """The stall that two looks at a ring, a while apart, both show; None: there is none."""
    if now.worker == "failed":
        return Stall("worker_failed", "the worker's loop has ended by a bug; see the log")
    if now.active and now.gone:
        return Stall("backend_gone", "the backend was deleted, nothing can move any more")
    if now.missing is not None and now.missing == before.missing:
        return Stall(
            "iotlb_miss", f"the front-end does not answer where I/O address {now.missing:#x} is"
        )
    if before.call_full and now.call_full:
        return Stall(
            "call_full", "its call descriptor is full: nobody reads it, no interrupt gets through"
        )
    if now.chains == before.chains and _should_move(before) and _should_move(now):
        return _why_not(before, now)
    return None


def _should_move(look: Look) -> bool:
    if look.is_tx:
        return look.active and (look.waiting > 0 or look.packet)
    return look.packet


def _why_not(before: Look, now: Look) -> Stall | None:
    """Both looks should move, and nothing did."""
    if not now.active:
        if now.worker == "gone":
            return Stall("front_end_gone", "packets wait for the guest, but its front-end has gone")
        if now.worker != "none" and now.other_active:
            return Stall("ring_stopped", "packets wait for the guest, but this ring was stopped")
        return None  # never started, or stopped as a whole: nobody wants it to move
    if now.error:
        rule = RING_ERRORS.get(now.error, str(now.error))
        return Stall("ring_broken", f"the driver broke the ring: {rule}")
    if before.worker == now.worker == "working" and now.runs == before.runs:
        return Stall("worker_stuck", "the worker does not come back from a handler")
    if not now.is_tx and not now.wants_kick and now.packet_size == 0:
        return Stall(
            "wakeup_lost", "the backend can be read, and has not given the worker a packet"
        )
    if not now.is_tx and now.waiting == 0:
        return Stall("no_buffers", "packets wait for the guest, which posts no buffers")
    if now.is_tx and not now.wants_kick:
        if now.writable:
            return Stall("wakeup_lost", "the backend has room, and has not told the worker")
        return Stall("backend_full", "the backend has had no room for a packet for a while")
    if not now.has_kick and now.unseen:
        return Stall(
            "no_kick", "the driver has made chains available, and there is no kick descriptor"
        )
    if now.unseen:
        return Stall("kick_lost", "the driver has made chains available, and its kick never came")
    return Stall(
        "too_few_buffers",
        f"a packet of {now.packet_size} bytes with its header needs more buffers than are posted",
    )


def explain_drops(first: Look, before: Look, now: Look) -> Stall | None:
    """The stall of a ring that moves and delivers nothing, twice in a row."""
    if now.packets != first.packets:
        return None
    for name, text in _DROP_TEXT.items():
        if now.drops[name] > before.drops[name] and before.drops[name] > first.drops[name]:
            direction = "the guest sends" if now.is_tx else "comes for the guest"
            return Stall("all_dropped", f"every packet that {direction} is dropped: {text}")
    return None

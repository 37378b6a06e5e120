"""A device's statistics as one tree of named values.

Each value is one aligned word that the worker writes and we read: a moment's truth of its own.  Two
values of one tree may be from moments that lie some microseconds apart; when nothing moves they
agree exactly.  Nothing goes backwards while the device exists: counters go on over sessions, owners
and resets of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vhostnet.backends.backend import Backend, BackendQueue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import HistogramReading, Vring


class Observed(Protocol):
    """A card: `VhostUserDevice`, or an open file of the character device."""

    @property
    def name(self) -> str:
        """What log lines call it."""

    @property
    def nets(self) -> Sequence[VhostNet]:
        """Its queue pairs."""

    @property
    def backend(self) -> Backend | None:
        """Its network side, if it is the card's own and not its client's."""


def device_statistics(device: Observed) -> dict[str, Any]:
    """What *device* has counted so far, fit for JSON.

    Returns:
        `{"name": …, "backend": kind or None, "interface_drops": {direction: packets},
        "pairs": [pair, …]}`, a pair being

            {"name": …,
             "rx": ring, "tx": ring,               # rx: to the guest
             "worker": {name: count},              # Worker.counters; {} before the first owner
             "backend": {name: count}}             # layout.BACKEND_COUNTERS that it has

        a ring

            {"active": bool, "size": entries,
             "counters": {name: count},            # layout.COUNTERS, where each is described
             "errors": {rule: count},              # codes.RING_ERROR_RULES
             "batch_packets": histogram,           # packets moved in one run of a handler
             "kick_to_used_ns": histogram}         # from a kick to the first used entry after it

        and a histogram `{"counts": [[bound, n], …], "total": sum of the values}`: n values up to
        the bound and above the bound before; the last bound is None.
    """
    backend = device.backend
    return {
        "name": device.name,
        "backend": None if backend is None else backend.kind,
        "interface_drops": {} if backend is None else backend.interface_drops(),
        "pairs": [
            _pair(net, net.backend_queue if backend is None else backend.queues[pair])
            for pair, net in enumerate(device.nets)
        ],
    }


def _pair(net: VhostNet, queue: BackendQueue | None) -> dict[str, Any]:
    return {
        "name": net.name,
        "rx": _ring(net.rx),
        "tx": _ring(net.tx),
        "worker": net.worker_counters(),
        "backend": {} if queue is None else queue.counters(),
    }


def _ring(ring: Vring) -> dict[str, Any]:
    return {
        "active": ring.active,
        "size": ring.num,
        "counters": ring.totals(),
        "errors": ring.errors(),
        "batch_packets": _histogram(ring.batch_sizes()),
        "kick_to_used_ns": _histogram(ring.latencies()),
    }


def _histogram(reading: HistogramReading) -> dict[str, Any]:
    return {"counts": [list(pair) for pair in reading.counts], "total": reading.total}

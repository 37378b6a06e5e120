"""The watchdog: says in one line and one event that a ring is stalled and why, and when it is over.

It looks at every ring once in `INTERVAL_S`, in the control thread, and costs the data path nothing.
A stall is told when two looks in a row show it (`stalls`), again only if its cause becomes another
one, and its end when the ring has moved or has nothing to move any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

from vhostnet.backends.backend import BackendQueue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import Vring

from .stalls import Look, Stall, explain, explain_drops, look_at
from .statistics import Observed

log = logging.getLogger("vhostnet.stall")

INTERVAL_S = 1.0


class CallLater(Protocol):
    """The control loop's timer."""

    def __call__(self, seconds: float, fn: Callable[[], None], /) -> object: ...


class _Watched:
    """What the watchdog remembers of one ring."""

    def __init__(self) -> None:
        self.looks: list[Look] = []  # the last two at most
        self.stall: Stall | None = None
        self.since = 0.0
        self._errors = 0
        self._chains_at_error = -1

    def error_of(self, ring: Vring) -> int:
        """The ring's last error, if nothing has moved since it was seen; else 0."""
        errors, chains = int(ring.record[0]["ring_errors"]), int(ring.record[0]["chains"])
        if errors != self._errors:
            self._errors, self._chains_at_error = errors, chains
        return int(ring.record[0]["last_error"]) if chains == self._chains_at_error else 0

    def judge(self, now: Look) -> Stall | None:
        """The stall that there is, with this look."""
        found = None
        if self.looks:
            found = explain(self.looks[-1], now)
        if found is None and len(self.looks) == 2:
            found = explain_drops(self.looks[0], self.looks[1], now)
        if found is None and self.stall is not None and self.stall.cause == "all_dropped":
            # a pause is no end: the next packet may be dropped as well
            if now.active and now.packets == self.looks[-1].packets:
                found = self.stall
        self.looks = [*self.looks[-1:], now]
        return found


class Watchdog:
    """Watches the rings of all devices.

    Args:
        devices: all there are, now.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        devices: Callable[[], Iterable[Observed]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices = devices
        self._clock = clock
        self._watched: WeakKeyDictionary[Vring, _Watched] = WeakKeyDictionary()

    def check(self) -> None:
        """Look at everything once; in the control thread."""
        for device in self._devices():
            backend = device.backend
            for pair, net in enumerate(device.nets):
                queue = net.backend_queue if backend is None else backend.queues[pair]
                for ring in net.vqs:
                    self._check_ring(net, ring, queue)

    def _check_ring(self, net: VhostNet, ring: Vring, queue: BackendQueue | None) -> None:
        watched = self._watched.setdefault(ring, _Watched())
        look = look_at(net, ring, queue, watched.error_of(ring))
        has_moved = bool(watched.looks) and look.packets != watched.looks[-1].packets
        found, before = watched.judge(look), watched.stall
        watched.stall = found
        if found is None and before is not None:
            self._tell_end(net, ring, has_moved, self._clock() - watched.since)
        elif found is not None and (before is None or found.cause != before.cause):
            if before is None:
                watched.since = self._clock()
            log.warning("%s: %s is stalled: %s", net.name, ring.direction, found.reason)
            net.tell("VRING_STALLED", ring, cause=found.cause, reason=found.reason)

    def _tell_end(self, net: VhostNet, ring: Vring, has_moved: bool, seconds: float) -> None:
        what = "moves again" if has_moved else "has nothing to move any more"
        log.warning("%s: %s %s, after %.0f s", net.name, ring.direction, what, seconds)
        net.tell("VRING_MOVES", ring, moves=has_moved, seconds=round(seconds))

    def run(self, call_later: CallLater) -> Callable[[], None]:
        """Check once in `INTERVAL_S` from now on; returns what ends it."""
        running = True

        def tick() -> None:
            if running:
                call_later(INTERVAL_S, tick)
                self.check()

        def end() -> None:
            nonlocal running
            running = False

        call_later(INTERVAL_S, tick)
        return end

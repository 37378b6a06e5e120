"""What happens: told by any room from any thread, heard by whoever listens.

As with a log, who tells does not know who listens, and nobody listening costs nothing.  The
control socket passes events on to its clients; names and members are those of QMP.

A listener is called in the thread that tells, which may be a worker that has packets to move:
it puts the event somewhere and returns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Every event that there is, and what it means.
EVENTS = {
    "EVENTS_LOST": "more was told at once than waits for a client: the oldest are gone (count)",
    "DEVICE_CONNECTED": "a front-end has connected (device, pid)",
    "DEVICE_DISCONNECTED": "its session has ended (device, reason)",
    "DEVICE_ADDED": "device-add has made a device (device)",
    "DEVICE_DELETED": "device-del has ended a device (device)",
    "VRING_STARTED": "the worker looks at a ring from now on (device, vring, queue, num, base)",
    "VRING_STOPPED": "it does so no longer (device, vring, queue, base)",
    "VRING_ERROR": "a ring was found broken (device, vring, queue, error, reason)",
    "VRING_STALLED": "a ring should move and does not (device, vring, queue, cause, reason)",
    "VRING_MOVES": "its stall is over: it moves, or has nothing to move any more (device, vring, "
    "queue, moves, seconds)",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One of `EVENTS`; `seconds` since the epoch, `data` as JSON can say it."""

    name: str
    data: Mapping[str, Any]
    seconds: float


Listener = Callable[[Event], None]

_listeners: tuple[Listener, ...] = ()
_lock = threading.Lock()


def tell(name: str, **data: Any) -> None:
    """Something of `EVENTS` has happened; may be called from any thread."""
    assert name in EVENTS, name
    if _listeners:
        members = {key.replace("_", "-"): value for key, value in data.items()}
        event = Event(name, members, time.time())
        for listener in _listeners:
            listener(event)


def listen(listener: Listener) -> Callable[[], None]:
    """Be told of all events from now on; returns what ends it."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)

    def end() -> None:
        global _listeners
        with _lock:
            _listeners = tuple(one for one in _listeners if one is not listener)

    return end

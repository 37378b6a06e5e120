"""The carrier of a card's network side: up while a ring receives, and a little longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vhostnet.backends.backend import Backend

#: A short stop (a snapshot, a reset, a reload of the driver) does not flap the carrier.
LINK_DOWN_DELAY_S = 1.0


class Timer(Protocol):
    """What `CallLater` returns."""

    def cancel(self) -> None: ...


#: The control loop's timer: `(seconds, function) -> handle`.
CallLater = Callable[[float, Callable[[], Any]], Timer]


class Carrier:
    """Tells a backend whether somebody is there to receive.

    Args:
        receives: whether a ring takes packets, now.
    """

    def __init__(
        self, backend: Backend, call_later: CallLater, receives: Callable[[], bool]
    ) -> None:
        self._backend = backend
        self._call_later = call_later
        self._receives = receives
        self._timer: Timer | None = None

    def update(self) -> None:
        """Follow the rings, any of which may have started or stopped."""
        if self._receives():
            self._set(True)
        elif self._timer is None:
            self._timer = self._call_later(LINK_DOWN_DELAY_S, self._look_again)

    def down(self) -> None:
        """Nobody is there any more."""
        self._set(False)

    def _look_again(self) -> None:
        self._timer = None
        self._set(self._receives())

    def _set(self, up: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._backend.set_link(up)

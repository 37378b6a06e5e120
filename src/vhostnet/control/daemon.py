"""What commands see of the daemon that they run in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vhostnet.protocol.qmp_session import DEVICE_NOT_FOUND, QmpError

if TYPE_CHECKING:  # it imports numba
    from vhostnet.backends.backend import Backend
    from vhostnet.device.vhost_net import VhostNet


@dataclass(frozen=True, slots=True)
class Card:
    """One device: a card of `vhostnet serve`, or an open file of a character device.

    Attributes:
        name: as in log lines.
        nets: its queue pairs.
        backend: its network side, if it is the card's own and not its client's.
        facts: what its door says of it, members of `query-devices`.
    """

    name: str
    nets: Sequence[VhostNet]
    backend: Backend | None
    facts: Mapping[str, Any]


class Daemon(Protocol):
    """A daemon behind a control socket."""

    @property
    def door(self) -> str:
        """The command that it is: serve, run, chardev."""

    def cards(self) -> Sequence[Card]:
        """All devices, now."""

    def add_device(self, keys: Mapping[str, Any]) -> str:
        """Make a device (see device_add); returns its name.  QmpError or VhostnetError."""

    def delete_device(self, name: str) -> None:
        """End a device that there is.  QmpError."""


def card_of(daemon: Daemon, name: str) -> Card:
    """The device of that name, or QmpError."""
    cards = daemon.cards()
    for card in cards:
        if card.name == name:
            return card
    known = ", ".join(card.name for card in cards) or "none"
    raise QmpError(f"there is no device '{name}' (there is: {known})", DEVICE_NOT_FOUND)


def cards_of(daemon: Daemon, name: str | None) -> Sequence[Card]:
    """That device, or all of them."""
    return daemon.cards() if name is None else (card_of(daemon, name),)

"""The devices of `vhostnet serve`: how one is made, at the start or while the daemon runs.

What imports numba is imported in functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vhostnet.backends import backend_kind, open_backend
from vhostnet.cli.daemon_setup import kernels_of, load
from vhostnet.cli.device_options import conflicts_between, conflicts_within
from vhostnet.cli.device_options import make_device as make_options
from vhostnet.cli.option_kinds import WrongValue
from vhostnet.cli.options import DEVICE_KEYS
from vhostnet.confinement import seal
from vhostnet.control.daemon import Card
from vhostnet.errors import HostError, UsageError, naming
from vhostnet.events import tell
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.vhost_user_daemon import (
    DeviceOptions,
    ServedCard,
    ServedCards,
    check_socket,
)

if TYPE_CHECKING:
    from vhostnet.backends.backend import Backend
    from vhostnet.device.worker import Worker
    from vhostnet.frontdoors.vhost_user_device import VhostUserDevice


def check_permitted(wanted: DeviceOptions) -> None:
    """Raise HostError if the workers could not be scheduled as they are to be."""
    if wanted.worker_scheduling is not None:
        with naming("worker-scheduling"):
            wanted.worker_scheduling.check()


def open_backend_of(wanted: DeviceOptions) -> Backend:
    """The network side of a device; UsageError or HostError."""
    return open_backend(wanted.backend, wanted.queue_pairs, wanted.fill_checksums, wanted.coalesce)


def make_device(loop: Loop, wanted: DeviceOptions, backend: Backend) -> VhostUserDevice:
    """A device, ready to be served."""
    from vhostnet.capture import running
    from vhostnet.frontdoors.vhost_user_device import VhostUserDevice

    device = VhostUserDevice(
        backend,
        queue_pairs=wanted.queue_pairs,
        name=wanted.name,
        call_later=loop.call_later,
        busy_poll_us=wanted.busy_poll_us,
        busy_poll_adaptive=wanted.busy_poll_adaptive,
        iommu=wanted.iommu,
        linux_abi=wanted.linux_abi,
        worker_cpus=wanted.worker_cpus,
        worker_scheduling=wanted.worker_scheduling,
    )
    running.joined(device.nets)
    return device


class ServeDaemon:
    """`vhostnet serve` as the control socket sees it (`control.daemon.Daemon`)."""

    door = "serve"

    def __init__(self, loop: Loop, cards: ServedCards) -> None:
        self._loop = loop
        self._cards = cards
        self._next = len(tuple(cards))

    def cards(self) -> Sequence[Card]:
        return [_card(card) for card in self._cards]

    def occupancy(self) -> tuple[int, int]:
        """How many devices there are, and how many front-ends are connected."""
        connected = [card.server.connection is not None for card in self._cards]
        return len(connected), sum(connected)

    def workers(self) -> Iterator[Worker]:
        """The workers that there are at the moment."""
        for card in self.cards():
            for net in card.nets:
                if net.worker is not None:
                    yield net.worker

    def add_device(self, keys: Mapping[str, Any]) -> str:
        """As `--device`; the kernels have to be there, since nobody waits for a compiler here."""
        wanted = self._options(keys)
        check_socket(wanted)
        self.add(wanted)
        self._next += 1
        return wanted.name

    def add(self, wanted: DeviceOptions) -> None:
        """Make a device and serve it; UsageError or HostError."""
        check_permitted(wanted)
        backend = open_backend_of(wanted)
        try:
            _load(wanted)
            card = ServedCard(make_device(self._loop, wanted, backend), wanted)
        except BaseException:
            backend.close()
            raise
        self._cards.add(card)
        try:
            self._cards.open_door(card)
        except BaseException:
            self._cards.remove(card.name)
            raise
        tell("DEVICE_ADDED", device=card.name)

    def delete_device(self, name: str) -> None:
        self._cards.remove(name)
        tell("DEVICE_DELETED", device=name)

    def _options(self, keys: Mapping[str, Any]) -> DeviceOptions:
        """What the keys of device-add describe, beside the devices that there are."""
        given: dict[str, object] = {}
        for key, value in keys.items():
            try:
                given[key] = DEVICE_KEYS[key].kind.from_toml(value)
            except WrongValue as error:
                raise UsageError(f"{key}: {error}") from None
        while f"dev{self._next}" in self._cards:
            self._next += 1
        wanted = make_options("device-add", self._next, given)
        there = [card.wanted for card in self._cards]
        problems = [*conflicts_within(given)]
        problems += [
            (key, text)
            for number, key, text in conflicts_between([*there, wanted])
            if number == len(there)
        ]
        if backend_kind(wanted.backend) == "port":
            problems = [("backend", "port joins two devices of the command line only")]
        for key, text in problems:
            raise UsageError(f"{key}: {text}")
        return wanted


def _load(wanted: DeviceOptions) -> None:
    if not load(kernels_of([wanted])):
        when = "and restart the daemon" if seal.is_sealed() else "first"
        raise HostError(
            f"backend={wanted.backend}: its data path is not compiled yet, which takes longer than "
            f"the other devices can wait: run `vhostnet warm` {when}"
        )


def _card(card: ServedCard) -> Card:
    wanted, connection = card.wanted, card.server.connection
    device = cast("VhostUserDevice", card.device)
    where = {"fd": wanted.fd} if wanted.socket_path is None else {"socket": wanted.socket_path}
    return Card(
        card.name,
        device.nets,
        device.backend,
        {
            **where,
            "client": wanted.is_client,
            "backend": wanted.backend,
            "connected": connection is not None,
            "pid": None if connection is None else connection.pid,
        },
    )

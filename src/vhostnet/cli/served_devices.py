"""The devices of `vhostnet serve`: how one is made, at the start or while the daemon runs.

What imports numba is imported in functions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vhostnet.backends import backend_kind, open_backend
from vhostnet.cli.daemon_setup import kernels_of, load
from vhostnet.cli.device_options import conflicts_between, conflicts_within, lone_ports
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

log = logging.getLogger("vhostnet")


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


def join_partner(
    wanted: DeviceOptions,
    device: VhostUserDevice,
    others: Iterable[tuple[DeviceOptions, VhostUserDevice]],
) -> None:
    """Join a device with `port:NAME` to the one that waits for it, if there is one."""
    for options, other in others if _is_port(wanted) else ():
        if options.backend == wanted.backend:
            other.join(device)
            log.info("%s: joined to %s by %s", wanted.name, options.name, wanted.backend)


def say_lone(devices: Sequence[DeviceOptions]) -> None:
    """Log which ports have no partner."""
    for number in lone_ports(devices):
        name, backend = devices[number].name, devices[number].backend
        log.info("%s: no other device has %s: what is sent is dropped", name, backend)


def _is_port(wanted: DeviceOptions) -> bool:
    return backend_kind(wanted.backend) == "port"


class ServeDaemon:
    """`vhostnet serve` as the control socket sees it (`control.daemon.Daemon`)."""

    door = "serve"

    def __init__(self, loop: Loop, cards: ServedCards) -> None:
        self._loop = loop
        self._cards = cards
        self._next = len(tuple(cards))

    def cards(self) -> Sequence[Card]:
        return [_card(card, self._partners(card)) for card in self._cards]

    def _partners(self, card: ServedCard) -> Iterator[str]:
        """Names of the devices with the same backend: of a port, at most one."""
        for other in self._cards:
            if other is not card and other.wanted.backend == card.wanted.backend:
                yield other.name

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
        self.add(wanted)
        self._next += 1
        return wanted.name

    def add(self, wanted: DeviceOptions) -> None:
        """Make a device and serve it, if it goes with the others; UsageError or HostError."""
        self._check_beside_others(wanted)
        check_socket(wanted)
        check_permitted(wanted)
        backend = open_backend_of(wanted)
        try:
            _load(wanted)
            card = ServedCard(make_device(self._loop, wanted, backend), wanted)
        except BaseException:
            backend.close()
            raise
        others = [(other.wanted, _device(other)) for other in self._cards]
        self._cards.add(card)
        try:
            join_partner(wanted, _device(card), others)
            self._cards.open_door(card)
        except BaseException:
            self._cards.remove(card.name)
            raise
        self._say_lone(wanted.backend)
        tell("DEVICE_ADDED", device=card.name)

    def delete_device(self, name: str) -> None:
        gone = next(card.wanted for card in self._cards if card.name == name)
        self._cards.remove(name)
        tell("DEVICE_DELETED", device=name)
        self._say_lone(gone.backend)

    def _say_lone(self, backend: str) -> None:
        say_lone([card.wanted for card in self._cards if card.wanted.backend == backend])

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
        for key, text in conflicts_within(given):
            raise UsageError(f"{key}: {text}")
        return wanted

    def _check_beside_others(self, wanted: DeviceOptions) -> None:
        there = [card.wanted for card in self._cards]
        for number, key, text in conflicts_between([*there, wanted]):
            if number == len(there):
                raise UsageError(f"{key}: {text}")


def _load(wanted: DeviceOptions) -> None:
    """Have its kernels; HostError, and what to do, if that takes the compiler."""
    if load(kernels_of([wanted])):
        return
    from vhostnet.native._jit import cache_root

    then = "restart the daemon" if seal.is_sealed() else "try again"
    raise HostError(
        f"backend: the data path of {wanted.backend} is not compiled in {cache_root()}, and "
        "compiling takes longer than the other devices can wait: run `vhostnet warm` as the "
        f"daemon's user and {then}"
    )


def _device(card: ServedCard) -> VhostUserDevice:
    return cast("VhostUserDevice", card.device)


def _card(card: ServedCard, partners: Iterator[str]) -> Card:
    wanted, connection = card.wanted, card.server.connection
    device = _device(card)
    where = {"fd": wanted.fd} if wanted.socket_path is None else {"socket": wanted.socket_path}
    partner = {"partner": next(partners, None)} if _is_port(wanted) else {}
    return Card(
        card.name,
        device.nets,
        device.backend,
        {
            **where,
            "client": wanted.is_client,
            "backend": wanted.backend,
            **partner,
            "connected": connection is not None,
            "pid": None if connection is None else connection.pid,
        },
    )

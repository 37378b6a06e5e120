"""The daemon: devices, their doors, one loop, from ready to the last socket file removed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from vhostnet.device.scheduling import Scheduling
from vhostnet.errors import EXIT_OK, HostError, UsageError
from vhostnet.frontdoors.connection import SessionDevice
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_free, check_path
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.vhost_user_server import (
    ConnectingDoor,
    DeviceServer,
    ListeningDoor,
    inherited_socket,
)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """One device as the operator wants it.

    Attributes:
        option: the option that describes it, to name it in errors.
        name: what log lines call it; no other device of the daemon has it.
        socket_path: unix socket, or None if `fd` is given.
        fd: inherited connected socket.
        is_client: connect to `socket_path` instead of listening there.
        backend: as `vhostnet.backends.open_backend` takes it.
        queue_pairs: 1 to 127.
        fill_checksums: compute the checksums that the guest left to us.
        coalesce: merge the guest's TCP segments on their way into a TAP.
        busy_poll_us: look at the rings for so long before sleeping; 0 is off.
        busy_poll_adaptive: up to so long, as it proves worth it.
        iommu: serve guests behind a virtual IOMMU.
        linux_abi: the version of Linux to behave as.
        worker_cpus: processors, one a worker in turns; None leaves it to the kernel.
        worker_scheduling: of all workers; None leaves it as the process's is.
    """

    option: str
    backend: str
    name: str = "dev0"
    socket_path: str | None = None
    fd: int | None = None
    is_client: bool = False
    queue_pairs: int = 1
    fill_checksums: bool = False
    coalesce: bool = True
    busy_poll_us: int = 0
    busy_poll_adaptive: bool = False
    iommu: bool = False
    linux_abi: str = "newest"
    worker_cpus: tuple[int, ...] | None = None
    worker_scheduling: Scheduling | None = None


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What holds for all devices.

    Attributes:
        socket_mode: permissions of socket files.
        socket_gid: group of socket files, or None for the process's own.
        is_one_off: end when each device has served one session.
        trace: is told what front-ends say.
        listeners: descriptors of sockets that listen already, by the device's name.
    """

    devices: tuple[DeviceOptions, ...]
    socket_mode: int = 0o600
    socket_gid: int | None = None
    is_one_off: bool = False
    trace: TraceFile | None = None
    listeners: Mapping[str, int] = field(default_factory=dict)


def check_sockets(options: DaemonOptions) -> None:
    """Fail early: raise what `serve` would raise about socket paths and descriptors."""
    for device in options.devices:
        if device.name not in options.listeners:
            check_socket(device)


def serve(
    loop: Loop,
    options: DaemonOptions,
    devices: Sequence[SessionDevice],
    on_ready: Callable[[], None],
    *,
    memory_alarm: int | None = None,
    serving: Callable[[ServedCards], AbstractContextManager[object]] = contextlib.nullcontext,
) -> int:
    """Serve until a signal comes or, with `is_one_off` or an inherited socket, all are done.

    Args:
        devices: one for each of `options.devices`; owned from now on.
        on_ready: called when all sockets listen.
        memory_alarm: an eventfd that tells when a front-end's memory has gone away.
        serving: entered before any door opens, left when all are closed: the control socket.

    Returns:
        The exit status: 0, or that of the worst session if the sessions decide when to end.
    """
    cards = ServedCards(loop, options)
    for device, wanted in zip(devices, options.devices, strict=True):
        cards.add(ServedCard(device, wanted))
    with contextlib.ExitStack() as undo:
        undo.callback(cards.close)
        undo.enter_context(serving(cards))
        undo.callback(cards.close)  # while those who listen are told of it
        if memory_alarm is not None:
            _watch_memory(loop, memory_alarm, cards)
        loop.on_signals((signal.SIGTERM, signal.SIGINT), loop.stop)
        for card in cards:
            cards.open_door(card)
        on_ready()
        loop.run()
    return cards.worst


@dataclass(slots=True)
class ServedCard:
    """A device, and how it is served."""

    device: SessionDevice
    wanted: DeviceOptions
    server: DeviceServer = field(init=False)

    @property
    def name(self) -> str:
        """As in log lines."""
        return self.wanted.name


class ServedCards:
    """All devices of the daemon; they may come and go while it runs.

    Attributes:
        worst: the exit status of the worst session of those that decide when to end.
    """

    def __init__(self, loop: Loop, options: DaemonOptions) -> None:
        self._loop = loop
        self._options = options
        self._cards: dict[str, ServedCard] = {}
        self._unfinished: set[str] = set()
        self.worst = EXIT_OK

    def __iter__(self) -> Iterator[ServedCard]:
        return iter(tuple(self._cards.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._cards

    def add(self, card: ServedCard) -> None:
        """Take a device; nobody can connect to it yet."""
        is_one_off = self._options.is_one_off or card.wanted.fd is not None
        card.server = DeviceServer(
            self._loop,
            card.device,
            card.name,
            is_one_off=is_one_off,
            on_finished=lambda exit_status: self._finished(card.name, exit_status),
            trace=self._options.trace,
        )
        if is_one_off:
            self._unfinished.add(card.name)
        self._cards[card.name] = card

    def open_door(self, card: ServedCard) -> None:
        """Let front-ends in; HostError or UsageError, naming the option."""
        with _naming_option(card.wanted):
            _open_door(card.server, card.wanted, self._options)

    def remove(self, name: str) -> None:
        """End its session and close it.  The daemon does not end for want of devices."""
        self._unfinished.discard(name)
        self._cards.pop(name).server.close()

    def close(self) -> None:
        """End and close them all."""
        for card in self:
            card.server.close()
        self._cards.clear()

    def _finished(self, name: str, exit_status: int) -> None:
        self.worst = max(self.worst, exit_status)
        self._unfinished.discard(name)
        if not self._unfinished:
            self._loop.stop()


def _watch_memory(loop: Loop, alarm: int, cards: ServedCards) -> None:
    def check(_ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(alarm)
        for card in cards:
            card.server.check_memory()

    loop.watch(alarm, READABLE, check)


def _open_door(server: DeviceServer, wanted: DeviceOptions, options: DaemonOptions) -> None:
    n = wanted.queue_pairs
    about = f"backend {wanted.backend}, {n} queue pair{'' if n == 1 else 's'}"
    if wanted.fd is not None:
        server.log.info(f"serving descriptor {wanted.fd}, {about}")
        server.offer(inherited_socket(wanted.fd))
    elif wanted.name in options.listeners:
        listening = ListeningSocket.adopt(options.listeners[wanted.name])
        server.open(ListeningDoor(server, listening))
        server.log.info(f"listening on {listening.path} of the service manager, {about}")
    elif wanted.socket_path is not None and wanted.is_client:
        server.log.info(f"connecting to {wanted.socket_path}, {about}")
        server.open(ConnectingDoor(server, wanted.socket_path))
    elif wanted.socket_path is not None:
        listening = ListeningSocket(wanted.socket_path, options.socket_mode, options.socket_gid)
        server.open(ListeningDoor(server, listening))
        server.log.info(f"listening on {wanted.socket_path}, {about}")


def check_socket(device: DeviceOptions) -> None:
    """Raise what opening the device's door would raise, naming its option."""
    with _naming_option(device):
        if device.fd is not None:
            inherited_socket(device.fd).detach()
        elif device.socket_path is not None:
            check_path(device.socket_path)
            if not device.is_client:
                check_free(device.socket_path)


@contextlib.contextmanager
def _naming_option(device: DeviceOptions) -> Iterator[None]:
    """Let an error say which option it is about."""
    try:
        yield
    except HostError as error:
        raise HostError(f"{device.option}: {error}", error.errno) from error
    except UsageError as error:
        raise UsageError(f"{device.option}: {error}") from error

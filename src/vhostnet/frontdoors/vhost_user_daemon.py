"""The daemon: devices, their doors, one loop, from ready to the last socket file removed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vhostnet.errors import EXIT_OK, HostError, UsageError
from vhostnet.frontdoors.connection import SessionDevice
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_free, check_path
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


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What holds for all devices.

    Attributes:
        socket_mode: permissions of socket files.
        socket_gid: group of socket files, or None for the process's own.
        is_one_off: end when each device has served one session.
    """

    devices: tuple[DeviceOptions, ...]
    socket_mode: int = 0o600
    socket_gid: int | None = None
    is_one_off: bool = False


def check_sockets(options: DaemonOptions) -> None:
    """Fail early: raise what `serve` would raise about socket paths and descriptors."""
    for device in options.devices:
        with _naming_option(device):
            _check_socket(device)


def serve(
    loop: Loop,
    options: DaemonOptions,
    devices: Sequence[SessionDevice],
    on_ready: Callable[[], None],
    *,
    memory_alarm: int | None = None,
) -> int:
    """Serve until a signal comes or, with `is_one_off` or an inherited socket, all are done.

    Args:
        devices: one for each of `options.devices`; owned from now on.
        on_ready: called when all sockets listen.
        memory_alarm: an eventfd that tells when a front-end's memory has gone away.

    Returns:
        The exit status: 0, or that of the worst session if the sessions decide when to end.
    """
    unfinished = 0
    worst = EXIT_OK

    def finished(exit_status: int) -> None:
        nonlocal unfinished, worst
        unfinished -= 1
        worst = max(worst, exit_status)
        if not unfinished:
            loop.stop()

    servers: list[DeviceServer] = []
    for device, wanted in zip(devices, options.devices, strict=True):
        is_one_off = options.is_one_off or wanted.fd is not None
        unfinished += is_one_off
        servers.append(
            DeviceServer(loop, device, wanted.name, is_one_off=is_one_off, on_finished=finished)
        )
    try:
        if memory_alarm is not None:
            _watch_memory(loop, memory_alarm, servers)
        loop.on_signals((signal.SIGTERM, signal.SIGINT), loop.stop)
        for server, wanted in zip(servers, options.devices, strict=True):
            with _naming_option(wanted):
                _open_door(server, wanted, options)
        on_ready()
        loop.run()
    finally:
        for server in servers:
            server.close()
    return worst


def _watch_memory(loop: Loop, alarm: int, servers: Sequence[DeviceServer]) -> None:
    def check(_ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(alarm)
        for server in servers:
            server.check_memory()

    loop.watch(alarm, READABLE, check)


def _open_door(server: DeviceServer, wanted: DeviceOptions, options: DaemonOptions) -> None:
    n = wanted.queue_pairs
    about = f"backend {wanted.backend}, {n} queue pair{'' if n == 1 else 's'}"
    if wanted.fd is not None:
        server.log.info(f"serving descriptor {wanted.fd}, {about}")
        server.offer(inherited_socket(wanted.fd))
    elif wanted.socket_path is not None and wanted.is_client:
        server.log.info(f"connecting to {wanted.socket_path}, {about}")
        server.open(ConnectingDoor(server, wanted.socket_path))
    elif wanted.socket_path is not None:
        listening = ListeningSocket(wanted.socket_path, options.socket_mode, options.socket_gid)
        server.open(ListeningDoor(server, listening))
        server.log.info(f"listening on {wanted.socket_path}, {about}")


def _check_socket(device: DeviceOptions) -> None:
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

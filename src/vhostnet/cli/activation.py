"""Sockets that systemd has made for us: LISTEN_FDS, and which device each is for.

Source: sd_listen_fds(3).  The sockets outlive us: systemd holds them too, so that front-ends that
connect while nobody serves wait instead of being refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from vhostnet.errors import UsageError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

FIRST_FD = 3
#: More than anybody has; a wrong number ends in an error instead of a long search.
MAX_FDS = 1024


@dataclass(frozen=True, slots=True)
class Offered:
    """A listening socket that was handed over.

    Attributes:
        name: FileDescriptorName= of its unit, which is that of the unit where it has none.
        path: where it listens; an abstract address begins with "@".
    """

    fd: int
    name: str
    path: str


def take_listeners(environment: MutableMapping[str, str]) -> tuple[Offered, ...]:
    """The sockets that are meant for this process; the variables are gone then.

    Raises:
        UsageError: one of them is not a listening unix socket.
    """
    said = {
        key: environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES", "PIDFDID")
    }
    if said["PID"] != str(os.getpid()):
        return ()
    if not (said["FDS"].isascii() and said["FDS"].isdigit() and int(said["FDS"]) <= MAX_FDS):
        raise UsageError(f"LISTEN_FDS: {said['FDS']!r} is not a number from 0 to {MAX_FDS}")
    n = int(said["FDS"])
    names = said["FDNAMES"].split(":") if said["FDNAMES"] else []
    names += ["unknown"] * (n - len(names))
    return tuple(_offered(FIRST_FD + number, names[number]) for number in range(n))


def _offered(fd: int, name: str) -> Offered:
    what = f"LISTEN_FDS: descriptor {fd} ({name})"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}") from None
    try:
        if (
            sock.family != socket.AF_UNIX
            or sock.type != socket.SOCK_STREAM
            or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            raise UsageError(
                f"{what} must be a listening unix stream socket (ListenStream=PATH, Accept=no)"
            )
        address = sock.getsockname()
    finally:
        with contextlib.suppress(OSError):
            sock.detach()
    path = address if isinstance(address, str) else "@" + address[1:].decode(errors="replace")
    return Offered(fd, name, path)


def listeners_of(
    devices: Sequence[DeviceOptions], offered: Sequence[Offered]
) -> tuple[dict[str, int], list[Offered]]:
    """Which device each socket is for: the one of its name, of its path, or else the only one.

    Returns:
        Descriptors by the device's name, and the sockets that no device takes.
    """
    listening = [device for device in devices if device.fd is None and not device.is_client]
    by_name = {device.name: device.name for device in listening}
    by_path = {device.socket_path: device.name for device in listening if device.socket_path}
    found: dict[str, int] = {}
    left = []
    for one in offered:
        name = by_name.get(one.name) or by_path.get(one.path)
        if name is not None and name not in found:
            found[name] = one.fd
        else:
            left.append(one)
    if len(listening) == len(left) == 1 and not found and listening[0].socket_path is None:
        return {listening[0].name: left[0].fd}, []
    return found, left


def check_all_taken(devices: Sequence[DeviceOptions], left: Sequence[Offered]) -> None:
    """Raise UsageError if a socket was handed over for nobody."""
    for one in left:
        names = ", ".join(device.name for device in devices)
        raise UsageError(
            f"LISTEN_FDS: the socket {one.path} ({one.name}) is for no device: FileDescriptorName= "
            f"must be one of {names}"
        )


def without_socket(
    devices: Sequence[DeviceOptions], listeners: Mapping[str, int]
) -> list[DeviceOptions]:
    """Devices that no front-end could reach."""
    return [
        device
        for device in devices
        if device.socket_path is None and device.fd is None and device.name not in listeners
    ]

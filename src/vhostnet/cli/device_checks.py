"""What the devices of a configuration file need of this host, tried out: `vhostnet check FILE`.

Each backend is opened and closed again, and each socket's place is looked at.  Something in use is
no fault: it may be the daemon that runs with this very file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from vhostnet.cli.config_file import ConfigFile
from vhostnet.cli.daemon_setup import kernels_of
from vhostnet.cli.device_options import lone_ports
from vhostnet.cli.host_checks import Finding
from vhostnet.errors import HostError, VhostnetError
from vhostnet.frontdoors.listening_socket import check_free
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

_IN_USE = (errno.EBUSY, errno.EADDRINUSE)


def device_findings(config: ConfigFile) -> list[Finding]:
    """Try everything that the file's devices need."""
    found = [
        finding
        for device in config.devices
        for finding in (
            _finding(f"{device.name} socket", device, _socket),
            _finding(f"{device.name} backend", device, _backend),
        )
    ]
    found += [
        _finding(f"{device.name} worker-scheduling", device, _scheduling)
        for device in config.devices
        if device.worker_scheduling is not None
    ]
    found += [_lone_port(config.devices[number]) for number in lone_ports(config.devices)]
    return [*found, *_kernels(config.devices)]


def _finding(what: str, device: DeviceOptions, probe: Callable[[DeviceOptions], str]) -> Finding:
    try:
        return Finding(what, ("serve",), True, probe(device))
    except HostError as error:
        if error.errno in _IN_USE:
            return Finding(what, (), False, f"{error} (a daemon with this file?)")
        return Finding(what, ("serve",), False, str(error))
    except VhostnetError as error:
        return Finding(what, ("serve",), False, str(error))


def _lone_port(device: DeviceOptions) -> Finding:
    """No fault of the host's: its partner may come later, or one of the names is mistyped."""
    said = f"no other device has {device.backend}: what is sent is dropped until one comes"
    return Finding(f"{device.name} partner", (), False, said)


def _socket(device: DeviceOptions) -> str:
    path = device.socket_path
    if path is None:
        return f"systemd has to hand it over (FileDescriptorName={device.name})"
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise HostError(f"{path}: the folder {folder} is not there", errno.ENOENT)
    if device.is_client:
        return f"{path}: the front-end listens there, or will"
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HostError(f"{path}: no file may be made in {folder} by this user", errno.EACCES)
    is_stale = check_free(path)
    return f"{path}: a stale socket, which is replaced" if is_stale else f"{path} can be made"


def _backend(device: DeviceOptions) -> str:
    if device.backend.startswith("tap-fd:"):
        return f"{device.backend}: whoever starts the daemon hands it over"
    from vhostnet.backends import open_backend

    open_backend(device.backend, device.queue_pairs, device.fill_checksums, device.coalesce).close()
    return f"{device.backend} can be opened"


def _scheduling(device: DeviceOptions) -> str:
    assert device.worker_scheduling is not None
    device.worker_scheduling.check()
    return f"{device.worker_scheduling} is permitted"


def _kernels(devices: tuple[DeviceOptions, ...]) -> Iterator[Finding]:
    from vhostnet.datapath import catalogue

    names = kernels_of(devices)
    ok = catalogue.is_warm(names)
    said = f"all {len(names)} kernels are compiled" if ok else "not yet compiled: vhostnet warm"
    yield Finding("compiled data path", (), ok, said)

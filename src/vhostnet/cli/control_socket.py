"""The socket of --control, which all commands that serve have.

What imports numba is imported in functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from vhostnet.cli.option_kinds import json_type
from vhostnet.cli.options import DEVICE_KEYS, NEEDED_KEYS
from vhostnet.control.daemon import Daemon
from vhostnet.control.registry import Argument
from vhostnet.errors import naming
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_free, check_path

#: Only for the user whose daemon it is.
SOCKET_MODE = 0o600


def check_control(path: str | None) -> None:
    """Fail early: raise what making the socket would raise."""
    if path is not None:
        with naming("--control"):
            check_path(path)
            check_free(path)


def device_arguments() -> list[Argument]:
    """The keys of --device as arguments of device-add; what is needed comes first."""
    keys = (*NEEDED_KEYS, *(key for key in DEVICE_KEYS if key not in NEEDED_KEYS))
    return [Argument(key, json_type(DEVICE_KEYS[key].kind), key in NEEDED_KEYS) for key in keys]


def listen(path: str | None) -> ListeningSocket | None:
    """The socket of --control, if it was given; UsageError or HostError."""
    if path is None:
        return None
    with naming("--control"):
        return ListeningSocket(path, SOCKET_MODE)


@contextlib.contextmanager
def control_socket(
    loop: Loop, listening: ListeningSocket | None, daemon: Callable[[], Daemon]
) -> Iterator[None]:
    """Serve what `listen` gave, ours from now on, for the length of the block."""
    if listening is None:
        yield
        return
    from vhostnet.control.server import ControlServer
    from vhostnet.control.table import commands

    server = ControlServer(loop, listening, daemon(), commands(device_arguments()))
    try:
        yield
    finally:
        server.close()

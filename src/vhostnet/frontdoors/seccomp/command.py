"""The process that becomes the command: puts on the filter, hands over its listener, runs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from vhostnet.errors import HostError

from .abi import Architecture
from .keeper import LISTENER
from .listener_raw import install
from .processes import (
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_OWN_FAILURE,
    MOST,
    failure,
)

#: What the supervisor says when it serves.
GO = b"go"


def become_command(
    channel: socket.socket, code: bytes, architecture: Architecture, command: Sequence[str]
) -> NoReturn:
    """Put on the filter, hand over its listener, run.

    From the filter on nothing may be opened before the supervisor serves, so nothing is imported.
    """
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(signum, signal.SIG_DFL)
    try:
        listener = install(code, architecture)
    except HostError as e:
        channel.send(failure(str(e), EXIT_OWN_FAILURE))
        os._exit(EXIT_OWN_FAILURE)
    socket.send_fds(channel, [LISTENER], [listener])
    os.close(listener)
    if channel.recv(MOST) == GO:
        try:
            os.execvp(command[0], list(command))
        except FileNotFoundError as e:
            status, why = EXIT_NOT_FOUND, e.strerror
        except (OSError, ValueError) as e:
            status, why = EXIT_NOT_EXECUTABLE, getattr(e, "strerror", None) or str(e)
        channel.send(failure(f"{command[0]}: {why}", status))
    os._exit(EXIT_OWN_FAILURE)

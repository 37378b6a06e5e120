"""Tell whoever started us that front-ends may connect: --ready-fd, and the service manager."""

from __future__ import annotations

import contextlib
import os

from vhostnet.cli.service_manager import notify
from vhostnet.errors import UsageError

READY = b"READY=1\n"


def check_ready_fd(fd: int | None) -> None:
    """Raise UsageError if --ready-fd names a descriptor that is not open."""
    if fd is not None:
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(f"--ready-fd: {fd}: {error.strerror}") from None
        os.set_inheritable(fd, False)


def tell_ready(fd: int | None) -> None:
    """Write to the descriptor and close it; notify systemd if it asked (NOTIFY_SOCKET)."""
    if fd is not None:
        # A reader that does not care any more is no reason not to serve.
        with contextlib.suppress(OSError):
            os.write(fd, READY)
        os.close(fd)
    notify("READY=1")

"""Where the lines of `--trace` go: a file, or a descriptor that was open already.

Each line is one write, so that lines of several threads do not mix.  A file that cannot be written
any more (a full disk) ends the trace and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
from datetime import datetime

from vhostnet.errors import HostError
from vhostnet.protocol.vhost_user_trace import HEADING, Event, Exchange, stamp

SYSCALLS = ("readlink", "readlinkat")  # of /proc/self/fd

log = logging.getLogger("vhostnet")

STDOUT = "-"
_IOCTL_HEADING = "# vhostnet trace 1: ioctl"


class TraceFile:
    """An open trace.

    Args:
        path: the file, made anew; "-" is the standard output.
        of_ioctls: what the first line says that it is a trace of.

    Raises HostError if the file cannot be made.
    """

    def __init__(self, path: str, *, of_ioctls: bool = False) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.dup(1) if path == STDOUT else os.open(path, flags, 0o644)
        except OSError as e:
            raise HostError(f"--trace: {path}: {e.strerror}", e.errno or 0) from e
        self._path = path
        self._write(_IOCTL_HEADING if of_ioctls else HEADING)

    def tell(self, who: str, said: Exchange | Event | str) -> None:
        """Write one line, with the time."""
        if self._fd >= 0:
            self._write(stamp(datetime.now(), who, said))

    def _write(self, line: str) -> None:
        try:
            os.write(self._fd, line.encode() + b"\n")
        except OSError as e:
            fd, self._fd = self._fd, -1
            os.close(fd)
            log.warning("--trace: %s: %s; the trace ends here", self._path, e.strerror)


def file_of(fd: int) -> str:
    """What an open descriptor of ours is, as /proc tells: a path, "memfd:NAME", "anon_inode:…"."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix("/").removesuffix(" (deleted)")
    return ""

"""Where a capture's bytes go: a file, several of a bounded size, or the standard output."""

from __future__ import annotations

import os
from collections.abc import Callable

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError, UsageError

OPENER_SYSCALLS = ("openat",)
STDOUT = "-"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


@act(Policy.may_capture)
def open_capture(path: str) -> tuple[None, list[int]]:
    """A file for a capture, made anew; OSError, ENXIO for a pipe that nobody reads."""
    fd = os.open(path, _FLAGS | os.O_NONBLOCK, 0o600)
    os.set_blocking(fd, True)
    return None, [fd]


class Sink:
    """An open file.

    Args:
        path: the file, made anew (mode 600); "-" is the standard output.  Those that follow it
            are called *path*.1, *path*.2 and so on.
        heading: what each file begins with.
        ending: what each file ends with.
        rotate: begin a new file when one has so many bytes; 0: never.

    Raises UsageError or HostError.  Writing raises OSError.
    """

    def __init__(
        self,
        path: str,
        heading: Callable[[], bytes],
        ending: Callable[[], bytes],
        rotate: int = 0,
    ) -> None:
        if path == STDOUT and rotate:
            raise UsageError('"-" is one stream: it cannot be cut into files')
        self._path = path
        self._heading = heading
        self._ending = ending
        self._rotate = rotate
        self._size = 0
        self.files = 1
        try:
            self._fd = os.dup(1) if path == STDOUT else open_capture(path)[1][0]
            self.write(b"")  # a reader of "-" knows at once what it is
        except OSError as e:
            raise HostError(f"{path}: {e.strerror}", e.errno or 0) from e

    def write(self, data: bytes | memoryview, *, may_rotate: bool = True) -> None:
        """Write whole blocks, all of them into one file."""
        if may_rotate and self._rotate and self._size and self._size + len(data) > self._rotate:
            self._put(self._ending())
            os.close(self._fd)
            self._fd = -1
            self._fd = open_capture(f"{self._path}.{self.files}")[1][0]
            self.files += 1
            self._size = 0
        if not self._size:
            self._put(self._heading())
        self._put(data)

    def close(self) -> None:
        """Write what a file ends with."""
        if self._fd < 0:
            return
        try:
            self.write(self._ending(), may_rotate=False)
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            self._size += done
            view = view[done:]

"""Descriptors that a parent left open by mistake, closed before anything else is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from .stage import Missing

_FIRST = 3


def all_open() -> list[int]:
    """The numbers of those that are open, and perhaps one more; Missing."""
    try:
        return sorted(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError as error:
        raise Missing(f"/proc/self/fd: {error.strerror}") from None


def close_strays(wanted: Collection[int]) -> str:
    """Close what was inherited, except for 0, 1, 2 and *wanted*, which no child inherits; Missing.

    Whatever came through exec is without close-on-exec, and what Python opens is with it.
    """
    closed = []
    for fd in all_open():
        with contextlib.suppress(OSError):  # the folder's own descriptor is closed by now
            if fd < _FIRST or not os.get_inheritable(fd):
                continue
            if fd in wanted:
                os.set_inheritable(fd, False)
            else:
                os.close(fd)
                closed.append(fd)
    return f"closed {', '.join(map(str, closed))}" if closed else "no strays"

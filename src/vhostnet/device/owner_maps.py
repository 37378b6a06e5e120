"""What of another process is shared: its `/proc/PID/maps`, read and understood."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

#: The kernel gives whole lines, about a page of them.
_A_READ = 1 << 16
_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<perms>.{4}) (?P<offset>[0-9a-f]+) "
    r"(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>\d+)"
)


@dataclass(frozen=True, slots=True)
class Vma:
    """One line of /proc/PID/maps that is shared, readable and writable."""

    start: int
    end: int
    offset: int
    dev: int
    inode: int


def shared_vmas(maps_fd: int) -> Iterator[Vma]:
    """By address; none, if the process has run another program since.  OSError: it has ended."""
    for line in read_maps(maps_fd).decode("ascii", errors="replace").splitlines():
        m = _LINE.match(line)
        if m and m["perms"].startswith("rw") and m["perms"][3] == "s":
            dev = os.makedev(int(m["major"], 16), int(m["minor"], 16))
            yield Vma(
                int(m["start"], 16),
                int(m["end"], 16),
                int(m["offset"], 16),
                dev,
                int(m["inode"]),
            )


def read_maps(maps_fd: int) -> bytes:
    """All of an open `/proc/PID/maps`; OSError."""
    text = bytearray()
    os.lseek(maps_fd, 0, os.SEEK_SET)
    while piece := os.read(maps_fd, _A_READ):
        text += piece
    return bytes(text)

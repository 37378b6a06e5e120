"""The IMIX mix of packet sizes, as a capture file that testpmd plays again and again.

Seven small, four middling, one large, the "simple IMIX" of benchmark folklore, as frames without
their checksums: 64, 594 and 1514 bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vhostnet.backends import IMIX_SIZES

#: Played from a loop of so many mixes.
_MIXES = 8
# Of the file: magic (microseconds), version 2.4, zone, accuracy, snap length, Ethernet.
_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)


def frame(size: int) -> bytes:
    """UDP over IPv4 to a station that is nobody's, as testpmd and `bare` send it."""
    ethernet = b"\x02\0\0\0\0\0" + b"\x02\0\0\0\0\x01" + b"\x08\0"
    ip = struct.pack(">BBHHHBBH4B4B", 0x45, 0, size - 14, 0, 0, 64, 17, 0, *_FROM, *_TO)
    udp = struct.pack(">HHHH", 9, 9, size - 34, 0)
    return (ethernet + ip + udp).ljust(size, b"\0")


_FROM, _TO = (198, 18, 0, 1), (198, 18, 0, 2)


def write(place: Path) -> Path:
    """Write the capture file; returns its place."""
    with place.open("wb") as file:
        file.write(_HEAD)
        for size in IMIX_SIZES * _MIXES:
            file.write(struct.pack("<IIII", 0, 0, size, size) + frame(size))
    return place

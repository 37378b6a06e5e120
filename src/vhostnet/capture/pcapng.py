"""pcapng blocks that are written once: sections, interfaces, statistics.  Sans-IO.

Packets' blocks are made where packets are (datapath/capture.py).

Source: pcapng (draft-ietf-opsawg-pcapng): sections 3.1 (blocks), 3.5 (options), 4.1, 4.2, 4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vhostnet import __version__

_SHB, _IDB, _ISB = 0x0A0D0D0A, 1, 5
_BYTE_ORDER = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
#: 10^-9 s: of the times of all packets.
NANOSECONDS = 9

_OPT_END = 0
_SHB_USERAPPL = 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_FILTER = 2, 3, 9, 11
_ISB_STARTTIME, _ISB_ENDTIME, _ISB_IFRECV, _ISB_IFDROP, _ISB_FILTERACCEPT = 2, 3, 4, 5, 6
#: Of if_filter: text of libpcap's filter language follows.
_FILTER_IS_TEXT = b"\0"


@dataclass(frozen=True, slots=True)
class Interface:
    """One queue in one direction.

    Attributes:
        snaplen: bytes kept of each packet.
        filter: in libpcap's language, or "".
    """

    name: str
    description: str
    snaplen: int
    filter: str = ""

    def block(self) -> bytes:
        """Its Interface Description Block; the number of such blocks before it is its id."""
        options = [
            (_IF_NAME, self.name.encode()),
            (_IF_DESCRIPTION, self.description.encode()),
            (_IF_TSRESOL, bytes([NANOSECONDS])),
        ]
        if self.filter:
            options.append((_IF_FILTER, _FILTER_IS_TEXT + self.filter.encode()))
        return _block(
            _IDB, struct.pack("=HHI", LINKTYPE_ETHERNET, 0, self.snaplen) + _options(options)
        )


def section_header() -> bytes:
    """The Section Header Block that a file begins with; its length is not told."""
    body = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SHB, body + _options([(_SHB_USERAPPL, f"vhostnet {__version__}".encode())]))


def interface_statistics(
    interface_id: int, begin_ns: int, end_ns: int, received: int, accepted: int, dropped: int
) -> bytes:
    """An Interface Statistics Block.

    Args:
        begin_ns, end_ns: of the capture, since 1970.
        received: packets that the queue moved or dropped.
        accepted: those that the filter let through.
        dropped: those that the capture lost.
    """
    options = [
        (_ISB_STARTTIME, _time(begin_ns)),
        (_ISB_ENDTIME, _time(end_ns)),
        (_ISB_IFRECV, struct.pack("=Q", received)),
        (_ISB_IFDROP, struct.pack("=Q", dropped)),
        (_ISB_FILTERACCEPT, struct.pack("=Q", accepted)),
    ]
    return _block(_ISB, struct.pack("=I", interface_id) + _time(end_ns) + _options(options))


def _time(ns: int) -> bytes:
    return struct.pack("=II", ns >> 32, ns & 0xFFFFFFFF)


def _options(options: Iterable[tuple[int, bytes]]) -> bytes:
    written = (struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    return b"".join(written) + struct.pack("=HH", _OPT_END, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size

"""TCP segments as a guest without offloads sends them, with all their checksums."""

from __future__ import annotations

import struct

#: What an Ethernet of 1500 bytes leaves beside 40 bytes of headers and 12 of timestamps.
PAYLOAD = 1448
#: Bytes of Ethernet, IP and TCP headers.
HEADERS = 14 + 20 + 32
#: Frames after which it begins anew, at least, and of each flow.
_FRAMES, _PER_FLOW = 1024, 32
#: To a station that is nobody's, from 198.18.0.1 to 198.18.0.2 (RFC 2544).
_ETHERNET = b"\x02\0\0\0\0\0" + b"\x02\0\0\0\0\x01" + b"\x08\0"
_ADDRESSES = bytes([198, 18, 0, 1, 198, 18, 0, 2])
_PORT = 5001
_ACK = 0x10
_TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes([0, 0, 0, 1, 0, 0, 0, 2])


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(flow: int, number: int) -> bytes:
    """The frame of one segment.

    Args:
        flow: 0 .. 65535, its source port.
        number: of the segment in its flow, from 0.
    """
    tcp_len = HEADERS - 34 + PAYLOAD
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + tcp_len, number & 0xFFFF, 0x4000, 64, 6, 0)
    ip = ip[:10] + struct.pack(">H", _checksum(ip + _ADDRESSES)) + _ADDRESSES
    sequence = number * PAYLOAD & 0xFFFFFFFF
    tcp = struct.pack(">HHIIBBHHH", flow, _PORT, sequence, 1, 8 << 4, _ACK, 512, 0, 0)
    payload = bytes((flow + number + k) & 0xFF for k in range(PAYLOAD))
    whole = tcp + _TIMESTAMPS + payload
    check = _checksum(_ADDRESSES + struct.pack(">HH", 6, tcp_len) + whole)
    return _ETHERNET + ip + whole[:16] + struct.pack(">H", check) + whole[18:]


def interleaved(flows: int) -> list[bytes]:
    """Frames of so many flows in turns, some dozens of segments of each or more."""
    rounds = max(_FRAMES // flows, _PER_FLOW)
    return [segment(flow, number) for number in range(rounds) for flow in range(flows)]

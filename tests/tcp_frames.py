"""TCP frames, and what a network card makes of a GSO frame: plain Python, from the RFCs.

Nothing of the device's code is used: this is what it is compared with.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << k for k in range(8))
NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6 = 1, 1, 4
TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(range(8))
PADDING = 60


def ones_complement(data: bytes) -> int:
    """The Internet checksum of RFC 1071, of big-endian words."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Segment:
    """One TCP segment, right in all its parts unless it is told otherwise."""

    payload: bytes = b"x" * 100
    seq: int = 1000
    ip_id: int = 7
    version: int = 4
    source: int = 1
    port: int = 5000
    ether: bytes = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02"
    tos: int = 0
    ttl: int = 64
    frag: int = 0x4000
    label: int = 5
    ack: int = 77
    flags: int = ACK
    reserved: int = 0
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    # added to the right value, modulo 2^16
    ip_check_off: int = 0
    tcp_check_off: int = 0
    # bytes behind the packet
    trailer: bytes = b""
    # instead of the right value
    length_off: int = 0

    @property
    def flow(self) -> tuple[int, int, int]:
        """What tells the flow."""
        return self.version, self.source, self.port

    def then(self, size: int | None = None, **changes: object) -> Segment:
        """The segment behind this one, of the same length or another."""
        n = len(self.payload) if size is None else size
        payload = bytes((self.payload[:1] or b"a")[0] + 1 + k & 0xFF for k in range(n))
        return replace(
            self,
            seq=(self.seq + len(self.payload)) % 2**32,
            ip_id=(self.ip_id + 1) % 2**16,
            payload=payload,
            **changes,  # type: ignore[arg-type]
        )

    def tcp(self) -> bytes:
        """TCP header and payload; the checksum is 0."""
        assert len(self.options) % 4 == 0
        doff = 5 + len(self.options) // 4
        words = (5001, self.port, self.seq, self.ack, doff << 4 | self.reserved, self.flags)
        head = struct.pack(">HHIIBBHHH", *words, self.window, 0, self.urgent)
        return head + self.options + self.payload

    def addresses(self) -> bytes:
        """Source and destination."""
        if self.version == 4:
            return bytes([10, 0, 0, self.source]) + bytes([10, 0, 1, 1])
        return bytes([0xFD] * 15 + [self.source]) + bytes([0xFD] * 15 + [99])

    def frame(self) -> bytes:
        """From the Ethernet header on."""
        tcp = bytearray(self.tcp())
        addresses = self.addresses()
        check = ones_complement(addresses + struct.pack(">II", 6, len(tcp)) + tcp)
        struct.pack_into(">H", tcp, 16, (check + self.tcp_check_off) & 0xFFFF)
        if self.version == 4:
            length = 20 + len(tcp) + self.length_off
            words = (0x45, self.tos, length, self.ip_id, self.frag, self.ttl, 6, 0)
            ip = bytearray(struct.pack(">BBHHHBBH", *words) + addresses)
            check = ones_complement(bytes(ip))
            struct.pack_into(">H", ip, 10, (check + self.ip_check_off) & 0xFFFF)
            return self.ether + b"\x08\0" + ip + tcp + self.trailer
        first = 6 << 28 | self.tos << 20 | self.label
        ip = bytearray(struct.pack(">IHBB", first, len(tcp) + self.length_off, 6, self.ttl))
        return self.ether + b"\x86\xdd" + ip + addresses + tcp + self.trailer


def stream(first: Segment, n: int, **changes: object) -> list[Segment]:
    """*n* segments, each behind the one before."""
    segments = [first]
    for _ in range(n - 1):
        segments.append(segments[-1].then(**changes))
    return segments


def segmented(packet: bytes, hdr_len: int = 12) -> list[bytes]:
    """The frames on the wire of one packet with its virtio_net_hdr.

    What a card does with TSO: lengths, IP IDs that count up, sequence numbers, PSH and FIN on the
    last one only, and both checksums.
    """
    flags, gso_type, _hint, mss, start, offset = struct.unpack_from("<BBHHHH", packet)
    frame = packet[hdr_len:]
    if gso_type == 0:
        assert flags == 0
        return [frame]
    assert (flags, offset) == (NEEDS_CSUM, 16)
    assert gso_type == {34: GSO_TCPV4, 54: GSO_TCPV6}[start]
    headers = start + (frame[start + 12] >> 4) * 4
    payload = frame[headers:]
    assert len(payload) > mss > 0, "it would not be segmented"
    _check_merged_headers(frame, start)
    found = []
    for k in range(0, len(payload), mss):
        part = payload[k : k + mss]
        head = bytearray(frame[:headers])
        tcp_len = headers - start + len(part)
        if start == 34:
            struct.pack_into(">H", head, 16, 20 + tcp_len)
            ip_id = struct.unpack_from(">H", head, 18)[0]
            struct.pack_into(">H", head, 18, (ip_id + k // mss) & 0xFFFF)
            struct.pack_into(">H", head, 24, 0)
            struct.pack_into(">H", head, 24, ones_complement(bytes(head[14:34])))
            addresses = bytes(head[26:34])
        else:
            struct.pack_into(">H", head, 18, tcp_len)
            addresses = bytes(head[22:54])
        seq = struct.unpack_from(">I", head, start + 4)[0]
        struct.pack_into(">I", head, start + 4, (seq + k) & 0xFFFFFFFF)
        if k + mss < len(payload):
            head[start + 13] &= ~(PSH | FIN)
        struct.pack_into(">H", head, start + 16, 0)
        pseudo = addresses + struct.pack(">II", 6, tcp_len)
        check = ones_complement(pseudo + head[start:] + part)
        struct.pack_into(">H", head, start + 16, check)
        found.append(bytes(head) + part)
    return found


def _check_merged_headers(frame: bytes, start: int) -> None:
    """What the host's stack looks at first: lengths, IP's checksum, TCP's pseudo header."""
    length = len(frame) - 14
    assert len(frame) <= 65535
    if start == 34:
        assert struct.unpack_from(">H", frame, 16)[0] == length
        assert ones_complement(frame[14:34]) == 0
        addresses = frame[26:34]
    else:
        assert struct.unpack_from(">H", frame, 18)[0] == length - 40
        addresses = frame[22:54]
    pseudo = addresses + struct.pack(">II", 6, len(frame) - start)
    assert struct.unpack_from(">H", frame, start + 16)[0] == ~ones_complement(pseudo) & 0xFFFF

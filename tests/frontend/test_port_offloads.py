"""Checksums and segments that one guest leaves to its card and the other cannot take.

The reference is written here, in plain Python and of whole packets: what comes out is taken apart
and put together again, and must be what went in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from port_bed import CSUM, LEGACY, MRG, OFFLOADS, PACKED_MRG, V1, PortBed, received

from vhostnet.datapath import catalogue
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import (
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    mask,
)
from vhostnet_frontend import NetDriver, VnetHeader

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
MACS = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"
FIRST_ONLY, LAST_ONLY = CWR, FIN | PSH


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    if JIT_ENABLED:
        catalogue.warm(catalogue.kernels_for("port"))


def ones_sum(data: bytes) -> int:
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Shape:
    """A packet of TCP or UDP: everything but its payload."""

    v6: bool
    udp: bool
    vlans: int = 0
    ip_options: bytes = b""
    tcp_options: bytes = b""
    flags: int = ACK
    sequence: int = 1000
    identification: int = 7

    @property
    def l3(self) -> int:
        return 14 + 4 * self.vlans

    @property
    def l4(self) -> int:
        return self.l3 + (40 if self.v6 else 20) + len(self.ip_options)

    @property
    def headers(self) -> int:
        return self.l4 + (8 if self.udp else 20 + len(self.tcp_options))

    @property
    def csum_offset(self) -> int:
        return 6 if self.udp else 16

    @property
    def gso_type(self) -> int:
        if self.udp:
            return VIRTIO_NET_HDR_GSO_UDP_L4
        ecn = VIRTIO_NET_HDR_GSO_ECN if self.flags & CWR else 0
        return ecn | (VIRTIO_NET_HDR_GSO_TCPV6 if self.v6 else VIRTIO_NET_HDR_GSO_TCPV4)

    def header(self, mss: int = 0) -> VnetHeader:
        return VnetHeader(
            flags=VIRTIO_NET_HDR_F_NEEDS_CSUM,
            gso_type=self.gso_type if mss else 0,
            gso_size=mss,
            hdr_len=self.headers if mss else 0,
            csum_start=self.l4,
            csum_offset=self.csum_offset,
        )

    def pseudo(self, size: int) -> bytes:
        protocol = 17 if self.udp else 6
        if self.v6:
            return bytes(range(32)) + struct.pack(">II", size, protocol)
        return bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HH", protocol, size)

    def frame(
        self,
        payload: bytes,
        index: int = 0,
        at: int = 0,
        flags: int | None = None,
        full: bool = True,
    ) -> bytes:
        """The packet; with a checksum in full, or with the pseudo header's sum only."""
        ethernet = MACS + b"\x81\x00\x00\x05" * self.vlans
        size = self.headers - self.l4 + len(payload)
        if self.udp:
            transport = struct.pack(">HHHH", 1111, 2222, size, 0)
        else:
            transport = struct.pack(
                ">HHIIBBHHH",
                1111,
                2222,
                (self.sequence + at) & 0xFFFFFFFF,
                99,
                (20 + len(self.tcp_options)) << 2,
                self.flags if flags is None else flags,
                500,
                0,
                0,
            )
            transport += self.tcp_options
        body = self.pseudo(size) + (transport + payload if full else b"")
        checksum = ones_sum(body)
        if full:
            checksum ^= 0xFFFF
            checksum = checksum or 0xFFFF if self.udp else checksum
        at_field = self.csum_offset
        transport = transport[:at_field] + struct.pack(">H", checksum) + transport[at_field + 2 :]
        if self.v6:
            length = len(self.ip_options) + size
            ip = struct.pack(">IHBB", 6 << 28, length, 0 if self.ip_options else 6, 64)
            ip += bytes(range(32)) + self.ip_options
            ethernet += b"\x86\xdd"
        else:
            words = 5 + len(self.ip_options) // 4
            ip = struct.pack(
                ">BBHHHBBH",
                0x40 | words,
                0,
                4 * words + size,
                (self.identification + index) & 0xFFFF,
                0x4000,
                64,
                17 if self.udp else 6,
                0,
            )
            ip += bytes([10, 0, 0, 1, 10, 0, 0, 2]) + self.ip_options
            ip = ip[:10] + struct.pack(">H", ones_sum(ip) ^ 0xFFFF) + ip[12:]
            ethernet += b"\x08\x00"
        return ethernet + ip + transport + payload

    def segments(self, payload: bytes, mss: int) -> list[bytes]:
        """What tcp_gso_segment() or udp_gso_segment() makes of it."""
        pieces = [payload[at : at + mss] for at in range(0, len(payload), mss)] or [b""]
        frames = []
        for index, piece in enumerate(pieces):
            flags = self.flags
            if index > 0:
                flags &= ~FIRST_ONLY
            if index < len(pieces) - 1:
                flags &= ~LAST_ONLY
            frames.append(self.frame(piece, index, index * mss, flags))
        return frames


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    v6, udp = draw(st.booleans()), draw(st.booleans())
    words = draw(st.integers(0, 3))
    return Shape(
        v6,
        udp,
        vlans=draw(st.integers(0, 2)),
        # IPv6: one hop-by-hop header
        ip_options=(b"\x06\0\1\4\0\0\0\0" if words else b"") if v6 else b"\1" * 4 * words,
        tcp_options=b"\1" * 4 * draw(st.integers(0, 10)),
        flags=draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | PSH | CWR | FIN])),
        sequence=draw(st.sampled_from([0, 1000, 0xFFFFFF00])),
        identification=draw(st.sampled_from([0, 0xFFFE])),
    )


SIZES = st.integers(0, 9000)
MSS = st.one_of(st.integers(1, 60), st.integers(500, 1460), st.integers(1, 9000))
examples = settings(
    max_examples=150 if JIT_ENABLED else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
Pair = tuple[PortBed, NetDriver, NetDriver]


def opened(a_features: int, b_features: int, **options: int) -> Iterator[Pair]:
    bed = PortBed()
    a = bed.open(0, a_features, num=64, tx_size=16384).start()
    b = bed.open(1, b_features, **{"num": 4096, "rx_size": 2048, **options}).start()
    yield bed, a, b
    bed.close()


@pytest.fixture(scope="module", params=[(MRG, V1), (V1, PACKED_MRG), (LEGACY, MRG | CSUM)])
def plain(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The second guest takes no segments."""
    yield from opened(*request.param, num=1024, rx_size=10_500)


@pytest.fixture(scope="module")
def able() -> Iterator[Pair]:
    """It takes all."""
    yield from opened(MRG, MRG | OFFLOADS)


def contents(size: int) -> bytes:
    return bytes((i * 7 + i // 256) & 0xFF for i in range(size))


@examples
@given(shape=shapes(), size=SIZES, mss=MSS)
def test_a_packet_is_cut_as_linux_cuts_it(plain: Pair, shape: Shape, size: int, mss: int) -> None:
    bed, a, b = plain
    payload = contents(size)
    wanted = shape.segments(payload, mss)
    before = bed.tx(0)["packets"], bed.tx(0)["drop_full"]
    a.send(shape.frame(payload, full=False), header=shape.header(mss))
    bed.flush()
    got = received(b)
    if len(wanted) > 1024:  # more than the ring holds
        assert got == wanted[:1024]
        assert bed.tx(0)["drop_full"] == before[1] + 1
        return
    assert got == wanted
    assert bed.tx(0)["packets"] == before[0] + 1


@examples
@given(shape=shapes(), size=SIZES, mss=MSS)
def test_a_guest_that_can_gets_the_packet_whole(
    able: Pair, shape: Shape, size: int, mss: int
) -> None:
    bed, a, b = able
    frame = shape.frame(contents(size), full=False)
    a.send(frame, header=shape.header(mss))
    bed.flush()
    packet = b.receive_packet(timeout=60.0)
    assert packet is not None
    assert packet.frame == frame
    header = VnetHeader.unpack(packet.header)
    assert header.num_buffers == len(packet.lengths)
    assert packet.header[:10] == shape.header(mss).pack(10)


@examples
@given(shape=shapes(), size=st.integers(0, 1400))
def test_a_partial_checksum_is_completed_or_told(
    plain: Pair, able: Pair, shape: Shape, size: int
) -> None:
    payload = contents(size)
    for bed, a, b in (plain, able):
        a.send(shape.frame(payload, full=False), header=shape.header())
        bed.flush()
        packet = b.receive_packet(timeout=60.0)
        assert packet is not None
        if b.has(1):  # GUEST_CSUM
            assert packet.frame == shape.frame(payload, full=False)
            assert packet.header[:10] == shape.header().pack(10)
            continue
        assert packet.header[:10] == bytes(10)
        whole = bytearray(shape.frame(payload))
        field = slice(shape.l4 + shape.csum_offset, shape.l4 + shape.csum_offset + 2)
        if whole[field] == b"\0\0":  # TCP's two zeros are the same
            whole[field] = b"\xff\xff"
        assert packet.frame == bytes(whole)


@pytest.mark.parametrize(
    ("lacks", "shape"),
    [
        (VIRTIO_NET_F_GUEST_TSO4, Shape(False, False)),
        (VIRTIO_NET_F_GUEST_ECN, Shape(False, False, flags=ACK | CWR)),
        (VIRTIO_NET_F_GUEST_USO6, Shape(False, True)),
    ],
)
def test_one_feature_that_is_missing_decides(lacks: int, shape: Shape) -> None:
    for features, n_frames in ((OFFLOADS, 1), (OFFLOADS & ~mask(lacks), 3)):
        bed = PortBed()
        a = bed.open(0, tx_size=8192).start()
        b = bed.open(1, MRG | features).start()
        a.send(shape.frame(contents(3000), full=False), header=shape.header(1000))
        bed.flush()
        assert len(received(b)) == n_frames
        bed.close()


HOSTILE = st.builds(
    VnetHeader,
    flags=st.just(1),
    gso_type=st.sampled_from([1, 4, 5, 0x81, 0x84, 0x85]),
    gso_size=st.integers(0, 0xFFFF),
    hdr_len=st.integers(0, 300),
    csum_start=st.integers(0, 400),
    csum_offset=st.sampled_from([0, 6, 16, 0xFFFF]),
)


@examples
@given(
    shape=shapes(),
    size=st.integers(0, 300),
    header=HOSTILE,
    trust=st.booleans(),
    changes=st.dictionaries(st.integers(12, 80), st.integers(0, 255), max_size=4),
    cut=st.integers(14, 400),
)
def test_a_lying_header_or_frame_costs_its_sender_alone(
    plain: Pair,
    shape: Shape,
    size: int,
    header: VnetHeader,
    trust: bool,
    changes: dict[int, int],
    cut: int,
) -> None:
    bed, a, b = plain
    frame = bytearray(shape.frame(contents(size), full=False))
    for at, value in changes.items():
        if at < len(frame):
            frame[at] = value
    a.send(bytes(frame[:cut]), header=shape.header(max(header.gso_size, 1)) if trust else header)
    a.send(shape.frame(b"still here"))
    bed.flush()
    got = received(b)
    assert got[-1] == shape.frame(b"still here")
    assert all(len(one) <= len(frame) for one in got[:-1])
    assert b.ring_errors() == {}


TCP4, TCP6, UDP4 = Shape(False, False), Shape(True, False), Shape(False, True)


def changed(shape: Shape, at: int, *values: int, size: int = 3000) -> bytes:
    frame = bytearray(shape.frame(contents(size), full=False))
    frame[at : at + len(values)] = bytes(values)
    return bytes(frame)


def told(shape: Shape, **fields: int) -> VnetHeader:
    return replace(shape.header(1000), **fields)


NOT_WHAT_IT_SAYS = {
    "no IP at all": (changed(TCP4, 12, 0x88, 0xB5), told(TCP4)),
    "three VLANs": (Shape(False, False, vlans=3).frame(contents(3000)), told(TCP4)),
    "nothing behind a VLAN": (MACS + b"\x81\x00", told(UDP4, csum_start=0, hdr_len=0)),
    "IPv4 of another version": (changed(TCP4, 14, 0x55), told(TCP4)),
    "IPv4 header of another length": (changed(TCP4, 14, 0x46), told(TCP4)),
    "IPv4 header too short": (changed(TCP4, 14, 0x44), told(TCP4, csum_start=30)),
    "IPv4 header behind the checksum's start": (changed(TCP4, 14, 0x45), told(TCP4, csum_start=20)),
    "a fragment": (changed(TCP4, 20, 0x20, 0), told(TCP4)),
    "a later fragment": (changed(TCP4, 20, 0, 9), told(TCP4)),
    "UDP as TCP": (changed(TCP4, 23, 17), told(TCP4)),
    "TCP as UDP": (changed(UDP4, 23, 6), told(UDP4)),
    "IPv4 as IPv6": (changed(TCP4, 0), told(TCP4, gso_type=VIRTIO_NET_HDR_GSO_TCPV6)),
    "IPv6 as IPv4": (changed(TCP6, 0), told(TCP6, gso_type=VIRTIO_NET_HDR_GSO_TCPV4)),
    "IPv6 of another version": (changed(TCP6, 14, 0x45), told(TCP6)),
    "IPv6 header behind the checksum's start": (changed(TCP6, 0), told(TCP6, csum_start=40)),
    "headers longer than any are": (changed(TCP6, 0), told(TCP6, csum_start=600)),
    "TCP's checksum elsewhere": (changed(TCP4, 0), told(TCP4, csum_offset=14)),
    "UDP's checksum elsewhere": (changed(UDP4, 0), told(UDP4, csum_offset=16)),
    "TCP header too short": (changed(TCP4, 46, 0x40), told(TCP4)),
    "TCP header cut off": (changed(TCP4, 0, size=0)[:53], told(TCP4, hdr_len=0)),
    "TCP header longer than the frame": (changed(TCP4, 46, 0xF0, size=5), told(TCP4)),
    "segments longer than IP has": (
        TCP4.frame(b"")[:54] + contents(66_000),
        told(TCP4, gso_size=65_535),
    ),
}


@pytest.mark.parametrize("case", NOT_WHAT_IT_SAYS)
def test_a_frame_to_cut_that_is_not_what_its_header_says_is_refused(plain: Pair, case: str) -> None:
    bed, a, b = plain
    frame, header = NOT_WHAT_IT_SAYS[case]
    before = bed.tx(0)["drop_bad_header"]
    a.send(frame, header=header)
    bed.flush()
    assert received(b) == []
    assert bed.tx(0)["drop_bad_header"] == before + 1
    assert b.ring_errors() == {}


def test_what_is_refused_is_cut_when_it_is_right(plain: Pair) -> None:
    """The cases above differ from these in one thing each."""
    bed, a, b = plain
    for shape in (TCP4, TCP6, UDP4):
        a.send(changed(shape, 0), header=told(shape))
        bed.flush()
        assert received(b) == shape.segments(contents(3000), 1000)


def test_a_frame_longer_than_any_tap_has_is_refused(plain: Pair) -> None:
    bed, a, b = plain
    before = bed.tx(0)["drop_too_long"]
    a.send(bytes(73_728))
    bed.flush()
    assert received(b) == []
    assert bed.tx(0)["drop_too_long"] == before + 1

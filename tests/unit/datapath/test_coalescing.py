"""A guest's TCP segments become one frame, which is segmented into the same bytes again.

A socket is the TAP, `tcp_frames.segmented` what a card would do with what comes out of it.
"""

from __future__ import annotations

import ctypes
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_ring import Memory
from instance import MRG, TX, V1
from stepped import SteppedInstance
from tcp_frames import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    TIMESTAMPS,
    URG,
    Segment,
    segmented,
    stream,
)
from vhostnet.datapath import via_coalescing_tap, via_tap
from vhostnet.datapath.coalesce import is_same_flow
from vhostnet.native._jit import JIT_ENABLED

HDR = bytes(12)
NUM = 256


class Coalescing(SteppedInstance):
    """A queue pair whose TAP coalesces."""

    def __init__(self, num: int = NUM, features: int = MRG | V1, size: int = 8 << 20) -> None:
        super().__init__(features=features, num=num, memory=Memory(size), coalesce=True)
        self.start()

    def send(self, *frames: bytes | Segment, header: bytes = b"") -> list[bytes]:
        """Send all at once; what comes out."""
        for frame in frames:
            data = frame.frame() if isinstance(frame, Segment) else frame
            self.tx.send((header or bytes(self.hdr_len)) + data)
        self.kick(TX)
        return self.sent()

    def merged(self) -> tuple[int, int]:
        """Merged frames, and segments in them."""
        record = self.queue.record[0]
        return int(record["merged_frames"]), int(record["merged_segments"])


@pytest.fixture
def coalescing() -> Iterator[Callable[..., Coalescing]]:
    made: list[Coalescing] = []

    def make(**options: int) -> Coalescing:
        made.append(Coalescing(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wire(packets: list[bytes], hdr_len: int = 12) -> list[bytes]:
    return [frame for packet in packets for frame in segmented(packet, hdr_len)]


def frames(segments: list[Segment]) -> list[bytes]:
    return [segment.frame() for segment in segments]


# --- what is merged ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [b"", TIMESTAMPS], ids=["plain", "timestamps"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("features", [0, MRG | V1], ids=["legacy", "v1"])
def test_a_stream_becomes_one_frame(coalescing, version, options, features):
    pair = coalescing(features=features)
    sent = stream(Segment(bytes(1448), version=version, options=options), 44)
    out = pair.send(*sent)
    assert len(out) == 1
    assert wire(out, pair.hdr_len) == frames(sent)
    assert pair.merged() == (1, 44)
    assert pair.counter(TX, "packets") == 44
    assert pair.counter(TX, "bytes") == sum(pair.hdr_len + len(f) for f in frames(sent))
    assert len(pair.tx.collect()) == 44
    assert pair.called(TX) == 1


def test_a_frame_is_full_at_64_kib(coalescing):
    pair = coalescing()
    sent = stream(Segment(bytes(1448)), 200)
    out = pair.send(*sent)
    assert wire(out) == frames(sent)
    assert max(len(packet) - 12 for packet in out) > 65535 - 1448
    assert len(out) == 5  # of 45 segments, the last of 20


@pytest.mark.parametrize("flows", [2, 4, 64])
def test_interleaved_flows_each_become_one_frame(coalescing, flows):
    pair = coalescing()
    streams = [stream(Segment(bytes(500), port=k), 256 // flows) for k in range(flows)]
    sent = [segment for turn in zip(*streams, strict=True) for segment in turn]
    out = pair.send(*sent)
    assert len(out) == (flows if flows == 64 else 2 * flows)
    for k in range(flows):
        here = [f for f in wire(out) if f[36:38] == struct.pack(">H", k)]
        assert here == frames(streams[k])


def test_push_ends_a_merge_and_a_short_segment_too(coalescing):
    pair = coalescing()
    first = stream(Segment(), 3)
    first.append(first[-1].then(flags=ACK | PSH))
    second = [first[-1].then(flags=ACK)]
    second.append(second[-1].then(size=40))
    third = [second[-1].then(size=100), second[-1].then(size=100).then()]
    out = pair.send(*first, *second, *third)
    assert [len(segmented(packet)) for packet in out] == [4, 2, 2]
    assert wire(out) == frames(first + second + third)


def test_numbers_wrap(coalescing):
    pair = coalescing()
    sent = stream(Segment(seq=2**32 - 150, ip_id=0xFFFE), 5)
    out = pair.send(*sent)
    assert len(out) == 1
    assert wire(out) == frames(sent)


def test_the_echo_of_congestion_may_be_on_all(coalescing):
    pair = coalescing()
    sent = stream(Segment(flags=ACK | ECE), 3)
    out = pair.send(*sent)
    assert len(out) == 1
    assert wire(out) == frames(sent)


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 40, 66, 67, 112])
def test_buffers_may_be_cut_anywhere(coalescing, cut):
    pair = coalescing(num=512)
    sent = stream(Segment(bytes(range(101))), 6)
    for segment in sent:
        data = HDR + segment.frame()
        pair.tx.send(data[:cut], data[cut:])
    pair.kick(TX)
    out = pair.sent()
    assert len(out) == 1
    assert wire(out) == frames(sent)


def test_payload_in_odd_pieces_is_summed_up_right(coalescing):
    pair = coalescing(num=512)
    sent = stream(Segment(bytes(range(7, 108))), 4)
    for segment in sent:
        data = HDR + segment.frame()
        pair.tx.send(data[:66], data[66:73], data[73:98], data[98:])
    pair.kick(TX)
    out = pair.sent()
    assert len(out) == 1
    assert wire(out) == frames(sent)


def test_payload_in_many_pieces_goes_as_it_is(coalescing):
    pair = coalescing(num=512)
    sent = stream(Segment(), 3)
    for segment in sent:
        data = HDR + segment.frame()
        pair.tx.send(data[:70], *[bytes([byte]) for byte in data[70:90]], data[90:])
    pair.kick(TX)
    assert pair.sent() == [HDR + frame for frame in frames(sent)]


# --- what is not ---------------------------------------------------------------------------------

FIRST = Segment()
CHANGES = {
    "a gap": {"seq": FIRST.seq + 101},
    "sent again": {"seq": FIRST.seq},
    "longer": {"payload": b"y" * 101},
    "empty": {"payload": b""},
    "station": {"ether": b"\x02\0\0\0\0\x09\x02\0\0\0\0\x02"},
    "tos": {"tos": 4},
    "congestion experienced": {"tos": 3},
    "ttl": {"ttl": 63},
    "df": {"frag": 0},
    "more fragments": {"frag": 0x2000},
    "offset": {"frag": 1},
    "reserved ip bit": {"frag": 0xC000},
    "id": {"ip_id": 9},
    "same id": {"ip_id": 7},
    "ack": {"ack": 78},
    "window": {"window": 501},
    "urgent pointer": {"urgent": 1},
    "reserved bits": {"reserved": 1},
    "timestamps": {"options": TIMESTAMPS},
    "ip checksum": {"ip_check_off": 1},
    "tcp checksum": {"tcp_check_off": 1},
    "padding": {"trailer": b"\0"},
    "ip length": {"length_off": -1},
    "ece": {"flags": ACK | ECE},
    "cwr": {"flags": ACK | CWR},
    "fin": {"flags": ACK | FIN},
    "syn": {"flags": ACK | SYN},
    "rst": {"flags": ACK | RST},
    "urg": {"flags": ACK | URG},
    "no ack": {"flags": 0},
}
V6_CHANGES = {
    name: change
    for name, change in CHANGES.items()
    if not {"frag", "ip_id", "ip_check_off"} & set(change)
} | {"flow label": {"label": 6}}


@pytest.mark.parametrize(
    ("version", "change"),
    [pytest.param(4, change, id=f"4-{name}") for name, change in CHANGES.items()]
    + [pytest.param(6, change, id=f"6-{name}") for name, change in V6_CHANGES.items()],
)
def test_a_segment_that_differs_comes_out_as_it_came(coalescing, version, change):
    """Before and behind it there are two that could be merged, and are."""
    pair = coalescing()
    before = stream(replace(FIRST, version=version), 2)
    odd = replace(before[-1].then(), **change)
    if "seq" in change:
        odd = replace(odd, seq=before[-1].seq + change["seq"] - FIRST.seq)
    if "ip_id" in change:
        odd = replace(odd, ip_id=before[-1].ip_id + change["ip_id"] - FIRST.ip_id)
    # goes on from what was expected, and not from the odd one
    behind = stream(replace(before[-1].then().then(ack=79), seq=10**6), 2)
    out = pair.send(*before, odd, *behind)
    assert out[1] == HDR + odd.frame()
    assert [len(segmented(packet)) for packet in out] == [2, 1, 2]
    assert wire(out) == frames([*before, odd, *behind])


@pytest.mark.parametrize("change", [{"tcp_check_off": 1}, {"ip_check_off": 0xFFFE}])
def test_a_first_segment_with_a_wrong_checksum_gathers_nothing(coalescing, change):
    pair = coalescing()
    sent = [replace(FIRST, **change), FIRST.then()]
    assert pair.send(*sent) == [HDR + frame for frame in frames(sent)]


ODD_BY_THEMSELVES = {
    name: change
    for name, change in CHANGES.items()
    if (
        {"flags", "reserved", "urgent", "trailer", "length_off"} & set(change)
        and change != {"flags": ACK | ECE}
    )
    or name in ("more fragments", "offset", "reserved ip bit")
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ODD_BY_THEMSELVES)
def test_a_stream_of_nothing_but_odd_ones_comes_out_as_it_came(coalescing, version, name):
    pair = coalescing()
    if version == 6 and "frag" in CHANGES[name]:
        pytest.skip("IPv6 has it in a header of its own")
    sent = stream(replace(FIRST, version=version, **CHANGES[name]), 3)
    assert pair.send(*sent) == [HDR + frame for frame in frames(sent)]


@pytest.mark.parametrize("k", range(len(TIMESTAMPS)))
def test_options_that_differ_end_a_merge(coalescing, k):
    pair = coalescing()
    sent = stream(Segment(options=TIMESTAMPS), 2)
    other = bytearray(TIMESTAMPS)
    other[k] ^= 0x80
    sent += stream(sent[-1].then(options=bytes(other)), 2)
    out = pair.send(*sent)
    assert [len(segmented(packet)) for packet in out] == [2, 2]
    assert wire(out) == frames(sent)


def test_the_other_zero_of_ip_is_not_laundered(coalescing):
    pair = coalescing()
    first = next(
        segment
        for segment in (Segment(ip_id=k) for k in range(0x10000))
        if segment.frame()[24:26] == b"\0\0"
    )
    assert len(pair.send(first, first.then())) == 1
    sent = [replace(first, ip_check_off=0xFFFF), first.then()]
    assert pair.send(*sent) == [HDR + frame for frame in frames(sent)]


@pytest.mark.parametrize(
    "other",
    [{"port": 5002}, {"source": 2}, {"version": 6}, {"version": 6, "port": 4}],
    ids=["port", "address", "version", "both"],
)
def test_flows_of_one_hash_are_told_apart(other):
    one, two, same = (
        np.frombuffer(segment.frame(), np.uint8)
        for segment in (FIRST, replace(FIRST, **other), FIRST.then(tos=4, ttl=9, ack=3))
    )
    tcp = 54 if "version" in other else 34
    assert not is_same_flow(one.ctypes.data, two.ctypes.data, tcp)
    assert not is_same_flow(two.ctypes.data, one.ctypes.data, 34)
    assert is_same_flow(one.ctypes.data, same.ctypes.data, 34)
    assert is_same_flow(two.ctypes.data, two.ctypes.data, tcp)
    of_another_version = one.copy()
    of_another_version[14] = 0x65
    assert not is_same_flow(one.ctypes.data, of_another_version.ctypes.data, 34)


@pytest.mark.parametrize("other", [{"port": 5002}, {"source": 2}])
def test_flows_of_one_hash_are_told_apart_in_ipv6(other):
    one = replace(FIRST, version=6)
    a, b = (np.frombuffer(x.frame(), np.uint8) for x in (one, replace(one, **other)))
    assert not is_same_flow(a.ctypes.data, b.ctypes.data, 54)
    assert is_same_flow(a.ctypes.data, a.ctypes.data, 54)


def _with_zero_checksum(version: int) -> Segment:
    """A segment whose checksum comes out as 0: 0xFFFF would be right as well."""
    at = 50 if version == 4 else 70
    for k in range(0x10000):
        segment = Segment(struct.pack(">HH", k, 0), version=version, seq=3)
        if segment.frame()[at : at + 2] == b"\0\0":
            return segment
    raise AssertionError("none")


@pytest.mark.parametrize("version", [4, 6])
def test_the_other_zero_is_not_laundered(coalescing, version):
    pair = coalescing()
    first = _with_zero_checksum(version)
    assert wire(pair.send(first, first.then())) == frames([first, first.then()])
    assert pair.merged() == (1, 2)
    odd = replace(first, tcp_check_off=0xFFFF)
    assert pair.send(odd, first.then()) == [HDR + odd.frame(), HDR + first.then().frame()]


@pytest.mark.parametrize("header", [b"\x01" + bytes(5) + b"\x22\0\x10\0\0\0", b"\x02" + bytes(11)])
def test_a_checksum_that_is_left_to_the_card_is_passed_on(coalescing, header):
    pair = coalescing()
    sent = stream(FIRST, 3)
    pair.tx.send(HDR + sent[0].frame())
    pair.tx.send(header + sent[1].frame())
    pair.tx.send(HDR + sent[2].frame())
    pair.kick(TX)
    assert pair.sent() == [HDR + sent[0].frame(), header + sent[1].frame(), HDR + sent[2].frame()]


def test_a_frame_of_the_guests_own_gso_is_passed_on(coalescing):
    pair = coalescing()
    header = struct.pack("<BBHHHHH", 1, 1, 54, 50, 34, 16, 0)
    sent = stream(FIRST, 2)
    pair.tx.send(HDR + sent[0].frame())
    pair.tx.send(header + sent[1].frame())
    pair.kick(TX)
    assert pair.sent() == [HDR + sent[0].frame(), header + sent[1].frame()]


def test_what_is_no_tcp_does_not_wait_and_what_may_be_does_not_overtake(coalescing):
    pair = coalescing()
    sent = stream(FIRST, 4)
    udp = bytearray(FIRST.frame())
    udp[23] = 17
    tagged = FIRST.ether + b"\x81\0\0\x05" + FIRST.frame()[12:]
    arp = FIRST.ether + b"\x08\x06" + bytes(28)
    out = pair.send(sent[0], bytes(udp), arp, sent[1], tagged, sent[2], b"\x08\0" * 9, sent[3])
    assert [packet[12:] for packet in out[:2]] == [bytes(udp), arp]
    assert segmented(out[2]) == frames(sent[:2])
    assert [packet[12:] for packet in out[3:]] == [
        tagged,
        sent[2].frame(),
        b"\x08\0" * 9,
        sent[3].frame(),
    ]


def test_a_header_length_that_is_only_a_hint_is_corrected_as_ever(coalescing):
    pair = coalescing()
    header = struct.pack("<BBHHHHH", 0, 0, 60000, 0, 0, 0, 0)
    assert pair.send(FIRST, header=header) == [HDR + FIRST.frame()]


# --- the ring and the TAP ------------------------------------------------------------------------


def test_a_lone_packet_is_out_when_the_handler_returns(coalescing):
    pair = coalescing()
    for segment in stream(FIRST, 3):
        assert pair.send(segment) == [HDR + segment.frame()]
        assert len(pair.tx.collect()) == 1


def test_a_ring_error_keeps_nothing_back(coalescing):
    pair = coalescing()
    sent = stream(FIRST, 3)
    for segment in sent:
        pair.tx.send(HDR + segment.frame())
    pair.tx.offer(9999)
    pair.kick(TX)
    assert wire(pair.sent()) == frames(sent)
    assert len(pair.tx.collect()) == 3


def small_wire(pair: Coalescing) -> None:
    """A TAP with room for little (8 kB: the kernel doubles it)."""
    pair._device_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def test_a_refused_merge_goes_as_it_came(coalescing):
    """A socket says EMSGSIZE to what is longer than its buffer ever is."""
    pair = coalescing()
    small_wire(pair)
    sent = stream(Segment(bytes(1448)), 8)
    for segment in sent:
        pair.tx.send(HDR + segment.frame())
    pair.kick(TX)
    out: list[bytes] = []
    for _ in range(20):
        got = pair.sent()
        out += got
        pair.flush()
    assert out == [HDR + frame for frame in frames(sent)]
    assert pair.counter(TX, "packets") == 8
    assert pair.counter(TX, "drop_refused") == 0
    assert len(pair.tx.collect()) == 8


def test_what_finds_no_room_survives_a_stop(coalescing):
    pair = coalescing()
    small_wire(pair)
    streams = [stream(Segment(bytes(1000), port=k), 4) for k in range(3)]
    sent = [segment for turn in zip(*streams, strict=True) for segment in turn]
    for segment in sent:
        pair.tx.send(HDR + segment.frame())
    pair.kick(TX)
    out = pair.sent()
    assert len(out) < len(sent)
    pair.net.set_backend(TX, None)
    for _ in range(3):
        pair.flush()
    assert pair.sent() == []
    pair.net.set_backend(TX, pair.queue)
    for _ in range(20):
        pair.flush()
        out += pair.sent()
    for k in range(3):
        here = [frame for frame in wire(out) if frame[36:38] == struct.pack(">H", k)]
        assert here == frames(streams[k])
    assert len(pair.tx.collect()) == len(sent)


def test_a_new_driver_does_not_send_what_the_last_one_left(coalescing):
    from vhostnet.backends.tap import TapBackend

    pair = coalescing()
    small_wire(pair)
    pair.send(*stream(Segment(bytes(1000)), 12))
    assert pair.queue.record[0]["stash_end"] > 0
    backend = object.__new__(TapBackend)
    backend.queues = [pair.queue]
    backend.discard_pending()
    for _ in range(20):
        pair.flush()
    assert len(pair.sent()) + int(pair.queue.record[0]["stash_end"]) == 0


def test_what_was_held_may_be_refused_for_good(coalescing):
    pair = coalescing()
    pair.wire.close()
    sent = stream(FIRST, 3)
    for segment in sent:
        pair.tx.send(HDR + segment.frame())
    pair.kick(TX)
    assert pair.counter(TX, "packets") == 0
    assert pair.counter(TX, "drop_refused") == 3
    assert len(pair.tx.collect()) == 3


# --- anything ------------------------------------------------------------------------------------

ODD = st.sampled_from(
    [{}] * 40
    + list(CHANGES.values())
    + [{"flags": ACK | PSH}] * 4
    + [{"label": 9}, {"ip_check_off": 0xFFFF}, {"tcp_check_off": 0xFFFF}]
)


@st.composite
def traffic(draw: st.DrawFn) -> list[tuple[Segment, list[int]]]:
    """Segments of some flows in any mix, some of them odd, each cut somewhere."""
    flows = draw(st.integers(1, 5))
    size = draw(st.sampled_from([1, 2, 37, 100, 536, 1448]))
    options = draw(st.sampled_from([b"", TIMESTAMPS]))
    dice = random.Random(draw(st.integers(0, 2**32)))
    now = [
        Segment(
            dice.randbytes(size),
            seq=dice.choice([1, 2**32 - 2 * size, dice.randrange(2**32)]),
            ip_id=dice.choice([1, 0xFFFD]),
            version=dice.choice([4, 4, 6]),
            port=k // 2,
            source=k % 2,
            options=options,
        )
        for k in range(flows)
    ]
    made = []
    for _ in range(draw(st.integers(1, 60))):
        k = draw(st.integers(0, flows - 1))
        segment = replace(now[k], payload=dice.randbytes(size))
        if draw(st.booleans()) and draw(st.booleans()):
            segment = replace(segment, payload=dice.randbytes(dice.randrange(2 * size)))
        odd = draw(ODD)
        made.append((replace(segment, **odd), draw(st.lists(st.integers(0, 200), max_size=4))))
        keeps_on = odd and draw(st.booleans())  # the next one goes on behind the odd one
        now[k] = replace(made[-1][0] if keeps_on else segment, trailer=b"", length_off=0).then(size)
    return made


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({p for p in places if 0 < p < len(data)}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def by_flow(frames_: list[bytes]) -> dict[bytes, list[bytes]]:
    """Frames by addresses and ports, as far as they can be told."""
    found: dict[bytes, list[bytes]] = {}
    for frame in frames_:
        ends = slice(26, 38) if frame[12:14] == b"\x08\0" else slice(22, 58)
        found.setdefault(frame[ends], []).append(frame)
    return found


@settings(max_examples=150 if JIT_ENABLED else 30)
@given(traffic(), st.integers(1, 30))
def test_segmented_again_it_is_what_the_guest_sent(mix, batch):
    pair = Coalescing(num=1024)
    try:
        out = []
        for at in range(0, len(mix), batch):
            for segment, places in mix[at : at + batch]:
                pair.tx.send(*cut(HDR + segment.frame(), places))
            pair.kick(TX)
            out += pair.sent()
            assert len(pair.tx.collect()) == len(mix[at : at + batch])
        assert by_flow(wire(out)) == by_flow([segment.frame() for segment, _ in mix])
        assert pair.counter(TX, "packets") == len(mix)
    finally:
        pair.close()


@settings(max_examples=60 if JIT_ENABLED else 15)
@given(traffic(), st.integers(2304, 30000), st.randoms(use_true_random=False))
def test_a_tap_without_room_loses_and_reorders_nothing(mix, room, dice):
    pair = Coalescing(num=1024)
    try:
        pair._device_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        out = []
        for segment, places in mix:
            pair.tx.send(*cut(HDR + segment.frame(), places))
            if dice.random() < 0.2:
                pair.kick(TX)
            if dice.random() < 0.05:
                out += pair.sent()
        pair.kick(TX)
        for _ in range(3 * len(mix)):
            out += pair.sent()
            pair.flush()
            if len(out) == len(mix) and pair.tx.used_idx() == len(mix):
                break
        assert by_flow(wire(out)) == by_flow([segment.frame() for segment, _ in mix])
        assert len(pair.tx.collect()) == len(mix)
        assert pair.counter(TX, "packets") == len(mix)
    finally:
        pair.close()


@pytest.mark.skipif(JIT_ENABLED, reason="compiled code cannot be told what a write answers")
@settings(max_examples=200)
@given(traffic(), st.integers(1, 30), st.randoms(use_true_random=False))
def test_whatever_a_write_answers_nothing_is_lost_or_overtaken(mix, batch, dice):
    """No room or a merged frame refused, at any moment, and room again at any other.

    And all flows have one hash.
    """
    written: list[bytes] = []
    hint = struct.pack("<BBHHHHH", 0, 0, 60000, 0, 0, 0, 0)

    def send_frame(_bk: object, iov_hva: int, n: int) -> int:
        answer = dice.choice([0, 0, 0, 0, -errno.EAGAIN, -errno.ENOBUFS, -errno.ENOMEM])
        pieces = (ctypes.c_int64 * (2 * n)).from_address(iov_hva)
        packet = b"".join(ctypes.string_at(pieces[2 * k], pieces[2 * k + 1]) for k in range(n))
        if packet[1] and dice.random() < 0.2:
            return -errno.EINVAL
        if answer == 0:
            written.append(packet)
        return answer

    pair = Coalescing(num=1024)
    try:
        with (
            mock.patch.object(via_tap, "send_frame", send_frame),
            mock.patch.object(via_coalescing_tap, "send_frame", send_frame),
            mock.patch.object(via_coalescing_tap, "flow_hash", return_value=5),
        ):
            for at in range(0, len(mix), batch):
                for segment, places in mix[at : at + batch]:
                    pair.tx.send(*cut(hint + segment.frame(), places))
                pair.kick(TX)
            for _ in range(20 * len(mix)):
                if len(wire(written)) == len(mix):
                    break
                pair.kick(TX)
        assert all(packet[1] or packet[:12] == HDR for packet in written)
        assert by_flow(wire(written)) == by_flow([segment.frame() for segment, _ in mix])
        assert len(pair.tx.collect()) == len(mix)
        assert pair.counter(TX, "packets") == len(mix)
    finally:
        pair.close()

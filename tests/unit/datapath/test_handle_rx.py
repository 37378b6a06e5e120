"""From the wire into the guest's buffers: every rule, with a socket for a TAP."""

from __future__ import annotations

import pytest

from driver_ring import GPA, WRITE
from instance import EVENT_IDX, MRG, RX, V1

FRAME = bytes(range(100))


def packet(frame: bytes = FRAME, hdr_len: int = 12) -> bytes:
    return bytes(hdr_len) + frame


def filled(pair, addresses, lengths):
    return b"".join(
        pair.memory.read(gpa, length) for gpa, length in zip(addresses, lengths, strict=True)
    )


def test_a_packet_fills_one_buffer_and_num_buffers_is_one(instance):
    pair = instance()
    (gpa,) = pair.rx.post(1500)
    pair.arrive(packet())
    (used,) = pair.rx.collect()
    assert used.length == 112
    got = pair.memory.read(gpa, 112)
    assert got[12:] == FRAME
    assert got[10:12] == b"\x01\x00"
    assert pair.called(RX) == 1


def test_legacy_headers_have_ten_bytes_and_no_num_buffers(instance):
    pair = instance(features=0)
    (gpa,) = pair.rx.post(1500)
    pair.arrive(packet(hdr_len=10))
    assert pair.memory.read(gpa, 110) == bytes(10) + FRAME


def test_version_1_without_mergeable_says_one_buffer(instance):
    pair = instance(features=V1)
    (gpa,) = pair.rx.post(1500)
    pair.arrive(packet())
    assert pair.memory.read(gpa, 12)[10:] == b"\x01\x00"


def test_a_packet_is_spread_over_mergeable_buffers(instance):
    pair = instance()
    addresses = [pair.rx.post(50)[0] for _ in range(4)]
    pair.arrive(packet())
    assert [u.length for u in pair.rx.collect()] == [50, 50, 12]
    got = filled(pair, addresses[:3], [50, 50, 12])
    assert got[12:] == FRAME
    assert got[10:12] == b"\x03\x00"
    assert pair.net.get_vring_base(RX) == 3
    assert pair.called(RX) == 1


@pytest.mark.parametrize("cut", range(1, 20))
def test_the_header_may_straddle_buffers(instance, cut):
    pair = instance()
    a, b = pair.rx.post(cut, 1500)
    pair.arrive(packet())
    assert filled(pair, [a, b], [cut, 112 - cut]) == bytes(10) + b"\x01\x00" + FRAME


@pytest.mark.parametrize("cut", [1, 9, 10, 11, 12])
def test_num_buffers_may_straddle_chains(instance, cut):
    pair = instance()
    a = pair.rx.post(cut)[0]
    b = pair.rx.post(1500)[0]
    pair.arrive(packet())
    assert filled(pair, [a, b], [cut, 112 - cut]) == bytes(10) + b"\x02\x00" + FRAME


def test_without_buffers_the_packet_waits_for_a_kick(instance):
    pair = instance()
    pair.arrive(packet())
    assert pair.rx.collect() == []
    assert pair.rx.used_flags() == 0  # kicks wanted
    pair.rx.post(1500)
    pair.kick(RX)
    assert [u.length for u in pair.rx.collect()] == [112]


def test_buffers_that_wait_for_packets_leave_kicks_off(instance):
    pair = instance()
    pair.rx.post(1500)
    pair.rx.post(1500)
    pair.kick(RX)
    pair.arrive(packet())
    assert pair.rx.used_flags() == 1


def test_too_few_mergeable_buffers_are_all_given_back(instance):
    pair = instance(features=MRG | V1 | EVENT_IDX)
    pair.rx.post(50)
    pair.rx.post(50)
    pair.arrive(packet())
    assert pair.rx.collect() == []
    assert pair.net.get_vring_base(RX) == 0
    # the newest index seen, not the position: buffers that did not suffice are no news
    assert pair.rx.avail_event() == 2
    wakeups = pair.net.worker.record[0]["runs"]
    pair.flush()
    pair.flush()
    assert pair.net.worker.record[0]["runs"] == wakeups  # asleep, not spinning
    pair.rx.post(50)
    pair.kick(RX)
    assert [u.length for u in pair.rx.collect()] == [50, 50, 12]


def test_a_buffer_too_small_without_mergeable_drops_the_packet_and_keeps_the_buffer(instance):
    pair = instance(features=V1)
    (gpa,) = pair.rx.post(60)
    pair.arrive(packet(), packet(b"x" * 40))
    assert [u.length for u in pair.rx.collect()] == [52]
    assert pair.memory.read(gpa + 12, 40) == b"x" * 40
    assert pair.counter(RX, "drop_too_small") == 1


def test_a_run_of_oversize_packets_ends_at_the_weight(instance):
    pair = instance(features=V1)
    pair.rx.post(60)
    for _ in range(3):
        pair.arrive(*[packet()] * 100)
    assert pair.counter(RX, "drop_too_small") == 300
    assert pair.rx.collect() == []


def test_100_packets_and_one_kick_make_two_signals(instance):
    pair = instance(num=128)
    for _ in range(100):
        pair.arrive(packet())
    pair.called(RX)
    for _ in range(100):
        pair.rx.post(1500)
    pair.kick(RX)
    assert pair.called(RX) == 2  # 65 + 35, as measured on Linux
    assert len(pair.rx.collect()) == 100


def test_a_packet_may_take_more_than_a_batch_of_buffers(instance):
    pair = instance(num=1024)
    addresses = [pair.rx.post(1)[0] for _ in range(1000)]
    for _ in range(2):
        pair.arrive(packet(b"z" * 400))
    assert len(pair.rx.collect()) == 824
    assert filled(pair, addresses[:412], [1] * 412)[12:] == b"z" * 400


def test_a_chain_with_a_readable_part_is_handed_back_empty(instance):
    pair = instance()
    gpa = pair.memory.alloc(2000)
    bad = pair.rx.chain([(gpa, 50, 0), (gpa, 1500, WRITE)])
    pair.rx.offer(bad)
    pair.rx.post(1500)
    pair.arrive(packet())
    assert [u.length for u in pair.rx.collect()] == [0, 112]
    assert pair.counter(RX, "drop_malformed") == 1
    assert pair.erred(RX) == 1


def test_a_bad_chain_behind_good_ones_hands_all_of_them_back(instance):
    pair = instance()
    gpa = pair.memory.alloc(2000)
    pair.rx.post(50)
    pair.rx.offer(pair.rx.chain([(gpa, 50, 0)]))
    pair.rx.post(1500)
    pair.arrive(packet())
    assert [u.length for u in pair.rx.collect()] == [0, 0, 112]


def test_a_broken_ring_keeps_the_packet_and_recovers(instance, caplog):
    pair = instance()
    pair.rx.set_desc(0, 0x1000, 1500, WRITE, 0)
    pair.rx.offer(0)
    pair.arrive(packet())
    assert pair.rx.collect() == []
    assert pair.erred(RX) == 1
    assert "rx ring is broken" in caplog.text
    pair.rx.set_desc(0, GPA + 0x8000, 1500, WRITE, 0)
    pair.kick(RX)
    assert [u.length for u in pair.rx.collect()] == [112]
    assert pair.memory.read(GPA + 0x8000 + 12, 100) == FRAME


def test_nothing_of_a_packet_before_is_left_in_the_header(instance):
    pair = instance()
    pair.rx.post(1500)
    pair.rx.post(1500)
    pair.arrive(b"\xff" * 12 + FRAME)
    (gpa,) = pair.rx.post(1500)
    pair.arrive(packet())
    pair.arrive(packet())
    assert pair.memory.read(gpa, 12) == bytes(10) + b"\x01\x00"


def test_a_stopped_ring_keeps_the_held_packet_for_the_next_start(instance):
    pair = instance()
    pair.arrive(packet(b"held" * 10))
    pair.net.set_backend(RX, None)
    pair.rx.post(1500)
    pair.flush()
    assert pair.rx.collect() == []
    pair.net.set_backend(RX, pair.queue)
    pair.flush()
    assert [u.length for u in pair.rx.collect()] == [52]

"""What the data path counts beside packets and bytes."""

from __future__ import annotations

import socket
import struct

import pytest

from instance import EVENT_IDX, MRG, RX, TX, V1
from vhostnet.datapath.codes import RING_ERROR_RULES, RING_ERRORS
from vhostnet.datapath.layout import COUNTERS

HDR = bytes(12)
GSO = b"\0\1" + bytes(10)
FRAME = bytes(range(60))


def histogram(reading):
    return {bound: n for bound, n in reading.counts if n}


# --- packets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[GSO + FRAME], [GSO[:1], GSO[1:2], GSO[2:], FRAME]])
def test_a_gso_packet_is_counted_wherever_its_header_is_cut(instance, pieces):
    pair = instance()
    pair.tx.send(*pieces)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert len(pair.sent()) == 2
    assert (pair.counter(TX, "packets"), pair.counter(TX, "gso_packets")) == (2, 1)


def test_gso_packets_for_the_guest_are_counted(instance):
    pair = instance()
    for _ in range(2):
        pair.rx.post(2000)
    pair.arrive(GSO + FRAME, HDR + FRAME)
    assert (pair.counter(RX, "packets"), pair.counter(RX, "gso_packets")) == (2, 1)


def test_a_refused_gso_packet_is_not_counted_as_one(instance):
    pair = instance()
    pair.wire.shutdown(socket.SHUT_RD)
    pair.tx.send(GSO + FRAME)
    pair.kick(TX)
    assert (pair.counter(TX, "gso_packets"), pair.counter(TX, "drop_refused")) == (0, 1)


def test_chains_count_every_buffer_of_a_packet(instance):
    pair = instance(features=MRG | V1)
    for _ in range(3):
        pair.rx.post(40)
    pair.arrive(HDR + FRAME)
    assert (pair.counter(RX, "packets"), pair.counter(RX, "chains")) == (1, 2)


def test_chains_count_what_is_dropped_as_well(instance):
    pair = instance()
    pair.tx.send(HDR)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert (pair.counter(TX, "packets"), pair.counter(TX, "chains")) == (1, 2)


# --- waiting ---------------------------------------------------------------------------------


def test_a_packet_without_buffers_waits_and_is_counted_once_a_look(instance):
    pair = instance()
    pair.arrive(HDR + FRAME)
    assert pair.counter(RX, "waits_no_buffers") == 1
    pair.rx.post(2000)
    pair.kick(RX)
    assert (pair.counter(RX, "packets"), pair.counter(RX, "waits_no_buffers")) == (1, 1)


def test_a_full_backend_is_counted(instance):
    pair = instance(num=256)
    for _ in range(200):
        pair.tx.send(HDR + bytes(4000))
    pair.kick(TX)
    assert pair.counter(TX, "waits_backend_full") >= 1
    assert pair.counter(TX, "packets") < 200


def test_errors_of_the_wire_are_counted_with_their_errno(instance):
    pair = instance()
    pair.wire.shutdown(socket.SHUT_RD)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    queue = pair.queue
    assert queue.counters()["write_errors"] == 1
    assert int(queue.record[0]["write_errno"]) > 0


def test_a_frame_shorter_than_its_header_is_thrown_away_and_counted(instance):
    pair = instance()
    pair.rx.post(2000)
    pair.arrive(HDR[:5])
    assert pair.counter(RX, "packets") == 0
    assert pair.queue.counters()["thrown_away"] == 1


# --- kicks, batches, latency -----------------------------------------------------------------


def test_a_chain_is_kicked_for_or_the_kick_was_avoided(instance):
    pair = instance(num=64)
    for _ in range(10):
        pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert (pair.counter(TX, "kicks"), pair.counter(TX, "kicks_avoided")) == (1, 9)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert (pair.counter(TX, "kicks"), pair.counter(TX, "kicks_avoided")) == (2, 9)


def test_a_kick_about_nothing_avoids_none(instance):
    pair = instance()
    pair.kick(TX)
    pair.kick(TX)
    assert (pair.counter(TX, "kicks"), pair.counter(TX, "kicks_avoided")) == (2, 0)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.counter(TX, "kicks_avoided") == 0


def test_batches_by_powers_of_two(instance):
    pair = instance(num=64)
    for n in (1, 2, 3, 4, 5, 33):
        for _ in range(n):
            pair.tx.send(HDR + FRAME)
        pair.kick(TX)
    reading = pair.net.tx.batch_sizes()
    assert histogram(reading) == {1: 1, 2: 1, 4: 2, 8: 1, 64: 1}
    assert reading.total == pair.counter(TX, "packets") == 48


def test_a_kick_that_brings_something_has_one_latency(instance):
    pair = instance(num=128)
    for _ in range(100):
        pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    pair.kick(TX)  # nothing new
    reading = pair.net.tx.latencies()
    assert sum(n for _, n in reading.counts) == 1
    assert reading.total > 0


def test_a_packet_that_nobody_kicked_for_has_no_latency(instance):
    pair = instance(features=MRG | V1 | EVENT_IDX)
    pair.rx.post(2000)
    pair.kick(RX)  # buffers, and no packet yet
    pair.arrive(HDR + FRAME)
    assert pair.counter(RX, "packets") == 1
    assert sum(n for _, n in pair.net.rx.latencies().counts) == 0


# --- rules -----------------------------------------------------------------------------------


def test_every_ring_error_has_a_rule():
    assert len(RING_ERROR_RULES) == len(RING_ERRORS)


def test_a_broken_ring_is_counted_by_its_rule(instance):
    pair = instance()
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", 999))
    pair.kick(TX)
    pair.kick(TX)
    assert {k: n for k, n in pair.net.tx.errors().items() if n} == {"avail_jump": 2}
    assert pair.counter(TX, "ring_errors") == 2


@pytest.mark.parametrize(
    ("rule", "desc"),
    [
        ("unmapped", (1 << 40, 60, 0, 0)),
        ("bad_next", (0x4000_0000, 60, 1, 999)),
        ("loop", (0x4000_0000, 0, 1, 0)),
        ("indirect_len", (0x4000_0000, 17, 4, 0)),
        ("indirect_unmapped", (1 << 40, 16, 4, 0)),
        ("indirect_too_big", (0x4000_0000, 16 * 65537, 4, 0)),
    ],
)
def test_rules_of_descriptors(instance, rule, desc):
    pair = instance()
    pair.tx.set_desc(0, *desc)
    pair.tx.offer(0)
    pair.kick(TX)
    assert {k: n for k, n in pair.net.tx.errors().items() if n} == {rule: 1}


def test_a_bad_head_is_counted_by_its_rule(instance):
    pair = instance()
    pair.tx.offer(16)
    pair.kick(TX)
    assert {k: n for k, n in pair.net.tx.errors().items() if n} == {"bad_head": 1}


# --- workers ---------------------------------------------------------------------------------


def test_an_idle_worker_neither_polls_nor_wakes_up(instance):
    pair = instance()
    worker = pair.net.worker_counters()
    pair.net.flush()
    again = pair.net.worker_counters()
    # a flush is one wake-up and what follows it: nothing spins
    assert again["wakeups"] - worker["wakeups"] <= 2
    assert again["polls"] - worker["polls"] <= 2


def test_every_counter_says_what_it_counts():
    assert all(text and text[-1] != "." for text in COUNTERS.values())

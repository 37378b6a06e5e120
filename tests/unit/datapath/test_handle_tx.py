"""From the guest's ring to the wire: every rule, with a socket for a TAP."""

from __future__ import annotations

import pytest

from driver_ring import GPA, INDIRECT, NEXT, WRITE
from instance import EVENT_IDX, MRG, TX, V1

HDR = bytes(12)
FRAME = bytes(range(60))
MAX_U32 = 0xFFFFFFFF


def test_a_packet_in_one_buffer_reaches_the_wire(instance):
    pair = instance()
    head = pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert [(u.head, u.length) for u in pair.tx.collect()] == [(head, 0)]
    assert pair.called(TX) == 1


@pytest.mark.parametrize("features", [0, V1, MRG, MRG | V1], ids=["legacy", "v1", "mrg", "both"])
@pytest.mark.parametrize("cut", range(1, 14))
def test_the_header_may_be_split_anywhere(instance, features, cut):
    pair = instance(features=features)
    packet = bytes(pair.hdr_len) + FRAME
    pair.tx.send(packet[:cut], packet[cut:])
    pair.kick(TX)
    assert pair.sent() == [packet]


def test_a_header_of_one_byte_pieces(instance):
    pair = instance(num=32)
    pair.tx.send(*[b"\0"] * 12, FRAME[:1], FRAME[1:])
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_buffers_available_before_the_start_are_sent_without_a_kick(instance):
    pair = instance(start=False)
    pair.tx.send(HDR + FRAME)
    pair.start()
    assert pair.sent() == [HDR + FRAME]


def test_a_batch_is_published_at_64_and_at_the_end(instance):
    pair = instance(num=128)
    for _ in range(100):
        pair.tx.send(HDR + b"x" * 20)
    pair.kick(TX)
    assert len(pair.sent()) == 100
    assert len(pair.tx.collect()) == 100
    assert pair.called(TX) == 2


def test_an_indirect_table_is_read_in_order_and_its_next_is_ignored(instance):
    pair = instance()
    pieces = [HDR, FRAME[:20], FRAME[20:]]
    entries = []
    for k, piece in enumerate(pieces):
        gpa = pair.memory.alloc(len(piece), 1)
        pair.memory.write(gpa, piece)
        entries.append((gpa, len(piece), NEXT if k < 2 else 0, 7))
    pair.tx.offer(pair.tx.indirect(entries))
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_a_chain_may_go_on_after_an_indirect_descriptor(instance):
    pair = instance()
    data = pair.memory.alloc(len(FRAME), 1)
    pair.memory.write(data, FRAME)
    hdr = pair.memory.alloc(12, 1)
    table = pair.memory.alloc(16)
    pair.memory.write(table, hdr.to_bytes(8, "little") + (12).to_bytes(4, "little") + bytes(4))
    pair.tx.set_desc(0, table, 16, INDIRECT | NEXT, 1)
    pair.tx.set_desc(1, data, len(FRAME), 0, 0)
    pair.tx.offer(0)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


# --- signals -------------------------------------------------------------------------


def test_the_driver_can_switch_interrupts_off(instance):
    pair = instance()
    pair.tx.set_avail_flags(1)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 0
    assert pair.counter(TX, "calls_suppressed") == 1
    assert len(pair.tx.collect()) == 1


def test_event_idx_signals_when_the_event_is_passed_and_only_then(instance):
    pair = instance(features=MRG | V1 | EVENT_IDX)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 1  # the first signal after a start is unconditional
    pair.tx.set_used_event(2)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 0  # used idx 2: entry 2 is not there yet
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 1
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 0


def test_event_idx_asks_for_the_next_kick_in_avail_event(instance):
    pair = instance(features=MRG | V1 | EVENT_IDX)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.tx.avail_event() == 1
    assert pair.tx.used_flags() == 0


def test_an_idle_ring_without_event_idx_asks_for_kicks_by_flag(instance):
    pair = instance()
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.tx.used_flags() == 0


@pytest.mark.parametrize("base", [0, 1, 65520, 65535])
def test_indices_wrap(instance, base):
    pair = instance(base=base)
    for turn in range(40):
        pair.tx.send(HDR + bytes([turn]) * 20)
        pair.kick(TX)
    assert len(pair.sent()) == 40
    assert len(pair.tx.collect()) == 40


# --- the backend is full ---------------------------------------------------------------


def test_a_full_backend_keeps_the_packet_and_goes_on_when_there_is_room(instance):
    pair = instance(num=256)
    for _ in range(256):
        pair.tx.offer(pair.tx.chain([(GPA, 65000, 0)]))
    pair.kick(TX)
    before = pair.counter(TX, "packets")
    assert 0 < before < 256
    received = 0
    for _ in range(1000):
        received += len(pair.sent())
        pair.flush()
        if pair.counter(TX, "packets") == 256:
            break
    assert received + len(pair.sent()) == 256
    assert len(pair.tx.collect()) == 256
    assert pair.counter(TX, "drop_refused") == 0


# --- packets that cannot be sent are dropped, counted and completed --------------------


@pytest.mark.parametrize("size", [1, 5, 11, 12])
def test_a_chain_without_a_frame_is_completed_and_counted(instance, size):
    pair = instance()
    pair.tx.send(bytes(size))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert [u.length for u in pair.tx.collect()] == [0, 0]
    assert pair.counter(TX, "drop_short") == 1
    assert pair.erred(TX) == 0  # a packet that is too short is no fault of the ring


def test_a_zero_length_descriptor_is_legal_within_a_chain(instance):
    pair = instance()
    gpa = pair.memory.alloc(72)
    pair.memory.write(gpa, HDR + FRAME)
    pair.tx.offer(pair.tx.chain([(GPA, 0, 0), (gpa, 12, 0), (0, 0, 0), (gpa + 12, 60, 0)]))
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_a_writable_part_in_a_tx_chain_is_completed_not_leaked(instance):
    pair = instance()
    gpa = pair.memory.alloc(100)
    pair.tx.offer(pair.tx.chain([(gpa, 72, 0), (gpa, 10, WRITE)]))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert len(pair.tx.collect()) == 2
    assert pair.counter(TX, "drop_malformed") == 1


def test_a_header_length_hint_beyond_the_frame_is_taken_away(instance):
    pair = instance()
    header = bytearray(HDR)
    header[2:4] = (999).to_bytes(2, "little")
    pair.tx.send(bytes(header) + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_a_disabled_ring_discards_and_completes(instance):
    pair = instance()
    pair.net.set_discard(TX, True)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == []
    assert len(pair.tx.collect()) == 1
    assert pair.counter(TX, "drop_disabled") == 1


# --- broken rings stop, report, and go on when repaired --------------------------------


def _bad_next(pair):
    pair.tx.set_desc(0, GPA, 72, NEXT, 16)


def _loop(pair):
    pair.tx.set_desc(0, GPA, 72, NEXT, 1)
    pair.tx.set_desc(1, GPA, 72, NEXT, 0)


def _unmapped(pair):
    pair.tx.set_desc(0, 0x1000, 72, 0, 0)


def _beyond_the_end(pair):
    pair.tx.set_desc(0, GPA + pair.memory.size - 71, 72, 0, 0)


def _wraps(pair):
    pair.tx.set_desc(0, 2**64 - 16, MAX_U32, 0, 0)


def _negative(pair):
    pair.tx.set_desc(0, 2**63, MAX_U32, 0, 0)


def _out_after_in(pair):
    pair.tx.set_desc(0, GPA, 72, WRITE | NEXT, 1)
    pair.tx.set_desc(1, GPA, 72, 0, 0)


def _indirect_len(pair):
    pair.tx.set_desc(0, GPA, 24, INDIRECT, 0)


def _indirect_empty(pair):
    pair.tx.set_desc(0, GPA, 0, INDIRECT, 0)


def _indirect_unmapped(pair):
    pair.tx.set_desc(0, 0x1000, 16, INDIRECT, 0)


def _indirect_too_big(pair):
    pair.tx.set_desc(0, GPA, 16 * 65537, INDIRECT, 0)


def _indirect_nested(pair):
    pair.tx.offer(pair.tx.indirect([(GPA, 16, INDIRECT, 0)]))
    pair.tx.avail_idx -= 1


def _indirect_overrun(pair):
    pair.tx.offer(pair.tx.indirect([(GPA, 72, NEXT, 0)]))
    pair.tx.avail_idx -= 1


def _too_many_pieces(pair):
    entries = [(GPA, 1, NEXT if k < 1024 else 0, 0) for k in range(1025)]
    pair.tx.offer(pair.tx.indirect(entries))
    pair.tx.avail_idx -= 1


BROKEN = {
    _bad_next: "not the driver's to use",
    _loop: "loops",
    _unmapped: "not in the guest's memory",
    _beyond_the_end: "not in the guest's memory",
    _wraps: "not in the guest's memory",
    _negative: "not in the guest's memory",
    _out_after_in: "readable descriptor follows",
    _indirect_len: "multiple of 16",
    _indirect_empty: "past its table",
    _indirect_unmapped: "table is not in",
    _indirect_too_big: "65536 entries",
    _indirect_nested: "holds an indirect",
    _indirect_overrun: "past its table",
    _too_many_pieces: "1024 pieces",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__[1:])
def test_a_broken_chain_stops_the_queue_until_it_is_repaired_and_kicked(instance, caplog, break_it):
    pair = instance()
    break_it(pair)
    pair.tx.offer(0)
    pair.kick(TX)
    assert pair.sent() == []
    assert pair.tx.collect() == []
    assert pair.net.get_vring_base(TX) == 0
    assert pair.erred(TX) >= 1
    assert pair.counter(TX, "ring_errors") >= 1
    assert BROKEN[break_it] in caplog.text
    assert pair.tx.used_flags() == 1  # notifications stay off
    gpa = pair.memory.alloc(72)
    pair.memory.write(gpa, HDR + FRAME)
    pair.tx.set_desc(0, gpa, 72, 0, 0)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert len(pair.tx.collect()) == 1


def test_a_head_beyond_the_table_stops_the_queue(instance, caplog):
    pair = instance()
    pair.tx.offer(16)
    pair.kick(TX)
    assert pair.net.get_vring_base(TX) == 0
    assert "names a descriptor beyond" in caplog.text


def test_an_avail_index_that_jumps_stops_the_queue(instance, caplog):
    pair = instance()
    pair.memory.write(pair.tx.avail + 2, (17).to_bytes(2, "little"))
    pair.kick(TX)
    assert pair.net.get_vring_base(TX) == 0
    assert "more than the ring holds" in caplog.text
    pair.memory.write(pair.tx.avail + 2, (0).to_bytes(2, "little"))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_completions_before_an_error_are_published(instance):
    pair = instance()
    pair.tx.send(HDR + FRAME)
    pair.tx.offer(16)
    pair.kick(TX)
    assert len(pair.tx.collect()) == 1
    assert pair.called(TX) == 1


def test_one_cause_is_logged_once_a_start(instance, caplog):
    pair = instance()
    pair.tx.offer(16)
    for _ in range(5):
        pair.kick(TX)
    assert caplog.text.count("ring is broken") == 1
    assert pair.counter(TX, "ring_errors") >= 5


def test_1024_pieces_are_sent_with_their_header_in_the_first(instance):
    pair = instance()
    data = pair.memory.alloc(1024 + 12, 1)
    pair.memory.write(data, HDR + b"a" * 1024)
    entries = [(data, 13, NEXT, 0)]
    entries += [(data + 13 + k, 1, NEXT if k < 1022 else 0, 0) for k in range(1023)]
    pair.tx.offer(pair.tx.indirect(entries))
    pair.kick(TX)
    assert pair.sent() == [HDR + b"a" * 1024]

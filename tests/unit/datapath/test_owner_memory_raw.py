"""A ring that is reached with system calls: how few, and what odd chains come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from driver_ring import Memory
from instance import EVENT_IDX, MRG, RX, TX, V1, Instance
from vhostnet.datapath.codes import RING_UNMAPPED
from vhostnet.device.memory import Mapping, MemoryTable, Region

WAYS = pytest.mark.parametrize("batched", [True, False])
HDR = bytes(12)


@pytest.fixture
def remote() -> Iterator[Callable[..., Instance]]:
    made: list[Instance] = []

    def make(*, batched: bool = True, features: int = MRG | V1 | EVENT_IDX, num: int = 256):
        made.append(Instance(features, num, memory=Memory(16 << 20)))
        made[-1].put_out_of_reach(batched=batched)
        return made[-1]

    yield make
    for instance in made:
        instance.close()


def calls_for(pair: Instance, index: int, step: Callable[[], None]) -> int:
    before = pair.counter(index, "owner_calls")
    step()
    return pair.counter(index, "owner_calls") - before


def test_a_batch_of_chains_costs_a_handful_of_calls(remote) -> None:
    pair = remote().start()
    frames = [HDR + bytes([k]) * 60 for k in range(64)]
    for frame in frames:
        pair.tx.send(frame[:12], frame[12:])
    n = calls_for(pair, TX, lambda: pair.kick(TX))
    assert pair.sent() == frames
    assert len(pair.tx.collect()) == 64
    # ring, buffers, used entries, used->idx, the driver's wish, avail_event, avail->idx again
    assert n <= 10


def test_a_batch_of_indirect_chains_costs_one_call_more(remote) -> None:
    pair = remote().start()
    frames = [HDR + bytes([k]) * 100 for k in range(64)]
    for frame in frames:
        gpa = pair.memory.alloc(len(frame))
        pair.memory.write(gpa, frame)
        entries = [(gpa, 12, 1, 1), (gpa + 12, 50, 1, 2), (gpa + 62, 50, 0, 0)]
        pair.tx.offer(pair.tx.indirect(entries))
    n = calls_for(pair, TX, lambda: pair.kick(TX))
    assert pair.sent() == frames
    assert n <= 11


def test_a_batch_of_packets_received_costs_a_handful_of_calls(remote) -> None:
    pair = remote()
    buffers = [pair.rx.post(200)[0] for _ in range(64)]
    frames = [HDR + bytes([k]) * 80 for k in range(60)]
    for frame in frames:
        pair.wire.send(frame)
    before = pair.counter(RX, "owner_calls")
    pair.start()
    assert pair.counter(RX, "owner_calls") - before <= 12
    used = pair.rx.collect()
    assert [u.length for u in used] == [92] * 60
    for gpa, frame in zip(buffers, frames, strict=False):
        assert pair.memory.read(gpa + 12, 80) == frame[12:]


@WAYS
def test_large_packets_in_many_pieces_go_through(remote, batched) -> None:
    pair = remote(batched=batched).start()
    frames = []
    for k in range(40):  # more bytes than are staged at once
        frame = HDR + bytes([k + 1]) * 65000
        at = pair.memory.alloc(len(frame))
        pair.memory.write(at, frame)
        cuts = [0, 12, *range(4096, len(frame), 4096), len(frame)]
        entries = [
            (at + low, high - low, 1 if high < len(frame) else 0, i + 1)
            for i, (low, high) in enumerate(pairwise(cuts))
        ]
        pair.tx.offer(pair.tx.indirect(entries))
        frames.append(frame)
    pair.kick(TX)
    got = pair.sent()
    while len(got) < 40:  # the wire holds only some of them
        pair.flush()
        got += pair.sent()
    assert got == frames


@WAYS
def test_a_chain_that_no_backend_takes_is_refused_unread(remote, batched) -> None:
    pair = remote(batched=batched).start()
    gpa = pair.memory.gpa
    pair.tx.offer(pair.tx.chain([(gpa, 600 << 10, 0), (gpa + 4096, 600 << 10, 0)]))
    pair.tx.send(HDR + b"after it")
    pair.kick(TX)
    assert pair.sent() == [HDR + b"after it"]
    assert pair.counter(TX, "drop_too_long") == 1
    assert len(pair.tx.collect()) == 2


@WAYS
def test_a_ring_of_one_entry_works(remote, batched) -> None:
    pair = remote(batched=batched, num=1).start()
    for k in range(5):
        pair.tx.send(HDR + bytes([k]))
        pair.kick(TX)
    assert pair.sent() == [HDR + bytes([k]) for k in range(5)]
    assert pair.called(TX) >= 1
    assert pair.tx.avail_event() == 5


@WAYS
def test_used_flags_of_a_driver_without_event_index(remote, batched) -> None:
    pair = remote(batched=batched, features=MRG | V1).start()
    pair.kick(TX)
    assert pair.tx.used_flags() == 0
    pair.tx.set_avail_flags(1)
    pair.tx.send(HDR + b"no interrupt, please")
    pair.called(TX)
    pair.kick(TX)
    assert pair.called(TX) == 0
    assert pair.counter(TX, "calls_suppressed") == 1


GONE_GPA, GONE_HVA, GONE_SIZE = 0x9000_0000, 0x10000, 1 << 20


@pytest.fixture
def partly_gone(remote) -> Iterator[Callable[..., Instance]]:
    """A pair whose table has a region that the owner has unmapped."""
    tables: list[MemoryTable] = []

    def make(**options: object) -> Instance:
        pair = remote(**options)
        hole = Region(GONE_GPA, GONE_SIZE, 0, (0, 0, 0), GONE_HVA, Mapping(0, 0, holders=1))
        tables.append(MemoryTable([*pair.table.regions, hole]))
        pair.net.set_mem_table(tables[-1])
        return pair.start()

    yield make
    for table in tables:
        table.release()


@WAYS
def test_a_buffer_that_is_gone_breaks_the_ring_until_it_is_mended(partly_gone, batched) -> None:
    pair = partly_gone(batched=batched)
    pair.tx.send(HDR + b"before it")
    head = pair.tx.chain([(GONE_GPA, 100, 0)])
    pair.tx.offer(head)
    pair.tx.send(HDR + b"after it")
    pair.kick(TX)
    assert pair.sent() == [HDR + b"before it"]
    assert pair.erred(TX) > 0
    assert pair.counter(TX, "last_error") == RING_UNMAPPED
    good = pair.memory.alloc(40)
    pair.memory.write(good, HDR + b"m" * 28)
    pair.tx.set_desc(head, good, 40, 0, 0)
    pair.kick(TX)
    assert pair.sent() == [HDR + b"m" * 28, HDR + b"after it"]


@WAYS
def test_a_table_that_is_gone_breaks_the_ring(partly_gone, batched) -> None:
    pair = partly_gone(batched=batched)
    pair.tx.offer(pair.tx.chain([(GONE_GPA, 32, 4)]))
    pair.kick(TX)
    assert pair.sent() == []
    assert pair.counter(TX, "ring_errors") > 0


@WAYS
def test_what_cannot_be_delivered_is_told_and_the_rest_is(partly_gone, batched) -> None:
    pair = partly_gone(batched=batched)
    pair.rx.offer(pair.rx.chain([(GONE_GPA, 200, 2)]))
    (good,) = pair.rx.post(200)
    pair.arrive(HDR + b"a" * 60, HDR + b"b" * 60)
    pair.kick(RX)
    assert pair.erred(RX) > 0
    assert len(pair.rx.collect()) == 2
    assert pair.memory.read(good + 12, 60) == b"b" * 60


@WAYS
def test_a_ring_that_is_gone_stops_and_nothing_is_signalled(remote, batched) -> None:
    pair = remote(batched=batched).start()
    pair.called(TX)
    with pair.net.quiesced():
        for index in (RX, TX):
            for part in ("desc_uva", "avail_uva", "used_uva"):
                pair.net.vqs[index].vq[part] = GONE_HVA
    pair.tx.send(HDR + b"never seen")
    for index in (TX, RX, TX):
        pair.kick(index)
    assert pair.sent() == []
    assert pair.counter(TX, "last_error") == RING_UNMAPPED
    assert pair.counter(TX, "owner_faults") > 0
    assert pair.called(TX) == 0


@WAYS
def test_a_packet_in_more_pieces_than_one_call_takes(remote, batched) -> None:
    pair = remote(batched=batched, num=1024).start()
    for _ in range(3):
        gpas = [pair.memory.alloc(64, 64) for _ in range(1000)]
        pair.rx.offer(pair.rx.chain([(gpa, 64, 2) for gpa in gpas]))
        frame = HDR + bytes(k % 251 for k in range(60000))
        pair.arrive(frame)
        pair.kick(RX)
        (used,) = pair.rx.collect()
        assert used.length == len(frame)
        got = b"".join(pair.memory.read(gpa, 64) for gpa in gpas)[: len(frame)]
        assert got[12:] == frame[12:]

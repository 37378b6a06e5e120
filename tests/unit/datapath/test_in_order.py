"""VIRTIO_F_IN_ORDER (VIRTIO 1.2 section 2.7.9): one used entry for a batch."""

from __future__ import annotations

from driver_ring import WRITE
from instance import MRG, RX, TX, V1
from vhostnet.uapi.virtio import VIRTIO_F_IN_ORDER, mask

IN_ORDER = mask(VIRTIO_F_IN_ORDER)
HDR = bytes(12)
FRAME = bytes(60)


def test_a_tx_batch_has_one_used_entry_in_the_first_slot(instance):
    pair = instance(features=MRG | V1 | IN_ORDER)
    for _ in range(5):
        pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.tx.used_idx() == 5
    assert [(u.head, u.length) for u in pair.tx.collect_in_order()] == [(4, 0)]
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert [u.head for u in pair.tx.collect_in_order()] == [5]


def test_chains_of_several_descriptors_go_on_after_a_stop_and_start(instance):
    """A base counts chains: heads cannot be counted from it."""
    pair = instance(features=MRG | V1 | IN_ORDER, num=16)
    for k in range(3):
        pair.tx.send(HDR, bytes([k]) * 60)
    pair.kick(TX)
    pair.net.set_backend(TX, None)
    base = pair.net.get_vring_base(TX)
    pair.net.set_vring_base(TX, base)
    pair.net.set_backend(TX, pair.queue)
    head = pair.tx.send(HDR, b"\x09" * 60)
    pair.kick(TX)
    assert [p[-1] for p in pair.sent()] == [0, 1, 2, 9]
    assert head == 6


def test_heads_advance_by_the_descriptors_of_a_chain(instance):
    pair = instance(features=MRG | V1 | IN_ORDER)
    for k in range(20):
        pair.tx.send(HDR, FRAME[:30], bytes([k]) * 30)
        pair.kick(TX)
    assert [p[-1] for p in pair.sent()] == list(range(20))


def test_a_mergeable_packet_has_one_used_entry(instance):
    pair = instance(features=MRG | V1 | IN_ORDER)
    for _ in range(4):
        pair.rx.post(50)
    pair.arrive(HDR + bytes(100))
    assert pair.rx.used_idx() == 3
    assert [(u.head, u.length) for u in pair.rx.collect_in_order()] == [(2, 12)]


def test_giving_buffers_back_moves_the_head_back_by_descriptors(instance):
    pair = instance(features=MRG | V1 | IN_ORDER)
    pair.rx.post(20, 20)
    pair.rx.post(20, 20)
    pair.arrive(HDR + bytes(100))
    assert pair.rx.used_idx() == 0
    gpa = pair.memory.alloc(100)
    pair.rx.offer(pair.rx.chain([(gpa, 100, WRITE)]))
    pair.kick(RX)
    assert pair.rx.used_idx() == 3
    assert pair.memory.read(gpa, 100)[12:] == bytes(88)


def test_a_full_backend_gives_the_head_back_in_order(instance):
    pair = instance(features=MRG | V1 | IN_ORDER, num=256)
    gpa = pair.memory.alloc(1)
    for _ in range(120):
        pair.tx.offer(pair.tx.chain([(pair.memory.gpa, 60000, 0), (gpa, 1, 0)]))
    pair.kick(TX)
    assert 0 < pair.counter(TX, "packets") < 120
    received = 0
    for _ in range(1000):
        received += len(pair.sent())
        pair.flush()
        if pair.counter(TX, "packets") == 120:
            break
    assert pair.tx.used_idx() == 120
    assert pair.counter(TX, "ring_errors") == 0

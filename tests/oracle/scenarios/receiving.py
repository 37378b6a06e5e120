"""Section 4.5: from the network to the guest."""

from __future__ import annotations

from typing import Any

from oracle.lab import EVENT_IDX, MRG, V1, Card, Lab, errno_of, frame, scenario
from vhostnet.uapi.virtio import VIRTIO_F_IN_ORDER, mask
from vhostnet_frontend import Buffer
from vhostnet_frontend.netdev import signals


def receive(card: Card, *frames: bytes, n: int | None = None) -> dict[str, Any]:
    """Frames arrive; what the guest sees of them."""
    before = card.rx.ring.read_used_idx()
    wanted = before + (len(frames) if n is None else n) & 0xFFFF
    for data in frames:  # one by one: how many come together is a matter of time
        card.arrive(data)
    card.settle_until(lambda: card.rx.ring.read_used_idx() == wanted)
    received = card.rx.received()
    card.rx.ring.collect()
    return {"received": received, "rx": card.rx.look()}


@scenario("4.5.1", "4.5.5.header", "4.5.exit", "4.5.6")
def packets_into_big_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(*[2048] * 4)
    card.start()
    said: dict[str, Any] = {"idle": card.rx.look()}
    return said | receive(card, frame(1), frame(2, 1000), frame(3, 1514))


@scenario("4.5.5.header", "4.5.5.legacy", "4.1.10")
def packets_with_a_header_of_10_bytes(lab: Lab) -> dict[str, Any]:
    card = lab.card(0)
    card.rx.post(*[2048] * 4)
    card.start()
    return receive(card, frame(1), frame(2, 1000))


@scenario("4.5.5.num_buffers", "4.1.12")
def version_1_without_mergeable_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1)
    card.rx.post(*[2048] * 4)
    card.start()
    return receive(card, frame(1), frame(2, 1000))


@scenario("4.5.5.header")
def legacy_with_mergeable_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(MRG)
    card.rx.post(*[2048] * 4)
    card.start()
    return receive(card, frame(1), frame(2, 1000))


@scenario("4.5.6", "4.5.5.header")
def a_packet_over_several_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(50, 50, 50, 50, 50)
    card.start()
    return receive(card, frame(1, 100), n=3)


@scenario("4.5.6")
def a_packet_that_fills_its_buffers_exactly(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(72, 72, 72, 12, 60)
    card.start()
    return receive(card, frame(1), frame(2, 132), frame(3), n=5)


@scenario("4.5.5.straddle")
def a_header_over_several_descriptors(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG).start()
    said = {}
    for k, split in enumerate([(11, 89), (10, 1, 1, 88), (5, 5, 90), (1,) * 12 + (88,)]):
        gpa = card.memory.alloc(100)
        card.memory.write(gpa, b"\xee" * 100)
        chain, at = [], 0
        for size in split:
            chain.append(Buffer(gpa + at, size, True))
            at += size
        card.rx.buffers[card.rx.ring.add(chain)] = (gpa, 100)
        card.rx.publish()
        card.rx.kick()
        said[str(split)] = receive(card, frame(k))
    return said


@scenario("4.5.5.straddle", "4.5.tiny")
def num_buffers_over_two_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(11, 1, 100)
    card.start()
    return receive(card, frame(1), n=3)


@scenario("4.5.4")
def buffers_too_small_for_num_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1)
    card.rx.post(11, 5, 2048)
    card.start()
    return receive(card, frame(1), frame(2), n=0)


@scenario("4.5.2.small", "7.cve-2014-0077")
def a_buffer_too_small_without_mergeable(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1)
    card.rx.post(500, 500)
    card.start()
    return receive(card, frame(1, 1000), frame(2, 100), frame(3, 488), frame(4, 60), n=2)


@scenario("4.5.2.small", "4.5.3")
def no_buffer_without_mergeable(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1).start()
    card.arrive(frame(1, 1000), frame(2, 100))
    said: dict[str, Any] = {"none": card.rx.look()}
    card.rx.post(500)
    card.rx.kick()
    card.rx.post(500)
    card.rx.kick()
    return said | {"received": card.rx.received(), "rx": card.rx.look()}


@scenario("4.5.2.rewind", "4.5.3", "7.livelock")
def too_few_mergeable_buffers(lab: Lab) -> dict[str, Any]:
    said = {}
    for name, features in (("flags", V1 | MRG), ("event_idx", V1 | MRG | EVENT_IDX)):
        card = lab.card(features)
        card.rx.post(50, 50)
        card.start()
        card.arrive(frame(1, 200))
        seen: dict[str, Any] = {"waiting": card.rx.look()}
        card.rx.kick()
        seen["kicked"] = card.rx.look()
        card.rx.post(50)
        card.rx.kick()
        seen["one more"] = card.rx.look()
        card.rx.post(500)
        card.rx.kick()
        seen["enough"] = card.rx.received()
        said[name] = seen
    return said


@scenario("4.5.2.block")
def a_packet_that_never_fits_blocks_the_next(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG, num=4)
    card.rx.post(50, 50, 50, 50)
    card.start()
    card.arrive(frame(1, 1000), frame(2))
    return {"rx": card.rx.look()}


@scenario("4.5.3")
def packets_wait_for_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    card.arrive(frame(1), frame(2), frame(3))
    said: dict[str, Any] = {"none": card.rx.look()}
    card.rx.post(2048)
    card.settle()
    said["posted"] = card.rx.look()
    card.rx.kick()
    said["kicked"] = {"received": card.rx.received(), "rx": card.rx.look()}
    card.rx.post(2048, 2048, 2048)
    card.rx.kick()
    said["more"] = {"received": card.rx.received(), "rx": card.rx.look()}
    return said


@scenario("4.5.7", "4.5.exit")
def a_hundred_packets_and_one_kick(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG, num=128).start()
    card.arrive(*[frame(k) for k in range(100)])
    card.rx.post(*[256] * 128)
    card.rx.kick()
    seen = card.rx.look()
    return {"rx": seen}


@scenario("4.5.7", "4.7")
def five_hundred_packets_and_one_kick(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG, num=512).start()
    card.arrive(*[frame(k) for k in range(500)])
    card.rx.post(*[256] * 512)
    card.rx.kick()
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 500)
    return {"rx": card.rx.look()}


@scenario("4.5.tiny", "7.cve-2018-16880")
def a_packet_over_hundreds_of_tiny_buffers_after_a_batch(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG, num=1024).start()
    card.arrive(*[frame(k) for k in range(63)], frame(99, 1500))
    card.rx.post(*[128] * 63, *[2] * 900)
    card.rx.kick()
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 63 + 756)
    return {"rx": card.rx.look()}


@scenario("7.cve-2019-3900", "4.5.2.small", "4.7")
def hundreds_of_oversize_packets(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1)
    card.rx.post(100)
    card.start()
    card.tap.arrive(*[frame(k, 500) for k in range(600)])
    card.tx.send(frame(1))
    card.tx.kick()
    card.tap.arrive(frame(7))
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 1)
    return {"sent": card.tap.sent(1), "received": card.rx.received(), "rx": card.rx.look()}


@scenario("4.5.6.in_order")
def in_order_receive(lab: Lab) -> dict[str, Any]:
    features = V1 | MRG | mask(VIRTIO_F_IN_ORDER)
    offered = errno_of(lab.device().set_features, features)
    if offered != "ok":
        return {"offered": offered}
    card = lab.card(features)
    card.rx.post(50, 50, 50, 50, 50)
    card.start()
    card.arrive(frame(1, 100))
    return {"offered": offered, "rx": card.rx.look() | {"used": None}}


@scenario("4.5.1")
def indirect_receive_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(2048, 2048, indirect=True)
    card.start()
    return receive(card, frame(1), frame(2, 1000))


@scenario("4.5.2.rewind")
def a_ring_with_both_small_and_large_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    card.rx.post(20, 2048, 20, 20, 2048)
    card.start()
    return receive(card, frame(1), frame(2, 1000), n=5)


@scenario("4.6.publish")
def entries_go_round_the_rings_end(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG, num=4, base=0xFFFE)
    card.rx._seen = card.tx._seen = 0xFFFE
    card.start()
    said = {}
    for k in range(3):
        card.rx.post(2048, 2048, 2048)
        card.rx.kick()
        said[f"turn {k}"] = receive(card, frame(k), frame(k + 10), frame(k + 20))
    return said


@scenario("4.5.exit", "4.6.flags")
def rx_flags_while_waiting(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG).start()
    said: dict[str, Any] = {"no buffers, no packets": card.rx.look()}
    card.rx.post(2048)
    card.rx.kick()
    said["buffers, no packets"] = card.rx.look()
    card.arrive(frame(1))
    said["one packet"] = card.rx.look()
    card.arrive(frame(2))
    said["packet, no buffers"] = card.rx.look()
    signals(card.rx.kick_fd)
    return said

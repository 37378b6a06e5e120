"""Sections 4.1, 4.4 and 4.7: from the guest to the network."""

from __future__ import annotations

import os
from typing import Any

from oracle.lab import EVENT_IDX, MRG, V1, Card, Lab, frame, scenario
from vhostnet.uapi.vhost import VHOST_NET_F_VIRTIO_NET_HDR
from vhostnet.uapi.virtio import VIRTIO_F_ANY_LAYOUT, mask
from vhostnet_frontend import VnetHeader

HDR_BY_VHOST = mask(VHOST_NET_F_VIRTIO_NET_HDR)
assert VHOST_NET_F_VIRTIO_NET_HDR == VIRTIO_F_ANY_LAYOUT


def send(card: Card, *frames: bytes, **how: Any) -> dict[str, Any]:
    card.tx.send(*frames, **how)
    card.tx.kick()
    n = len(frames)
    card.settle_until(lambda: card.tx.ring.read_used_idx() == card.tx.ring.avail_idx)
    card.tx.ring.collect()
    return {"sent": card.tap.sent(n), "tx": card.tx.look()}


@scenario("4.1.10", "4.4.used")
def a_header_of_10_bytes(lab: Lab) -> dict[str, Any]:
    return send(lab.card(0).start(), frame(1), frame(2, 1514))


@scenario("4.1.12", "4.4.used")
def a_header_of_12_bytes(lab: Lab) -> dict[str, Any]:
    return {
        "version 1": send(lab.card(V1).start(), frame(1)),
        "mergeable": send(lab.card(MRG).start(), frame(1)),
        "both": send(lab.card(V1 | MRG).start(), frame(1)),
    }


@scenario("4.1.none")
def a_device_without_features_uses_no_header(lab: Lab) -> dict[str, Any]:
    card = lab.card(0, order=("memory", "rings"), tap=lab.tap(0, flags=0)).start()
    gpa = card.memory.alloc(4096)
    card.memory.write(gpa, frame(1))
    card.tx.ring.write_desc(0, gpa, 60)
    card.tx.offer(0)
    card.tx.kick()
    card.rx.post(2048)
    card.arrive(frame(2))
    card.hdr_len = 0
    return {"tx": card.tx.look(), "sent": card.tap.sent(1), "received": card.rx.received()}


@scenario("4.1.27", "4.5.5.header")
def vhost_takes_off_and_makes_the_header(lab: Lab) -> dict[str, Any]:
    said = {}
    for name, features in (("10", 0), ("12", V1 | MRG)):
        card = lab.card(features | HDR_BY_VHOST, tap=lab.tap(0, flags=0))
        card.rx.post(2048, 2048)
        card.start()
        said[name] = send(card, frame(1), frame(2), header=b"\xff" * 12)
        card.arrive(frame(3))
        said[name]["received"] = card.rx.received()
    return said


@scenario("4.1.mismatch")
def a_tap_with_another_header_length_loses_received_packets(lab: Lab) -> dict[str, Any]:
    card = lab.card(0, tap=lab.tap(12))
    card.rx.post(2048, 2048)
    card.start()
    card.arrive(frame(1))
    return {"rx": card.rx.look()}


@scenario("4.4.batch", "4.4.used", "4.6.first")
def ten_packets_and_a_kick(lab: Lab) -> dict[str, Any]:
    return send(lab.card(num=256).start(), *[frame(k) for k in range(10)])


@scenario("4.4.batch", "4.4.used")
def two_hundred_packets_and_a_kick(lab: Lab) -> dict[str, Any]:
    return send(lab.card(num=256).start(), *[frame(k) for k in range(200)])


@scenario("4.7", "4.4.batch")
def six_hundred_packets_and_a_kick(lab: Lab) -> dict[str, Any]:
    return send(lab.card(num=1024).start(), *[frame(k) for k in range(600)])


@scenario("4.7")
def a_megabyte_of_large_packets(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(16 << 20)
    return send(lab.card(num=256, memory=memory).start(), *[frame(k, 9000) for k in range(120)])


@scenario("4.7", "4.5.7")
def both_directions_get_their_turn(lab: Lab) -> dict[str, Any]:
    card = lab.card(num=1024)
    card.rx.post(*[256] * 600)
    card.start()
    card.tx.send(*[frame(k) for k in range(600)])
    os.eventfd_write(card.tx.kick_fd, 1)
    card.tap.arrive(*[frame(k) for k in range(500)])
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 500)
    return {"rx": card.rx.ring.read_used_idx(), "tx": card.tx.ring.read_used_idx()}


@scenario("4.4.chain")
def header_and_frame_in_any_number_of_descriptors(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    said = {}
    for split in ((), (12,), (1,), (5, 7), (20,), (1, 1, 1, 9, 30), (11, 1, 1)):
        said[str(split)] = send(card, frame(len(said)), split=split)
        said[str(split) + " indirect"] = send(card, frame(len(said)), split=split, indirect=True)
    return said


@scenario("4.4.single")
def frames_larger_than_a_page(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(16 << 20)
    card = lab.card(num=64, memory=memory).start()
    return {str(n): send(card, frame(n, n)) for n in (3636, 3637, 4096, 9000, 65535)}


@scenario("4.4.single", "4.4.used")
def large_and_small_frames_keep_their_order(lab: Lab) -> dict[str, Any]:
    card = lab.card(num=64).start()
    sizes = (60, 9000, 60, 60, 5000, 1514, 60)
    return send(card, *[frame(k, n) for k, n in enumerate(sizes)])


@scenario("4.4.small")
def frames_below_14_bytes(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.send(frame(1, 13), frame(2, 1), frame(3))
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.3.tx_empty")
def a_header_and_nothing_else(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.send(b"")
    card.tx.kick()
    said: dict[str, Any] = {"first": card.tx.look()}
    card.tx.send(frame(1))
    card.tx.kick()
    return said | {"second": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.4.wedge")
def less_than_a_header(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa = card.memory.alloc(64)
    card.tx.ring.write_desc(0, gpa, 5)
    card.tx.offer(0)
    card.tx.kick()
    said: dict[str, Any] = {"first": card.tx.look()}
    gpa = card.memory.alloc(128)
    card.memory.write(gpa, bytes(12) + frame(1))
    card.tx.ring.write_desc(1, gpa, 72)
    card.tx.offer(1)
    card.tx.kick()
    seen = card.tx.look()
    return said | {"base": seen["base"], "sent": card.tap.sent(0)}


def with_header(lab: Lab, header: VnetHeader, size: int = 200) -> dict[str, Any]:
    """A packet with this header, and a plain one behind it."""
    card = lab.card().start()
    card.tx.send(frame(1, size), header=header.pack())
    card.tx.send(frame(2))
    card.tx.kick()
    used = card.tx.ring.read_used_idx()
    return {"sent": card.tap.sent(used), "used_idx": used, "errs": card.tx.look()["errs"]}


@scenario("4.4.gso")
def an_unknown_gso_type(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(gso_type=9, gso_size=100, hdr_len=54))


@scenario("4.4.gso")
def gso_without_a_size(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(gso_type=1, gso_size=0, hdr_len=54))


@scenario("4.4.hdr_len")
def hdr_len_beyond_the_frame(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(hdr_len=5000))


@scenario("4.4.csum")
def needs_csum_raises_hdr_len(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(flags=1, hdr_len=0, csum_start=20, csum_offset=16))


@scenario("4.4.csum", "4.4.wedge")
def needs_csum_beyond_the_frame(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(flags=1, hdr_len=0, csum_start=4000, csum_offset=16))


@scenario("4.4.hdr_len")
def header_bytes_beyond_10_are_not_looked_at(lab: Lab) -> dict[str, Any]:
    return with_header(lab, VnetHeader(num_buffers=0xFFFF))


@scenario("4.4.down")
def the_interface_goes_down_and_up(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    said: dict[str, Any] = {"up": send(card, frame(1))}
    card.tap.up(False)
    card.tx.send(frame(2))
    card.tx.kick()
    said["down"] = card.tx.look()
    card.tap.up(True)
    said["up again"] = send(card, frame(3))
    return said


@scenario("4.6.flags", "4.4.used")
def an_idle_tx_ring_wants_kicks(lab: Lab) -> dict[str, Any]:
    said = {}
    for name, features in (("flags", V1 | MRG), ("event_idx", V1 | MRG | EVENT_IDX)):
        card = lab.card(features).start()
        before = card.tx.look()
        said[name] = {"before": before, "after": send(card, frame(1), frame(2))}
    return said


@scenario("7.flush_before_notify", "4.6.flags")
def an_idle_ring_has_published_everything(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    seen = []
    for k in range(40):
        card.tx.send(frame(k))
        card.tx.kick()
        seen.append(card.tx.ring.read_used_idx() == card.tx.ring.read_avail_event() == k + 1)
        card.tx.ring.collect()
    return {"always": all(seen)}


@scenario("4.4.unbatched", "4.4.gso", "4.4.hdr_len", "4.4.csum")
def refused_packets_one_by_one(lab: Lab) -> dict[str, Any]:
    said = {}
    headers = {
        "plain": VnetHeader(),
        "gso type": VnetHeader(gso_type=9, gso_size=100, hdr_len=54),
        "gso size": VnetHeader(gso_type=1, gso_size=0, hdr_len=54),
        "csum": VnetHeader(flags=1, csum_start=4000, csum_offset=16),
        "hdr_len": VnetHeader(hdr_len=5000),
    }
    for name, header in headers.items():
        card = lab.card()
        card.tap.limit_send_buffer(1 << 20)
        card.start()
        card.tx.send(frame(1, 200), header=header.pack())
        card.tx.send(frame(2, 5000), frame(3))
        card.tx.kick()
        used = card.tx.ring.read_used_idx()
        said[name] = {"sent": card.tap.sent(used - 1), "tx": card.tx.look()}
    return said


@scenario("4.4.unbatched", "4.4.small")
def short_packets_one_by_one(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.tap.limit_send_buffer(1 << 20)
    card.start()
    gpa = card.memory.alloc(64)
    for head, size in enumerate((5, 11, 12, 13, 20, 25)):
        card.tx.ring.write_desc(head, gpa, size)
        card.tx.offer(head)
    card.tx.kick()
    said: dict[str, Any] = {"short": card.tx.look()}
    packet = card.memory.alloc(128)
    card.memory.write(packet, bytes(12) + frame(1))
    card.tx.ring.write_desc(9, packet, 72)
    card.tx.offer(9)
    card.tx.kick()
    return said | {"good": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.4.unbatched", "4.7", "4.4.batch")
def three_hundred_packets_one_by_one(lab: Lab) -> dict[str, Any]:
    card = lab.card(num=512)
    card.tap.limit_send_buffer(8 << 20)
    card.start()
    seen = send(card, *[frame(k) for k in range(300)])
    return {"sent": len(seen["sent"]), "used_idx": seen["tx"]["used_idx"]}

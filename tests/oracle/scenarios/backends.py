"""Section 1.3 SET_BACKEND, 4.4 and 4.5 with other backends than a TAP; and VLAN tags."""

from __future__ import annotations

import itertools
from typing import Any

from oracle.lab import ETHERTYPE, MRG, RX, TX, V1, Card, Lab, errno_of, frame, scenario
from oracle.networks import Bridged, PacketSocket
from vhostnet.uapi.vhost import VHOST_NET_F_VIRTIO_NET_HDR
from vhostnet.uapi.virtio import mask

OWN_HEADER = mask(VHOST_NET_F_VIRTIO_NET_HDR)
ETH_P_ALL = 3
_names = itertools.count()


def on_a_socket(lab: Lab, features: int = 0, **options: Any) -> tuple[Card, PacketSocket]:
    """A card on a packet socket; it has a header of its own unless vhost makes one.

    That has 10 bytes, for legacy features: other sizes come with Linux 6.5.
    """
    hdr_len = 0 if features & OWN_HEADER else 10
    network = lab.keep(PacketSocket(f"packet{next(_names)}", hdr_len, **options))
    return lab.card(features, tap=network), network


def tagged(number: int, vlan: int = 5) -> bytes:
    """One of our frames with an 802.1Q tag."""
    data = frame(number)
    return data[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + data[12:]


@scenario("1.3.backend.packet", "4.1.10", "4.1.27", "4.4.used", "4.5.1", "4.5.5.header")
def packet_sockets_send_and_receive(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, features in {
        "its header": 0,
        "made header": OWN_HEADER,
        "made header, modern": OWN_HEADER | V1 | MRG,
    }.items():
        card, network = on_a_socket(lab, features)
        card.rx.post(*[2048] * 4)
        card.start()
        card.tx.send(frame(1), frame(2, 1514), frame(3, 14))
        card.tx.kick()
        for data in (frame(4), frame(5, 1514)):
            card.arrive(data)
        card.settle_until(lambda card=card: card.rx.ring.read_used_idx() == 2)
        said[name] = {
            "sent": network.sent(3),
            "received": card.rx.received(),
            "tx": card.tx.look(),
        }
        card.stop()
    return said


@scenario("1.3.backend.packet", "3.4.3", "3.4.6")
def a_packet_socket_is_attached_detached_and_attached_again(lab: Lab) -> dict[str, Any]:
    card, network = on_a_socket(lab)
    card.rx.post(*[2048] * 4)
    card.start()
    said: dict[str, Any] = {"again": errno_of(card.device.set_backend, TX, network.fd)}
    card.stop()
    card.arrive(frame(1))
    card.tx.send(frame(2))
    said["stopped"] = {"sent": network.sent(0), "rx": card.rx.look()["used_idx"]}
    card.start()
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 1)
    return said | {"sent": network.sent(1), "rx": card.rx.received(), "tx": card.tx.look()}


@scenario("4.4.packet.emsgsize", "4.4.unbatched")
def frames_that_a_packet_socket_refuses(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {}
    headers = {
        "beyond the mtu": (frame(1, 1515), b""),
        "with room for a tag": (tagged(1)[:16] + bytes(1502), b""),
        "without a whole header": (frame(1, 10), b""),
        "unknown gso": (frame(1, 100), bytes([0, 9])),
        "hdr_len beyond the frame": (frame(1, 100), bytes([0, 0, 0, 4])),
        "csum beyond the frame": (frame(1, 100), bytes([1, 0, 0, 0, 0, 0, 0, 4, 0, 0])),
    }
    for name, (data, header) in headers.items():
        card, network = on_a_socket(lab)
        card.start(TX)
        card.tx.send(data, header=header)
        card.tx.send(frame(2))
        card.tx.kick()
        said[name] = {"sent": network.sent(1), "tx": card.tx.look()}
        card.stop(TX)
    return said


@scenario("4.4.packet.enetdown")
def a_packet_socket_whose_interface_goes_down(lab: Lab) -> dict[str, Any]:
    card, network = on_a_socket(lab)
    card.start(TX)
    network.up(False)
    card.tx.send(frame(1), frame(2))
    card.tx.kick()
    said: dict[str, Any] = {"down": card.tx.look()}
    network.error()
    network.up()
    card.tx.send(frame(3))
    card.tx.kick()
    return said | {"sent": network.sent(1), "up": card.tx.look()}


@scenario("1.3.backend.einval")
def a_packet_socket_with_an_error_pending(lab: Lab) -> dict[str, Any]:
    card, network = on_a_socket(lab)
    network.up(False)
    said: dict[str, Any] = {
        name: errno_of(card.device.set_backend, index, network.fd)
        for name, index in (("rx", RX), ("tx", TX))
    }
    said["error"] = network.error()
    said["then"] = errno_of(card.device.set_backend, TX, network.fd)
    return said


@scenario("4.5.packet.vlan")
def a_packet_socket_loses_frames_whose_tag_was_taken_off(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {}
    # For a socket of one protocol the kernel has forgotten the tag: the frame is as any other.
    for name, protocol, wanted in (("of all protocols", ETH_P_ALL, 2), ("of one", ETHERTYPE, 3)):
        card, _network = on_a_socket(lab, protocol=protocol)
        card.rx.post(*[2048] * 4)
        card.start()
        for data in (frame(1), tagged(2), frame(3)):
            card.arrive(data)
        card.settle_until(lambda card=card, n=wanted: card.rx.ring.read_used_idx() == n)
        said[name] = {"received": card.rx.received(), "rx": card.rx.look()}
        card.stop()
    return said


@scenario("4.5.1.vlan", "4.5.2.small")
def a_frame_with_a_tag_beside_it_is_four_bytes_longer(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, features, room in (
        ("mergeable", V1 | MRG, 2048),
        ("one buffer, room for the tag", 0, 74),
        ("one buffer, no room for the tag", 0, 73),
    ):
        hdr_len = 12 if features else 10
        network = lab.keep(Bridged(f"bridged{next(_names)}", hdr_len))
        card = lab.card(features, tap=network)
        card.rx.post(*[room] * 4)
        card.start(RX)
        for data in (frame(1), tagged(2), frame(3)):
            card.arrive(data)
        wanted = 2 if room == 73 else 3
        card.settle_until(lambda card=card, n=wanted: card.rx.ring.read_used_idx() == n)
        said[name] = {"received": card.rx.received(), "rx": card.rx.look()}
        card.stop(RX)
    return said

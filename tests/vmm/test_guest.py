"""A real Linux driver on vhostnet: what arrives, both ways, with all kinds of cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vhostnet.demo import measure
from vhostnet.demo.machine import Machine
from vhostnet.demo.measure import DIRECTIONS, Direction
from vhostnet.demo.qemu import GuestVM

if TYPE_CHECKING:
    from conftest import Bed

pytestmark = [pytest.mark.vmm, pytest.mark.root]


@pytest.fixture(scope="module")
def guest(shared_bed: Bed) -> GuestVM:
    shared_bed.serve()
    booted = shared_bed.boot()
    measure.start_iperf3(booted)
    return booted


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 1473, 20000])
def test_ping_loses_nothing(shared_bed: Bed, guest: GuestVM, size: int) -> None:
    shared_bed.assert_pings(guest, size=size)


def test_the_host_reaches_the_guest(shared_bed: Bed, guest: GuestVM) -> None:
    del guest
    said = shared_bed.host.run("busybox", "ping", "-c", "5", "-i", "0.1", "192.0.2.2")
    assert "5 packets received" in said


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tcp_flows(shared_bed: Bed, guest: GuestVM, direction: Direction) -> None:
    assert measure.tcp(shared_bed.path(guest), direction, 1) > 10


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_slow_udp_loses_nothing(shared_bed: Bed, guest: GuestVM, direction: Direction) -> None:
    # so few that a receiver that nobody lets run finds all of them in its socket
    result = measure.udp(shared_bed.path(guest), direction, 1, mbps=0.8)
    assert result.sent > 50
    assert result.lost == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sixteen_mib_arrive_unchanged(
    shared_bed: Bed, guest: GuestVM, direction: Direction
) -> None:
    assert measure.transfer(shared_bed.path(guest), direction, 16)


def test_a_guest_that_switches_its_offloads_off(shared_bed: Bed, guest: GuestVM) -> None:
    offloads = ("tso", "gso", "gro", "sg", "tx")
    for offload in offloads:
        guest.check(f"ethtool -K eth0 {offload} off")
    try:
        shared_bed.assert_pings(guest)
        shared_bed.assert_transfers(guest)
    finally:
        for offload in reversed(offloads):
            guest.check(f"ethtool -K eth0 {offload} on")


def test_a_host_that_switches_its_offloads_off(shared_bed: Bed, guest: GuestVM) -> None:
    offloads = ("tso", "gso", "gro", "sg", "tx")
    for offload in offloads:
        shared_bed.host.run("ethtool", "-K", "tap0", offload, "off")
    try:
        shared_bed.assert_pings(guest)
        shared_bed.assert_transfers(guest)
    finally:
        for offload in reversed(offloads):
            shared_bed.host.run("ethtool", "-K", "tap0", offload, "on")


def test_interface_down_and_up_in_the_guest(shared_bed: Bed, guest: GuestVM) -> None:
    guest.check("ip link set eth0 down; ip link set eth0 up")
    shared_bed.assert_pings(guest)


CARDS = {
    "packed": {"packed": "on"},
    "no mergeable buffers": {"mrg_rxbuf": "off"},
    "no event index": {"event_idx": "off"},
    "no indirect descriptors": {"indirect_desc": "off"},
    "small rings": {"rx_queue_size": "256", "tx_queue_size": "256"},
    "no checksum offload": {"csum": "off", "guest_csum": "off"},
    "plain": {
        "csum": "off",
        "guest_csum": "off",
        "mrg_rxbuf": "off",
        "event_idx": "off",
        "indirect_desc": "off",
    },
    "packed, plain": {
        "packed": "on",
        "mrg_rxbuf": "off",
        "event_idx": "off",
        "indirect_desc": "off",
    },
    "legacy": {"disable-modern": "on", "disable-legacy": "off"},
    "legacy, plain": {
        "disable-modern": "on",
        "disable-legacy": "off",
        "mrg_rxbuf": "off",
        "event_idx": "off",
        "indirect_desc": "off",
    },
    "large rings": {"rx_queue_size": "1024", "tx_queue_size": "1024"},
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_with_other_features(bed: Bed, card: str) -> None:
    bed.serve()
    guest = bed.boot(properties=CARDS[card])
    bed.assert_pings(guest)
    bed.assert_transfers(guest, 8)


@pytest.mark.parametrize("mergeable", ["on", "off"])
def test_jumbo_frames(bed: Bed, mergeable: str) -> None:
    bed.serve(mtu=9000)
    guest = bed.boot(properties={"mrg_rxbuf": mergeable}, mtu=9000)
    before = bed.host.link_counters("tap0")["rx_packets"]
    bed.assert_pings(guest, size=9000 - 28)
    # One frame each (and a few for ARP), where an MTU of 1500 would have needed seven.
    assert bed.host.link_counters("tap0")["rx_packets"] - before < 20
    bed.assert_transfers(guest, 8)


def test_the_guest_takes_the_mtu_it_is_told(bed: Bed) -> None:
    bed.serve(mtu=9000)
    guest = bed.boot(properties={"host_mtu": "9000"})
    assert guest.check("cat /sys/class/net/eth0/mtu").strip() == "9000"
    bed.assert_pings(guest, size=9000 - 28)


@pytest.mark.parametrize("packed", ["off", "on"])
def test_two_queue_pairs_are_both_used(bed: Bed, packed: str) -> None:
    bed.serve(queue_pairs=2)
    guest = bed.boot(Machine(bed.accel, smp=2), {"packed": packed})
    guest.check("ethtool -L eth0 combined 2")
    bed.assert_pings(guest)
    for cpu in (0, 1):
        before = _queue_packets(guest)
        # The guest sends on the queue of its CPU; the TAP answers on the queue a flow came from.
        guest.check(f"taskset {1 << cpu:#x} ping -c 8 -i 0.1 192.0.2.1")
        after = _queue_packets(guest)
        assert after[f"tx_queue_{cpu}_packets"] - before[f"tx_queue_{cpu}_packets"] >= 8
    bed.assert_transfers(guest, 8)
    guest.check("ethtool -L eth0 combined 1")
    bed.assert_pings(guest)
    guest.check("ethtool -L eth0 combined 2")
    bed.assert_transfers(guest, 4)


def _queue_packets(guest: GuestVM) -> dict[str, int]:
    counts = {}
    for line in guest.check("ethtool -S eth0").splitlines():
        name, _, value = line.strip().partition(": ")
        if name.endswith("_packets"):
            counts[name] = int(value)
    return counts


def test_a_guest_that_tries_to_resize_its_rings_keeps_its_card(bed: Bed) -> None:
    """QEMU does not tell a vhost-user back-end of a queue's reset, so we must not offer it."""
    bed.serve()
    guest = bed.boot(properties={"rx_queue_size": "1024", "tx_queue_size": "1024"})
    guest.run("ethtool -G eth0 rx 256 tx 256")
    bed.assert_pings(guest)
    bed.assert_transfers(guest)
    bed.assert_quiet_log()

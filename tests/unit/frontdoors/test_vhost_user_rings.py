"""When a vhost-user ring runs: the table of its two switches, in any order of messages."""

from __future__ import annotations

import itertools
import os

import pytest

from driver_ring import GPA, UVA, DriverRing, Memory
from vhostnet.backends.memory_backends import LoopBackend
from vhostnet.errors import PeerError
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.protocol.verbs import MemoryRegion, VringAddr
from vhostnet.uapi.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from vhostnet.uapi.virtio import (
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    mask,
)

FEATURES = mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VHOST_USER_F_PROTOCOL_FEATURES)
RX, TX = 0, 1
PACKET = bytes(12) + b"frame" * 12


class FakeTimer:
    """A timer that never fires; the carrier has its own tests."""

    def cancel(self) -> None: ...


class LinkedLoop(LoopBackend):
    """A loop that remembers its carrier and which queues were attached."""

    def __init__(self, queue_pairs: int) -> None:
        super().__init__(queue_pairs)
        self.link = False
        self.attached = [True] * queue_pairs

    def set_link(self, up: bool) -> None:
        self.link = up

    def attach_queue(self, index: int, attach: bool) -> None:
        self.attached[index] = attach


class Card:
    """A device with one front-end's memory and rings, driven verb by verb."""

    def __init__(self, queue_pairs: int = 1, features: int = FEATURES, **options) -> None:
        self.features = features
        self.timers: list = []
        self.backend = LinkedLoop(queue_pairs)
        self.device = VhostUserDevice(
            self.backend, queue_pairs=queue_pairs, name="card", call_later=self._later, **options
        )
        self.device.open_session(os.getpid())
        self.memory = Memory(1 << 20)
        self.rings = [DriverRing(self.memory, 16) for _ in range(2 * queue_pairs)]
        self.kick = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        self.call = [os.eventfd(0, os.EFD_NONBLOCK) for _ in self.rings]
        self.region = MemoryRegion(GPA, self.memory.size, UVA, 0)

    def _later(self, _seconds, function):
        self.timers.append(function)
        return FakeTimer()

    def steps(self, index):
        """The messages that set up one ring, by name."""
        ring, device = self.rings[index], self.device
        at = ring.addresses()
        address = VringAddr(index, 0, at.desc_uva, at.used_uva, at.avail_uva, 0)
        return {
            "memory": lambda: device.set_mem_table([self.region], [self.memory.fd]),
            "features": lambda: device.set_features(self.features),
            "num": lambda: device.set_vring_num(index, ring.num),
            "base": lambda: device.set_vring_base(index, 0),
            "addr": lambda: device.set_vring_addr(address),
            "kick": lambda: device.set_vring_kick(index, os.dup(self.kick[index])),
            "call": lambda: device.set_vring_call(index, os.dup(self.call[index])),
            "enable": lambda: device.set_vring_enable(index, True),
        }

    def start(self, *skip):
        for index in range(len(self.rings)):
            for name, step in self.steps(index).items():
                if name not in skip:
                    step()

    def runs(self, index):
        return self.device.rings[index].runs

    def flush(self):
        for net in self.device.nets:
            net.flush()

    def close(self):
        self.device.close()
        for fd in self.kick + self.call:
            os.close(fd)
        self.memory.close()


@pytest.fixture
def card():
    made = []

    def make(*args, **options):
        made.append(Card(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


NAMES = ["features", "memory", "num", "base", "addr", "kick", "enable"]
ORDERS = {
    "QEMU": ["enable", "features", "memory", "num", "base", "addr", "kick"],
    "cloud-hypervisor": ["features", "memory", "num", "addr", "base", "kick", "enable"],
    "libkrun": ["memory", "features", "num", "base", "addr", "kick", "enable"],
    "kick first": ["kick", "features", "num", "base", "addr", "enable", "memory"],
    "memory last": ["features", "num", "base", "addr", "kick", "enable", "memory"],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_ring_runs_as_soon_as_the_last_piece_arrives(card, order):
    one = card()
    steps = one.steps(RX)
    for name in order:
        assert not one.runs(RX), name
        steps[name]()
    assert one.runs(RX)


def test_any_order_of_address_kick_enable_and_memory_works(card):
    for order in itertools.permutations(["memory", "addr", "kick", "enable"]):
        one = card()
        steps = one.steps(TX)
        steps["features"]()
        steps["num"]()
        for name in order:
            steps[name]()
        assert one.runs(TX), order


def test_packets_go_round(card):
    one = card()
    one.start()
    one.rings[RX].post(1500)
    one.rings[TX].send(PACKET)
    os.eventfd_write(one.kick[TX], 1)
    one.flush()
    one.flush()
    assert [u.length for u in one.rings[RX].collect()] == [len(PACKET)]


def test_a_started_tx_ring_that_is_disabled_discards(card):
    one = card()
    one.start("enable")
    assert not one.runs(RX)
    assert one.runs(TX)
    one.rings[TX].send(PACKET)
    os.eventfd_write(one.kick[TX], 1)
    one.flush()
    assert len(one.rings[TX].collect()) == 1
    assert one.device.nets[0].tx.counters()["drop_disabled"] == 1


def test_without_protocol_features_all_rings_are_enabled(card):
    one = card()
    one.device.set_features(mask(VIRTIO_F_VERSION_1))
    one.start("features", "enable")
    assert one.runs(RX)
    assert one.runs(TX)


def test_enabling_survives_a_stop_and_a_stop_forgets_kick_and_call(card):
    one = card()
    one.start()
    assert one.device.get_vring_base(RX) == 0
    assert not one.runs(RX)
    vq = one.device.nets[0].rx.vq
    assert (vq["kick_fd"], vq["call_fd"]) == (-1, -1)
    one.steps(RX)["kick"]()
    assert one.runs(RX)


def test_stopping_twice_gives_the_same_base(card):
    one = card()
    one.start()
    one.rings[TX].send(PACKET)
    os.eventfd_write(one.kick[TX], 1)
    one.flush()
    assert [one.device.get_vring_base(TX) for _ in range(2)] == [1, 1]


def test_a_front_end_that_never_stops_its_rings_may_set_them_up_again(card):
    one = card()
    one.start()
    for index in (TX, RX):
        one.device.set_vring_enable(index, False)
    one.rings = [DriverRing(one.memory, 16) for _ in range(2)]
    one.start("features", "memory")
    one.rings[TX].send(PACKET)
    os.eventfd_write(one.kick[TX], 1)
    one.flush()
    assert len(one.rings[TX].collect()) == 1


def test_a_lost_base_is_taken_from_the_guests_used_index(card):
    one = card()
    for ring in one.rings:
        ring.__init__(one.memory, 16, base=5)
    one.start()
    assert one.device.get_vring_base(TX) == 5


def test_repeating_num_and_address_while_running_changes_nothing(card):
    one = card()
    one.start()
    steps = one.steps(RX)
    steps["num"]()
    steps["addr"]()
    assert one.runs(RX)
    with pytest.raises(PeerError):
        one.device.set_vring_num(RX, 32)
    with pytest.raises(PeerError):
        one.device.set_vring_base(RX, 3)


def test_features_cannot_change_under_running_rings(card):
    one = card()
    one.start()
    one.device.set_features(FEATURES)
    with pytest.raises(PeerError, match="while a ring runs"):
        one.device.set_features(FEATURES & ~mask(VIRTIO_NET_F_MRG_RXBUF))


def test_memory_taken_away_stops_the_ring_and_given_back_starts_it(card):
    one = card()
    one.start()
    one.device.rem_mem_reg(one.region)
    assert not one.runs(RX)
    one.device.add_mem_reg(one.region, one.memory.fd)
    assert one.runs(RX)


def test_a_region_added_and_removed_once_a_queue_pair_is_one_region(card):
    one = card(2)
    for _ in range(2):
        one.device.add_mem_reg(one.region, one.memory.fd)
    assert len(one.device.nets[0].memory.regions) == 1
    for _ in range(2):
        one.device.rem_mem_reg(one.region)
    assert len(one.device.nets[0].memory.regions) == 0
    with pytest.raises(PeerError, match="no region"):
        one.device.rem_mem_reg(one.region)


def test_a_region_that_is_not_there_cannot_be_removed(card):
    with pytest.raises(PeerError, match="no region"):
        card().device.rem_mem_reg(MemoryRegion(0, 4096, 0, 0))


def test_reset_keeps_memory_and_stops_rings(card):
    one = card()
    one.start()
    one.device.reset_device()
    assert not one.runs(RX)
    assert len(one.device.nets[0].memory.regions) == 1
    one.start("memory")
    assert one.runs(RX)


def test_the_carrier_follows_the_receive_ring(card):
    one = card()
    assert not one.backend.link
    one.start()
    assert one.backend.link
    one.device.get_vring_base(RX)
    assert one.backend.link  # a short stop does not flap it
    one.timers[-1]()
    assert not one.backend.link


def test_queues_of_pairs_that_are_not_in_use_are_detached(card):
    one = card(2)
    one.start()
    assert one.backend.attached == [True, True]
    for index in (2, 3):
        one.device.set_vring_enable(index, False)
    assert one.backend.attached == [True, False]
    for index in (2, 3):
        one.device.set_vring_enable(index, True)
    assert one.backend.attached == [True, True]


def test_the_next_session_starts_from_nothing(card):
    one = card()
    one.start()
    one.rings[TX].send(PACKET)
    os.eventfd_write(one.kick[TX], 1)
    one.flush()
    one.device.close_session()
    one.device.open_session(None)
    assert not any(ring.enabled or ring.started for ring in one.device.rings)
    one.rings = [DriverRing(one.memory, 16) for _ in range(2)]
    one.start()
    one.rings[RX].post(1500)
    os.eventfd_write(one.kick[RX], 1)
    one.flush()
    assert one.rings[RX].collect() == []


def test_mq_is_offered_only_with_more_than_one_pair(card):
    mq = 1 << 22
    assert not card(1).device.get_features() & mq
    assert card(2).device.get_features() & mq


# --- as a version of Linux ------------------------------------------------------------------------

OLDER = ["6.1", "6.12"]


@pytest.mark.parametrize("abi", [*OLDER, "newest"])
def test_an_older_linux_offers_neither_in_order_nor_packed_rings(card, abi):
    late = mask(VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED)
    one = card(linux_abi=abi)
    offered = one.device.get_features()
    assert offered & late == (late if abi == "newest" else 0)
    assert offered & FEATURES == FEATURES
    for bit in (VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED):
        if abi != "newest":
            with pytest.raises(PeerError, match="not offered"):
                one.device.set_features(FEATURES | mask(bit))


@pytest.mark.parametrize("abi", [*OLDER, "newest"])
def test_num_buffers_without_mergeable_buffers_is_the_newest_linuxs_way(card, abi):
    one = card(linux_abi=abi, features=FEATURES & ~mask(VIRTIO_NET_F_MRG_RXBUF))
    one.start()
    [buffer] = one.rings[RX].post(1500)
    one.rings[TX].send(PACKET)
    for index in (TX, RX):
        os.eventfd_write(one.kick[index], 1)
        one.flush()
    [used] = one.rings[RX].collect()
    received = one.memory.read(buffer, used.length)
    assert received == PACKET[:10] + bytes([abi == "newest", 0]) + PACKET[12:]


@pytest.mark.parametrize("abi", [*OLDER, "newest"])
def test_translations_outlive_the_iommu_in_6_1_only(card, abi):
    one = card(linux_abi=abi, iommu=True)
    one.device.set_mem_table([one.region], [one.memory.fd])
    one.device.set_features(FEATURES | mask(VIRTIO_F_ACCESS_PLATFORM))
    one.device.iotlb_update(0, 0x1000, UVA, 3)
    one.device.set_features(FEATURES)
    [net] = one.device.nets
    assert (net.iotlb is not None) == (abi == "6.1")
    one.device.close_session()
    assert net.iotlb is None

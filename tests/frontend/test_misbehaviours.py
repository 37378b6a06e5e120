"""Every malformed ring of the catalogue, against our own device."""

from __future__ import annotations

import os

import pytest
from beds import SocketTap, frame, in_process
from ring_models import PackedModel

from vhostnet_frontend import GuestMemory, NetDriver, PackedRing, RegionSpec, SplitRing
from vhostnet_frontend.scenarios import (
    GOOD_PACKET,
    PACKED,
    SPLIT,
    Misbehaviour,
    PackedMisbehaviour,
    Severity,
    repair,
)

CASES = [
    pytest.param(case, direction, id=f"{direction}-{case.name}")
    for case in SPLIT.values()
    for direction in case.directions
]


@pytest.mark.parametrize(("case", "direction"), CASES)
def test_the_device_survives(case: Misbehaviour, direction: str) -> None:
    tap = SocketTap()
    memory = GuestMemory([RegionSpec(1 << 20)], canaries=True)
    with NetDriver(
        in_process(tap.queue), num=16, rx_size=256, tx_size=256, memory=memory
    ) as driver:
        transport = driver.transport
        driver.start(post_rx=direction == "tx")
        queue = driver.tx[0] if direction == "tx" else driver.rx[0]
        ring = queue.ring
        assert isinstance(ring, SplitRing)
        if direction == "rx":
            tap.wire.send(GOOD_PACKET)  # something that wants a buffer
        case.apply(ring)
        os.eventfd_write(queue.kick_fd, 1)
        transport.flush()
        errors = driver.ring_errors()
        counters = transport.net.vqs[queue.index].counters()
        if case.severity is Severity.RING_STOPS:
            assert errors == {queue.index: errors.get(queue.index, 0)}
            assert counters["ring_errors"] >= 1
            assert not ring.has_used()
            assert tap.sent() == []
            # the same ring, repaired, works from where it stopped
            repair(ring, writable=direction == "rx")
        elif case.severity is Severity.IS_LEGAL:
            assert errors == {}
            assert [packet[12:] for packet in tap.sent()] == [GOOD_PACKET[12:]]
            ring.used_idx = ring.read_used_idx()
            repair(ring, writable=direction == "rx")
        else:
            tap.sent()
            ring.used_idx = ring.read_used_idx()
            repair(ring, writable=direction == "rx")
        os.eventfd_write(queue.kick_fd, 1)
        transport.flush()
        if direction == "tx":
            assert [packet[12:] for packet in tap.sent()] == [GOOD_PACKET[12:]]
        else:
            tap.wire.send(bytes(12) + frame(1))
            transport.flush()
            assert ring.has_used()
        # and the other direction never noticed
        if direction == "tx":
            tap.wire.send(bytes(12) + frame(2))
            assert driver.receive(timeout=60.0) == frame(2)
        else:
            driver.send(frame(2))
            transport.flush()
            assert [packet[12:] for packet in tap.sent()][-1:] == [frame(2)]
        assert memory.check_canaries() == []
    memory.close()
    tap.close()


def test_every_misbehaviour_names_its_rule() -> None:
    for name, case in [*SPLIT.items(), *PACKED.items()]:
        assert name == case.name
        assert case.rule[0].isdigit()
        assert case.directions
    assert len({*SPLIT}) >= 30


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_a_packed_misbehaviour_is_there_to_be_seen(case: PackedMisbehaviour) -> None:
    with GuestMemory(1 << 20) as memory:
        ring = PackedRing(memory, 8)
        case.apply(ring)
        _, _, _, flags = ring.read_desc(0)
        assert flags & 0x8080 == 0x80  # available
        if case.severity is not Severity.RING_STOPS:
            assert PackedModel(ring).get() is not None

"""Packed rings that are reached with system calls: how few, and what only copies can get wrong.

What holds for packed rings wherever they are is in test_packed_device.py.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from beds import OutOfReachBed, frame

from vhostnet.datapath.codes import RING_UNMAPPED
from vhostnet.errors import PeerError
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)
from vhostnet_frontend import Buffer, NetDriver

RX, TX = 0, 1
FEATURES = mask(
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
)
WAYS = pytest.mark.parametrize("batched", [True, False])
GONE = 0x10000
PATIENCE_S = 60


@pytest.fixture
def out_of_reach() -> Iterator[Callable[..., OutOfReachBed]]:
    made: list[OutOfReachBed] = []

    def make(*, batched: bool = True) -> OutOfReachBed:
        made.append(OutOfReachBed(batched=batched))
        return made[-1]

    yield make
    for bed in made:
        bed.close()


def counter(bed: OutOfReachBed, index: int, name: str) -> int:
    assert bed.transport is not None
    return int(bed.transport.net.vqs[index].vq[name])


def offer(driver: NetDriver, *frames: bytes, pieces: int = 1, indirect: bool = False) -> None:
    """Make frames available, each in so many buffers after its header's; no kick."""
    for data in frames:
        gpa = driver.tx[0].buffers.pop()
        driver.memory.write(gpa, bytes(12) + data)
        cuts = [0, 12, *(12 + len(data) * (k + 1) // pieces for k in range(pieces))]
        if pieces == 1:
            cuts = [0, 12 + len(data)]
        chain = [Buffer(gpa + low, high - low) for low, high in pairwise(cuts)]
        driver.tx[0].ring.add(chain, [gpa], indirect=indirect)
    driver.tx[0].ring.publish()


def kick(driver: NetDriver, index: int) -> None:
    os.eventfd_write(driver.queues[index].kick_fd, 1)
    driver.transport.flush()


def drained(bed: OutOfReachBed, n: int) -> list[bytes]:
    """*n* frames off the wire, which holds only some of them."""
    assert bed.transport is not None
    got: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < n:
        assert time.monotonic() < deadline
        got += [packet[12:] for packet in bed.tap.sent()]
        bed.transport.flush()
    return got


@pytest.mark.parametrize("indirect", [False, True])
def test_a_batch_of_chains_costs_a_handful_of_calls(out_of_reach, indirect) -> None:
    bed = out_of_reach()
    with bed.open(features=FEATURES, num=256) as driver:
        driver.start()
        driver.transport.flush()
        frames = [frame(k, 100) for k in range(64)]
        offer(driver, *frames, pieces=2 if indirect else 1, indirect=indirect)
        before = counter(bed, TX, "owner_calls")
        kick(driver, TX)
        # the ring, (tables,) buffers, the ring again, used descriptors, the first one's flags,
        # the driver's wish, our event area, the next descriptor again
        assert counter(bed, TX, "owner_calls") - before <= 8 + indirect
        assert [packet[12:] for packet in bed.tap.sent()] == frames
        assert driver.reclaim() == 64


def test_a_batch_of_packets_received_costs_a_handful_of_calls(out_of_reach) -> None:
    bed = out_of_reach()
    with bed.open(features=FEATURES, num=64, rx_size=256) as driver:
        frames = [frame(k, 80) for k in range(60)]
        for one in frames:
            bed.tap.wire.send(bytes(12) + one)
        driver.start()
        driver.transport.flush()
        assert counter(bed, RX, "owner_calls") <= 8
        assert [driver.receive(timeout=60.0) for _ in frames] == frames


@WAYS
def test_large_packets_in_many_pieces_go_through(out_of_reach, batched) -> None:
    bed = out_of_reach(batched=batched)
    with bed.open(features=FEATURES, num=128, tx_size=1 << 16) as driver:
        driver.start()
        frames = [frame(k, 60000) for k in range(40)]  # more bytes than are staged at once
        offer(driver, *frames, pieces=16, indirect=True)
        kick(driver, TX)
        assert drained(bed, len(frames)) == frames


@WAYS
@pytest.mark.parametrize("num", [1, 300])
def test_rings_of_one_entry_and_of_more_than_one_look_finds(out_of_reach, batched, num) -> None:
    bed = out_of_reach(batched=batched)
    with bed.open(features=FEATURES, num=num) as driver:
        driver.start()
        for turn in range(4):
            frames = [frame(turn * num + k) for k in range(num)]
            offer(driver, *frames)
            kick(driver, TX)
            assert drained(bed, num) == frames
            driver.transport.flush()
            assert driver.reclaim() == num
        assert driver.ring_errors() == {}


@WAYS
def test_what_lies_beside_the_event_areas_is_left_alone(out_of_reach, batched) -> None:
    bed = out_of_reach(batched=batched)
    with bed.open(features=FEATURES, num=8) as driver:
        driver.start()
        driver.stop()
        memory, addr = driver.memory, driver.tx[0].ring.addr(TX)
        shift = memory.regions[0].uva - memory.regions[0].gpa
        area = memory.alloc(16, 16)
        for at in (0, 4, 8):  # at an odd place, and at an even one
            memory.write(area, b"\xa5" * 16)
            moved = dataclasses.replace(addr, used_user_addr=area + at + shift)
            driver.transport.set_vring_addr(moved)
            driver.transport.set_backend(TX, 0)
            offer(driver, frame(at))
            kick(driver, TX)
            driver.transport.set_backend(TX, None)
            assert [packet[12:] for packet in bed.tap.sent()] == [frame(at)]
            seen = memory.read(area, 16)
            assert seen[at : at + 4] != b"\xa5" * 4
            assert seen[:at] + seen[at + 4 :] == b"\xa5" * 12


@WAYS
def test_a_ring_that_is_gone_stops_and_nothing_is_signalled(out_of_reach, batched) -> None:
    bed = out_of_reach(batched=batched)
    with bed.open(features=FEATURES, num=8) as driver:
        driver.start()
        driver.transport.flush()
        net = driver.transport.net
        with net.quiesced():
            for index in (RX, TX):
                for part in ("ring_uva", "driver_uva", "device_uva"):
                    net.vqs[index].vq[part] = GONE
        offer(driver, frame(1))
        for index in (TX, RX, TX):
            kick(driver, index)
        assert bed.tap.sent() == []
        assert counter(bed, TX, "last_error") == RING_UNMAPPED
        assert counter(bed, TX, "owner_faults") > 0


@WAYS
def test_a_ring_that_cannot_be_written_does_not_start(out_of_reach, batched) -> None:
    bed = out_of_reach(batched=batched)
    with bed.open(features=FEATURES, num=8) as driver:
        driver.start()
        driver.stop()
        ring = driver.transport.net.tx
        ring.vq["device_uva"] = GONE
        with pytest.raises(PeerError, match="event area cannot be written"):
            ring.init_access()


@pytest.mark.skipif(not JIT_ENABLED, reason="a race wants the speed of compiled code")
@WAYS
@pytest.mark.parametrize("num", [16, 255])
def test_a_driver_that_runs_meanwhile_loses_no_frame_and_no_order(
    out_of_reach, batched, num
) -> None:
    """Its descriptors become available while they are read: none is taken before it is whole."""
    bed = out_of_reach(batched=batched)
    count = 30_000
    numbers: list[int] = []
    with bed.open(features=FEATURES, num=num) as driver:
        driver.start()

        def drain() -> None:
            bed.tap.wire.setblocking(True)
            bed.tap.wire.settimeout(PATIENCE_S)
            for _ in range(count):
                packet = bed.tap.wire.recv(1 << 16)
                assert len(packet) == 12 + 200
                numbers.append(int.from_bytes(packet[26:34], "little"))

        reader = threading.Thread(target=drain)
        reader.start()
        sender = driver.sender(frame(1, 200), stamped=True)
        sender.run(count=count)
        assert sender.finish()
        reader.join()
        assert numbers == list(range(numbers[0], numbers[0] + count))
        assert sender.counters()["bad_used"] == 0
        assert driver.ring_errors() == {}

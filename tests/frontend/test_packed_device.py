"""Our device's packed rings, driven by the driver half."""

from __future__ import annotations

import os
import threading

import pytest
from beds import InProcessBed, OutOfReachBed, frame, in_process

from vhostnet.backends.memory_backends import GenBackend, LoopBackend, NullBackend
from vhostnet.datapath import catalogue
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)
from vhostnet_frontend import Buffer, GuestMemory, NetDriver, PackedRing, RegionSpec, VerbError
from vhostnet_frontend.packed_ring import USED
from vhostnet_frontend.scenarios import PACKED, Misbehaviour, PackedMisbehaviour, Severity

BASE = mask(VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1)
MRG = mask(VIRTIO_NET_F_MRG_RXBUF)
EVENT = mask(VIRTIO_RING_F_EVENT_IDX)
INDIRECT = mask(VIRTIO_RING_F_INDIRECT_DESC)
IN_ORDER = mask(VIRTIO_F_IN_ORDER)
FEATURES = {
    "plain": BASE,
    "mergeable": BASE | MRG,
    "event": BASE | MRG | EVENT,
    "indirect": BASE | MRG | EVENT | INDIRECT,
    "in order": BASE | MRG | EVENT | IN_ORDER,
}
COUNT = 20_000 if JIT_ENABLED else 500
every_set = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    if JIT_ENABLED:
        catalogue.warm([s.name for s in catalogue.list_kernels() if "packed/mapped" in s.name])


BEDS = {
    "mapped": InProcessBed,
    "by pid": lambda: OutOfReachBed(batched=True),
    "by file": lambda: OutOfReachBed(batched=False),
}


@pytest.fixture(params=BEDS.values(), ids=BEDS)
def bed(request: pytest.FixtureRequest):
    one = request.param()
    yield one
    one.close()


def round_trip(bed: InProcessBed, driver: NetDriver, *frames: bytes, **options: bool) -> None:
    for one in frames:
        driver.send(one, **options)
    bed.echo()
    for one in frames:
        assert driver.receive(timeout=60.0) == one


@every_set
@pytest.mark.parametrize("num", [8, 7, 100])
def test_frames_come_back_through_rings_that_wrap(
    bed: InProcessBed, features: int, num: int
) -> None:
    with bed.open(features=features, num=num) as driver:
        assert driver.features == features
        driver.start()
        for turn in range(30):
            count = min(num - 2, 6)
            round_trip(bed, driver, *(frame(turn * count + k, 60 + 31 * k) for k in range(count)))
        assert driver.ring_errors() == {}


@pytest.mark.parametrize("size", [100, 1000, 3000])
def test_mergeable_packets_and_chains(bed: InProcessBed, size: int) -> None:
    with bed.open(features=BASE | MRG | EVENT, num=61, rx_size=256, tx_size=128) as driver:
        driver.start()
        for k in range(40):
            round_trip(bed, driver, frame(k, size))


def test_indirect_tables(bed: InProcessBed) -> None:
    with bed.open(features=BASE | MRG | INDIRECT, num=8, tx_size=200) as driver:
        driver.start()
        for k in range(30):
            round_trip(bed, driver, frame(k, 900), indirect=True)


def test_in_order_one_used_descriptor_answers_for_a_batch() -> None:
    bed = InProcessBed()
    with bed.open(features=FEATURES["in order"], num=16) as driver:
        driver.start()
        queue, ring = driver.tx[0], driver.tx[0].ring
        for _ in range(5):
            ring.add([Buffer(queue.buffers.pop(), 100)])
        queue.kick()
        assert bed.transport is not None
        bed.transport.flush()
        descriptors = [ring.read_desc(place) for place in range(5)]
        assert [flags & USED != 0 for _, _, _, flags in descriptors] == [True] + 4 * [False]
        assert descriptors[0][2] == descriptors[4][2]  # the id of the batch's last
        assert driver.reclaim() == 5
        assert ring.next_used == 5
    bed.close()


@every_set
def test_a_stopped_ring_goes_on_where_it_was(bed: InProcessBed, features: int) -> None:
    with bed.open(features=features, num=6) as driver:
        driver.start()
        for turn in range(8):
            round_trip(bed, driver, *(frame(5 * turn + k) for k in range(5)))
            driver.flush()
            driver.stop()
            driver.start()


def test_too_few_mergeable_buffers_wait_without_spinning(bed: InProcessBed) -> None:
    with bed.open(features=BASE | MRG | EVENT, num=8, rx_size=64) as driver:
        driver.start()
        assert bed.transport is not None
        bed.tap.wire.send(bytes(12) + frame(1, 1000))  # more than all buffers hold
        bed.transport.flush()
        worker = bed.transport.net.worker
        runs = int(worker.record[0]["runs"])
        bed.transport.flush()
        assert int(worker.record[0]["runs"]) == runs
        assert not driver.rx[0].ring.has_used()


@every_set
def test_the_sender_and_the_device_count_alike(features: int) -> None:
    backend = NullBackend(1)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=features, num=100) as driver:
        driver.start()
        sender = driver.sender(frame(1, 200))
        counts = sender.run(count=COUNT)
        assert sender.finish()
        tx = transport.net.tx.counters()
        assert counts.frames == tx["packets"] == COUNT
        assert counts.bytes == tx["bytes"]
        assert sender.counters()["bad_used"] == 0
        assert tx["ring_errors"] == 0


@every_set
def test_the_receiver_and_the_device_count_alike(features: int) -> None:
    backend = GenBackend(1, 300)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=features, num=100) as driver:
        backend.negotiate(driver.hdr_len, features)
        driver.start(post_rx=False)
        receiver = driver.receiver()
        assert receiver.run(count=COUNT).frames >= COUNT
        driver.stop()
        receiver.run(seconds=0)
        rx = transport.net.rx.counters()
        assert receiver.counters()["frames"] == rx["packets"]
        assert receiver.counters()["bytes"] == rx["bytes"]
        assert receiver.counters()["bad_used"] == 0


def test_stamped_frames_come_back_in_sequence() -> None:
    backend = LoopBackend(1)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=BASE | MRG | EVENT, num=255) as driver:
        driver.start(post_rx=False)
        receiver = driver.receiver(stamped=True)
        sender = driver.sender(frame(0, 100), stamped=True)
        results = []
        thread = threading.Thread(target=lambda: results.append(receiver.run(count=COUNT)))
        thread.start()
        sender.run(count=COUNT)
        assert sender.finish()
        thread.join()
        assert results[0].frames == COUNT
        assert results[0].out_of_sequence == 0


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_the_device_survives_a_broken_packed_ring(
    bed: InProcessBed, case: PackedMisbehaviour
) -> None:
    memory = GuestMemory([RegionSpec(1 << 20)], canaries=True)
    tap = bed.tap
    with bed.open(features=BASE | MRG, num=16, rx_size=256, memory=memory) as driver:
        driver.start()
        ring = driver.tx[0].ring
        assert isinstance(ring, PackedRing)
        case.apply(ring)
        os.eventfd_write(driver.tx[0].kick_fd, 1)
        driver.transport.flush()
        counters = driver.transport.net.tx.counters()
        if case.severity is Severity.RING_STOPS:
            assert counters["ring_errors"] >= 1
            assert tap.sent() == []
        # the other direction never noticed, and no byte outside was touched
        tap.wire.send(bytes(12) + frame(2))
        assert driver.receive(timeout=60.0) == frame(2)
        assert memory.check_canaries() == []
    memory.close()
    assert not isinstance(case, Misbehaviour)


@pytest.mark.parametrize("num", [0, 32769])
def test_a_bad_size_is_refused(bed: InProcessBed, num: int) -> None:
    with bed.open(features=BASE) as driver, pytest.raises(VerbError):
        driver.transport.set_vring_num(0, num)


@pytest.mark.parametrize(
    ("base", "back"),
    [
        (0x8000, 0x8000_8000),  # DPDK
        (0x8000_8000, 0x8000_8000),  # QEMU
        (0, 0x0000_8000),  # a ring that never ran, from a front-end that knows split rings
    ],
)
def test_a_fresh_ring_may_be_given_any_of_these_bases(base: int, back: int) -> None:
    import numpy as np

    from vhostnet.device.ring_formats import PACKED as FORMAT

    ring = np.zeros(16, np.uint8)
    record = np.zeros(1, FORMAT.dtype)
    record[0]["ring_hva"] = ring.ctypes.data
    FORMAT.set_base(record[0], base)
    better = FORMAT.better_base(record[0])
    if base == 0:
        assert better == 0x8000
    else:
        assert better is None
        assert FORMAT.get_base(record[0]) == back

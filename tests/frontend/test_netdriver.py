"""NetDriver, the same on every transport."""

from __future__ import annotations

import errno
import os

import pytest
from beds import Bed, frame

from vhostnet.uapi.virtio import (
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    mask,
)
from vhostnet_frontend import DEFAULT_FEATURES, NetDriver, VerbError
from vhostnet_frontend.netdev import signals

V1, MRG = mask(VIRTIO_F_VERSION_1), mask(VIRTIO_NET_F_MRG_RXBUF)


def round_trip(bed: Bed, driver: NetDriver, *frames: bytes, **options: bool) -> None:
    for one in frames:
        driver.send(one, **options)
    bed.echo()
    for one in frames:
        assert driver.receive(timeout=60.0) == one


def test_a_frame_comes_back_unchanged(bed: Bed) -> None:
    with bed.open() as driver:
        assert driver.features == DEFAULT_FEATURES
        driver.start()
        round_trip(bed, driver, frame(1))
        assert driver.receive(timeout=0.01) is None
        assert driver.ring_errors() == {}


def test_frames_come_back_in_order_through_rings_that_wrap(bed: Bed) -> None:
    with bed.open(num=16) as driver:
        driver.start()
        for turn in range(20):
            round_trip(bed, driver, *(frame(8 * turn + k, 60 + 37 * k) for k in range(8)))


def test_a_frame_longer_than_a_buffer_is_a_chain_and_comes_back_in_several(bed: Bed) -> None:
    with bed.open(num=64, rx_size=256, tx_size=512) as driver:
        driver.start()
        driver.send(frame(3, 3000))
        bed.echo()
        packet = driver.receive_packet(timeout=60.0)
        assert packet is not None
        assert packet.frame == frame(3, 3000)
        assert packet.lengths == (*[256] * 11, 3012 - 11 * 256)
        assert packet.header[10:] == (12).to_bytes(2, "little")
        # and the buffers are posted again
        for k in range(12):
            round_trip(bed, driver, frame(k, 3000))


def test_buffers_can_be_described_by_an_indirect_table(bed: Bed) -> None:
    with bed.open(num=8, tx_size=256) as driver:
        driver.start()
        for k in range(20):
            round_trip(bed, driver, frame(k, 1000), indirect=True)


@pytest.mark.parametrize("features", [0, V1, MRG, V1 | MRG, mask(VIRTIO_RING_F_EVENT_IDX)])
def test_any_set_of_features_works(bed: Bed, features: int) -> None:
    with bed.open(features=features) as driver:
        assert driver.features == features
        assert driver.hdr_len == (12 if features & (V1 | MRG) else 10)
        driver.start()
        round_trip(bed, driver, *(frame(k) for k in range(10)))


def test_a_stopped_driver_starts_again_where_it_stopped(bed: Bed) -> None:
    with bed.open(num=16) as driver:
        driver.start()
        for turn in range(4):
            round_trip(bed, driver, *(frame(5 * turn + k) for k in range(5)))
            driver.flush()
            bases = driver.stop()
            assert bases[1] == 5 * (turn + 1)
            assert driver.transport.get_vring_base(1) == bases[1]
            driver.start()


def test_what_was_sent_before_the_start_is_sent_at_the_start(bed: Bed) -> None:
    with bed.open() as driver:
        driver.send(frame(9))
        driver.start()
        bed.echo()
        assert driver.receive(timeout=60.0) == frame(9)


def test_buffers_come_back_from_the_device(bed: Bed) -> None:
    with bed.open(num=8) as driver:
        driver.start()
        for k in range(100):
            driver.send(frame(k))
        driver.flush()
        assert not driver.tx[0].ring.outstanding()
        assert len(driver.tx[0].buffers) == 8


def test_a_device_that_gives_nothing_back_is_a_timeout(bed: Bed) -> None:
    with bed.open(num=4) as driver:  # never started
        for k in range(4):
            driver.send(frame(k))
        with pytest.raises(TimeoutError):
            driver.send(frame(5), timeout=0.05)
        with pytest.raises(TimeoutError):
            driver.flush(timeout=0.05)


def test_a_refused_verb_raises_and_the_device_goes_on(bed: Bed) -> None:
    with bed.open() as driver:
        with pytest.raises(VerbError) as refused:
            driver.transport.set_vring_num(0, 3)
        expected = errno.EINVAL if bed.name == "in process" else errno.EREMOTEIO
        assert refused.value.errno == expected
        driver.start()
        round_trip(bed, driver, frame(1))


def test_a_broken_ring_signals_its_error_eventfd(bed: Bed) -> None:
    with bed.open() as driver:
        driver.start()
        ring = driver.tx[0].ring
        ring.write_avail(ring.avail_idx, 5000)
        ring.write_avail_idx(ring.avail_idx + 1)
        os.eventfd_write(driver.tx[0].kick_fd, 1)
        for _ in range(500):
            errors = driver.ring_errors()
            if errors:
                break
            driver.rx[0].wait(0.01)
        assert list(errors) == [1]


def test_an_interrupt_comes_only_if_it_was_asked_for(bed: Bed) -> None:
    with bed.open(features=V1) as driver:
        driver.start()
        queue = driver.tx[0]
        queue.ring.disable_interrupts()
        signals(queue.call_fd)
        driver.send(frame(1))
        bed.echo()
        assert driver.receive(timeout=60.0) == frame(1)
        driver.flush()
        before = signals(queue.call_fd)
        queue.ring.disable_interrupts()
        driver.send(frame(2))
        bed.echo()
        assert driver.receive(timeout=60.0) == frame(2)
        assert signals(queue.call_fd) == 0
        assert before <= 1


def test_a_closed_driver_leaves_no_descriptor_behind(bed: Bed) -> None:
    bed.open().close()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with bed.open() as driver:
            driver.start()
            round_trip(bed, driver, frame(1))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_two_queue_pairs_are_two_cards(loop_daemon: str) -> None:
    from vhostnet_frontend import VhostUserTransport

    transport = VhostUserTransport.connect(loop_daemon)
    assert transport.n_rings == 4
    with NetDriver(transport, queue_pairs=2) as driver:
        driver.start()
        driver.send(frame(1), pair=1)
        assert driver.receive(pair=1, timeout=60.0) == frame(1)
        assert driver.receive(pair=0, timeout=0.01) is None

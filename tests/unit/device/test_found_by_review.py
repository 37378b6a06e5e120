"""Defects that a review found, each with the sequence that showed it."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np
import pytest

import vhostnet.datapath.packed_ring  # noqa: F401  (the bodies)
from driver_ring import GPA, UVA, DriverRing, Memory
from instance import MRG, RX, TX, V1
from vhostnet.backends.backend import Backend
from vhostnet.datapath.vring_ops import driver_wants_signal
from vhostnet.device.memory import MemoryTable
from vhostnet.device.vring import Vring
from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.backend_channel import BackendChannel
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_RING_PACKED,
    VIRTIO_RING_F_EVENT_IDX,
    mask,
)

HDR, FRAME = bytes(12), bytes(60)
PLATFORM = mask(VIRTIO_F_ACCESS_PLATFORM)


def test_a_signal_that_is_due_is_given_before_the_rings_memory_goes(instance):
    pair = instance()
    away = Memory(gpa=GPA + (1 << 30), uva=UVA + (1 << 30))
    both = MemoryTable([pair.memory.region(), away.region()])
    pair.net.set_mem_table(both)
    tx = DriverRing(away, 16)
    pair.net.set_vring_addr(TX, tx.addresses())
    pair.start()
    told, go_on = threading.Event(), threading.Event()
    on_event = pair.net.worker._on_event

    def slow(code):  # the time of a log line
        told.set()
        go_on.wait(60)
        on_event(code)

    pair.net.worker._on_event = slow
    tx.offer(tx.chain([(away.alloc(100), 100, 0)]), 99)  # a packet, then a head that is none
    os.eventfd_write(pair.kicks[TX], 1)
    assert told.wait(60)
    pair.called(TX)
    threading.Timer(0.1, go_on.set).start()
    with pair.net.quiesced():
        pair.net.set_backend(TX, None)
        pair.net.set_mem_table(MemoryTable([pair.memory.region()]))
        both.release()
    assert pair.called(TX) == 1
    pair.flush()  # used to read the memory that is gone
    away.close()


def test_a_call_descriptor_that_blocks_does_not_hold_control(instance):
    pair = instance()
    read_end, write_end = os.pipe()
    pair.net.set_vring_call(TX, os.dup(write_end))
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(65536))
    os.set_blocking(write_end, True)  # the flag is the peer's too, at any moment
    pair.tx.send(HDR + FRAME)
    os.eventfd_write(pair.kicks[TX], 1)
    assert pair.net.get_vring_base(TX) in (0, 1)  # and not: never
    pair.net.set_vring_call(TX, -1)
    os.close(read_end)
    os.close(write_end)


def test_a_log_that_goes_on_forgets_no_iotlb_miss(instance):
    pair = instance(start=False, features=MRG | V1 | PLATFORM)
    shift = UVA - GPA
    for index, ring in enumerate(pair.rings):
        at = ring.addresses()
        parts = (at.desc_uva, at.avail_uva, at.used_uva)
        pair.net.set_vring_addr(index, type(at)(*(a - shift for a in parts)))
    pair.net.iotlb_update(GPA, 0x4000, UVA, 3)
    pair.start()
    buffer = GPA + 0x8000
    pair.memory.write(buffer, HDR + FRAME)
    pair.tx.offer(pair.tx.chain([(buffer, 72, 0)]))
    pair.kick(TX)
    pair.net.set_log_all(True)
    assert pair.net.features >> VHOST_F_LOG_ALL & 1
    pair.net.iotlb_update(buffer, 4096, buffer + shift, 3)
    pair.flush()
    assert pair.sent() == [HDR + FRAME]


def test_unanswered_misses_do_not_pile_up(instance):
    pair = instance(start=False, features=MRG | V1 | PLATFORM)
    shift = UVA - GPA
    for index, ring in enumerate(pair.rings):
        at = ring.addresses()
        parts = (at.desc_uva, at.avail_uva, at.used_uva)
        pair.net.set_vring_addr(index, type(at)(*(a - shift for a in parts)))
    pair.net.iotlb_update(GPA, 0x4000, UVA, 3)
    pair.start()
    pair.tx.offer(pair.tx.chain([(0x1234000, 72, 0)]))
    for _ in range(50):
        pair.kick(TX)
    assert len(pair.net._misses) <= 2


def test_a_descriptor_that_is_no_socket_is_closed():
    read_end, write_end = os.pipe()
    with pytest.raises(PeerError, match="descriptor for our requests"):
        BackendChannel("dev0", read_end)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read_end)
    os.close(write_end)


def test_features_that_the_backend_refused_are_refused_again():
    class Refusing(Backend):
        def negotiate(self, hdr_len: int, features: int) -> None:  # noqa: ARG002
            raise HostError("no")

    from vhostnet.backends.memory_backends import NullBackend

    backend = Refusing(NullBackend(1).queues)
    device = VhostUserDevice(backend, queue_pairs=1, name="d", call_later=lambda _s, _f: None)
    device.open_session(None)
    for _ in range(2):
        with pytest.raises(PeerError, match="no"):
            device.set_features(V1)
    device.close_session()


def test_a_packed_ring_that_was_without_a_call_signals_at_the_next_chance():
    ring = Vring(0)
    ring.set_features(
        mask(VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX) | V1, num_buffers_for_version_1=True
    )
    event = np.array([45 | 1 << 15, 2], np.uint16)
    vq = ring.vq
    vq["packed_num"], vq["driver_hva"] = 256, event.ctypes.data
    vq["used_pos"], vq["used_wrap"] = 60, 1
    vq["signalled_used"], vq["signalled_used_valid"] = 50, 0
    assert driver_wants_signal(vq)


def test_setting_a_call_makes_the_test_point_of_a_packed_ring_invalid(instance):
    pair = instance(start=False, features=mask(VIRTIO_F_RING_PACKED) | V1)
    pair.net.rx.vq["signalled_used_valid"] = 1
    pair.net.set_vring_call(RX, -1)
    assert pair.net.rx.vq["signalled_used_valid"] == 0

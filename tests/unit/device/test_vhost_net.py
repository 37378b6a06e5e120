"""The verbs of one instance: preconditions, descriptors, start and stop."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from driver_ring import DriverRing
from instance import RX, TX
from vhostnet.device.memory import MemoryTable
from vhostnet.device.ring_formats import VringAddresses
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import PeerError

HDR = bytes(12)
FRAME = bytes(60)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_worker_is_named_after_its_owner(instance):
    pair = instance()
    tasks = [Path(f"/proc/self/task/{tid}/comm") for tid in os.listdir("/proc/self/task")]
    names = {task.read_text().strip() for task in tasks}
    assert f"vhost-{os.getpid()}" in names
    assert pair.net.worker.name == f"vhost-{os.getpid()}"


def test_a_second_owner_is_refused(instance):
    with pytest.raises(PeerError) as refused:
        instance().net.set_owner(1)
    assert refused.value.errno == errno.EBUSY


def test_nothing_starts_without_an_owner(instance):
    net = VhostNet("orphan")
    with pytest.raises(PeerError) as refused:
        net.set_backend(RX, instance().queue)
    assert refused.value.errno == errno.EPERM


@pytest.mark.parametrize("num", [0, 3, 65535, 65536, 2**32 - 1])
def test_a_bad_ring_size_is_refused(instance, num):
    with pytest.raises(PeerError, match="power of two"):
        instance(start=False).net.set_vring_num(RX, num)


def test_size_and_base_are_fixed_while_the_ring_runs(instance):
    pair = instance()
    for verb in (pair.net.set_vring_num, pair.net.set_vring_base):
        with pytest.raises(PeerError) as refused:
            verb(TX, 8)
        assert refused.value.errno == errno.EBUSY


def test_a_base_beyond_16_bits_is_refused(instance):
    with pytest.raises(PeerError, match="0xffff"):
        instance(start=False).net.set_vring_base(TX, 0x10000)


@pytest.mark.parametrize("addresses", [VringAddresses(0, 1, 0), VringAddresses(0, 0, 2)])
def test_misaligned_rings_are_refused(instance, addresses):
    with pytest.raises(PeerError, match="aligned"):
        instance(start=False).net.set_vring_addr(RX, addresses)


def test_a_ring_outside_memory_does_not_start(instance):
    pair = instance(start=False)
    pair.net.set_vring_addr(RX, VringAddresses(0x1000, 0x2000, 0x3000))
    with pytest.raises(PeerError) as refused:
        pair.net.set_backend(RX, pair.queue)
    assert refused.value.errno == errno.EFAULT
    assert not pair.net.active(RX)


def test_starting_writes_used_flags_and_takes_used_idx_from_memory(instance):
    pair = instance(start=False, base=7)
    pair.memory.write(pair.tx.used, b"\xff\xff")
    pair.start()
    assert pair.tx.used_flags() == 0
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.tx.used_idx() == 8


def test_stopping_returns_every_buffer_and_the_base(instance):
    pair = instance(num=256)
    for _ in range(200):
        pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    pair.net.set_backend(TX, None)
    assert pair.net.get_vring_base(TX) == 200
    assert len(pair.tx.collect()) == 200
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.net.get_vring_base(TX) == 200  # nobody looks any more


def test_a_kick_before_the_kick_descriptor_was_set_still_counts(instance):
    pair = instance()
    pair.net.set_vring_kick(TX, -1)
    kick = os.eventfd(0)
    pair.tx.send(HDR + FRAME)
    os.eventfd_write(kick, 1)
    pair.net.set_vring_kick(TX, kick)
    pair.flush()
    assert pair.sent() == [HDR + FRAME]


def test_a_replaced_kick_is_no_longer_listened_to(instance):
    pair = instance()
    pair.net.set_vring_kick(TX, os.eventfd(0))
    kicks = pair.counter(TX, "kicks")
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == []
    assert pair.counter(TX, "kicks") == kicks


def test_the_kick_eventfd_is_never_read(instance):
    pair = instance()
    for _ in range(3):
        pair.kick(TX)
    assert os.eventfd_read(pair.kicks[TX]) == 3


def test_a_pipe_can_kick(instance):
    pair = instance()
    read_end, write_end = os.pipe()
    pair.net.set_vring_kick(TX, read_end)
    for turn in range(1, 4):
        pair.tx.send(HDR + FRAME)
        os.write(write_end, bytes(8))
        pair.flush()
        assert len(pair.tx.collect()) == 1, turn
    os.close(write_end)


def test_a_driver_without_a_kick_is_polled(instance):
    pair = instance()
    pair.net.set_vring_polled(TX)
    pair.tx.send(HDR + FRAME)
    pair.wire.setblocking(True)
    pair.wire.settimeout(60)
    assert pair.wire.recv(100) == HDR + FRAME


def test_a_kick_that_cannot_be_polled_is_refused_and_closed(instance, tmp_path):
    pair = instance()
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    with pytest.raises(PeerError, match="cannot be polled"):
        pair.net.set_vring_kick(TX, fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_full_call_descriptor_does_not_block(instance):
    pair = instance()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, bytes(4096))
    except BlockingIOError:
        pass
    pair.net.set_vring_call(TX, write_end)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert len(pair.tx.collect()) == 1
    os.close(read_end)


def test_memory_is_replaced_while_the_ring_runs(instance):
    pair = instance()
    new = pair.memory.table()
    pair.net.set_mem_table(new)
    pair.table.release()
    pair.table = new
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_a_table_that_loses_a_running_ring_is_refused_and_changes_nothing(instance):
    pair = instance()
    with pytest.raises(PeerError) as refused:
        pair.net.set_mem_table(MemoryTable())
    assert refused.value.errno == errno.EFAULT
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]


def test_nothing_leaks_over_a_life(instance):
    pair = instance()
    pair.close()
    before = open_fds()
    threads = threading.active_count()
    for _ in range(20):
        one = type(pair)().start()
        one.tx.send(HDR + FRAME)
        one.kick(TX)
        for _ in range(50):
            one.net.set_vring_kick(TX, os.eventfd(0))
            one.net.set_vring_call(TX, os.eventfd(0))
            one.net.set_vring_err(TX, os.eventfd(0))
        one.close()
    pair.close = lambda: None
    assert open_fds() == before
    assert threading.active_count() == threads


def test_start_and_stop_under_traffic(instance):
    pair = instance(num=64)
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            os.eventfd_write(pair.kicks[TX], 1)

    thread = threading.Thread(target=traffic)
    thread.start()
    sent = 0
    for _ in range(200):
        pair.tx.send(HDR + FRAME[:20])
        pair.net.set_backend(TX, None)
        pair.net.set_backend(TX, pair.queue)
        pair.flush()
        sent += len(pair.sent())
    stop.set()
    thread.join()
    pair.flush()
    assert sent + len(pair.sent()) == 200
    assert len(pair.tx.collect()) == 200


def test_a_ring_of_32768_entries(instance):
    from driver_ring import Memory

    pair = instance(num=32768, memory=Memory(4 << 20))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert isinstance(pair.tx, DriverRing)

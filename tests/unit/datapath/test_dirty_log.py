"""Every byte that we write is in the log, and nothing else is."""

from __future__ import annotations

import os

import pytest

from driver_ring import GPA, WRITE, Memory
from instance import EVENT_IDX, MRG, RX, TX, V1
from vhostnet.device.dirty_log import DirtyLog
from vhostnet.errors import PeerError
from vhostnet.uapi.virtio import VHOST_F_LOG_ALL, mask

LOG_ALL = mask(VHOST_F_LOG_ALL)
HDR = bytes(12)
FRAME = bytes(100)
PAGE = 4096
#: Guest memory in these tests starts low, so that a small bitmap covers it.
LOW = 0x10000


@pytest.fixture
def logged(instance):
    """A queue pair whose writes are logged; `dirty()` gives the pages, and forgets them."""
    made = []

    def make(features=MRG | V1, pages=1024, used_ring=True, **options):
        pair = instance(
            start=False, features=features | LOG_ALL, memory=Memory(1 << 20, gpa=LOW), **options
        )
        fd = os.memfd_create("log")
        os.ftruncate(fd, pages // 8)
        pair.log = DirtyLog.map(fd, pages // 8, 0)
        pair.log_file = fd
        pair.log_event = os.eventfd(0, os.EFD_NONBLOCK)
        pair.net.set_log(pair.log.hva, pair.log.size)
        pair.net.set_log_fd(os.dup(pair.log_event))
        if used_ring:
            for index, ring in enumerate(pair.rings):
                pair.net.set_vring_addr(index, ring.addresses(), log_gpa=ring.used)

        def dirty():
            bits = os.pread(fd, pages // 8, 0)
            os.pwrite(fd, bytes(len(bits)), 0)
            return {page for page in range(pages) if bits[page // 8] >> page % 8 & 1}

        pair.dirty = dirty
        made.append(pair)
        return pair

    yield make
    for pair in made:
        pair.net.set_log(0, 0)
        pair.log.release()
        os.close(pair.log_file)
        os.close(pair.log_event)


def pages_of(gpa: int, size: int) -> set[int]:
    return set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1))


def test_starting_logs_the_write_of_used_flags(logged):
    pair = logged()
    pair.start()
    assert pair.dirty() == pages_of(pair.rx.used, 2) | pages_of(pair.tx.used, 2)
    assert os.eventfd_read(pair.log_event) > 0


def test_received_data_are_logged_to_their_length_and_not_beyond(logged):
    pair = logged(used_ring=False)
    pair.start()
    gpa = pair.memory.alloc(8192, PAGE) + 0xFF0
    pair.rx.offer(pair.rx.chain([(gpa, 6000, WRITE)]))
    pair.arrive(HDR + FRAME)
    assert pair.dirty() == pages_of(gpa, 112)
    assert os.eventfd_read(pair.log_event) == 1


def test_only_what_was_written_is_dirty(logged):
    pair = logged()
    pair.start()
    pair.dirty()
    for size in (60, 300, 5000):
        pair.rx.post(size, size)
        pair.rx.post(size)
        pair.tx.send(HDR + FRAME)
        pair.kick(TX)
        pair.arrive(b"\xaa" * 12 + b"\x55" * (size + 10))
    # what the driver itself wrote (rings, tx data) is not ours to log
    ours = {
        LOW // PAGE + page
        for page in range(pair.memory.size // PAGE)
        if b"\x55" in pair.memory.read(LOW + page * PAGE, PAGE)
    }
    used = pages_of(pair.rx.used, 6 + 8 * 16) | pages_of(pair.tx.used, 6 + 8 * 16)
    dirty = pair.dirty()
    assert ours <= dirty
    assert dirty <= ours | used


def test_avail_event_is_logged(logged):
    pair = logged(features=MRG | V1 | EVENT_IDX, num=2048)
    pair.start()
    pair.dirty()
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pages_of(pair.tx.used + 4 + 8 * 2048, 2) <= pair.dirty()


def test_entries_that_go_round_the_end_are_logged_on_both_sides(logged):
    pair = logged(num=2048, base=2047)
    pair.start()
    pair.dirty()
    for _ in range(2):
        pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert {pair.tx.used // PAGE, (pair.tx.used + 4 + 8 * 2047) // PAGE} <= pair.dirty()


def test_pages_beyond_the_bitmap_are_not_written(logged):
    pair = logged(pages=8 * 16)  # 16 bytes: the guest's memory ends at page 272
    pair.start()
    far = pair.memory.gpa + pair.memory.size - 4096
    pair.rx.offer(pair.rx.chain([(far, 2000, WRITE)]))
    pair.arrive(HDR + FRAME)
    assert len(pair.rx.collect()) == 1
    assert all(page < 128 for page in pair.dirty())


def test_logging_goes_on_and_off_while_packets_move(logged):
    pair = logged()
    pair.start()
    pair.net.set_features(MRG | V1)
    pair.net.set_vring_addr(RX, pair.rx.addresses())
    pair.net.set_vring_addr(TX, pair.tx.addresses())
    pair.dirty()
    (gpa,) = pair.rx.post(1500)
    pair.arrive(HDR + FRAME)
    assert pair.dirty() == set()
    pair.net.set_features(MRG | V1 | LOG_ALL)
    (gpa,) = pair.rx.post(1500)
    pair.arrive(HDR + FRAME)
    assert pair.dirty() == pages_of(gpa, 112)


@pytest.mark.parametrize(
    ("size", "offset"), [(0, 0), (8192, 0), (4096, 4096), (2**64 - 1, 4096), (4096, 2**64 - 4096)]
)
def test_a_log_beyond_its_file_is_refused(size, offset):
    fd = os.memfd_create("log")
    os.ftruncate(fd, 4096)
    with pytest.raises(PeerError, match="dirty log"):
        DirtyLog.map(fd, size, offset)
    os.close(fd)


def test_a_misaligned_log_address_is_refused(instance):
    pair = instance(start=False)
    with pytest.raises(PeerError, match="4-aligned"):
        pair.net.set_vring_addr(RX, pair.rx.addresses(), log_gpa=GPA + 2)

"""A front-end that truncates what it shares with us loses its session, and nobody else anything."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver_ring import GPA, NEXT, UVA, Memory
from front_end import FrontEnd, Guest, wait_signal
from serve_process import TALKATIVE, ServeProcess, wait_until
from vhostnet.datapath.via_tap import COPIED_FRAME
from vhostnet.device.memory import MemoryTable, map_region
from vhostnet.uapi import vhost_user as vu

TRUNCATED = "its memory file was truncated"


class TwoCards:
    """A daemon with two cards whose packets come back, and the paths of their sockets."""

    def __init__(self, folder: Path) -> None:
        self.sockets = [str(folder / f"card{k}") for k in range(2)]
        devices = [f"socket={path},backend=loop" for path in self.sockets]
        self.daemon = ServeProcess(
            folder, "--device", devices[0], "--device", devices[1], program=TALKATIVE
        )


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoCards]:
    made = TwoCards(tmp_path_factory.mktemp("cards"))
    try:
        yield made
        made.daemon.check_and_stop()
    finally:
        made.daemon.kill()


@pytest.fixture
def neighbour(cards: TwoCards) -> Iterator[Guest]:
    """The guest of the other card, connected all the time."""
    with contextlib.closing(Guest()) as guest, FrontEnd(cards.sockets[1]) as peer:
        peer.start(guest)
        yield guest


def assert_packets_move(guest: Guest) -> None:
    for number in range(3):
        frame = bytes([number]) * 60
        guest.rx.post(1)
        guest.tx.send(frame)
        assert guest.rx.wait_frames(1) == [frame]
        guest.tx.wait_used(1)


def post_much(guest: Guest) -> None:
    """Enough for some turns of the worker, without touching the memory any more."""
    queue, num = guest.tx, guest.tx.ring.num
    for slot in range(num):
        queue.ring.set_desc(slot, queue.buffers[slot], 72, 0, 0)
    guest.memory.write(queue.ring.avail + 4, struct.pack(f"<{num}H", *range(num)))
    guest.memory.write(queue.ring.avail + 2, struct.pack("<H", num))


@pytest.mark.parametrize("left", [0, 4096, 0x8000], ids=lambda n: f"{n} bytes left")
def test_it_ends_the_session_of_the_one_and_no_other(cards, neighbour, left):
    with (
        contextlib.closing(Guest(num=256, buffer_size=512)) as guest,
        FrontEnd(cards.sockets[0]) as peer,
    ):
        peer.start(guest)
        guest.rx.post(200)
        guest.tx.send(b"x" * 60)
        guest.rx.wait_frames(1)
        cards.daemon.mark()
        guest.memory.truncate(left)
        for queue in guest.queues:
            queue.kick()
        peer.wait_for_close()
    assert_packets_move(neighbour)
    lines = cards.daemon.lines()
    assert sum(TRUNCATED in line for line in lines) == 1, lines
    assert any(f"region gpa={GPA:#x} size=0x100000: {TRUNCATED}" in line for line in lines)


def test_control_itself_may_be_the_one_that_touches_it(cards, neighbour):
    """Starting a ring looks into the guest's memory."""
    with contextlib.closing(Guest()) as guest, FrontEnd(cards.sockets[0]) as peer:
        peer.negotiate().share(guest)
        guest.memory.truncate(0)
        peer.start_ring(guest.rx)
        peer.wait_for_close()
    assert_packets_move(neighbour)


def test_a_hundred_times_under_traffic_leak_nothing(cards, neighbour):
    daemon = cards.daemon

    def held() -> tuple[int, int, int]:
        guests = sum("memfd:guest" in line for line in daemon.maps())
        return len(daemon.fds()), daemon.threads(), guests

    before, n_maps = held(), 0
    for number in range(100):
        with (
            contextlib.closing(Guest(num=256, buffer_size=512)) as guest,
            FrontEnd(cards.sockets[0]) as peer,
        ):
            peer.start(guest)
            post_much(guest)
            guest.tx.kick()
            if number % 3 == 0:  # the worker is well under way
                wait_signal(guest.tx.call)
            guest.memory.truncate((0, 4096, 0x4000)[number % 3])
            for queue in guest.queues:
                queue.kick()
            if number % 3 == 2:  # what is left may be all that the rings need: take that too
                guest.memory.truncate(0)
                guest.tx.kick()
            peer.wait_for_close()
        assert_packets_move(neighbour)
        if number == 10:
            n_maps = len(daemon.maps())
    wait_until(lambda: held() == before, "what was held before")
    assert len(daemon.maps()) < n_maps + 20
    with contextlib.closing(Guest()) as guest, FrontEnd(cards.sockets[0]) as peer:
        peer.start(guest)
        assert_packets_move(guest)


def test_a_dirty_log_that_is_cut_short_ends_the_session_too(cards, neighbour):
    log = os.memfd_create("log")
    try:
        os.ftruncate(log, 1 << 20)
        with contextlib.closing(Guest()) as guest, FrontEnd(cards.sockets[0]) as peer:
            protocol = 1 << vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD
            protocol |= 1 << vu.VHOST_USER_PROTOCOL_F_REPLY_ACK
            features = 1 << 30 | 1 << 32 | 1 << 26
            peer.negotiate(features, protocol).share(guest)
            peer.send(vu.VHOST_USER_SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [log])
            peer.reply_to(vu.VHOST_USER_SET_LOG_BASE)
            for queue in guest.queues:
                peer.start_ring(queue)
            os.ftruncate(log, 0)
            cards.daemon.mark()
            guest.rx.post(1)
            guest.tx.send(b"x" * 60)
            peer.wait_for_close()
    finally:
        os.close(log)
    assert any(f"dirty log: {TRUNCATED}" in line for line in cards.daemon.lines())
    assert_packets_move(neighbour)


def test_a_frame_that_the_kernel_can_not_read_is_a_counted_drop(instance):
    """writev() says EFAULT for pages beyond the file's end: no signal, and no second try."""
    pair = instance(start=False)
    frames = Memory(0x10000, GPA + (1 << 30), UVA + (1 << 30))
    both = MemoryTable(
        [pair.memory.region(), map_region(frames.gpa, frames.size, frames.uva, 0, frames.fd)]
    )
    try:
        pair.net.set_mem_table(both)
        pair.start()
        header = pair.memory.alloc(COPIED_FRAME)  # with a frame behind it
        pair.memory.write(header, bytes(pair.hdr_len))
        os.ftruncate(frames.fd, 0)
        for _ in range(3):
            pair.tx.set_desc(0, header, pair.hdr_len, NEXT, 1)
            pair.tx.set_desc(1, frames.gpa, COPIED_FRAME, 0, 0)
            pair.tx.offer(0)
            pair.kick(1)
        assert pair.tx.used_idx() == 3
        assert pair.counter(1, "drop_refused") == 3
        assert pair.sent() == []
        pair.tx.set_desc(1, header, COPIED_FRAME, 0, 0)
        pair.tx.offer(0)
        pair.kick(1)
        assert len(pair.sent()) == 1
    finally:
        pair.net.reset_owner()
        both.release()
        frames.close()

"""Two front-ends whose cards are joined: what one does to the daemon is not felt by the other."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import pytest

from driver_ring import Memory
from front_end import FrontEnd, Guest
from serve_process import TALKATIVE, ServeProcess, wait_until
from vhostnet.uapi import vhost_user as vu

MOST_TURNS = 200


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("ports")
    options = []
    for name in ("a", "b"):
        options += ["--device", f"socket={folder / name},backend=port:x"]
    process = ServeProcess(folder, *options, program=TALKATIVE)
    process.sockets = [str(folder / name) for name in ("a", "b")]  # type: ignore[attr-defined]
    try:
        yield process
        process.check_and_stop()
    finally:
        process.kill()


@pytest.fixture
def sockets(daemon: ServeProcess) -> list[str]:
    daemon.mark()
    found: list[str] = daemon.sockets  # type: ignore[attr-defined]
    return found


@pytest.fixture
def good(sockets: list[str]) -> Iterator[Guest]:
    """The guest that behaves."""
    with contextlib.closing(Guest()) as guest, FrontEnd(sockets[0]) as peer:
        peer.start(guest)
        yield guest


def assert_packets_move(one: Guest, other: Guest) -> None:
    for sender, receiver in ((one, other), (other, one)):
        for number in range(3):
            frame = bytes([number]) * 60
            receiver.rx.post(1)
            sender.tx.send(frame)
            assert receiver.rx.wait_frames(1) == [frame]
            sender.tx.wait_used(1)


def assert_works_with_another(sockets: list[str], good: Guest) -> None:
    with contextlib.closing(Guest()) as guest, FrontEnd(sockets[1]) as peer:
        peer.start(guest)
        assert_packets_move(good, guest)
        peer.stop_ring(guest.rx)
        peer.stop_ring(guest.tx)


def test_a_partner_that_comes_and_goes(sockets, good):
    for _ in range(10):
        assert_works_with_another(sockets, good)
        good.tx.send(*[b"nobody".ljust(60)] * 10)
        good.tx.wait_used(10)


def test_a_partner_that_hangs_up_in_the_middle(sockets, good):
    for _ in range(10):
        with contextlib.closing(Guest()) as guest, FrontEnd(sockets[1]) as peer:
            peer.start(guest)
            guest.rx.post(8)
            good.tx.send(*[b"x" * 100] * 8)
            guest.tx.send(*[b"y" * 100] * 8)
        good.tx.wait_used(8)
    assert_works_with_another(sockets, good)


@pytest.mark.parametrize("size", [0, 0x3000], ids=["whole", "in part"])
def test_a_partner_whose_memory_file_is_cut_short_under_traffic(daemon, sockets, good, size):
    with contextlib.closing(Guest()) as guest, FrontEnd(sockets[1]) as peer:
        peer.start(guest)
        guest.rx.post(16)
        guest.memory.truncate(size)
        for _ in range(4):
            good.tx.send(*[b"x" * 1000] * 4)
            good.tx.wait_used(4)
        if size == 0:  # the rings themselves: something of them was touched
            peer.wait_for_close()
            wait_until(lambda: "its memory file was truncated" in daemon.log(), "the reason")
        guest.memory.truncate(guest.memory.size)
    assert_works_with_another(sockets, good)


@pytest.mark.parametrize("seed", range(6))
def test_a_partner_that_scribbles_over_its_rings(sockets, good, seed):
    dice = random.Random(seed)
    with contextlib.closing(Guest(num=16)) as guest, FrontEnd(sockets[1]) as peer:
        peer.start(guest)
        guest.rx.post(16)
        good.rx.post(16)
        rings = [(q.ring.desc, 16 * 16) for q in guest.queues]
        rings += [(q.ring.avail, 4 + 2 * 16) for q in guest.queues]
        rings += [(q.ring.used, 4 + 8 * 16) for q in guest.queues]
        for _ in range(MOST_TURNS):
            at, size = dice.choice(rings)
            offset = dice.randrange(size)
            guest.memory.write(at + offset, dice.randbytes(dice.randint(1, min(8, size - offset))))
            if dice.random() < 0.5:
                guest.memory.write(guest.tx.ring.avail + 2, dice.randbytes(1))
            guest.tx.kick()
            guest.rx.kick()
            good.tx.send(b"z" * 200)
            good.tx.wait_used(1)
        peer.stop_ring(guest.rx)
        peer.stop_ring(guest.tx)
    # what came out of it has taken some of the good one's buffers: it offers others
    taken = len(good.rx.ring.collect())
    assert taken <= 16
    with contextlib.closing(Guest()) as guest, FrontEnd(sockets[1]) as peer:
        peer.start(guest)
        guest.tx.send(*[b"w" * 60] * (16 - taken))
        assert good.rx.wait_frames(16 - taken) == [b"w" * 60] * (16 - taken)
    assert_works_with_another(sockets, good)


def test_both_may_share_one_memory(sockets):
    """Two front-ends that conspire: each packet's source is its destination."""
    memory = Memory()
    a, b = Guest(), Guest()
    for guest in (a, b):
        guest.memory.close()
        guest.memory = memory
    b_rx, a_tx = b.queues[0], a.queues[1]
    for queue in (*a.queues, *b.queues):
        queue.ring.memory = memory
    with FrontEnd(sockets[0]) as first, FrontEnd(sockets[1]) as second:
        # a's TX ring and b's RX ring are not the same, but what they describe is
        second.negotiate().share(b)
        first.negotiate().share(a)
        shift = 0x20000
        for queue in b.queues:
            ring = queue.ring
            ring.desc, ring.avail, ring.used = (
                ring.desc + shift,
                ring.avail + shift,
                ring.used + shift,
            )
            queue.buffers = [at + 5 for at in a_tx.buffers]
        for queue in a.queues:
            first.start_ring(queue)
        for queue in b.queues:
            second.start_ring(queue)
        b_rx.post(8)
        a_tx.send(*[b"q" * 300] * 8)
        a_tx.wait_used(8)
        b_rx.wait_used(8)
        assert second.number(vu.VHOST_USER_GET_FEATURES)
    for queue in (*a.queues, *b.queues):
        queue.close()
    memory.close()
    assert os.path.exists(sockets[0])

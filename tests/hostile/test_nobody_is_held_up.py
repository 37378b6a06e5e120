"""Guests and front-ends that keep the device busy or waiting: control is still answered.

One thread of the daemon serves the control of all its devices, and stops a worker before it
touches a ring.  So whatever can keep that thread or a worker for ever stops every guest.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from driver_ring import GPA, INDIRECT, NEXT, WRITE
from front_end import FrontEnd, Guest, Queue, table, u64, wait_signal
from serve_process import ServeProcess, wait_until
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi import vhost_user as vu


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServeProcess]:
    """A daemon of the test's own; it must end as an operator wants it to."""
    process = ServeProcess(tmp_path, "--backend", getattr(request, "param", "null"))
    try:
        yield process
        process.check_and_stop()
    finally:
        process.kill()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has opened, after the daemon has ended or failed to."""
    with ExitStack() as things:
        yield things


def assert_control_is_answered(peer: FrontEnd, guest: Guest) -> None:
    """Stopping both rings needs the control thread and the worker."""
    assert peer.number(vu.VHOST_USER_GET_FEATURES)
    for queue in guest.queues:
        peer.stop_ring(queue)


# --- descriptors that would make a writer wait ------------------------------------------------


def _full_eventfd(stack: ExitStack) -> int:
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    os.eventfd_write(fd, (1 << 64) - 2)
    return fd


def _fill(fd: int) -> None:
    """Write until it would wait; leave the descriptor as a peer may give it: blocking."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(8))
    os.set_blocking(fd, True)


def _full_pipe(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    _fill(writer)
    return writer


def _full_socket(stack: ExitStack) -> int:
    ends = socket.socketpair()
    for end in ends:
        stack.enter_context(end)
    _fill(ends[0].fileno())
    return ends[0].fileno()


FULL = {"eventfd": _full_eventfd, "pipe": _full_pipe, "socket": _full_socket}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_call_descriptor_does_not_stop_control(daemon, stack, kind):
    guest = stack.enter_context(contextlib.closing(Guest()))
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    peer.tell(vu.VHOST_USER_SET_VRING_CALL, u64(1), [FULL[kind](stack)])
    assert_control_is_answered(peer, guest)


@pytest.mark.parametrize("kind", FULL)
def test_a_full_call_descriptor_does_not_stop_the_worker(daemon, stack, kind):
    guest = stack.enter_context(contextlib.closing(Guest()))
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    call = FULL[kind](stack)
    if kind == "eventfd":  # the signal that control sends first must find room
        os.eventfd_read(call)
    peer.tell(vu.VHOST_USER_SET_VRING_CALL, u64(1), [call])
    if kind == "eventfd":
        if select.select([call], [], [], 0)[0]:
            os.eventfd_read(call)
        os.eventfd_write(call, (1 << 64) - 2)
    guest.tx.send(b"x" * 60)
    wait_until(lambda: guest.tx.ring.used_idx() == 1, "the packet is sent")
    assert_control_is_answered(peer, guest)


@pytest.mark.parametrize("kind", FULL)
def test_a_full_err_descriptor_does_not_stop_the_worker(daemon, stack, kind):
    guest = stack.enter_context(contextlib.closing(Guest()))
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    peer.tell(vu.VHOST_USER_SET_VRING_ERR, u64(1), [FULL[kind](stack)])
    guest.tx.ring.offer(guest.tx.ring.num)  # no such descriptor
    guest.tx.kick()
    wait_until(lambda: "ring is broken" in daemon.log(), "a line about the broken ring")
    assert_control_is_answered(peer, guest)


def test_a_kick_that_somebody_else_takes_does_not_stop_the_worker(daemon, stack):
    guest = stack.enter_context(contextlib.closing(Guest()))
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    reader, writer = os.pipe()
    for fd in (reader, writer):
        stack.callback(os.close, fd)
    peer.tell(vu.VHOST_USER_SET_VRING_KICK, u64(1), [reader])
    os.set_blocking(writer, False)
    thief = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, thief)
    for _ in range(3000):
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes(8))
            os.read(thief, 8)
    assert_control_is_answered(peer, guest)


# --- rings without an end ---------------------------------------------------------------------

# The interpreter is a thousand times slower; so long as a run of it takes, so long it may take.
LARGE = 32768 if JIT_ENABLED else 512


def _large_ring(guest: Guest) -> Queue:
    """A receive ring of LARGE entries; all entries of its avail ring are 0 and name chain 0."""
    queue = Queue(guest.memory, 0, LARGE, 0)
    guest.queues[0].close()
    guest.queues[0] = guest.rx = queue
    return queue


class EndlessRing:
    """A driver that posts the same chain again and again, before the device is through.

    It watches used entries appear; each half of the ring that is done with is offered again.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        # What was published each time that a half was done with.
        self.published: list[int] = []
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._refill)

    def _refill(self) -> None:
        ring, half = self.queue.ring, LARGE // 2
        unseen = b"\xff" * 4
        ends = [ring.used + 4 + 8 * (k * half - 1) for k in (1, 2)]
        for end in ends:
            ring.memory.write(end, unseen)
        idx, k = LARGE, 0
        ring.memory.write(ring.avail + 2, struct.pack("<H", idx & 0xFFFF))
        self.queue.kick()
        while not self._is_ended.is_set():
            if ring.memory.read(ends[k], 4) != unseen:
                ring.memory.write(ends[k], unseen)
                idx, k = idx + half, 1 - k
                ring.memory.write(ring.avail + 2, struct.pack("<H", idx & 0xFFFF))
                self.queue.kick()
                self.published.append(ring.used_idx())

    def __enter__(self) -> EndlessRing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join()


@pytest.mark.parametrize("daemon", ["gen:size=64"], indirect=True)
@pytest.mark.parametrize("useless", ["readable", "empty"])
def test_a_driver_that_never_stops_posting_useless_buffers_does_not_hold_the_worker(
    daemon, stack, useless
):
    guest = stack.enter_context(contextlib.closing(Guest(size=4 << 20)))
    queue = _large_ring(guest)
    flags, length = (0, 60) if useless == "readable" else (WRITE, 0)
    queue.ring.set_desc(0, guest.tx.buffers[0], length, flags, 0)
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    with EndlessRing(queue) as endless:
        wait_until(lambda: len(endless.published) >= 20, "20 halves of the ring done with")
        published = endless.published[:20]
        assert_control_is_answered(peer, guest)
    # A run of the handler that had no end would have published nothing until its end.
    assert sum(one != other for one, other in pairwise(published)) > 5


@pytest.mark.parametrize("daemon", ["gen:size=1000"], indirect=True)
def test_receive_chains_of_nothing_but_length_do_not_hold_the_worker(daemon, stack):
    """Each packet takes a thousand chains, and each of these has 32768 descriptors."""
    guest = stack.enter_context(contextlib.closing(Guest(size=4 << 20)))
    queue = _large_ring(guest)
    for k in range(LARGE - 1):
        queue.ring.set_desc(k, GPA, 0, WRITE | NEXT, k + 1)
    queue.ring.set_desc(LARGE - 1, guest.tx.buffers[0], 1, WRITE, 0)
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    queue.ring.memory.write(queue.ring.avail + 2, struct.pack("<H", LARGE))
    queue.kick()
    time.sleep(0.1)  # the worker begins
    assert_control_is_answered(peer, guest)


def test_indirect_tables_of_nothing_but_length_do_not_hold_the_worker(daemon, stack):
    """A chain of 256 tables, each of 65536 empty buffers, and 256 such chains."""
    n, n_entries = 256, 65536
    guest = stack.enter_context(contextlib.closing(Guest(n, size=4 << 20)))
    at = guest.memory.alloc(16 * n_entries)
    empty, last = (struct.pack("<QIHH", GPA, 0, flags, 0) for flags in (NEXT, 0))
    guest.memory.write(at, empty * (n_entries - 1) + last)
    peer = stack.enter_context(FrontEnd(daemon.socket)).start(guest)
    for k in range(n):
        flags = INDIRECT | (NEXT if k < n - 1 else 0)
        guest.tx.ring.set_desc(k, at, 16 * n_entries, flags, k + 1)
    guest.tx.ring.offer(*[0] * n)
    guest.tx.kick()
    time.sleep(0.1)  # the worker begins
    assert_control_is_answered(peer, guest)


# --- the log ----------------------------------------------------------------------------------


def _mtu(daemon: ServeProcess, guest: Guest) -> None:
    """The same legal message again and again."""
    with FrontEnd(daemon.socket) as peer:
        peer.start(guest)
        for n in range(1000):
            peer.tell(vu.VHOST_USER_NET_SET_MTU, u64(1400 + n % 2))


def _reconnect(daemon: ServeProcess, guest: Guest) -> None:
    for _ in range(200):
        guest.reset()
        with FrontEnd(daemon.socket) as peer:
            peer.start(guest)
            guest.tx.send(b"x" * 60)
            guest.tx.wait_used(1)


def _lose_memory(daemon: ServeProcess, guest: Guest) -> None:
    with FrontEnd(daemon.socket) as peer:
        peer.start(guest)
        for _ in range(300):
            peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table())
            peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table(guest.region()), [guest.memory.fd])


def _break_the_ring_in_turns(daemon: ServeProcess, guest: Guest) -> None:
    ring = guest.tx.ring
    with FrontEnd(daemon.socket) as peer:
        peer.start(guest)
        ring.set_desc(0, GPA, 60, NEXT, ring.num)
        ring.offer(0)
        for n in range(500):
            head = (ring.num, 0)[n % 2]
            guest.memory.write(ring.avail + 4, struct.pack("<H", head))
            guest.tx.kick()
            wait_signal(guest.tx.err)


@pytest.mark.parametrize(
    "flood", [_mtu, _reconnect, _lose_memory, _break_the_ring_in_turns], ids=lambda f: f.__name__
)
def test_what_a_peer_does_again_and_again_does_not_fill_the_log(daemon, stack, flood):
    guest = stack.enter_context(contextlib.closing(Guest()))
    daemon.mark()
    flood(daemon, guest)
    assert len(daemon.lines()) < 150

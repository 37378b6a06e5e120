"""A front-end may vanish at any byte: nothing of it stays behind, and the next one is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conversation import Step, play, send_only, there_and_back, whole_conversation

from driver_ring import GPA, UVA
from front_end import HEADER_SIZE, PROTOCOL_FEATURES, FrontEnd, Guest, region, table, u64
from serve_process import ServeProcess
from vhostnet.uapi import vhost_user as vu

# Kilobytes that the allocator may keep; a leaked guest (1 MiB each) or session is far more.
RSS_SLACK_KIB = 4096
MAPS_SLACK = 4
WARM_UP = 60


@dataclass
class Bench:
    """A daemon, a guest, and what the daemon held before anything was cut."""

    daemon: ServeProcess
    guest: Guest
    move_packets: Callable[[Guest], None]

    def steps(self, by_slots: bool) -> Iterator[Step]:
        self.guest.reset()
        return whole_conversation(self.guest, by_slots, self.move_packets)

    def converse(self, by_slots: bool) -> list[bytes]:
        """A whole conversation with packets; returns its messages."""
        said = []
        with FrontEnd(self.daemon.socket) as front_end:
            for step in self.steps(by_slots):
                play(front_end, step)
                said.append(step.data)
        return said

    def cut(self, by_slots: bool, n_whole: int, n_bytes: int) -> None:
        """Vanish after so many whole messages and bytes of the next, replies to it unread."""
        steps = self.steps(by_slots)
        with FrontEnd(self.daemon.socket) as front_end:
            for _ in range(n_whole):
                play(front_end, next(steps))
            last = next(steps)
            front_end.send_bytes(last.data[:n_bytes], last.fds)


@pytest.fixture(scope="module", params=["null", "loop"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("cut")
    guest = Guest()
    daemon = ServeProcess(folder, "--backend", request.param)
    try:
        yield Bench(daemon, guest, there_and_back if request.param == "loop" else send_only)
        daemon.check_and_stop()
    finally:
        daemon.kill()
        guest.close()


def places_to_cut(data: bytes) -> list[int]:
    """Within the header, between header and payload, within the payload, after it."""
    places = {1, HEADER_SIZE - 1, HEADER_SIZE, (HEADER_SIZE + len(data)) // 2, len(data)}
    return sorted(places)


@pytest.mark.parametrize("by_slots", [False, True], ids=["mem-table", "mem-slots"])
def test_a_conversation_that_is_cut_anywhere_leaves_nothing_behind(bench: Bench, by_slots: bool):
    for _ in range(WARM_UP):
        messages = bench.converse(by_slots)
    bench.daemon.wait_idle()
    threads, maps, rss = bench.daemon.threads(), bench.daemon.maps(), bench.daemon.rss_kib()
    n_cut = 0
    for n_whole, data in enumerate(messages):
        for n_bytes in places_to_cut(data):
            bench.cut(by_slots, n_whole, n_bytes)
            n_cut += 1
    assert n_cut >= 250, "four of these make a thousand"
    bench.daemon.wait_idle()
    assert bench.converse(by_slots) == messages
    bench.daemon.wait_idle()
    assert bench.daemon.threads() == threads
    assert [line for line in bench.daemon.maps() if "memfd:guest" in line] == []
    assert len(bench.daemon.maps()) <= len(maps) + MAPS_SLACK
    assert bench.daemon.rss_kib() - rss < RSS_SLACK_KIB


def test_a_front_end_that_takes_its_time_with_every_byte_is_understood(bench: Bench):
    with FrontEnd(bench.daemon.socket) as front_end:
        for step in bench.steps(by_slots=True):
            front_end.send_bytes(step.data[:1], step.fds)
            for at in range(1, len(step.data)):
                front_end.send_bytes(step.data[at : at + 1])
            if step.is_answered:
                front_end.reply_to(step.number)
    bench.daemon.wait_idle()


def test_front_ends_that_connect_and_say_nothing_leave_nothing_behind(bench: Bench):
    for _ in range(100):
        FrontEnd(bench.daemon.socket).close()
    bench.daemon.wait_idle()
    bench.converse(by_slots=False)


def test_messages_that_are_repeated_keep_nothing(bench: Bench):
    """Each replaces what the one before it brought (CVE-2019-14818, CVE-2022-0669)."""
    guest, n = bench.guest, 150
    guest.reset()
    elsewhere = region(GPA + (1 << 32), guest.memory.size, UVA + (1 << 32))
    one, other = table(guest.region()), table(guest.region(), elsewhere)
    single = bytes(8) + elsewhere
    memory = guest.memory.fd
    with FrontEnd(bench.daemon.socket) as peer:
        peer.start(guest, PROTOCOL_FEATURES | 1 << vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD)
        fds, rss = [], []
        for turn in range(4):
            for _ in range(n if turn else 40):  # the first turn warms up
                peer.tell(vu.VHOST_USER_SET_MEM_TABLE, other, [memory, memory])
                peer.tell(vu.VHOST_USER_SET_MEM_TABLE, one, [memory])
                peer.tell(vu.VHOST_USER_ADD_MEM_REG, single, [memory])
                peer.tell(vu.VHOST_USER_REM_MEM_REG, single, [memory])
                peer.send(vu.VHOST_USER_SET_LOG_BASE, vu.LOG.pack(vu.Log(4096, 0)), [memory])
                peer.reply_to(vu.VHOST_USER_SET_LOG_BASE)
                for queue in guest.queues:
                    index = u64(queue.index)
                    peer.tell(vu.VHOST_USER_SET_VRING_KICK, index, [queue.kick_fd])
                    peer.tell(vu.VHOST_USER_SET_VRING_CALL, index, [queue.call])
                    peer.tell(vu.VHOST_USER_SET_VRING_ERR, index, [queue.err])
            fds.append(bench.daemon.fds())
            rss.append(bench.daemon.rss_kib())
        assert fds[1:] == fds[:-1]
        assert rss[-1] - rss[0] < RSS_SLACK_KIB
        bench.move_packets(guest)
    bench.daemon.wait_idle()

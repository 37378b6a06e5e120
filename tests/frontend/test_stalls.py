"""Stalls made on purpose, each explained; and no alarm for cards that are idle or busy."""

from __future__ import annotations

import inspect
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from beds import SocketTap, frame, in_process, mem_table

from driver_ring import GPA, UVA
from instance import MRG, RX, TX, V1, Instance, OneCard
from vhostnet import events
from vhostnet.datapath.layout import WORK_TX_KICK
from vhostnet.datapath.work import work_queue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import RemoteOwner
from vhostnet.observe.stalls import CAUSES
from vhostnet.observe.watchdog import Watchdog
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, mask
from vhostnet_frontend import DEFAULT_FEATURES, NetDriver
from vhostnet_frontend.ring import Buffer

FULL = 0xFFFF_FFFF_FFFF_FFFE  # of an eventfd
HDR = bytes(12)


class Observer:
    """A watchdog whose seconds pass when the test says so, and the events that it tells."""

    def __init__(self, net: VhostNet) -> None:
        self.now = 0.0
        self.dog = Watchdog(lambda: [OneCard(net)], lambda: self.now)
        self.told: list[events.Event] = []
        self.stop = events.listen(self.told.append)

    def check(self) -> None:
        self.now += 1.0
        self.dog.check()

    def stalls(self) -> list[tuple[str, str]]:
        return [
            (event.data["queue"], event.data["cause"])
            for event in self.told
            if event.name == "VRING_STALLED"
        ]

    def ends(self) -> list[tuple[str, bool]]:
        return [
            (event.data["queue"], event.data["moves"])
            for event in self.told
            if event.name == "VRING_MOVES"
        ]


class Card:
    """Our driver half on our device, a socket for a TAP, and the watchdog."""

    def __init__(self, features: int) -> None:
        self.tap = SocketTap()
        self.net = VhostNet("card")
        self.transport = in_process(self.tap.queue, self.net)
        self._features = features
        self.observer = Observer(self.net)
        self.spare = os.eventfd(0, os.EFD_NONBLOCK)
        self.driver: Any = None
        self._lost: list[tuple[Any, int]] = []

    def start(self, *, post_rx: bool = True, **options: Any) -> NetDriver:
        self.driver = NetDriver(self.transport, features=self._features, **options)
        self.tap.queue.record[0]["tap_hdr_len"] = self.driver.hdr_len
        self.driver.start(post_rx=post_rx)
        self.transport.flush()
        return self.driver

    def arrive(self, size: int = 60) -> None:
        self.tap.wire.send(HDR + frame(1, size))
        self.transport.flush()

    def send(self) -> None:
        self.driver.send(frame(1))
        self.transport.flush()

    def lose_kicks(self, queue: Any) -> Callable[[], None]:
        """The driver's kicks go nowhere from now on; returns what sends the next one again."""
        real, queue.kick_fd = queue.kick_fd, self.spare
        self._lost.append((queue, real))

        def mend() -> None:
            queue.kick_fd = real
            os.eventfd_write(real, 1)
            self.transport.flush()

        return mend

    def close(self) -> None:
        self.observer.stop()
        for queue, real in self._lost:
            queue.kick_fd = real
        if self.driver is not None:
            self.driver.close()
        self.tap.close()
        os.close(self.spare)


@pytest.fixture(params=[0, mask(VIRTIO_F_RING_PACKED)], ids=["split", "packed"])
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    made = Card(DEFAULT_FEATURES | request.param)
    yield made
    made.close()


def explained(card: Card, queue: str, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    """The stall that there is now is told, once, as this one."""
    assert cause in CAUSES
    for _ in range(5):
        card.observer.check()
    assert card.observer.stalls() == [(queue, cause)]
    lines = [r.message for r in caplog.records if r.name == "vhostnet.stall"]
    assert len(lines) == 1
    assert lines[0].startswith(f"card: {queue[:2]} is stalled: ")


def ended(card: Card, queue: str, *, moves: bool = True) -> None:
    """It is over now, and that is told once."""
    for _ in range(3):
        card.observer.check()
    assert card.observer.ends() == [(queue, moves)]


# --- the stalls --------------------------------------------------------------------------------


def test_a_lost_kick_of_a_sender(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start()
    mend = card.lose_kicks(driver.tx[0])
    card.send()
    explained(card, "tx0", "kick_lost", caplog)
    mend()
    ended(card, "tx0")


def test_a_lost_kick_of_a_receiver(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start(post_rx=False)
    card.arrive()
    queue = driver.rx[0]
    mend = card.lose_kicks(queue)
    gpa = driver.memory.alloc(2048, 64)
    queue.ring.add([Buffer(gpa, 2048, True)], gpa)
    queue.kick()
    explained(card, "rx0", "kick_lost", caplog)
    mend()
    ended(card, "rx0")


def test_a_front_end_that_gives_no_kick(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    card.transport.set_vring_kick(TX, None)
    card.send()
    explained(card, "tx0", "no_kick", caplog)


def test_a_guest_that_posts_no_buffers(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start(post_rx=False)
    card.arrive()
    explained(card, "rx0", "no_buffers", caplog)
    gpa = driver.memory.alloc(2048, 64)
    driver.rx[0].ring.add([Buffer(gpa, 2048, True)], gpa)
    driver.rx[0].kick()
    card.transport.flush()
    ended(card, "rx0")


def test_a_guest_that_posts_too_few_buffers(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start(num=4, rx_size=64)
    card.arrive(1000)
    explained(card, "rx0", "too_few_buffers", caplog)
    assert "a packet of 1012 bytes" in caplog.text


def test_a_full_backend(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start(num=256)
    for k in range(250):
        driver.send(frame(k, 2000))
    card.transport.flush()
    explained(card, "tx0", "backend_full", caplog)
    sent = 0
    while len(card.tap.sent()) > 0 or sent < 3:  # it is read again, until nothing comes
        card.transport.flush()
        sent += 1
    card.observer.check()
    ended(card, "tx0")


def test_a_broken_ring(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start()
    driver.tx[0].ring.add([Buffer(1 << 40, 60)], None)
    driver.tx[0].kick()
    card.transport.flush()
    explained(card, "tx0", "ring_broken", caplog)
    assert "a descriptor's buffer is not in the guest's memory" in caplog.text


def test_a_full_call_descriptor(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver = card.start()
    os.eventfd_write(driver.tx[0].call_fd, FULL)
    explained(card, "tx0", "call_full", caplog)
    os.eventfd_read(driver.tx[0].call_fd)
    ended(card, "tx0", moves=False)


def test_a_front_end_that_has_gone(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    card.observer.check()
    card.net.reset_owner()
    card.tap.wire.send(HDR + frame(1))
    # what the character device's doors keep of a file that has no owner
    card.observer.dog = Watchdog(lambda: [_Own(card)], lambda: card.observer.now)
    explained(card, "rx0", "front_end_gone", caplog)


class _Own(OneCard):
    """As a card of `vhostnet serve`: the backend stays when the front-end goes."""

    def __init__(self, card: Card) -> None:
        super().__init__(card.net)
        self.backend = self  # type: ignore[assignment]
        self.queues = [card.tap.queue]


def test_a_ring_that_was_stopped_alone(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    card.transport.set_backend(RX, None)
    card.tap.wire.send(HDR + frame(1))
    explained(card, "rx0", "ring_stopped", caplog)


def test_a_backend_that_says_nothing(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    assert card.net.worker is not None
    card.net.worker.unwatch(card.tap.queue.poll_fd)
    card.arrive()
    explained(card, "rx0", "wakeup_lost", caplog)


def test_everything_that_is_sent_is_dropped(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    card.tap.wire.shutdown(socket.SHUT_RD)
    for _ in range(4):
        card.send()
        card.observer.check()
    assert card.observer.stalls() == [("tx0", "all_dropped")]
    assert "every packet that the guest sends is dropped: the backend refuses them" in caplog.text
    for _ in range(5):  # a pause is no end
        card.observer.check()
    assert card.observer.ends() == []


def test_a_bug_of_ours(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.start()
    assert card.net.worker is not None

    def raises() -> int:
        raise ZeroDivisionError("on purpose")

    card.net.worker._run = raises
    card.transport.flush()
    for _ in range(3):
        card.observer.check()
    assert set(card.observer.stalls()) == {("rx0", "worker_failed"), ("tx0", "worker_failed")}
    assert "the data path raised" in caplog.text


def test_a_worker_that_does_not_come_back(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    driver, worker = card.start(), card.net.worker
    assert worker is not None
    stuck, released = threading.Event(), threading.Event()
    run = worker._run

    def hangs() -> int | None:
        work_queue(worker.record[0], WORK_TX_KICK)  # as of a kick that it has taken
        stuck.set()
        released.wait(60.0)
        return run()

    with worker.quiesced():
        worker._run = hangs
    assert stuck.wait(60.0)
    driver.send(frame(1))
    explained(card, "tx0", "worker_stuck", caplog)
    worker._run = run
    released.set()
    card.transport.flush()
    ended(card, "tx0")


def test_every_cause_is_made_on_purpose() -> None:
    here = Path(__file__)
    others = (here.parents[1] / "unit" / "backends" / "test_tap.py",)  # a TAP that is deleted
    text = "".join(path.read_text() for path in (here, *others))
    text = text.replace(inspect.getsource(test_every_cause_is_made_on_purpose), "")
    reasons = {"backend_gone": "tx is stalled: the backend was deleted"}
    assert len(CAUSES) >= 10
    assert [c for c in CAUSES if f'"{c}"' not in text and reasons.get(c, "?") not in text] == []


def test_an_address_that_the_front_end_does_not_tell(caplog: pytest.LogCaptureFixture) -> None:
    pair = Instance(features=MRG | V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    observer = Observer(pair.net)
    pair.net.iotlb_update(UVA, 0x4000, UVA, 3)  # the rings, and no buffer
    pair.start()
    pair.tx.send(HDR + frame(1))
    pair.kick(TX)
    for _ in range(3):
        observer.check()
    assert observer.stalls() == [("tx0", "iotlb_miss")]
    at = pair.net.misses[TX]
    assert f"{at:#x}" in caplog.text
    pair.net.iotlb_update(GPA, 1 << 20, UVA, 3)
    pair.flush()
    assert len(pair.sent()) == 1
    observer.check()
    assert observer.ends() == [("tx0", True)]
    observer.stop()
    pair.close()


def test_a_lost_kick_in_memory_that_only_its_owner_has() -> None:
    pair = Instance()
    pair.put_out_of_reach(batched=True)
    pair.start()
    observer = Observer(pair.net)
    pair.tx.send(HDR + frame(1))
    for _ in range(3):
        observer.check()
    assert observer.stalls() == [("tx0", "kick_lost")]
    observer.stop()
    pair.close()


def test_a_lost_kick_of_a_packed_ring_that_only_its_owner_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Card(DEFAULT_FEATURES | mask(VIRTIO_F_RING_PACKED))
    driver = made.start()
    driver.stop()
    with open("/proc/self/mem", "r+b") as memory:
        table = mem_table(driver.memory.regions)
        made.net.set_remote(RemoteOwner(os.getpid(), memory.fileno(), False), table, table)
        driver.start()
        made.transport.flush()
        mend = made.lose_kicks(driver.tx[0])
        made.observer.told.clear()
        for _ in range(3):
            made.observer.check()
        assert made.observer.told == []
        made.send()
        explained(made, "tx0", "kick_lost", caplog)
        mend()
        ended(made, "tx0")
        made.close()
        table.release()


def test_a_stall_whose_cause_changes_is_told_again(card: Card) -> None:
    driver = card.start(post_rx=False)
    card.arrive()
    for _ in range(3):
        card.observer.check()
    card.lose_kicks(driver.rx[0])
    gpa = driver.memory.alloc(2048, 64)
    driver.rx[0].ring.add([Buffer(gpa, 2048, True)], gpa)
    driver.rx[0].kick()
    for _ in range(3):
        card.observer.check()
    assert card.observer.stalls() == [("rx0", "no_buffers"), ("rx0", "kick_lost")]


# --- no alarm ----------------------------------------------------------------------------------


def quiet(card: Card) -> None:
    assert card.observer.told == []


def test_no_alarm_before_there_is_a_driver(card: Card) -> None:
    card.tap.wire.send(HDR + frame(1))
    for _ in range(5):
        card.observer.check()
    quiet(card)


def test_no_alarm_for_an_idle_card(card: Card) -> None:
    card.start()
    card.observer.told.clear()
    for _ in range(5):
        card.observer.check()
    quiet(card)


def test_no_alarm_for_a_busy_card(card: Card) -> None:
    driver = card.start()
    card.observer.told.clear()
    for _ in range(8):
        card.send()
        card.arrive()
        assert driver.receive(timeout=60.0) is not None
        card.observer.check()
    quiet(card)


def test_no_alarm_for_a_packet_that_waits_for_a_moment(card: Card) -> None:
    """At any look something may be on its way: only two in a row are a stall."""
    driver = card.start()
    card.observer.told.clear()
    for _ in range(5):
        mend = card.lose_kicks(driver.tx[0])
        card.send()
        card.observer.check()  # between the chain and its kick
        mend()
    quiet(card)


def test_no_alarm_for_drops_among_others(card: Card) -> None:
    driver = card.start()
    card.observer.told.clear()
    for _ in range(6):
        driver.send(b"")  # nothing behind the header
        card.send()
        card.observer.check()
    quiet(card)


def test_no_alarm_for_a_card_that_was_stopped_as_a_whole(card: Card) -> None:
    card.start()
    card.driver.stop()
    card.tap.wire.send(HDR + frame(1))
    card.observer.told.clear()
    for _ in range(5):
        card.observer.check()
    quiet(card)


def test_the_watchdog_goes_on_until_it_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    due: list[Callable[[], None]] = []
    looks = []
    dog = Watchdog(lambda: looks.append(1) or [])  # type: ignore[func-returns-value]
    end = dog.run(lambda _seconds, fn: due.append(fn))
    for _ in range(3):
        due.pop()()
    assert len(looks) == 3
    end()
    due.pop()()
    assert (len(looks), due) == (3, [])

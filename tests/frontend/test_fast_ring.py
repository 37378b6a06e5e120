"""The compiled driver: its counts agree with the device's."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest
from beds import OFFERED, SocketTap, frame, in_process
from ring_models import PackedModel, SplitModel

from vhostnet.backends.memory_backends import GenBackend, LoopBackend, NullBackend
from vhostnet.datapath import catalogue
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, mask
from vhostnet_frontend import (
    Buffer,
    FastReceiver,
    FastSender,
    GuestMemory,
    NetDriver,
    PackedRing,
    SplitRing,
)
from vhostnet_frontend.memory_raw import smp_mb

COUNT = 50_000 if JIT_ENABLED else 300
MODEL_COUNT = 1000
FEATURES = {
    "event_idx": OFFERED,
    "flags": mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF),
    "legacy": 0,
}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """A device that is compiled while it is flooded would look like one that stalls."""
    if JIT_ENABLED:
        catalogue.warm(k for kind in ("null", "gen", "loop") for k in catalogue.kernels_for(kind))


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_what_the_sender_counts_is_what_the_device_counts(features: int) -> None:
    backend = NullBackend(1)
    backend.negotiate(12, features)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=features, num=256) as driver:
        driver.start()
        sender = driver.sender(frame(1, 200))
        counts = sender.run(count=COUNT)
        assert sender.finish()
        tx = transport.net.tx.counters()
        assert counts.frames == tx["packets"] == COUNT
        assert counts.bytes == tx["bytes"] == COUNT * (200 + driver.hdr_len)
        assert sender.counters()["completed"] == COUNT
        assert sender.counters()["bad_used"] == 0
        assert sender.in_flight == 0
        assert tx["ring_errors"] == 0
        # and the plain ring goes on where it stopped
        driver.send(frame(2))
        driver.flush()
        assert transport.net.tx.counters()["packets"] == COUNT + 1


def test_several_frames_are_sent_in_turns() -> None:
    tap = SocketTap()
    with NetDriver(in_process(tap.queue), num=16) as driver:
        driver.start()
        sender = driver.sender(frame(1), others=[frame(2), frame(3)])
        for count in (7, 2):
            sender.run(count=count)
        assert sender.finish()
        assert [packet[12:] for packet in tap.sent()] == [frame(k % 3 + 1) for k in range(9)]
    with NetDriver(in_process(tap.queue), num=16) as driver:
        driver.start()
        with pytest.raises(ValueError, match="one length"):
            driver.sender(frame(1), others=[frame(2, 61)])
    tap.close()


@pytest.mark.parametrize("size", [14, 20, 21, 52, 116, 117, 1514])
def test_frames_of_any_size_are_sent_byte_for_byte(size: int) -> None:
    tap = SocketTap()
    sent = [bytes((k * 7 + n) & 0xFF for k in range(size)) for n in range(3)]
    with NetDriver(in_process(tap.queue), num=16) as driver:
        driver.start()
        sender = driver.sender(sent[0], others=sent[1:])
        sender.run(count=40)  # each slot more than once
        assert sender.finish()
        assert [packet[12:] for packet in tap.sent()] == [sent[k % 3] for k in range(40)]
    tap.close()


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_what_the_receiver_counts_is_what_the_device_counts(features: int) -> None:
    backend = GenBackend(1, 300)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=features, num=256) as driver:
        backend.negotiate(driver.hdr_len, features)
        driver.start(post_rx=False)
        receiver = driver.receiver()
        counts = receiver.run(count=COUNT)
        assert counts.frames >= COUNT
        assert counts.bytes == counts.frames * (300 + driver.hdr_len)
        driver.stop()
        receiver.run(seconds=0)  # what was on its way
        rx = transport.net.rx.counters()
        assert receiver.counters()["frames"] == rx["packets"]
        assert receiver.counters()["bytes"] == rx["bytes"]
        assert receiver.counters()["bad_used"] == 0


def test_frames_in_several_buffers_are_counted_once() -> None:
    backend = GenBackend(1, 1000)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, num=64) as driver:
        backend.negotiate(driver.hdr_len, driver.features)
        driver.start(post_rx=False)
        receiver = driver.receiver(buffer_size=256)
        counts = receiver.run(count=COUNT // 10)
        assert counts.completed == 4 * counts.frames
        assert counts.bytes == counts.frames * 1012


def test_stamped_frames_come_back_in_sequence() -> None:
    n = min(COUNT, 20_000)  # the loop holds 4 MiB, and drops when it is full
    backend = LoopBackend(1)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, num=256) as driver:
        driver.start(post_rx=False)
        receiver = driver.receiver(stamped=True)
        sender = driver.sender(frame(0, 100), stamped=True)
        results = []
        thread = threading.Thread(target=lambda: results.append(receiver.run(count=n)))
        thread.start()
        sent = sender.run(count=n)
        assert sender.finish()
        thread.join()
        assert sent.frames == n
        assert results[0].frames == n == transport.net.rx.counters()["packets"]
        assert results[0].out_of_sequence == 0


def test_a_receiver_ends_at_its_deadline_when_nothing_comes() -> None:
    transport = in_process(NullBackend(1).queues[0])
    with NetDriver(transport) as driver:
        driver.start(post_rx=False)
        counts = driver.receiver().run(count=10, seconds=0.05)
        assert counts.frames == 0
        assert 0.04 < counts.seconds < 2


def test_a_fast_ring_wants_a_bound_and_an_empty_ring() -> None:
    transport = in_process(NullBackend(1).queues[0])
    with NetDriver(transport) as driver:
        driver.start()
        with pytest.raises(ValueError, match="in flight"):
            driver.receiver()
        sender = driver.sender(frame(1))
        with pytest.raises(ValueError, match="count or seconds"):
            sender.run()
        with pytest.raises(ValueError, match="stamped"):
            driver.sender(b"short", stamped=True)


# --- against the models, which also do what our device never does ------------------------------


class Bench:
    """A ring of one format, a model of its device, eventfds."""

    def __init__(self, format_: str, num: int, *, event_idx: bool, in_order: bool) -> None:
        self.memory = GuestMemory(1 << 20)
        self.ring: SplitRing | PackedRing
        self.model: SplitModel | PackedModel
        if format_ == "split":
            self.ring = SplitRing(self.memory, num, event_idx=event_idx, in_order=in_order)
            self.model = SplitModel(self.ring, event_idx=event_idx)
        else:
            self.ring = PackedRing(self.memory, num, event_idx=event_idx, in_order=in_order)
            self.model = PackedModel(self.ring, event_idx=event_idx)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK)

    def use(self, chain, length: int) -> None:
        if isinstance(self.model, PackedModel):
            self.model.put(chain.id, length, chain.n_descs)
        else:
            self.model.put(chain.id, length)

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)
        self.memory.close()


@pytest.fixture(
    params=[
        (format_, num, event_idx, in_order)
        for format_, num in (("split", 8), ("packed", 8), ("packed", 5))
        for event_idx in (False, True)
        for in_order in (False, True)
    ],
    ids=str,
)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    format_, num, event_idx, in_order = request.param
    made = Bench(format_, num, event_idx=event_idx, in_order=in_order)
    yield made
    made.close()


def test_the_sender_speaks_the_rings_language(bench: Bench) -> None:
    sender = FastSender(
        bench.ring, frame(3, 80), kick_fd=bench.kick_fd, call_fd=bench.call_fd, stamped=True
    )
    model, num, turn, seen = bench.model, bench.ring.num, 0, 0
    for turn in range(7):
        model.ask_for_kick()
        counts = sender.run(count=num, seconds=0.001)
        assert counts.frames == num
        assert counts.kicks == 1
        chains = [model.get() for _ in range(num)]
        assert model.get() is None
        for chain in chains:
            ((gpa, size, writable),) = chain.buffers
            data = bench.memory.read(gpa, size)
            assert (size, writable) == (92, False)
            assert data[:12] == bytes(12)
            assert int.from_bytes(data[26:34], "little") == seen
            assert data[34:] == frame(3, 80)[22:]
            seen += 1
        if bench.ring.in_order:
            model.put(chains[-1].id, 0, num)
        else:
            for chain in chains if turn % 2 else chains[::-1]:
                bench.use(chain, 0)
    assert sender.finish()
    assert sender.counters()["completed"] == seen == 7 * num
    assert sender.counters()["bad_used"] == 0
    # the plain ring takes over
    bench.ring.add([Buffer(1, 2)], "mine")
    bench.ring.publish()
    bench.use(model.get(), 0)
    assert [used.token for used in bench.ring.collect()] == ["mine"]
    sender.close()


def test_the_receiver_speaks_the_rings_language(bench: Bench) -> None:
    receiver = FastReceiver(
        bench.ring, kick_fd=bench.kick_fd, call_fd=bench.call_fd, buffer_size=128
    )
    model, num = bench.model, bench.ring.num
    for turn in range(7):
        chains = [model.get() for _ in range(num)]
        for k, chain in enumerate(chains):
            ((gpa, size, writable),) = chain.buffers
            assert (size, writable) == (128, True)
            # one packet of two buffers, the rest alone
            n_buffers = 2 if k == 0 else 1
            bench.memory.write(gpa, bytes(10) + n_buffers.to_bytes(2, "little") + frame(k))
            if not bench.ring.in_order:
                bench.use(chain, 72)
        if bench.ring.in_order:
            model.put(chains[-1].id, 72, num)
        counts = receiver.run(count=num - 1, seconds=0.5)
        assert counts.frames == num - 1, turn
        # of a batch, only the last length is told: the others are counted full
        lengths = 128 * (num - 1) + 72 if bench.ring.in_order else 72 * num
        assert counts.bytes == lengths
        assert counts.bad_used == 0
    assert receiver.in_flight == num
    receiver.close()


def test_a_device_that_returns_nonsense_is_counted_not_believed(bench: Bench) -> None:
    sender = FastSender(bench.ring, frame(3), kick_fd=bench.kick_fd, call_fd=bench.call_fd)
    sender.run(count=1, seconds=0.001)
    chain = bench.model.get()
    bench.model.put(60000, 0, 1)
    assert not sender.finish(0.01)
    assert sender.counters()["bad_used"] == 1
    bench.model.put(chain.id, 0, 1)
    # the entry of nonsense took its place in the ring
    sender.finish(0.01)
    assert sender.counters()["completed"] == 1
    sender.close()


def test_a_sender_sleeps_until_the_device_interrupts(bench: Bench) -> None:
    sender = FastSender(bench.ring, frame(3), kick_fd=bench.kick_fd, call_fd=bench.call_fd)
    sender.run(count=2, seconds=0.001)
    chains = [bench.model.get() for _ in range(2)]

    def answer() -> None:
        for chain in chains:
            bench.use(chain, 0)
        os.eventfd_write(bench.call_fd, 1)

    timer = threading.Timer(0.02, answer)
    timer.start()
    assert sender.finish()
    timer.join()
    assert sender.counters()["waits"] >= 1
    sender.close()


class ModelThread(threading.Thread):
    """The model as a device of its own: works, suppresses kicks, sleeps until it is kicked."""

    def __init__(self, bench: Bench, fill: bytes = b"") -> None:
        super().__init__(daemon=True)
        self.bench, self.fill = bench, fill
        self.limit: int | None = None if not fill else MODEL_COUNT
        self.frames: list[bytes] = []
        self.kicked = self.signalled = 0
        self.ends = False

    def _work(self) -> bool:
        model, memory = self.bench.model, self.bench.memory
        if self.limit is not None and len(self.frames) >= self.limit:
            return False
        chain = model.get()
        if chain is None:
            return False
        ((gpa, size, _),) = chain.buffers
        if self.fill:
            memory.write(gpa, self.fill)
        self.frames.append(memory.read(gpa, size))
        self.bench.use(chain, len(self.fill))
        smp_mb()
        if model.wants_signal():
            self.signalled += 1
            os.eventfd_write(self.bench.call_fd, 1)
        return True

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.bench.kick_fd, select.POLLIN)
        while not self.ends:
            self.bench.model.refuse_kicks()
            while self._work():
                pass
            self.bench.model.ask_for_kick()
            smp_mb()
            if self._work():
                continue
            if poll.poll(50):
                self.kicked += os.eventfd_read(self.bench.kick_fd)

    def stop(self) -> None:
        self.ends = True
        self.join()


def test_a_sender_and_a_device_on_another_processor_lose_nothing(bench: Bench) -> None:
    device = ModelThread(bench)
    device.start()
    sender = FastSender(
        bench.ring, frame(3, 80), kick_fd=bench.kick_fd, call_fd=bench.call_fd, stamped=True
    )
    counts = sender.run(count=MODEL_COUNT, seconds=60)
    assert sender.finish()
    device.stop()
    assert counts.frames == MODEL_COUNT
    stamps = [int.from_bytes(data[26:34], "little") for data in device.frames]
    assert stamps == list(range(MODEL_COUNT))
    assert sender.counters()["completed"] == MODEL_COUNT
    sender.close()


def test_a_receiver_and_a_device_on_another_processor_lose_nothing(bench: Bench) -> None:
    device = ModelThread(bench, bytes(10) + b"\x01\0" + frame(1))
    receiver = FastReceiver(
        bench.ring, kick_fd=bench.kick_fd, call_fd=bench.call_fd, buffer_size=128
    )
    device.start()
    counts = receiver.run(count=MODEL_COUNT, seconds=60)
    device.stop()
    assert counts.frames == MODEL_COUNT
    assert counts.bytes == MODEL_COUNT * 72
    assert counts.bad_used == 0
    receiver.close()

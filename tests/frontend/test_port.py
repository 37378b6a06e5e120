"""Two guests joined by `port:NAME`: what arrives, and that neither is harmed by the other."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from unittest import mock

import pytest
from beds import frame
from port_bed import CSUM, LEGACY, MRG, OFFLOADS, PACKED, PACKED_MRG, V1, PortBed, received

from vhostnet.datapath import catalogue
from vhostnet.datapath.codes import WORKER_STOPPED
from vhostnet.device.dirty_log import DirtyLog
from vhostnet.device.worker import Worker
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import VHOST_F_LOG_ALL, VIRTIO_RING_F_EVENT_IDX, mask
from vhostnet_frontend import Buffer, GuestMemory, PackedRing, RegionSpec, VnetHeader
from vhostnet_frontend import scenarios as bad
from vhostnet_frontend.scenarios import Severity

EVENT = mask(VIRTIO_RING_F_EVENT_IDX)
KINDS = {
    "legacy": LEGACY,
    "v1": V1,
    "mergeable": MRG,
    "event": MRG | EVENT,
    "packed": PACKED,
    "packed mergeable": PACKED_MRG,
}
COUNT = 20_000 if JIT_ENABLED else 400
SIZES = (14, 60, 61, 1514, 2036)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    if JIT_ENABLED:
        catalogue.warm(catalogue.kernels_for("port"))


@pytest.fixture
def bed() -> Iterator[PortBed]:
    made = PortBed()
    yield made
    made.close()


# --- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("b_kind", KINDS)
@pytest.mark.parametrize("a_kind", KINDS)
def test_frames_arrive_both_ways_whatever_was_negotiated(
    bed: PortBed, a_kind: str, b_kind: str
) -> None:
    a, b = bed.both(KINDS[a_kind], KINDS[b_kind], num=16, tx_size=300)
    for turn in range(8):  # the rings wrap
        for sender, receiver in ((a, b), (b, a)):
            frames = [frame(turn * 100 + k, size) for k, size in enumerate(SIZES)]
            for one in frames:
                sender.send(one)
                bed.flush()
            for one in frames:
                packet = receiver.receive_packet(timeout=60.0)
                assert packet is not None
                assert packet.frame == one
                header = VnetHeader.unpack(packet.header)
                n_buffers = len(packet.lengths) if receiver.hdr_len == 12 else 0
                assert header == VnetHeader(num_buffers=n_buffers)
    for card in (0, 1):
        assert bed.tx(card)["packets"] == bed.rx(1 - card)["packets"] == 8 * len(SIZES)
    assert a.ring_errors() == b.ring_errors() == {}


@pytest.mark.parametrize("kind", ["mergeable", "packed mergeable"])
def test_a_large_frame_takes_several_buffers(bed: PortBed, kind: str) -> None:
    a, b = bed.both(MRG, KINDS[kind], num=64, rx_size=256, tx_size=4096)
    for k in range(20):
        a.send(frame(k, 3000))
        bed.flush()
        packet = b.receive_packet(timeout=60.0)
        assert packet is not None
        assert packet.frame == frame(k, 3000)
        assert packet.lengths == (256,) * 11 + (3012 - 11 * 256,)


@pytest.mark.parametrize("kinds", [(MRG, MRG), (PACKED_MRG, MRG | EVENT), (V1, PACKED)])
def test_at_full_speed_all_is_counted_and_in_sequence(bed: PortBed, kinds: tuple[int, int]) -> None:
    a, b = bed.open(0, kinds[0]), bed.open(1, kinds[1])
    b.start(post_rx=False)
    receiver = b.receiver()
    a.start()
    sender = a.sender(frame(1, 200))
    results = []
    ended = threading.Event()

    def receive() -> None:
        while not ended.is_set():
            results.append(receiver.run(seconds=0.05))

    thread = threading.Thread(target=receive)
    thread.start()
    counts = sender.run(count=COUNT)
    assert sender.finish()
    ended.set()
    thread.join()
    bed.flush()
    receiver.run(seconds=0.01)
    tx, rx = bed.tx(0), bed.rx(1)
    assert counts.frames == COUNT == tx["packets"] + tx["drop_full"]
    assert tx["packets"] == rx["packets"] == receiver.counters()["frames"] > 0
    assert receiver.counters()["bad_used"] == sender.counters()["bad_used"] == 0


# --- nobody there, or nowhere to put it -----------------------------------------------------------


def test_without_a_partner_packets_are_taken_and_counted(bed: PortBed) -> None:
    a = bed.open(0).start()
    for k in range(300):
        a.send(frame(k))
    a.flush()
    assert bed.tx(0)["drop_no_peer"] == 300
    b = bed.open(1).start()
    a.send(frame(301))
    assert b.receive(timeout=60.0) == frame(301)
    assert bed.tx(0)["packets"] == 1


def test_a_full_partner_drops_and_does_not_stall(bed: PortBed) -> None:
    a, b = bed.both(num=16)
    for k in range(100):
        a.send(frame(k))
        a.flush()
    assert bed.tx(0)["packets"] == 16
    assert bed.tx(0)["drop_full"] == 84
    assert received(b) == [frame(k) for k in range(16)]
    a.send(frame(200))
    bed.flush()
    assert received(b) == [frame(200)]


def test_a_buffer_that_is_too_small_costs_the_packet_only(bed: PortBed) -> None:
    a, b = bed.both(V1, V1, rx_size=200)
    a.send(frame(1, 189))
    a.send(frame(2, 188))
    a.flush()
    assert received(b) == [frame(2, 188)]
    assert bed.tx(0)["drop_too_long"] == bed.rx(1)["drop_too_small"] == 1


@pytest.mark.parametrize("how", ["stop", "reset", "features"])
def test_a_partner_that_goes_in_the_middle_of_traffic(bed: PortBed, how: str) -> None:
    a = bed.open(0).start()
    sender = a.sender(frame(1, 300))
    b = bed.open(1).start()
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            sender.run(count=50)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for turn in range(10):
            assert received(b, 0.0) is not None
            assert b.receive(timeout=60.0) == frame(1, 300), turn
            if how == "stop":
                b.stop()
                b.start()
            else:
                b.close()
                b = bed.open(1, PACKED_MRG if how == "features" and turn % 2 else MRG).start()
    finally:
        ended.set()
        thread.join()
    assert sender.finish()
    tx = bed.tx(0)
    assert tx["ring_errors"] == tx["drop_refused"] == tx["drop_bad_header"] == 0
    assert b.ring_errors() == {}


def test_one_worker_serves_both_ways(bed: PortBed) -> None:
    a, b = bed.both()
    first, second = (card[0].worker for card in bed.cards)
    assert first is not None
    assert second is not None
    runs = second.counters()["runs"]  # of before the first guest was there
    for k in range(20):
        assert a.send(frame(k)) is None
        assert b.receive(timeout=60.0) == frame(k)
        assert b.send(frame(100 + k)) is None  # a kick alone wakes the first card's worker
        assert a.receive(timeout=60.0) == frame(100 + k)
    assert second.counters()["runs"] == runs
    assert first.counters()["runs"] >= 40
    assert bed.tx(1)["kicks"] > 0


def test_guests_that_come_and_go_always_find_a_worker(bed: PortBed) -> None:
    guests = [bed.open(0).start(), bed.open(1).start()]
    for turn in range(12):
        leaver, stayer = turn % 2, 1 - turn % 2
        guests[leaver].close()
        before = bed.tx(stayer)["drop_no_peer"]
        guests[stayer].send(frame(turn))
        guests[stayer].flush()
        assert bed.tx(stayer)["drop_no_peer"] == before + 1
        guests[leaver] = bed.open(leaver, PACKED_MRG if turn % 3 else MRG).start()
        for sender, receiver in (guests, guests[::-1]):
            sender.send(frame(200 + turn))
            assert receiver.receive(timeout=60.0) == frame(200 + turn)


@pytest.mark.parametrize("card", [0, 1])
def test_a_start_counts_though_no_worker_saw_the_stop_before_it(bed: PortBed, card: int) -> None:
    guests = bed.both()
    net = bed.cards[card][0]
    sender, receiver = guests[card], guests[1 - card]
    queue = net._backends[1]
    with contextlib.ExitStack() as held:
        for one, *_others in bed.cards:
            held.enter_context(one.worker.quiesced())
        net.set_backend(1, None)
        buffer, data = sender.tx[0].buffers.pop(), bytes(sender.hdr_len) + frame(7)
        sender.memory.write(buffer, data)
        sender.tx[0].ring.add([Buffer(buffer, len(data))], [buffer])
        sender.tx[0].ring.publish()  # and no kick: a start runs the handler once
        net.set_backend(1, queue)
    assert receiver.receive(timeout=60.0) == frame(7)


def test_a_sender_that_goes_leaves_the_partner_its_buffers(bed: PortBed) -> None:
    a, b = bed.both(num=16)
    for turn in range(5):
        for k in range(10):
            a.send(frame(k))
        bed.flush()
        a.close()
        assert received(b) == [frame(k) for k in range(10)]
        a = bed.open(0, num=16).start()
        assert b.send(frame(turn)) is None
        assert a.receive(timeout=60.0) == frame(turn)


def test_a_disabled_sender_is_discarded(bed: PortBed) -> None:
    a, b = bed.both()
    bed.cards[0][0].set_discard(1, True)
    a.send(frame(1))
    a.flush()
    assert received(b) == []
    assert bed.tx(0)["drop_disabled"] == 1


# --- what Linux refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        VnetHeader(flags=1, csum_start=34, csum_offset=60),
        VnetHeader(flags=1, csum_start=0xFFFF, csum_offset=0xFFFF),
        VnetHeader(gso_type=1, gso_size=100),
        VnetHeader(flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16),
        VnetHeader(flags=1, gso_type=3, gso_size=100, csum_start=34, csum_offset=6),
        VnetHeader(flags=1, gso_type=2, gso_size=100, csum_start=34, csum_offset=6),
        VnetHeader(flags=1, gso_type=1, gso_size=9, hdr_len=999, csum_start=34, csum_offset=16),
    ],
    ids=lambda header: str(header)[11:-1],
)
@pytest.mark.parametrize("b_features", [MRG, MRG | OFFLOADS], ids=["plain", "offloads"])
def test_a_header_that_does_not_fit_its_frame(
    bed: PortBed, b_features: int, header: VnetHeader
) -> None:
    a, b = bed.both(MRG, b_features)
    a.send(frame(1, 80), header=header)
    a.send(frame(2, 80))
    a.flush()
    assert received(b) == [frame(2, 80)]
    assert bed.tx(0)["drop_bad_header"] == 1


def test_a_frame_shorter_than_an_ethernet_header_is_refused(bed: PortBed) -> None:
    a, b = bed.both()
    a.send(bytes(13))
    a.send(b"")
    a.flush()
    assert received(b) == []
    assert (bed.tx(0)["drop_bad_header"], bed.tx(0)["drop_short"]) == (1, 1)


def test_nothing_of_a_senders_header_goes_through_unasked(bed: PortBed) -> None:
    a, b = bed.both(MRG, MRG | CSUM)
    a.send(frame(1), header=b"\xfe\x00" + b"\xff" * 10)
    a.flush()
    packet = b.receive_packet(timeout=60.0)
    assert packet is not None
    assert VnetHeader.unpack(packet.header) == VnetHeader(num_buffers=1)


# --- shares ---------------------------------------------------------------------------------------


@pytest.fixture
def threadless() -> Iterator[PortBed]:
    """Workers that move when `run_once` says so."""
    with mock.patch.object(Worker, "start"):
        made = PortBed()
        yield made
    made.close()


def run_once(bed: PortBed) -> None:
    """Enter the first card's kernel, with control waiting for it: what is queued is run."""
    net = bed.cards[0][0]
    assert net.worker is not None
    os.eventfd_write(net.worker._control, 1)
    while (code := net._run()) != WORKER_STOPPED:
        assert code is not None
    os.eventfd_read(net.worker._control)


def test_a_run_is_one_weight(threadless: PortBed) -> None:
    a, b = threadless.both(num=512)
    run_once(threadless)  # what a start queues
    for k in range(400):
        a.send(frame(k))
    runs = []
    for _ in range(3):
        run_once(threadless)
        runs.append(threadless.tx(0)["packets"])
    assert runs == [256, 400, 400]
    assert len(received(b)) == 400


def test_a_broken_ring_is_looked_at_once_a_run(threadless: PortBed) -> None:
    a = threadless.open(0).start()
    b = threadless.open(1).start(post_rx=False)
    run_once(threadless)
    bad.SPLIT["avail_idx_jumps"].apply(b.rx[0].ring)
    for k in range(30):
        a.send(frame(k))
    run_once(threadless)
    assert threadless.rx(1)["ring_errors"] == 1
    assert threadless.tx(0)["drop_no_peer"] == 30


def test_what_is_received_is_in_the_dirty_log_and_nothing_else(bed: PortBed) -> None:
    memory = GuestMemory([RegionSpec(1 << 20, gpa=0)])
    a, b = bed.open(0), bed.open(1, num=16, memory=memory)
    net = bed.cards[1][0]
    fd = os.memfd_create("log")
    os.ftruncate(fd, 32)
    log = DirtyLog.map(fd, 32, 0)
    net.set_features(b.features | mask(VHOST_F_LOG_ALL))
    net.set_log(log.hva, log.size)
    b.start()
    a.start()
    a.send(frame(1))
    assert b.receive(timeout=60.0) == frame(1)
    bed.flush()
    bits = int.from_bytes(os.pread(fd, 32, 0), "little")
    assert bits == 1 << (b.rx[0].buffers[0] >> 12)
    net.set_log(0, 0)
    log.release()
    os.close(fd)
    b.close()
    memory.close()


@pytest.mark.parametrize("adaptive", [False, True])
def test_busy_polling_finds_what_was_not_kicked(bed: PortBed, adaptive: bool) -> None:
    a, b = bed.both()
    bed.cards[0][0].set_vring_busyloop_timeout(1, 2000, adaptive)
    worker = bed.cards[0][0].worker
    assert worker is not None
    for k in range(20):
        a.send(frame(k))
        assert b.receive(timeout=60.0) == frame(k)
    assert int(worker.record[0]["spins"]) > 0
    assert bed.rx(1)["packets"] == 20


def test_a_ring_without_a_kick_is_looked_at(bed: PortBed) -> None:
    a, b = bed.both()
    bed.cards[0][0].set_vring_polled(1)
    for k in range(5):
        a.send(frame(k))
        assert b.receive(timeout=60.0) == frame(k)


def test_the_driver_says_whether_it_wants_interrupts(bed: PortBed) -> None:
    a, b = bed.both()
    os.eventfd_write(a.tx[0].call_fd, 1)
    for queue in (a.tx[0], b.rx[0]):
        queue.ring.disable_interrupts()
    for k in range(5):
        a.send(frame(k))
        bed.flush()
    assert bed.tx(0)["calls"] == bed.rx(1)["calls"] == 0
    assert bed.rx(1)["calls_suppressed"] > 0
    assert len(received(b)) == 5


# --- several pairs --------------------------------------------------------------------------------


@pytest.fixture
def wide() -> Iterator[PortBed]:
    made = PortBed(pairs=2)
    yield made
    made.close()


def test_each_pair_has_its_partner(wide: PortBed) -> None:
    drivers = [[wide.open(card, pair=pair).start() for pair in (0, 1)] for card in (0, 1)]
    for pair in (0, 1):
        drivers[0][pair].send(frame(pair))
        drivers[1][pair].send(frame(10 + pair))
    for pair in (0, 1):
        assert drivers[1][pair].receive(timeout=60.0) == frame(pair)
        assert drivers[0][pair].receive(timeout=60.0) == frame(10 + pair)


def test_a_pair_that_starts_last_is_noticed_by_all_others(wide: PortBed) -> None:
    first, second = wide.open(0), wide.open(1)
    first.start()
    second.start()
    wide.open(1, pair=1).start()
    last = wide.open(0, pair=1).start()  # from now on the first pairs have one worker
    for sender, receiver in ((first, second), (second, first)):
        sender.send(frame(1))
        assert receiver.receive(timeout=60.0) == frame(1)
    last.close()  # and now two again
    for sender, receiver in ((first, second), (second, first)):
        sender.send(frame(2))
        assert receiver.receive(timeout=60.0) == frame(2)


@pytest.mark.parametrize("card", [0, 1])
@pytest.mark.parametrize("pair", [0, 1])
def test_control_parks_every_worker_that_may_see_a_pair(
    wide: PortBed, card: int, pair: int
) -> None:
    for number in (0, 1):
        for other in (0, 1):
            wide.open(number, pair=other).start()
    workers = [net.worker for nets in wide.cards for net in nets]
    with wide.cards[card][pair].quiesced():
        assert [worker.is_parked for worker in workers if worker is not None] == [True] * 4


def test_pairs_that_the_partner_does_not_use_go_to_those_that_it_does(wide: PortBed) -> None:
    """Two workers share one ring then, and lose nothing to each other."""
    senders = [wide.open(0, pair=pair).start() for pair in (0, 1)]
    only = wide.open(1, pair=1, features=PACKED_MRG)
    only.start(post_rx=False)
    receiver = only.receiver()
    fast = [driver.sender(frame(pair, 100)) for pair, driver in enumerate(senders)]
    count = 10 * COUNT if JIT_ENABLED else COUNT  # for the workers to meet
    threads = [threading.Thread(target=one.run, kwargs={"count": count}) for one in fast]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        receiver.run(seconds=0.02)
    assert all(one.finish() for one in fast)
    wide.flush()
    receiver.run(seconds=0.01)
    counts = [wide.tx(0, pair) for pair in (0, 1)]
    assert all(c["packets"] + c["drop_full"] == count for c in counts)
    assert wide.rx(1, 1)["packets"] == sum(c["packets"] for c in counts)
    assert receiver.counters()["frames"] == wide.rx(1, 1)["packets"]
    assert receiver.counters()["bad_used"] == 0
    # and back to one each when the other pair comes
    other = wide.open(1, pair=0).start()
    senders[0].send(frame(7))
    assert other.receive(timeout=60.0) == frame(7)


def test_a_worker_that_finds_another_at_the_ring_comes_back() -> None:
    with mock.patch.object(Worker, "start"):
        bed = PortBed(pairs=2)
        a = bed.open(0, pair=0).start()
        b = bed.open(1, pair=1).start()
        run_once(bed)
        a.send(frame(1))
        bed.cards[1][1]._rx_lock[0] = 1  # the other worker
        run_once(bed)
        assert bed.tx(0)["packets"] == 0
        assert received(b) == []
        bed.cards[1][1]._rx_lock[0] = 0
        run_once(bed)
        assert received(b) == [frame(1)]
        assert bed.cards[1][1]._rx_lock[0] == 0
    bed.close()


# --- one of them is hostile -----------------------------------------------------------------------

SPLIT_CASES = list(bad.SPLIT.values())
PACKED_CASES = list(bad.PACKED.values())
CASES = [
    pytest.param(case, direction, features, id=f"{name}-{direction}-{case.name}")
    for name, cases, features in (("split", SPLIT_CASES, MRG), ("packed", PACKED_CASES, PACKED_MRG))
    for case in cases
    for direction in case.directions
]


@pytest.mark.parametrize(("case", "direction", "features"), CASES)
def test_a_broken_ring_does_not_harm_the_partner(
    bed: PortBed,
    case: bad.Misbehaviour | bad.PackedMisbehaviour,
    direction: str,
    features: int,
) -> None:
    with GuestMemory([RegionSpec(1 << 20)], canaries=True) as evil_memory:
        good = bed.open(0, num=16)
        evil = bed.open(1, features, num=16, rx_size=256, tx_size=256, memory=evil_memory)
        good.start()
        evil.start(post_rx=direction == "tx")
        queue = evil.tx[0] if direction == "tx" else evil.rx[0]
        assert isinstance(queue.ring, PackedRing) is (features == PACKED_MRG)
        case.apply(queue.ring)  # type: ignore[arg-type]
        for k in range(40):  # more than anybody has buffers for
            os.eventfd_write(queue.kick_fd, 1)
            good.send(frame(k))
            good.flush()
        bed.flush()
        received(good)
        assert good.ring_errors() == {}
        tx = bed.tx(0)
        dropped = sum(n for name, n in tx.items() if name.startswith("drop_"))
        assert tx["packets"] + dropped == 40
        if case.severity is Severity.RING_STOPS and direction == "rx":
            assert tx["packets"] == 0
            assert tx["drop_no_peer"] > 0
            assert bed.rx(1)["ring_errors"] > 0
        if case.severity is Severity.RING_STOPS and direction == "tx":
            assert bed.tx(1)["ring_errors"] > 0
        # all buffers of the good one are still its own, and it works with somebody else
        evil.close()
        assert evil_memory.check_canaries() == []
        again = bed.open(1).start()
        for k in range(16):
            again.send(frame(k))
        again.flush()
        assert received(good) == [frame(k) for k in range(16)]
        good.send(frame(99))
        assert again.receive(timeout=60.0) == frame(99)

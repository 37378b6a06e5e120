"""What went wrong in Linux's vhost_net before: one test a bug, named after it.

Bugs that cannot happen here, and why:

=========================================  ======================================================
zerocopy buffer used after it was freed    nothing is sent without a copy being made by the TAP's
(2025)                                     write: no buffer outlives the call
busy polling faults with preemption off    a matter of the kernel's locks; our busy polling runs
(2026)                                     in an ordinary thread
=========================================  ======================================================

Where a bug is also shown by a test elsewhere, the docstring says which.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from driver_ring import GPA, INDIRECT, NEXT, WRITE, Memory, Used
from instance import EVENT_IDX, MRG, RX, TX, V1, Instance
from oracle.namespace import Namespace, namespace_or_skip
from oracle.our_device import OurMemory
from stepped import SteppedInstance
from vhostnet.datapath import descriptors, split_ring, worker_loop
from vhostnet.datapath.layout import UIO_MAXIOV, VHOST_NET_PKT_WEIGHT, VHOST_NET_WEIGHT
from vhostnet.device.dirty_log import DirtyLog
from vhostnet.device.iotlb import Iotlb
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.memory import MemoryTable, map_region
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import PeerError
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.vhost import MemoryRegion
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_IN_ORDER,
    mask,
)
from vhostnet_frontend import GuestMemory, SplitRing
from vhostnet_frontend.tap import open_tap

HDR = bytes(12)
FRAME = b"history!" * 8
LOW = 0x10000


@pytest.fixture
def stepped() -> Iterator[Callable[..., SteppedInstance]]:
    """A maker of queue pairs that move only when they are told to."""
    made: list[SteppedInstance] = []

    def make(*, start: bool = True, **options: Any) -> SteppedInstance:
        made.append(SteppedInstance(**options))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


class Opened:
    """An open device as the ioctl doors see it, owned, with memory and one ring's address."""

    def __init__(self, features: int = V1) -> None:
        self.memory = GuestMemory(1 << 20)
        owner = OurMemory()
        owner.note(self.memory, True)
        self.net = VhostNet("history")
        self.verbs = KernelVerbs(self.net, lambda _pid: owner)
        self.verbs.set_owner(os.getpid())
        self.verbs.set_features(features)
        self.verbs.set_mem_table(
            [MemoryRegion(r.gpa, r.size, r.uva, 0) for r in self.memory.regions]
        )
        self.ring = SplitRing(self.memory, 8)
        for index in (RX, TX):
            self.verbs.set_vring_num(index, 8)
            self.verbs.set_vring_addr(self.ring.addr(index))


@pytest.fixture
def opened() -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def make(features: int = V1) -> Opened:
        made.append(Opened(features))
        return made[-1]

    yield make
    for one in made:
        one.verbs.close()
        one.memory.close()


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with namespace_or_skip() as made:
        yield made


def n_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(number: int, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(PeerError) as caught:
        call(*arguments)
    assert caught.value.errno == number


# --- the log --------------------------------------------------------------------------------


def test_cve_2019_14835_zero_length_descriptors_while_logging(stepped):
    """Descriptors without bytes were logged as well, beyond the end of the log list."""
    pages = 1024
    pair = stepped(
        start=False, features=MRG | V1 | mask(VHOST_F_LOG_ALL), memory=Memory(gpa=LOW), num=256
    )
    fd = os.memfd_create("log")
    os.ftruncate(fd, 2 * 4096)
    log = DirtyLog.map(fd, pages // 8, 0)
    pair.net.set_log(log.hva, log.size)
    data = pair.memory.alloc(4096, 4096)
    empty = [(LOW + 8 * k, 0, WRITE) for k in range(255)]
    pair.rx.offer(pair.rx.chain([*empty, (data, 100, WRITE)]))
    pair.start()
    pair.arrive(HDR + FRAME)
    assert pair.rx.collect() == [Used(0, len(HDR + FRAME))]
    bits = os.pread(fd, 2 * 4096, 0)
    dirty = [page for page in range(8 * len(bits)) if bits[page // 8] >> page % 8 & 1]
    assert dirty == [data // 4096]
    pair.net.set_log(0, 0)
    log.release()
    os.close(fd)


# --- work without end -------------------------------------------------------------------------


def test_cve_2019_3900_packets_that_are_thrown_away_count_against_the_weight(stepped):
    """One run went on for ever: neither dropped nor short packets were counted."""
    pair = stepped(features=V1, num=512)
    pair.rx.post(20)
    for _ in range(VHOST_NET_PKT_WEIGHT + 10):
        pair.wire.send(HDR + FRAME)
    pair.flush()
    assert pair.counter(RX, "drop_too_small") == VHOST_NET_PKT_WEIGHT
    gpa = pair.memory.alloc(16)
    for _ in range(VHOST_NET_PKT_WEIGHT + 10):
        pair.tx.offer(pair.tx.chain([(gpa, 5, 0)]))
    pair.kick(TX)
    assert pair.counter(TX, "drop_short") == VHOST_NET_PKT_WEIGHT
    pair.flush()
    assert pair.counter(TX, "drop_short") == VHOST_NET_PKT_WEIGHT + 10


def test_cve_2019_3900_bytes_count_against_the_weight(stepped):
    pair = stepped(num=256)
    size = 0x10000 - 1
    gpa = pair.memory.alloc(size)
    for _ in range(20):
        pair.tx.offer(pair.tx.chain([(gpa, size, 0)]))
    pair.kick(TX)
    assert len(pair.sent()) == -(-VHOST_NET_WEIGHT // size)


@pytest.mark.parametrize("n_small", [0, 63, 64])
def test_cve_2018_16880_many_mergeable_buffers_after_a_batch(stepped, n_small):
    """The array of heads was sized for the packet alone, not for those batched before it."""
    pair = stepped(num=2048)
    gpas = [pair.rx.post(20)[0] for _ in range(n_small)]
    for _ in range(n_small):
        pair.wire.send(HDR + b"small")
    tiny = [pair.rx.post(15)[0] for _ in range(UIO_MAXIOV)]
    packet = HDR + os.urandom(15 * 1000 - len(HDR))
    pair.wire.send(packet)
    pair.flush()
    assert pair.rx.used_idx() == n_small + 1000
    assert all(pair.memory.read(gpa, 17)[12:] == b"small" for gpa in gpas)
    got = b"".join(pair.memory.read(gpa, 15) for gpa in tiny[:1000])
    assert got == packet[:10] + struct.pack("<H", 1000) + packet[12:]


def test_cve_2018_16880_a_packet_that_takes_more_buffers_than_there_is_room_for(stepped):
    pair = stepped(num=2048)
    for _ in range(2048):
        pair.rx.post(1)
    pair.arrive(HDR + bytes(UIO_MAXIOV))
    assert pair.erred(RX) == 1
    assert (pair.rx.used_idx(), pair.net.get_vring_base(RX)) == (0, 0)


def test_cve_2018_16880_chains_that_have_too_many_pieces_together(stepped):
    pair = stepped(num=2048)
    gpa = pair.memory.alloc(16)
    for _ in range(2):
        pair.rx.offer(pair.rx.chain([(gpa, 1, WRITE)] * 600))
    pair.arrive(HDR + bytes(1000))
    assert pair.erred(RX) == 1
    assert (pair.rx.used_idx(), pair.net.get_vring_base(RX)) == (0, 0)


# --- receiving --------------------------------------------------------------------------------


def test_cve_2014_0077_a_packet_longer_than_the_only_buffer(stepped):
    """It was written beyond the buffer; it has to be dropped, and the buffer kept."""
    pair = stepped(features=V1)
    (gpa,) = pair.rx.post(40)
    behind = b"\x5a" * 256
    pair.memory.write(gpa, bytes(40) + behind)
    pair.arrive(HDR + bytes([1]) * 100)
    assert pair.memory.read(gpa, 40 + len(behind)) == bytes(40) + behind
    assert pair.counter(RX, "drop_too_small") == 1
    pair.arrive(HDR + bytes([2]) * 20)
    assert pair.rx.collect() == [Used(0, 32)]


def test_cve_2014_0055_an_error_among_mergeable_buffers(stepped):
    """The negative result of a fetch was taken for a head."""
    pair = stepped()
    pair.rx.post(20)
    pair.rx.post(20)
    pair.rx.offer(16)
    pair.arrive(HDR + FRAME)
    assert pair.erred(RX) == 1
    assert (pair.rx.used_idx(), pair.net.get_vring_base(RX)) == (0, 0)
    pair.memory.write(
        pair.rx.avail + 4 + 2 * 2,
        struct.pack("<H", pair.rx.chain([(pair.memory.alloc(100), 100, WRITE)])),
    )
    pair.kick(RX)
    assert [used.length for used in pair.rx.collect()] == [20, 20, 36]


def test_livelock_in_handle_rx_2026_a_ring_that_is_too_small_for_a_packet_sleeps(stepped):
    """Kicks were asked for, the ring was not empty, and so it was looked at again, for ever."""
    pair = stepped(features=MRG | V1 | EVENT_IDX)
    for _ in range(3):
        pair.rx.post(1500)
    packet = HDR + os.urandom(60_000)
    pair.arrive(packet)
    worker = pair.net.worker.record[0]
    assert int(worker["n_work"]) == 0
    runs = int(worker["runs"])
    for _ in range(3):
        pair.flush()
    assert int(worker["runs"]) == runs
    assert pair.rx.avail_event() == 3
    gpas = [pair.memory.alloc(5000) for _ in range(13)]
    for gpa in gpas:
        pair.rx.offer(pair.rx.chain([(gpa, 5000, WRITE)]))
    pair.kick(RX)
    assert sum(used.length for used in pair.rx.collect()) == len(packet)


def test_in_order_rewind_2026_goes_back_by_descriptors_and_not_by_heads(stepped):
    """Also tests/unit/datapath/test_in_order.py."""
    pair = stepped(features=MRG | V1 | mask(VIRTIO_F_IN_ORDER))
    for _ in range(2):
        pair.rx.post(10, 10)
    pair.arrive(HDR + FRAME)  # 76 bytes: 40 are there
    assert pair.rx.used_idx() == 0
    last = [pair.memory.alloc(30), pair.memory.alloc(30)]
    pair.rx.offer(pair.rx.chain([(gpa, 30, WRITE) for gpa in last]))
    pair.kick(RX)
    assert pair.rx.used_idx() == 3
    assert pair.memory.read(last[0], 30) + pair.memory.read(last[1], 6) == FRAME[28:]
    # one entry for the packet: its last head, in the slot of its first
    assert struct.unpack("<II", pair.memory.read(pair.rx.used + 4, 8)) == (4, 36)


# --- sending ----------------------------------------------------------------------------------


def test_sendmsg_failure_in_a_batch_2021_the_rest_is_completed(stepped):
    """After a failure the count of what was batched stayed, and grew beyond its array.

    With a real TAP that is deleted: tests/unit/backends/test_tap.py.
    """
    pair = stepped(num=256)
    for _ in range(100):
        pair.tx.send(HDR + FRAME)
    pair.wire.shutdown(socket.SHUT_RD)
    pair.kick(TX)
    assert [used.head for used in pair.tx.collect()] == list(range(100))
    assert pair.counter(TX, "drop_refused") == 100
    assert int(pair.net.tx.vq["done_idx"]) == 0
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert len(pair.tx.collect()) == 1


def test_tx_stuck_2020_a_packet_that_never_can_be_sent_is_dropped(stepped):
    """It was tried again for ever, and what was behind it never sent."""
    pair = stepped()
    pair._device_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    pair.tx.send(HDR + bytes(60_000))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert pair.tx.collect() == [Used(0, 0), Used(1, 0)]
    assert pair.counter(TX, "drop_too_long") == 1


@pytest.mark.parametrize("features", [V1, V1 | EVENT_IDX])
def test_batch_flush_before_enabling_notify_2025_completions_come_first(stepped, features):
    """Kicks were asked for while completions were kept back: the guest's transmit timed out."""
    pair = stepped(features=features)
    for k in range(1, 4):
        pair.tx.send(HDR + FRAME)
        pair.kick(TX)
        assert pair.tx.used_idx() == k
        wants_kicks = pair.tx.avail_event() == k if features & EVENT_IDX else True
        assert (wants_kicks, pair.tx.used_flags()) == (True, 0)
    if not JIT_ENABLED:
        _completions_come_first(pair)


def _completions_come_first(pair: SteppedInstance) -> None:
    """The order itself, where a function can be watched."""
    seen = []
    real = worker_loop.enable_notify

    def watched(vq: Any) -> bool:
        if vq["used_flags"]:  # else they are asked for already
            seen.append(pair.tx.used_idx())
        return real(vq)

    worker_loop.enable_notify = watched
    try:
        pair.tx.send(HDR + FRAME)
        pair.kick(TX)
    finally:
        worker_loop.enable_notify = real
    assert seen == [pair.tx.avail_idx]


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0x10000, 0x10000 + 1])
def test_event_idx_signalled_used_wrap_after_65536_completions_there_is_a_signal(stepped, n):
    """2^16 completions later the indices are as before, and nothing seemed to have happened."""
    num = 4096
    pair = stepped(features=V1 | EVENT_IDX, num=num)
    gpa = pair.memory.alloc(16)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.called(TX) == 1
    call = pair.net.tx.take_fd("call_fd")  # without one there is no test
    for slot in range(num):
        pair.tx.set_desc(slot, gpa, 5, 0, 0)
    heads = struct.pack(f"<{num}H", *range(num))
    pair.memory.write(pair.tx.avail + 4, heads)
    pair.tx.set_used_event(0x8000)
    left = n - 1
    while left:
        step = min(left, num)
        left -= step
        pair.tx.avail_idx = (pair.tx.avail_idx + step) & 0xFFFF
        pair.memory.write(pair.tx.avail + 2, struct.pack("<H", pair.tx.avail_idx))
        pair.kick(TX)
        while pair.tx.used_idx() != pair.tx.avail_idx:
            pair.flush()
    pair.net.tx.vq["call_fd"] = call
    pair.tx.avail_idx = (pair.tx.avail_idx + 1) & 0xFFFF
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", pair.tx.avail_idx))
    pair.tx.set_used_event((pair.tx.avail_idx + 100) & 0xFFFF)
    pair.kick(TX)
    assert pair.called(TX) == 1


# --- what control does ------------------------------------------------------------------------


def test_cve_2018_1118_and_cve_2024_0340_a_miss_has_no_stray_bytes(opened):
    """Messages were handed out with bytes of the kernel's memory in their gaps."""
    device = opened(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    device.net.on_iotlb_miss(0x1122334455667788, 2)
    data = device.verbs.messages.read(72)
    assert len(data) == 72
    known = struct.pack("<IxxxxQQQBB", 1, 0x1122334455667788, 0, 0, 2, 1)
    assert data == known + bytes(72 - len(known))


@pytest.mark.root
def test_cve_2023_1838_the_descriptor_of_a_backend_is_resolved_once(opened, namespace):
    """It was looked up twice; between the two, another thread can put something else there."""
    device = opened()
    fd = namespace.run(open_tap, "history0", 12)
    tap = os.fstat(fd).st_rdev
    device.verbs.set_backend(TX, fd)
    kept = int(device.net._backends[TX].record[0]["tap_fd"])
    assert kept != fd
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, fd)
    assert os.fstat(kept).st_rdev == tap
    refused(errno.ENOTSOCK, device.verbs.set_backend, RX, fd)
    device.verbs.set_backend(TX, -1)
    os.close(null)
    os.close(fd)


@pytest.mark.parametrize(
    "kind", [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM),
             (socket.AF_UNIX, socket.SOCK_SEQPACKET), (socket.AF_INET, socket.SOCK_RAW)],
    ids=["udp", "tcp", "unix", "raw"],
)  # fmt: skip
def test_cve_2020_10942_a_socket_of_another_family_is_no_backend(opened, kind):
    """A raw socket of any family was taken for AF_PACKET."""
    device = opened()
    try:
        made = socket.socket(*kind, 255 if kind[1] == socket.SOCK_RAW else 0)
    except PermissionError:
        pytest.skip("raw sockets need root")
    with made:
        refused(errno.ENOTSOCK, device.verbs.set_backend, TX, made.fileno())


@pytest.mark.root
def test_cve_2013_4127_a_backend_that_was_refused_a_thousand_times(opened, namespace):
    """The error path of SET_BACKEND put the socket away twice."""
    device = opened()
    null = os.open("/dev/net/tun", os.O_RDWR)  # a TUN that is attached to nothing
    before = n_fds()
    for _ in range(1000):
        with pytest.raises(PeerError):
            device.verbs.set_backend(TX, null)
    assert n_fds() == before
    os.close(null)
    fd = namespace.run(open_tap, "history1", 12)
    device.verbs.set_backend(TX, fd)
    device.verbs.set_backend(TX, -1)
    os.close(fd)


def test_cve_2015_6252_descriptors_that_are_replaced_are_closed(opened):
    """SET_LOG_FD kept a file a call; as many as the table holds, and nothing works any more."""
    verbs = opened().verbs
    before = n_fds()
    fd = os.eventfd(0)
    for _ in range(2000):
        verbs.set_log_fd(fd)
        verbs.set_vring_kick(RX, fd)
        verbs.set_vring_call(RX, fd)
        verbs.set_vring_err(RX, fd)
    for verb in (verbs.set_vring_kick, verbs.set_vring_call, verbs.set_vring_err):
        verb(RX, -1)
    verbs.set_log_fd(-1)
    os.close(fd)
    assert n_fds() == before


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_get_features_array_keeps_the_words_that_it_has(opened, count):
    """The tail was zeroed from the first word on."""
    verbs = opened().verbs
    words = verbs.get_features_array(count)
    assert len(words) == count
    assert words[0] == verbs.get_features() != 0
    assert not any(words[2:])


@pytest.mark.parametrize(
    ("gpa", "size"), [(0, 0), (1, 0), (0, 2**64 - 1), (2**64 - 4096, 8192), (2**63 - 1, 2)]
)
def test_iotlb_and_memory_ranges_2022_that_wrap_or_are_everything(gpa, size):
    """[0, 2^64 - 1] has a length of 0 to who counts in 64 bits."""
    memory = Memory()
    with pytest.raises(PeerError):
        map_region(gpa, size, 0x1000, 0, memory.fd)
    table = memory.table()
    iotlb = Iotlb(table)
    with pytest.raises(PeerError):
        iotlb.update(gpa, size, memory.uva, 3)
    assert MemoryTable().lookup(0, 1, 1) == (None, 0)
    table.release()
    memory.close()


def test_vhost_net_ubuf_and_reset_owner_races_under_traffic():
    """RESET_OWNER, SET_BACKEND and close took away what a running handler used."""
    ended = threading.Event()
    pair = Instance().start()
    gpa = pair.memory.alloc(100)
    pair.memory.write(gpa, HDR + FRAME)
    for slot in range(16):
        pair.tx.set_desc(slot, gpa, len(HDR + FRAME), 0, 0)
        pair.rx.set_desc(slot, gpa + 0x100, 200, WRITE, 0)

    def drive() -> None:
        idx = 0
        while not ended.is_set():
            idx = (idx + 16) & 0xFFFF
            for index, ring in enumerate(pair.rings):
                word = struct.pack(
                    "<HH", 0, int(pair.net.vqs[index].vq["last_avail_idx"]) + 9 & 0xFFFF
                )
                pair.memory.write(ring.avail, word)
                os.eventfd_write(pair.kicks[index], 1)
            pair.sent()

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        for _ in range(300):
            for index in (RX, TX):
                pair.net.set_backend(index, None)
                pair.net.set_backend(index, pair.queue)
        pair.net.reset_owner()
        pair.net.reset_owner()
        for index in (RX, TX):
            refused(errno.EPERM, pair.net.set_backend, index, pair.queue)
    finally:
        ended.set()
        driver.join()
        pair.close()


# --- rings ------------------------------------------------------------------------------------


def _jump(pair: Instance) -> None:
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", 17))


def _loop(pair: Instance) -> None:
    pair.tx.set_desc(0, GPA, 72, NEXT, 0)


def _nested(pair: Instance) -> None:
    table = pair.memory.alloc(16)
    pair.memory.write(table, struct.pack("<QIHH", table, 16, INDIRECT, 0))
    pair.tx.set_desc(0, table, 16, INDIRECT, 0)


def _crowd(pair: Instance) -> None:
    table = pair.memory.alloc(16 * 1025)
    one = struct.pack("<QIHH", GPA, 1, NEXT, 0)
    pair.memory.write(table, one * 1024 + struct.pack("<QIHH", GPA, 1, 0, 0))
    pair.tx.set_desc(0, table, 16 * 1025, INDIRECT, 0)


@pytest.mark.parametrize(
    ("break_it", "n_signals"), [(_jump, 1), (_loop, 1), (_nested, 2), (_crowd, 2)]
)
def test_rings_that_are_broken_are_told_and_go_on_when_repaired(stepped, break_it, n_signals):
    """Index jump, loop, nested table, 1025 pieces.

    All causes: tests/unit/datapath/test_handle_tx.py; against a model: tests/model.
    """
    pair = stepped()
    gpa = pair.memory.alloc(100)
    pair.memory.write(gpa, HDR + FRAME)
    pair.tx.set_desc(0, gpa, len(HDR + FRAME), 0, 0)
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", 1))
    break_it(pair)
    pair.kick(TX)
    assert (pair.erred(TX), pair.sent(), pair.tx.used_idx()) == (n_signals, [], 0)
    pair.tx.set_desc(0, gpa, len(HDR + FRAME), 0, 0)
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", 1))
    pair.kick(TX)
    assert (pair.sent(), pair.tx.used_idx()) == ([HDR + FRAME], 1)


@pytest.mark.skipif(JIT_ENABLED, reason="loads can only be counted where they are functions")
def test_double_fetch_every_word_of_a_chain_is_read_once(stepped, monkeypatch):
    """A guest that changes a length or a flag between check and use (also DPDK CVE-2020-10725).

    Compiled, with a racing guest: tests/hostile/test_ring_bytes.py.
    """
    read: list[int] = []
    for module in (split_ring, descriptors):
        real = module.load_relaxed_i64

        def counted(addr: int, real: Any = real) -> int:
            read.append(addr)
            return real(addr)

        monkeypatch.setattr(module, "load_relaxed_i64", counted)
    heads: list[int] = []
    real_u16 = split_ring.load_relaxed_u16
    monkeypatch.setattr(
        split_ring, "load_relaxed_u16", lambda addr: heads.append(addr) or real_u16(addr)
    )
    pair = stepped()
    pair.tx.send(HDR, FRAME)
    gpa = pair.memory.alloc(100)
    pair.tx.offer(pair.tx.indirect([(gpa, 12, NEXT, 0), (gpa, 20, 0, 0)]))
    pair.kick(TX)
    assert len(pair.sent()) == 2
    assert len(read) == 10  # five descriptors of two words
    assert len(set(read)) == len(read)
    entries = [addr for addr in heads if addr - int(pair.net.tx.vq["avail_hva"]) >= 4]
    assert len(set(entries)) == len(entries) == 2

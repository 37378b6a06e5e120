"""What went wrong in vhost-user back-ends before: one test a bug, named after it.

DPDK's library unless the name says otherwise.  Bugs that cannot happen here, and why:

===================================  ============================================================
CVE-2020-10724, CVE-2020-14374 to    crypto devices; the lesson (each field read once, each
CVE-2020-14378                       length bounded) is test_double_fetch in the history of
                                     vhost_net
CVE-2020-10726, CVE-2021-3839        in-flight regions are not offered; that their messages are
                                     refused and leak nothing is shown below
CVE-2021-3544 to CVE-2021-3546       graphics
control queue that loops (2026)      the VMM handles the control queue itself
postcopy deadlocks                   not offered
RSS and copy arrays of jumbo frames  there is no such array: pieces go to one writev
(VPP)
frames padded to 60 bytes (passt)    frames come from a TAP as they are, as in Linux's driver
QEMU 7.2 without MSI-X or with lost  bugs of a front-end; tests/vmm runs with them
features
===================================  ============================================================

Shown under another name: pages that are logged and not written, or the other way round (DPDK
4da3dd4885), in tests/unit/datapath/test_dirty_log.py and tests/vmm/test_migration.py; Linux's own
CVEs in test_history_of_vhost_net.py.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from driver_ring import GPA, NEXT, UVA, WRITE, DriverRing, Memory, Used
from front_end import NO_FD, FrontEnd, Guest, addresses, region, state, table, u64
from instance import EVENT_IDX, MRG, RX, TX, V1
from islands import DISTANT, MAIN, NEXT_TO_MAIN, Islands
from serve_process import ServeProcess
from stepped import SteppedInstance
from vhostnet.backends.memory_backends import LoopBackend
from vhostnet.datapath.checksum import fill_partial_checksum
from vhostnet.datapath.codes import RING_AVAIL_JUMP, RING_INDIRECT_UNMAPPED, RING_UNMAPPED
from vhostnet.device.dirty_log import DirtyLog
from vhostnet.errors import PeerError
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.protocol.vhost_user_codec import Request
from vhostnet.protocol.vhost_user_session import Session
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import VHOST_F_LOG_ALL, VNET_HDR_FLAGS, mask
from victim import PackedVictim

HDR = bytes(12)
FRAME = b"history!" * 8
FEATURES = MRG | V1 | mask(vu.VHOST_USER_F_PROTOCOL_FEATURES)
PLAIN, NEED_REPLY = 0x1, 0x9


class NoTimer:
    """One that never fires."""

    def cancel(self) -> None: ...


class Talk:
    """A device with a loop behind it, and the session that messages go through."""

    def __init__(self) -> None:
        self.device = VhostUserDevice(
            LoopBackend(1),
            queue_pairs=1,
            name="history",
            call_later=lambda _seconds, _function: NoTimer(),
        )
        self.device.open_session(os.getpid())
        self.session = Session(self.device)
        self.memory = Memory(1 << 20)
        self.rings = [DriverRing(self.memory, 16) for _ in (RX, TX)]
        self.rx, self.tx = self.rings
        self.kicks, self.calls, self.errs = (
            [os.eventfd(0, os.EFD_NONBLOCK) for _ in (RX, TX)] for _ in range(3)
        )
        self.say(vu.VHOST_USER_SET_PROTOCOL_FEATURES, u64(self.number(15)))

    def say(self, number: int, payload: bytes = b"", fds: Sequence[int] = (), flags=PLAIN) -> bytes:
        """One message; descriptors are duplicated, what nobody takes is closed."""
        request = Request(number, flags, payload, [os.dup(fd) for fd in fds])
        try:
            return self.session.handle(request)[12:]
        finally:
            for fd in request.fds:
                os.close(fd)

    def number(self, number: int) -> int:
        return int(struct.unpack("<Q", self.say(number))[0])

    def is_refused(self, number: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        try:
            return self.say(number, payload, fds, NEED_REPLY) == u64(1)
        except PeerError:
            return True

    def share(self) -> None:
        whole = table(region(GPA, self.memory.size, UVA))
        self.say(vu.VHOST_USER_SET_MEM_TABLE, whole, [self.memory.fd])

    def place(self, index: int, base: int = 0) -> None:
        ring = self.rings[index]
        where = ring.addresses()
        self.say(vu.VHOST_USER_SET_VRING_NUM, state(index, ring.num))
        self.say(vu.VHOST_USER_SET_VRING_BASE, state(index, base))
        at = addresses(index, where.desc_uva, where.used_uva, where.avail_uva)
        self.say(vu.VHOST_USER_SET_VRING_ADDR, at)

    def fds(self, index: int) -> None:
        for number, fds in ((13, self.calls), (14, self.errs), (12, self.kicks)):
            self.say(number, u64(index), [fds[index]])

    def enable(self, index: int, on: int = 1) -> None:
        self.say(vu.VHOST_USER_SET_VRING_ENABLE, state(index, on))

    def start(self) -> Talk:
        self.say(vu.VHOST_USER_SET_FEATURES, u64(FEATURES))
        self.share()
        for index in (RX, TX):
            self.place(index)
            self.fds(index)
            self.enable(index)
        return self

    def stop(self, index: int) -> int:
        reply = self.say(vu.VHOST_USER_GET_VRING_BASE, state(index, 0))
        return int(struct.unpack("<II", reply)[1])

    def flush(self) -> None:
        for net in self.device.nets:
            net.flush()

    def kick(self, index: int) -> None:
        os.eventfd_write(self.kicks[index], 1)
        self.flush()

    def goes_round(self) -> bool:
        """Whether a frame that is sent comes back."""
        (gpa,) = self.rx.post(200)
        self.kick(RX)
        self.tx.send(HDR + FRAME)
        self.kick(TX)
        self.flush()
        return bool(self.memory.read(gpa, 200)[12 : 12 + len(FRAME)] == FRAME)

    def close(self) -> None:
        self.device.close()
        for fd in self.kicks + self.calls + self.errs:
            os.close(fd)
        self.memory.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    yield made
    made.close()


@pytest.fixture
def stepped() -> Iterator[Callable[..., SteppedInstance]]:
    made: list[SteppedInstance] = []

    def make(**options: Any) -> SteppedInstance:
        made.append(SteppedInstance(**options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A daemon that in the end holds what it held in the beginning."""
    process = ServeProcess(tmp_path_factory.mktemp("history"), "--backend", "loop")
    try:
        yield process
        process.wait_idle()
        process.check_and_stop()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def n_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- memory -----------------------------------------------------------------------------------


def test_cve_2018_1059_a_buffer_over_two_regions_is_translated_piece_by_piece(stepped):
    """Only the start of a range was looked up, and the rest taken to follow it."""
    pair = stepped(features=V1, memory=Islands())
    packet = HDR + bytes(range(1, 101))
    start = MAIN.end - 50  # the next region follows for the guest, and lies elsewhere for us
    pair.memory.write(start, packet[:50])
    pair.memory.write(NEXT_TO_MAIN.gpa, packet[50:])
    pair.tx.offer(pair.tx.chain([(start, len(packet), 0)]))
    pair.kick(TX)
    assert pair.sent() == [packet]
    pair.rx.offer(pair.rx.chain([(start, 200, WRITE)]))
    pair.arrive(HDR + b"\x77" * 100)
    assert pair.memory.read(start + 12, 38) == b"\x77" * 38
    assert pair.memory.read(NEXT_TO_MAIN.gpa, 62) == b"\x77" * 62
    assert pair.memory.damage() == []


@pytest.mark.parametrize("flag", [0, WRITE])
def test_cve_2018_1059_a_buffer_over_the_end_of_a_region_is_refused(stepped, flag):
    pair = stepped(features=V1, memory=Islands())
    pair.tx.offer(pair.tx.chain([(NEXT_TO_MAIN.end - 50, 100, flag)]))
    pair.kick(TX)
    assert (pair.sent(), pair.counter(TX, "last_error")) == ([], RING_UNMAPPED)


def test_cve_2018_1059_a_table_over_the_end_of_a_region_is_refused(stepped):
    pair = stepped(features=V1, memory=Islands())
    pair.tx.offer(pair.tx.chain([(NEXT_TO_MAIN.end - 8, 32, 4)]))
    pair.kick(TX)
    assert pair.counter(TX, "last_error") == RING_INDIRECT_UNMAPPED


def test_cve_2018_1059_a_ring_over_two_regions_does_not_run(stepped):
    pair = stepped(features=V1, memory=Islands())
    pair.net.set_backend(TX, None)
    pair.tx.desc = MAIN.end - 16
    pair.net.set_vring_addr(TX, pair.tx.addresses())
    with pytest.raises(PeerError, match="not in the guest's memory"):
        pair.net.set_backend(TX, pair.queue)


def test_27740a5_a_chain_of_more_than_4_gib(stepped):
    """rust-vmm: the sum of the lengths had 32 bits."""
    pair = stepped(features=V1, num=64)
    size = 1 << 20
    for slot in range(64):
        pair.tx.set_desc(slot, GPA, size, 4 if slot == 0 else 0, 0)
    at = pair.memory.alloc(16 * 1024)
    big = struct.pack("<QIHH", GPA, pair.memory.size, NEXT, 0) * 1023
    pair.memory.write(at, big + struct.pack("<QIHH", GPA, pair.memory.size, 0, 0))
    pair.tx.set_desc(0, at, 16 * 1024, 4, 0)
    pair.tx.offer(0)
    pair.kick(TX)
    assert pair.sent() == []
    assert pair.tx.collect() == [Used(0, 0)]
    assert pair.counter(TX, "drop_too_long") == 1


# --- messages ---------------------------------------------------------------------------------


def test_cve_2019_14818_surplus_descriptors_are_closed(daemon, guest):
    """They were kept, message by message, until there were none left."""
    with FrontEnd(daemon.socket) as front_end:
        front_end.negotiate()
        before = len(daemon.fds())
        for _ in range(300):
            front_end.acked(vu.VHOST_USER_SET_VRING_NUM, state(0, 16), [guest.memory.fd] * 4)
            front_end.acked(vu.VHOST_USER_SET_MEM_TABLE, table(), [guest.memory.fd] * 8)
            front_end.acked(vu.VHOST_USER_SET_VRING_KICK, u64(99), [guest.rx.kick_fd])
        front_end.number(vu.VHOST_USER_GET_FEATURES)  # what came before it is done with
        assert len(daemon.fds()) == before


def test_cve_2019_14818_messages_that_repeat_take_no_memory(daemon):
    with FrontEnd(daemon.socket) as front_end:
        front_end.negotiate()

        def repeat(n: int) -> int:
            for _ in range(n):
                front_end.tell(vu.VHOST_USER_SET_VRING_NUM, state(0, 256))
            return daemon.rss_kib()

        before = repeat(500)
        assert repeat(3000) - before < 2048


@pytest.mark.parametrize("number", [31, 32])
def test_cve_2022_0669_and_cve_2020_10726_messages_of_in_flight_regions_leak_nothing(
    daemon, guest, number
):
    """Their descriptors were neither used nor closed; each answer made a new mapping."""
    with FrontEnd(daemon.socket) as front_end:
        front_end.negotiate()
        before = len(daemon.fds())
        for _ in range(100):
            payload = struct.pack("<QQHH4x", 1 << 20, 0, 0xFFFF, 0xFFFF)
            assert front_end.acked(number, payload, [guest.memory.fd]) == 1
        front_end.number(vu.VHOST_USER_GET_FEATURES)  # what came before it is done with
        assert len(daemon.fds()) == before
        assert [line for line in daemon.maps() if "memfd:guest" in line] == []


@pytest.mark.parametrize(
    ("size", "offset"), [(4096, 2**64 - 4096), (2**64 - 4096, 4096), (2**64 - 1, 1), (2**63, 2**63)]
)
def test_cve_2020_10722_log_size_and_offset_overflow_together(talk, size, offset):
    """Their sum was small, so the mapping was; the bitmap was not."""
    talk.start()
    assert talk.is_refused(6, struct.pack("<QQ", size, offset), [talk.memory.fd])
    assert talk.goes_round()


@pytest.mark.parametrize("index", [2, 0x100, 0x10000, 0x10001, 0x80000000, 0xFFFFFFFF])
def test_cve_2020_10723_an_index_is_compared_as_it_was_sent(talk, index):
    """Its upper half was cut off first; and 38c442d (rust-vmm): SET_VRING_BASE did not look."""
    talk.start()
    for number in (8, 10, 18):
        assert talk.is_refused(number, state(index, 1)), number
    assert talk.is_refused(11, state(index, 0))
    assert talk.is_refused(9, addresses(index, UVA, UVA, UVA))
    for number in (12, 13, 14):
        assert talk.is_refused(number, u64(index), [talk.memory.fd]), number
    assert talk.goes_round()


def test_bc900f86aa_descriptors_of_kicks_and_logs_that_are_refused_are_closed(talk):
    """Also 6dc3f119ce, 585283f9a7: the error paths forgot them."""
    talk.start()
    before = n_fds()
    plain = os.open("/proc/self/exe", os.O_RDONLY)  # cannot be polled
    for _ in range(200):
        assert talk.is_refused(12, u64(0), [plain])
        assert talk.is_refused(12, u64(77), [plain])
        assert talk.is_refused(12, u64(0 | NO_FD), [plain])
        assert talk.is_refused(6, struct.pack("<QQ", 1 << 40, 0), [plain])
    os.close(plain)
    assert n_fds() == before
    assert talk.goes_round()


def test_9e89b06d02_a_message_that_is_refused_holds_nothing(talk):
    """A handler that failed left its lock held, and the next message waited for ever."""
    talk.start()
    for number, payload in ((8, state(0, 3)), (10, state(0, 1 << 20)), (9, addresses(0, 1, 2, 3))):
        assert talk.is_refused(number, payload)
        assert talk.goes_round()


@pytest.mark.parametrize("number", [12, 13, 14])
def test_1407b0752e_a_kick_or_call_may_come_without_a_descriptor(talk, number):
    """The flag that says so was refused as a bad index."""
    talk.start()
    assert not talk.is_refused(number, u64(TX | NO_FD))
    talk.tx.send(HDR + FRAME)
    talk.kick(TX)
    for _ in range(1000):  # without a kick the ring is polled
        if talk.tx.used_idx() == 1:
            break
        talk.flush()
    assert talk.tx.used_idx() == 1


def test_snabb_disabling_ring_1_does_not_enable_it(talk):
    """The whole u64 was taken for a boolean: index 1 and 0 made 'true'."""
    talk.start()
    talk.enable(TX, 0)
    talk.tx.send(HDR + FRAME)
    talk.kick(TX)
    assert not talk.device.rings[TX].enabled


def test_rust_vmm_rings_may_be_enabled_before_features_are_set(talk):
    """QEMU does, and a back-end that refuses never runs."""
    for index in (RX, TX):
        assert not talk.is_refused(vu.VHOST_USER_SET_VRING_ENABLE, state(index, 1))
    talk.start()
    assert talk.goes_round()


def test_rust_vmm_210_and_227_features_and_kicks_do_not_disable_rings(talk):
    """A migration that switched LOG_ALL stopped the traffic."""
    talk.start()
    for features in (FEATURES | mask(VHOST_F_LOG_ALL), FEATURES):
        talk.say(vu.VHOST_USER_SET_FEATURES, u64(features))
        assert talk.goes_round()
    for index in (RX, TX):
        talk.say(vu.VHOST_USER_SET_VRING_KICK, u64(index), [talk.kicks[index]])
    assert talk.goes_round()


def test_cloud_hypervisor_1565_what_is_not_wired_is_not_offered(talk):
    """BACKEND_REQ was offered and not answered."""
    assert not talk.number(15) & 1 << vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ
    assert talk.is_refused(vu.VHOST_USER_SET_BACKEND_REQ_FD, b"", [talk.memory.fd])


# --- rings start and stop ---------------------------------------------------------------------


def test_04c27cb673_addresses_that_change_while_the_ring_runs(talk):
    """The running ring's addresses were freed under the worker."""
    talk.start()
    where = talk.tx.addresses()
    here = addresses(TX, where.desc_uva, where.used_uva, where.avail_uva)
    nowhere = addresses(TX, UVA - 4096, UVA - 4096, UVA - 4096)
    for _ in range(50):
        for at in (nowhere, here):
            talk.say(vu.VHOST_USER_SET_VRING_ADDR, at, (), NEED_REPLY)
            talk.kick(TX)
    assert talk.goes_round()


def test_d951283_a_ring_without_addresses_is_never_used(talk):
    """rust-vmm: it was enabled, kicked, and then read at address 0."""
    talk.say(vu.VHOST_USER_SET_FEATURES, u64(FEATURES))
    for index in (RX, TX):
        talk.fds(index)
        talk.enable(index)
        talk.kick(index)
    talk.share()
    for index in (RX, TX):
        talk.kick(index)
        assert not talk.device.rings[index].runs
    talk.start()
    assert talk.goes_round()


def test_8c00b88_a_kick_before_the_ring_is_enabled_is_not_lost(talk):
    """rust-vmm, and VPP e40231b1ecf: between registering the descriptor and enabling the ring."""
    talk.say(vu.VHOST_USER_SET_FEATURES, u64(FEATURES))
    talk.share()
    talk.place(RX)
    talk.place(TX)
    talk.tx.send(HDR + FRAME)
    talk.enable(TX)  # before its kick: a TX ring that runs disabled throws its packets away
    os.eventfd_write(talk.kicks[TX], 1)
    talk.fds(TX)
    talk.flush()
    (gpa,) = talk.rx.post(200)
    os.eventfd_write(talk.kicks[RX], 1)
    talk.fds(RX)
    talk.flush()
    talk.enable(RX)
    for _ in range(3):
        talk.flush()
    assert talk.memory.read(gpa, 200)[12 : 12 + len(FRAME)] == FRAME


def test_b53a497294_a_ring_that_starts_wants_kicks(talk):
    """The flags of a life before stayed in used->flags, and no guest kicked."""
    for ring in talk.rings:
        talk.memory.write(ring.used, struct.pack("<H", 1))
    talk.start()
    talk.flush()
    assert talk.tx.used_flags() == 0
    assert talk.goes_round()


def test_dpdk_vfe_40_the_base_survives_being_disabled(talk):
    """QEMU disables a ring before it asks for its base."""
    talk.start()
    assert talk.goes_round()
    for index in (RX, TX):
        talk.enable(index, 0)
    assert [talk.stop(index) for index in (RX, TX)] == [1, 1]


def test_passt_7c33b12_a_stopped_ring_forgets_its_call(talk):
    """A late notification was written to a descriptor that was somebody else's by then."""
    talk.start()
    assert talk.goes_round()
    for index in (RX, TX):
        talk.stop(index)
        vq = talk.device.nets[0].vqs[index].vq
        assert [int(vq[name]) for name in ("kick_fd", "call_fd")] == [-1, -1]
    for call in talk.calls:
        os.eventfd_read(call)
    talk.tx.send(HDR + FRAME)
    talk.kick(TX)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(talk.calls[TX])


def test_3c929a0bb3_and_73ea44370d_front_ends_that_come_and_go_under_traffic(daemon):
    """A connection's clean-up and the events that were on their way met in freed memory."""
    for k in range(25):
        guest = Guest()
        front_end = FrontEnd(daemon.socket)
        front_end.start(guest)
        guest.rx.post(8)
        guest.tx.send(*[FRAME] * 8)
        if k % 2:
            guest.tx.wait_used(8)
        front_end.close()
        guest.close()
    assert daemon.is_running()


# --- packets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("total", range(13))
def test_cve_2022_2132_a_chain_that_is_no_longer_than_its_header(stepped, total):
    """Less than a header made the loop wait for a rest that never came."""
    pair = stepped(features=V1)
    pair.tx.send(*[b"x"] * total) if total else pair.tx.offer(pair.tx.chain([(GPA, 0, 0)]))
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert len(pair.tx.collect()) == 2
    assert pair.counter(TX, "drop_short") == 1


@pytest.mark.parametrize("first", range(1, 12))
def test_cve_2022_2132_a_header_spread_over_three_descriptors(stepped, first):
    pair = stepped(features=V1)
    header = bytes([0, 0]) + bytes(range(2, 12))
    header = header[:2] + bytes(2) + header[4:]
    for second in range(first + 1, 13):
        pair.tx.send(header[:first], header[first:second], header[second:] + FRAME)
        pair.kick(TX)
        assert pair.sent() == [header + FRAME]


@pytest.mark.parametrize("start", [0, 13, 14, 63, 64, 65, 0x7FFF, 0xFFFE, 0xFFFF])
@pytest.mark.parametrize("offset", [0, 1, 16, 0x7FFF, 0xFFFF])
def test_cve_2024_11614_a_checksum_beyond_the_packet(start, offset):
    """csum_start behind the end made a negative length, which is a large one."""
    guard = b"\xa7" * 0x20000
    header = struct.pack("<BBHHHHH", 1, 0, 0, 0, start, offset, 1)
    packet = header + FRAME
    memory = bytearray(guard + packet + guard)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(guard)
    fill_partial_checksum(hva, 12, len(packet), 1)
    assert memory[: len(guard)] == memory[-len(guard) :] == guard
    is_within = start < len(FRAME) and start + offset + 2 <= len(FRAME)
    flags = memory[len(guard) + VNET_HDR_FLAGS]
    assert flags == (2 if is_within else 1)


def test_cve_2020_10725_an_empty_packed_descriptor_with_a_bad_address():
    """The batch path looked at the length alone and followed the address."""
    with PackedVictim(V1, 2, 1 << 15 | 1 << 31) as victim:
        gpa = DISTANT.gpa
        victim.memory.write(gpa, HDR + FRAME)
        ring = struct.pack("<QIHH", 0xDEAD_0000_0000, 0, 0, NEXT | 1 << 7)
        ring += struct.pack("<QIHH", gpa, len(HDR + FRAME), 1, 1 << 7)
        victim.put(TX, (ring, bytes(4), bytes(4)))
        victim.run([], n_kicks=1)
        assert victim.sent == [HDR + FRAME]
        victim.check_borders()


@pytest.mark.parametrize("num", [1, 3, 5, 8])
def test_92ed77dce6_and_8d2c1260af_packed_positions_wrap(num):
    """Also af584d21bf; every lap of a ring whose size is no power of two."""
    with PackedVictim(V1, num, 1 << 15 | 1 << 31) as victim:
        victim.run([])
        for _ in range(3 * num):
            victim.repair(TX)
            victim.run([], n_kicks=1)
        assert len(victim.sent) >= 3 * num
        vq = victim.vq(TX)
        assert (int(vq["avail_pos"]), int(vq["avail_wrap"])) == (
            int(vq["used_pos"]),
            int(vq["used_wrap"]),
        )


@pytest.mark.parametrize("direction", [RX, TX])
def test_134228ca39_and_93ed2f49de_more_pieces_than_the_array_has(stepped, direction):
    """The vector of buffers overflowed when a packet took more descriptors than it holds."""
    pair = stepped(num=2048)
    ring, flag = pair.rings[direction], WRITE if direction == RX else 0
    ring.offer(ring.chain([(GPA + 0x80000 + k, 1, flag) for k in range(1025)]))
    if direction == RX:
        pair.arrive(HDR + bytes(1013))
    pair.kick(direction)
    assert pair.erred(direction) >= 1
    assert (ring.used_idx(), pair.sent()) == (0, [])


@pytest.mark.parametrize("length", [8, 17, 16 * 65537, 0xFFFFFFF0, 0xFFFFFFFF])
def test_85805ee887_the_length_of_an_indirect_table(stepped, length):
    """QEMU libvhost-user: reading the table overflowed.  All causes: tests/model."""
    pair = stepped(features=V1)
    pair.tx.set_desc(0, GPA, length, 4, 0)
    pair.tx.offer(0)
    pair.kick(TX)
    assert (pair.erred(TX), pair.sent(), pair.tx.used_idx()) == (2, [], 0)


def test_563303b50_an_index_that_jumps_is_told_and_waited_out(stepped):
    """cloud-hypervisor: it went through 65535 entries that nobody had offered."""
    pair = stepped(features=V1)
    pair.memory.write(pair.tx.avail + 2, struct.pack("<H", 17))
    pair.kick(TX)
    assert (pair.erred(TX), pair.counter(TX, "last_error")) == (1, RING_AVAIL_JUMP)
    assert pair.tx.used_idx() == 0


def test_17fefa1e4_a_frame_that_the_tap_refuses_does_not_end_the_worker(stepped):
    """cloud-hypervisor, and c71a8ea8d: EINVAL of one packet killed the thread."""
    pair = stepped(features=V1)
    pair._device_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    pair.tx.send(HDR + bytes(60_000))
    pair.kick(TX)
    pair.tx.send(HDR + FRAME)
    pair.kick(TX)
    assert pair.sent() == [HDR + FRAME]
    assert pair.counter(TX, "drop_too_long") == 1


def test_passt_71a0d6c_num_buffers_is_1_without_mergeable_buffers(stepped):
    pair = stepped(features=V1)
    (gpa,) = pair.rx.post(200)
    pair.arrive(bytes([0] * 10) + b"\x55\x55" + FRAME)
    assert pair.memory.read(gpa + 10, 2) == b"\x01\x00"


def test_passt_038c51e_data_valid_is_said_only_to_who_knows_checksums():
    """iPXE threw every segment away."""
    packet = bytearray(struct.pack("<BBHHHHH", 1, 0, 0, 0, 0, 16, 1) + FRAME)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(packet))
    fill_partial_checksum(hva, 12, len(packet), 0)
    assert packet[VNET_HDR_FLAGS] == 0


def test_passt_edac476_packets_for_a_ring_that_cannot_take_them_cost_nothing(stepped):
    """The input stayed readable, was looked at again and again, and a processor was gone."""
    pair = stepped(features=MRG | V1 | EVENT_IDX)
    for _ in range(20):
        pair.wire.send(HDR + FRAME)
    pair.flush()
    runs = int(pair.net.worker.record[0]["runs"])
    for _ in range(5):
        pair.flush()
    assert int(pair.net.worker.record[0]["runs"]) == runs
    pair.net.set_backend(RX, None)
    for _ in range(5):
        pair.flush()
    assert int(pair.net.worker.record[0]["runs"]) <= runs + 2


@pytest.mark.parametrize("sizes", [(1,) * 76, (11, 1, 64), (12, 64), (75, 1), (3, 9, 0, 64)])
def test_passt_c96a88d_any_layout_of_buffers_is_a_layout(stepped, sizes):
    """It was asserted that a buffer holds a header; against a model: tests/model."""
    pair = stepped(num=128)
    gpas = pair.rx.post(*sizes)
    pair.arrive(HDR + FRAME)
    got = b"".join(pair.memory.read(g, n) for g, n in zip(gpas, sizes, strict=True))
    assert got == HDR[:10] + b"\x01\x00" + FRAME


# --- the log ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [8, 100, 4096, 5000])
def test_bdd96d8ac7_a_log_at_an_offset_in_its_file(offset):
    """mmap wants whole pages; the offset was added twice, or not at all."""
    fd = os.memfd_create("log")
    os.ftruncate(fd, 16384)
    log = DirtyLog.map(fd, 64, offset)
    ctypes.memset(log.hva, 0xFF, log.size)
    assert os.pread(fd, 16384, 0) == bytes(offset) + b"\xff" * 64 + bytes(16384 - offset - 64)
    log.release()
    os.close(fd)

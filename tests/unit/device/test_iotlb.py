"""The IOTLB against a dictionary of every address, and rings that live behind one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_ring import GPA, UVA, WRITE, Memory
from instance import MRG, TX, V1, Instance
from vhostnet.device.iotlb import MAX_IOTLB_ENTRIES, Iotlb
from vhostnet.errors import PeerError
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM, mask

PLATFORM = mask(VIRTIO_F_ACCESS_PLATFORM)
RO, WO, RW = 1, 2, 3
HDR = bytes(12)
FRAME = bytes(range(60))
#: The guest's buffers appear to the device this far from where they are.
SHIFT = 0x1000_0000


@pytest.fixture(scope="module")
def memory():
    memory = Memory(1 << 16)
    yield memory
    memory.close()


class Model:
    """Entries by age; the lowest start wins, the older one of two with one start."""

    def __init__(self):
        self.entries = []

    def at(self, iova):
        hits = [e for e in self.entries if e[0] <= iova < e[0] + e[1]]
        if not hits:
            return None
        start, _, uva, perm = min(hits, key=lambda e: e[0])
        return uva + iova - start, perm


SMALL = st.integers(0, 60)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), SMALL, st.integers(1, 20), SMALL, st.integers(1, 3)),
        st.tuples(st.just("invalidate"), SMALL, st.integers(0, 20)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_every_address_translates_as_in_the_model(memory, steps):
    table = memory.table()
    iotlb, model = Iotlb(table), Model()
    for name, iova, size, *rest in steps:
        if name == "update":
            iotlb.update(iova, size, UVA + rest[0], rest[1])
            model.entries.append((iova, size, UVA + rest[0], rest[1]))
        else:
            everything = (iova, size) == (0, 0)
            iotlb.invalidate(iova, size)
            model.entries = [
                e
                for e in model.entries
                if not everything and (e[0] + e[1] <= iova or e[0] >= iova + size)
            ]
    base = table.regions[0].hva - UVA
    for iova in range(90):
        want = model.at(iova)
        for access in (RO, WO):
            got = iotlb.lookup(iova, 1, access)
            if want is None or not want[1] & access:
                assert got == (None, iova)
            else:
                assert got == (want[0] + base, 0)
    starts = list(iotlb.array["iova"])
    assert starts == sorted(starts)
    table.release()


def test_beyond_its_size_the_oldest_entry_is_retired(memory):
    table = memory.table()
    iotlb = Iotlb(table)
    for k in range(MAX_IOTLB_ENTRIES + 1):
        iotlb.update(k * 16, 16, UVA, RW)
    assert iotlb.lookup(0, 1, RO) == (None, 0)
    assert iotlb.lookup(16, 1, RO)[1] == 0
    assert len(iotlb.array) == MAX_IOTLB_ENTRIES
    table.release()


@pytest.mark.parametrize(
    ("iova", "size", "uva"),
    [(0, 0, UVA), (2**63 - 8, 16, UVA), (2**64 - 8, 16, UVA), (0, 16, 2**64 - 8), (0, 16, 0x1000)],
)
def test_a_bad_update_is_refused(memory, iova, size, uva):
    table = memory.table()
    with pytest.raises(PeerError, match="IOTLB update"):
        Iotlb(table).update(iova, size, uva, RW)
    table.release()


class Guarded(Instance):
    """A queue pair whose addresses are all I/O virtual: rings and buffers alike."""

    def __init__(self) -> None:
        self.misses: list[tuple[int, int]] = []
        super().__init__(features=MRG | V1 | PLATFORM)
        self.net.on_iotlb_miss = lambda iova, access: self.misses.append((iova, access))
        for index, ring in enumerate(self.rings):
            at = ring.addresses()
            self.net.set_vring_addr(
                index,
                type(at)(
                    *(a - UVA + GPA + SHIFT for a in (at.desc_uva, at.avail_uva, at.used_uva))
                ),
            )

    def map(self, gpa: int, size: int, perm: int = RW) -> None:
        self.net.iotlb_update(gpa + SHIFT, size, gpa - GPA + UVA, perm)

    def send_at(self, gpa: int, packet: bytes) -> None:
        self.memory.write(gpa, packet)
        self.tx.offer(self.tx.chain([(gpa + SHIFT, len(packet), 0)]))


@pytest.fixture
def guarded():
    pair = Guarded()
    yield pair
    pair.close()


RINGS = 0x4000  # the first pages hold the rings


def test_a_ring_that_is_not_in_the_iotlb_does_not_start_and_is_asked_for(guarded):
    with pytest.raises(PeerError):
        guarded.net.set_backend(TX, guarded.queue)
    assert guarded.misses == [(guarded.tx.used + SHIFT, RO)]


def test_a_ring_whose_used_part_is_there_starts_and_asks_for_the_rest(guarded):
    guarded.map(guarded.tx.used, 6 + 8 * 16)
    guarded.net.set_backend(TX, guarded.queue)
    assert guarded.net.active(TX)
    assert guarded.misses == [(guarded.tx.desc + SHIFT, RO)]
    guarded.send_at(GPA + 0x8000, HDR + FRAME)
    guarded.map(GPA, RINGS)
    guarded.map(GPA + 0x8000, 4096)
    guarded.flush()
    assert guarded.sent() == [HDR + FRAME]


def test_a_buffer_is_asked_for_and_its_update_goes_on_without_a_kick(guarded):
    guarded.map(GPA, RINGS)
    guarded.start()
    buffer = GPA + 0x8000
    guarded.send_at(buffer, HDR + FRAME)
    guarded.kick(TX)
    assert guarded.sent() == []
    assert guarded.misses == [(buffer + SHIFT, RO)]
    assert guarded.erred(TX) == 0
    guarded.map(buffer, 4096, RO)
    guarded.flush()
    assert guarded.sent() == [HDR + FRAME]


def test_an_update_elsewhere_does_not_wake_the_ring(guarded):
    guarded.map(GPA, RINGS)
    guarded.start()
    guarded.send_at(GPA + 0x8000, HDR + FRAME)
    guarded.kick(TX)
    guarded.map(GPA + 0xA000, 4096, RW)
    guarded.flush()
    assert len(guarded.misses) == 1


def test_a_buffer_over_two_entries_misses_at_the_second(guarded):
    guarded.map(GPA, RINGS)
    guarded.start()
    buffer = GPA + 0x8000
    guarded.map(buffer, 40, RO)
    guarded.send_at(buffer, HDR + FRAME)
    guarded.kick(TX)
    assert guarded.misses == [(buffer + 40 + SHIFT, RO)]
    guarded.map(buffer + 40, 4096, RO)
    guarded.flush()
    assert guarded.sent() == [HDR + FRAME]


def test_a_forbidden_access_is_an_error_and_not_a_miss(guarded, caplog):
    guarded.map(GPA, RINGS)
    guarded.start()
    buffer = GPA + 0x8000
    guarded.map(buffer, 4096, WO)
    guarded.send_at(buffer, HDR + FRAME)
    guarded.kick(TX)
    assert guarded.misses == []
    assert guarded.erred(TX) == 1
    assert "IOMMU forbids" in caplog.text


def test_received_packets_wait_for_the_buffers_translation(guarded):
    guarded.map(GPA, RINGS)
    guarded.start()
    gpa = GPA + 0x8000
    guarded.rx.offer(guarded.rx.chain([(gpa + SHIFT, 1500, WRITE)]))
    guarded.arrive(HDR + FRAME)
    assert guarded.misses == [(gpa + SHIFT, WO)]
    guarded.map(gpa, 1500, WO)
    guarded.flush()
    assert [u.length for u in guarded.rx.collect()] == [72]
    assert guarded.memory.read(gpa + 12, 60) == FRAME


def test_a_ring_that_is_invalidated_stops_until_it_is_updated(guarded):
    guarded.map(GPA, RINGS)
    guarded.map(GPA + 0x8000, 4096)
    guarded.start()
    guarded.net.iotlb_invalidate(GPA + SHIFT, RINGS)
    assert guarded.misses
    guarded.send_at(GPA + 0x8000, HDR + FRAME)
    guarded.kick(TX)
    assert guarded.sent() == []
    guarded.map(GPA, RINGS)
    guarded.flush()
    assert guarded.sent() == [HDR + FRAME]


def test_messages_without_an_iotlb_are_refused():
    pair = Instance()
    for verb in (
        lambda: pair.net.iotlb_update(0, 1, UVA, RW),
        lambda: pair.net.iotlb_invalidate(0, 0),
    ):
        with pytest.raises(PeerError, match="ACCESS_PLATFORM"):
            verb()
    pair.close()

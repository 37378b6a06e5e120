"""Whatever bytes a guest puts into its rings: nothing beyond its memory is read or written.

The memory is `islands`: canaries lie before and after every region, in the very pages that the
device maps.  After each example the rings are put right, and packets must flow again.

VHOSTNET_FUZZ_EXAMPLES=20000 makes a longer run of it.
"""

from __future__ import annotations

import contextlib
import random
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_ring import INDIRECT, NEXT, WRITE
from instance import EVENT_IDX, MRG, RX, TX, V1
from islands import CANARY, DISTANT, HIGH, ISLANDS, MAIN, Island, desc
from ring_strategies import (
    BASES,
    BORDERS,
    FEATURES,
    PACKED_FEATURES,
    PACKETS,
    RAW,
    RAW_PACKED,
    SIZES,
    U16,
    counted_from,
    packed_base,
    packed_rings,
    put_tables,
    rings,
    tables,
)
from vhostnet.datapath.layout import VHOST_ACCESS_RO, VHOST_ACCESS_RW, VHOST_ACCESS_WO
from vhostnet.datapath.vring_ops import add_used, discard_vq_desc
from vhostnet.errors import PeerError
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi.virtio import VIRTIO_F_IN_ORDER, mask
from victim import (
    AVAIL_BYTES,
    DESC_BYTES,
    EVENT_BYTES,
    EXAMPLES,
    HOSTILE,
    NUM,
    GuardedVictim,
    PackedVictim,
    SplitVictim,
    within_bounds,
)

# --- tests ------------------------------------------------------------------------------------


@HOSTILE
@given(FEATURES, BASES, RAW, RAW, st.binary(min_size=1, max_size=200), PACKETS)
def test_arbitrary_bytes_in_rings_touch_nothing_but_the_guests_memory(
    features, base, rx, tx, filling, packets
):
    with SplitVictim(features, base) as victim:
        victim.memory.fill(filling)
        victim.put(RX, counted_from(base, rx))
        victim.put(TX, counted_from(base, tx))
        victim.run(packets)
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(FEATURES, BASES, rings(RX), tables(RX), PACKETS)
def test_receive_rings_that_are_nearly_right_touch_nothing_but_the_guests_memory(
    features, base, rx, contents, packets
):
    with SplitVictim(features, base) as victim:
        put_tables(victim, contents)
        victim.put(RX, counted_from(base, rx))
        victim.run(packets or [b"\x09" * 300])
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(FEATURES, BASES, rings(TX), tables(TX), PACKETS)
def test_transmit_rings_that_are_nearly_right_touch_nothing_but_the_guests_memory(
    features, base, tx, contents, packets
):
    with SplitVictim(features, base) as victim:
        put_tables(victim, contents)
        victim.put(TX, counted_from(base, tx))
        victim.repair(RX)
        victim.run(packets)
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(st.sampled_from([0, V1, MRG | V1]), rings(TX), tables(TX))
def test_no_byte_from_beyond_the_guests_memory_is_sent(features, tx, contents):
    with SplitVictim(features, 0) as victim:
        # No guest byte looks like a canary, and without packets to receive the device writes
        # none either: its indices stay small here and its lengths are 0.
        victim.memory.fill(b"guest")
        put_tables(victim, contents)
        victim.memory.write(victim.pair.rx.avail, bytes(AVAIL_BYTES))
        victim.put(TX, counted_from(0, tx))
        victim.run([], n_kicks=1)
        victim.check_borders()
        assert [frame for frame in victim.sent if CANARY in frame] == []


@HOSTILE
@given(
    FEATURES,
    st.lists(
        st.tuples(
            st.sampled_from([RX, TX]),
            st.sampled_from([0, 0, 1, 1, 2]),
            st.integers(0, DESC_BYTES - 1),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=12,
    ),
    PACKETS,
)
def test_bytes_that_change_between_kicks_touch_nothing_but_the_guests_memory(
    features, pokes, packets
):
    with SplitVictim(features, 0) as victim:
        for index in (RX, TX):
            victim.repair(index)
        victim.run(packets)
        for index, part, at, data in pokes:
            victim.poke(index, part, at, data)
            victim.run([], n_kicks=1)
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(
    st.permutations(["desc", "avail", "used"]),
    st.integers(0, 40),
    st.integers(0, 40),
    rings(RX),
    rings(TX),
    PACKETS,
)
def test_ring_parts_that_overlap_each_other_touch_nothing_but_the_guests_memory(
    order, first_gap, second_gap, rx, tx, packets
):
    """The device then changes descriptors and indices itself while it works."""
    with SplitVictim(MRG | V1, 0) as victim:
        for index in (RX, TX):
            ring = victim.pair.rings[index]
            start = MAIN.gpa + 0x800 + 0x200 * index
            places = {order[0]: start, order[1]: start + 4 * first_gap}
            places[order[2]] = start + 4 * second_gap
            ring.desc, ring.avail, ring.used = places["desc"], places["avail"], places["used"]
        victim.place(0)
        victim.put(RX, counted_from(0, rx))
        victim.put(TX, counted_from(0, tx))
        victim.run(packets)
        victim.check_borders()


# --- behind an IOMMU --------------------------------------------------------------------------

SECRET = b"write-only"


def guarded(permission_of_high: int) -> dict[Island, int]:
    return {i: permission_of_high if i is HIGH else VHOST_ACCESS_RW for i in ISLANDS}


@HOSTILE
@given(st.sampled_from([V1, MRG | V1]), BASES, rings(RX), tables(RX), PACKETS)
def test_nothing_is_received_into_memory_that_the_iommu_lets_be_read_only(
    features, base, rx, contents, packets
):
    with GuardedVictim(features, base, guarded(VHOST_ACCESS_RO)) as victim:
        put_tables(victim, contents)
        victim.put(RX, counted_from(base, rx))
        before = victim.memory.read(HIGH.gpa, HIGH.size)
        victim.run(packets or [b"\x09" * 300])
        assert victim.memory.read(HIGH.gpa, HIGH.size) == before
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(st.sampled_from([V1, MRG | V1]), BASES, rings(TX), tables(TX))
def test_nothing_is_sent_from_memory_that_the_iommu_lets_be_written_only(
    features, base, tx, contents
):
    with GuardedVictim(features, base, guarded(VHOST_ACCESS_WO)) as victim:
        put_tables(victim, contents)
        victim.put(TX, counted_from(base, tx))
        victim.memory.write(HIGH.gpa, (SECRET * HIGH.size)[: HIGH.size])
        victim.repair(RX)
        victim.run([])
        assert [sent for sent in victim.sent if SECRET[:4] in sent] == []
        victim.check_borders()
        victim.check_it_works_again()


# --- packed rings -----------------------------------------------------------------------------


@HOSTILE
@given(
    PACKED_FEATURES,
    SIZES,
    st.integers(0, NUM - 1),
    st.integers(0, 1),
    RAW_PACKED,
    RAW_PACKED,
    PACKETS,
)
def test_arbitrary_bytes_in_packed_rings_touch_nothing_but_the_guests_memory(
    features, num, pos, wrap, rx, tx, packets
):
    with PackedVictim(features, num, packed_base(pos % num, wrap)) as victim:
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        victim.run(packets)
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(
    PACKED_FEATURES,
    SIZES,
    st.integers(0, NUM - 1),
    packed_rings(RX),
    packed_rings(TX),
    tables(RX),
    tables(TX),
    PACKETS,
)
def test_packed_rings_that_are_nearly_right_touch_nothing_but_the_guests_memory(
    features, num, pos, rx, tx, rx_contents, tx_contents, packets
):
    with PackedVictim(features, num, packed_base(pos % num, 1)) as victim:
        put_tables(victim, [*rx_contents[:2], *tx_contents[2:]])
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        victim.run(packets or [b"\x09" * 300])
        victim.check_borders()
        victim.check_it_works_again()


@HOSTILE
@given(
    PACKED_FEATURES,
    SIZES,
    st.lists(
        st.tuples(
            st.sampled_from([RX, TX]),
            st.sampled_from([0, 0, 0, 1]),
            st.integers(0, DESC_BYTES - 1),
            st.binary(min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=12,
    ),
    PACKETS,
)
def test_packed_rings_that_change_between_kicks_touch_nothing_but_the_guests_memory(
    features, num, pokes, packets
):
    with PackedVictim(features, num, packed_base(0, 1)) as victim:
        for index in (RX, TX):
            victim.repair(index)
        victim.run(packets)
        for index, part, at, data in pokes:
            victim.poke(index, part, at % victim.parts[index][part][1], data)
            victim.run([], n_kicks=1)
        victim.check_borders()
        victim.check_it_works_again()


def is_within(num: int, base: int) -> bool:
    """Whether both positions of a packed base are in the ring; 0 above repeats the lower one."""
    avail, used = base & 0xFFFF, base >> 16 or base & 0xFFFF
    return avail & 0x7FFF < num and used & 0x7FFF < num


@HOSTILE
@given(
    SIZES,
    st.builds(lambda a, u: a | u << 16, *[st.integers(0, 9) | U16] * 2),
    packed_rings(RX),
)
def test_a_packed_ring_does_not_start_at_a_base_beyond_its_end(num, base, ring):
    with PackedVictim(MRG | V1, num, base) as victim:
        for index in (RX, TX):
            victim.put(index, (*ring, bytes(EVENT_BYTES)))
        if is_within(num, base):
            victim.run([b"\x09" * 60])
        else:
            with pytest.raises(PeerError, match="beyond"):
                victim.pair.start()
        victim.check_borders()


@HOSTILE
@given(SIZES, st.integers(0, NUM - 1), st.integers(0, 1), st.integers(1, 100))
def test_positions_stay_within_a_packed_ring_however_many_descriptors_are_taken(
    num, pos, wrap, n_descs
):
    """A driver that is quick enough can have a ring taken more than once for one packet."""
    with PackedVictim(MRG | V1, num, packed_base(pos % num, wrap)) as victim:
        victim.pair.start()
        with victim.pair.net.quiesced():
            vq = victim.vq(RX)
            end = num * wrap + pos % num + n_descs
            add_used(vq, 0, 0, 1, n_descs)
            assert (vq["used_pos"], vq["used_wrap"]) == (end % num, end // num % 2)
            vq["avail_pos"], vq["avail_wrap"] = end % num, end // num % 2
            discard_vq_desc(vq, 1, n_descs)
            assert (vq["avail_pos"], vq["avail_wrap"]) == (pos % num, wrap)


# --- while the device reads -------------------------------------------------------------------


def scribble_on_split(victim: SplitVictim, dice: random.Random) -> None:
    index = dice.choice([RX, TX])
    ring = victim.pair.rings[index]
    what = dice.randrange(4)
    usual = WRITE if index == RX else 0
    if what == 0:
        edge = dice.choice(BORDERS) + dice.randrange(-20, 20)
        flags = usual | dice.choice([0, NEXT, INDIRECT])
        one = desc(edge, dice.choice([0, 12, 60, 160]), flags, dice.randrange(NUM))
        victim.memory.write(ring.desc + 16 * dice.randrange(NUM), one)
    elif what == 1:
        word = struct.pack("<H", dice.randrange(NUM))
        victim.memory.write(ring.avail + 4 + 2 * dice.randrange(NUM), word)
    elif what == 2:
        idx = (int(victim.vq(index)["last_avail_idx"]) + dice.randrange(NUM)) & 0xFFFF
        victim.memory.write(ring.avail + 2, struct.pack("<H", idx))
    else:  # one good descriptor, so that something moves
        good = desc(DISTANT.gpa, 400, usual, 0)
        victim.memory.write(ring.desc + 16 * dice.randrange(NUM), good)


def scribble_on_packed(victim: PackedVictim, dice: random.Random) -> None:
    """Descriptors become available and are taken back, whatever lap the device is in."""
    index = dice.choice([RX, TX])
    ring = victim.parts[index][0][0]
    lap = dice.choice([1 << 7, 1 << 15])
    flags = (WRITE if index == RX else 0) | dice.choice([0, 0, NEXT, INDIRECT]) | lap
    gpa = dice.choice([DISTANT.gpa, dice.choice(BORDERS) + dice.randrange(-20, 20)])
    one = struct.pack("<QIHH", gpa, dice.choice([1, 12, 60, 400]), dice.randrange(NUM), flags)
    for k in range(victim.num):
        if dice.randrange(2):
            victim.memory.write(ring + 16 * k, one)


# Of kicks, between two looks at whether the worker still returns.
ROUNDS = 20

LIVE = {
    "split": (lambda: SplitVictim(MRG | V1, 0), scribble_on_split),
    "split, event index": (lambda: SplitVictim(MRG | V1 | EVENT_IDX, 0), scribble_on_split),
    "split, in order": (
        lambda: SplitVictim(MRG | V1 | mask(VIRTIO_F_IN_ORDER), 0),
        scribble_on_split,
    ),
    "packed": (lambda: PackedVictim(MRG | V1, NUM, packed_base(0, 1)), scribble_on_packed),
    "packed, two entries": (
        lambda: PackedVictim(MRG | V1 | EVENT_IDX, 2, packed_base(1, 1)),
        scribble_on_packed,
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_rings_that_change_while_they_are_read_touch_nothing_but_the_guests_memory(name):
    make, scribble = LIVE[name]
    dice = random.Random(name)
    n_batches = (4 * EXAMPLES if JIT_ENABLED else EXAMPLES // 2) // ROUNDS
    with make() as victim:
        for index in (RX, TX):
            victim.repair(index)
        victim.run([])
        ended = threading.Event()

        def scribble_on() -> None:
            while not ended.is_set():
                scribble(victim, dice)

        def has_moved() -> bool:
            return all(victim.pair.counter(index, "packets") for index in (RX, TX))

        def drive() -> None:
            for _ in range(ROUNDS):
                with contextlib.suppress(BlockingIOError):
                    victim.pair.wire.send(b"\x03" * 300)
                for index in (RX, TX):
                    victim.pair.kick(index)
                victim.pair.sent()

        scribbler = threading.Thread(target=scribble_on)
        scribbler.start()
        try:
            while n_batches > 0 or not has_moved():
                within_bounds(drive)
                n_batches -= 1
                assert n_batches > -100, "no packet gets through"
        finally:
            ended.set()
            scribbler.join()
        within_bounds(victim.pair.flush)
        victim.check_borders()
        victim.check_it_works_again()

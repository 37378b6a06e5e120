"""The same hostile rings, packets and kicks for our device and for the model: same outcome.

Compared after every step: all of the guest's memory (used rings, flags, events, received data),
the frames that were sent, signals and error signals counted, positions, the kind of error, what
was counted as dropped.  Longer: VHOSTNET_FUZZ_EXAMPLES=20000.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import assume, event, given, note, settings
from hypothesis import strategies as st

from instance import EVENT_IDX, MRG, RX, TX, V1
from islands import ISLANDS, Islands
from model.chains import Refusal
from model.memory import GuestMemory
from model.net_device import NetDevice
from model.packed_ring import PackedRing
from model.split_ring import RingFeatures, SplitRing
from ring_dice import RingDice
from ring_strategies import (
    BASES,
    FEATURES,
    PACKED_FEATURES,
    PACKETS,
    RAW,
    RAW_PACKED,
    SIZES,
    counted_from,
    packed_base,
    packed_rings,
    put_tables,
    rings,
    tables,
)
from stepped import SteppedInstance
from vhostnet.datapath import codes
from vhostnet.errors import PeerError
from vhostnet.uapi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY, mask
from victim import (
    DESC_BYTES,
    EVENT_BYTES,
    EXAMPLES,
    HOSTILE,
    NUM,
    PackedVictim,
    SplitVictim,
    Victim,
    clean,
)

#: Bytes of one step beyond which a wire could be full, which the model does not know.
MOST_BYTES = 60_000
COUNTED = ("packets", "bytes", "drop_short", "drop_malformed", "drop_too_small", "ring_errors")
CODE = {
    None: 0,
    Refusal.AVAIL_JUMP: codes.RING_AVAIL_JUMP,
    Refusal.BAD_HEAD: codes.RING_BAD_HEAD,
    Refusal.BAD_NEXT: codes.RING_BAD_NEXT,
    Refusal.LOOP: codes.RING_LOOP,
    Refusal.UNMAPPED: codes.RING_UNMAPPED,
    Refusal.OUT_AFTER_IN: codes.RING_OUT_AFTER_IN,
    Refusal.TOO_MANY: codes.RING_TOO_MANY_IOVS,
    Refusal.TABLE_LENGTH: codes.RING_INDIRECT_LEN,
    Refusal.TABLE_UNMAPPED: codes.RING_INDIRECT_UNMAPPED,
    Refusal.TABLE_TOO_BIG: codes.RING_INDIRECT_TOO_BIG,
    Refusal.TABLE_OVERRUN: codes.RING_INDIRECT_OVERRUN,
    Refusal.TABLE_NESTED: codes.RING_INDIRECT_NESTED,
}

# --- steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poke:
    """The guest writes into a ring."""

    index: int
    part: int
    at: int
    data: bytes


@dataclass(frozen=True)
class Offer:
    """The guest makes so many more chains available (a split ring's index moves)."""

    index: int
    n: int


@dataclass(frozen=True)
class Ask:
    """The driver of a split ring wants a signal so many entries from now (used_event)."""

    index: int
    ahead: int


@dataclass(frozen=True)
class Wake:
    """Kicks, and packets on the wire, and then the worker has its turn."""

    kicked: tuple[int, ...]
    packets: tuple[bytes, ...]


Step = Poke | Offer | Ask | Wake
INDICES = st.sampled_from([RX, TX])
WAKES = st.builds(Wake, st.sampled_from([(RX,), (TX,), (RX, TX), ()]), PACKETS.map(tuple))
STEPS = st.lists(
    st.one_of(
        WAKES,
        st.builds(
            Poke,
            INDICES,
            st.sampled_from([0, 0, 1, 1, 2]),
            st.integers(0, DESC_BYTES - 1),
            st.binary(min_size=1, max_size=8),
        ),
        st.builds(Offer, INDICES, st.integers(1, NUM)),
    ),
    max_size=10,
).map(lambda steps: [Wake((RX, TX), (b"\x05" * 60,)), *steps, Wake((RX, TX), ())])

#: Where the guest's memory has holes, or (0 bytes) a border between two regions.
HOLES = st.lists(
    st.tuples(
        st.builds(
            lambda island, at: island.gpa + at % island.size,
            st.sampled_from(ISLANDS),
            st.integers(0, 0x2000),
        ),
        st.sampled_from([0, 0, 0, 1, 16, 100]),
    ),
    max_size=2,
)

# --- both of them -----------------------------------------------------------------------------


class Both:
    """A victim that moves in steps, and the model beside it."""

    def __init__(self, victim: Victim, features: int, num: int, base: int, ring: Any) -> None:
        self.victim, self.features = victim, features
        self.num, self.base, self.ring = num, base, ring
        self.is_room_news = True  # a backend says at once that it can be written
        self.calls = [0, 0]
        self.errors = [0, 0]

    def start(self) -> bool:
        """Start both; False if the device, rightly, does not start: a ring is not in memory."""
        victim = self.victim
        self.memory = memory = GuestMemory(
            {i.gpa: bytearray(victim.memory.read(i.gpa, i.size)) for i in ISLANDS},
            [(r.gpa, r.size) for r in victim.memory.regions],
        )
        is_there = all(
            memory.run(gpa, size) == size for parts in victim.parts for gpa, size in parts
        )
        try:
            for index in (RX, TX):
                victim.pair.net.set_backend(index, victim.pair.queue)
        except PeerError:
            assert not is_there
            return False
        assert is_there
        features = RingFeatures(
            event_idx=bool(self.features & EVENT_IDX),
            in_order=bool(self.features & mask(VIRTIO_F_IN_ORDER)),
            notify_on_empty=bool(self.features & mask(VIRTIO_F_NOTIFY_ON_EMPTY)),
        )
        rx, tx = (
            self.ring(memory, self.num, [gpa for gpa, _ in parts], self.base, features, index == TX)
            for index, parts in enumerate(victim.parts)
        )
        modern = bool(self.features & (MRG | V1))
        self.model = NetDevice(
            memory, rx, tx, 12 if modern else 10, bool(self.features & MRG), modern
        )
        return True

    def play(self, steps: list[Step]) -> None:
        for step in steps:
            note(step)
            if isinstance(step, Wake):
                self.wake(step)
            else:
                self.write(*self.where(step))

    def where(self, step: Poke | Offer | Ask) -> tuple[int, bytes]:
        if isinstance(step, Ask):
            _, (avail, _), (used, _) = self.victim.parts[step.index]
            event = (self.memory.u16(used + 2) + step.ahead) % 65536
            return avail + 4 + 2 * NUM, struct.pack("<H", event)
        if isinstance(step, Poke):
            gpa, size = self.victim.parts[step.index][step.part]
            data = step.data[:size]
            return gpa + min(step.at, size - len(data)), data
        idx = self.victim.parts[step.index][1][0] + 2
        return idx, struct.pack("<H", (self.memory.u16(idx) + step.n) % 65536)

    def write(self, gpa: int, data: bytes) -> None:
        self.victim.memory.write(gpa, data)
        self.memory.write(gpa, data)

    def scatter(self, gpa: int, data: bytes) -> None:
        """Write what blocks hold of *data*."""
        for k, byte in enumerate(data):
            if any(i.gpa <= gpa + k < i.end for i in ISLANDS):
                self.write(gpa + k, bytes([byte]))

    def wake(self, step: Wake) -> None:
        model, pair = self.model, self.victim.pair
        model.wire += step.packets
        before = len(model.sent)
        model.wake(list(step.kicked), bool(step.packets) or self.is_room_news)
        assume(sum(map(len, model.sent[before:])) < MOST_BYTES)
        for packet in step.packets:
            pair.wire.send(packet)
        for index in step.kicked:
            pair.kick_only(index)
        pair.flush()
        sent = pair.sent()
        self.is_room_news = bool(sent)
        assert sent == model.sent[before:]
        self.compare()

    def compare(self) -> None:
        victim = self.victim
        victim.check_borders()
        for index, queue in enumerate(self.model.queues):
            self.calls[index] += victim.pair.called(index)
            self.errors[index] += victim.pair.erred(index)
            vq = victim.vq(index)
            ours = {
                "calls": self.calls[index],
                "errors": self.errors[index],
                "last_error": int(vq["last_error"]),
                "position": victim.position(index),
                **{name: int(vq[name]) for name in COUNTED},
            }
            assert ours == {
                "calls": queue.calls,
                "errors": queue.errors,
                "last_error": CODE[queue.last_refusal],
                "position": victim.position_of(queue.ring),
                **{name: queue.counts[name] for name in COUNTED},
            }
            if queue.last_refusal is not None:
                event(queue.last_refusal.name)
        for island in ISLANDS:
            assert victim.memory.read(island.gpa, island.size) == self.memory.blocks[island.gpa]


class Stepped(Victim):
    """A victim without a thread, in memory with holes."""

    make_pair = SteppedInstance
    holes: Sequence[tuple[int, int]] = ()

    def make_memory(self) -> Islands:
        return Islands(self.holes)


class SteppedSplit(Stepped, SplitVictim):
    def position(self, index: int) -> tuple[int, int]:
        vq = self.vq(index)
        return int(vq["last_avail_idx"]), int(vq["last_used_idx"])

    def position_of(self, ring: SplitRing) -> tuple[int, int]:
        return ring.next_avail, ring.used_idx


class SteppedPacked(Stepped, PackedVictim):
    def position(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        vq = self.vq(index)
        return (
            (int(vq["avail_pos"]), int(vq["avail_wrap"])),
            (int(vq["used_pos"]), int(vq["used_wrap"])),
        )

    def position_of(self, ring: PackedRing) -> tuple[tuple[int, int], tuple[int, int]]:
        return ring.position(ring.next_avail), ring.position(ring.next_used)


def holed(kind: type[Any], holes: list[tuple[int, int]]) -> type[Any]:
    return type(kind.__name__, (kind,), {"holes": holes})


def play_split(
    features: int,
    base: int,
    holes: list[tuple[int, int]],
    fill: Callable[[SplitVictim], None],
    steps: list[Step],
) -> None:
    with holed(SteppedSplit, holes)(features, base) as victim:
        fill(victim)
        both = Both(victim, features, NUM, base, SplitRing)
        if both.start():
            both.play(steps)


# --- tests ------------------------------------------------------------------------------------


@HOSTILE
@given(FEATURES, BASES, HOLES, rings(RX), rings(TX), tables(RX), tables(TX), STEPS)
def test_split_rings_that_are_nearly_right_have_the_models_outcome(
    features, base, holes, rx, tx, rx_tables, tx_tables, steps
):
    def fill(victim):
        put_tables(victim, [*rx_tables[:2], *tx_tables[2:]])
        victim.put(RX, counted_from(base, rx))
        victim.put(TX, counted_from(base, tx))

    play_split(features, base, holes, fill, steps)


@HOSTILE
@given(FEATURES, BASES, HOLES, RAW, RAW, st.binary(min_size=1, max_size=200), STEPS)
def test_split_rings_of_arbitrary_bytes_have_the_models_outcome(
    features, base, holes, rx, tx, filling, steps
):
    def fill(victim):
        victim.memory.fill(filling)
        victim.put(RX, counted_from(base, rx))
        victim.put(TX, counted_from(base, tx))

    play_split(features, base, holes, fill, steps)


@HOSTILE
@given(
    FEATURES,
    BASES,
    st.lists(
        st.one_of(
            WAKES,
            st.builds(Offer, INDICES, st.integers(1, 3)),
            st.builds(Ask, INDICES, st.integers(-2, 4)),
        ),
        max_size=25,
    ),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 0, 1]),
)
def test_a_good_driver_sees_what_the_model_says(features, base, steps, event_at, avail_flags):
    """Nothing is broken here: indices run, wrap, and signals come when they were asked for."""

    def fill(victim):
        for index in (RX, TX):
            victim.repair(index)
            avail = victim.parts[index][1][0]
            event = struct.pack("<H", (base + event_at % 20) % 65536)
            victim.memory.write(avail, struct.pack("<HH", avail_flags, base))
            victim.memory.write(avail + 4 + 2 * NUM, event)

    play_split(features, base, [], fill, steps)


@HOSTILE
@given(
    PACKED_FEATURES,
    SIZES,
    st.integers(0, NUM - 1),
    st.integers(0, 1),
    HOLES,
    st.one_of(packed_rings(RX), RAW_PACKED),
    st.one_of(packed_rings(TX), RAW_PACKED),
    tables(RX),
    tables(TX),
    STEPS,
)
def test_packed_rings_have_the_models_outcome(
    features, num, pos, wrap, holes, rx, tx, rx_tables, tx_tables, steps
):
    base = packed_base(pos % num, wrap)
    with holed(SteppedPacked, holes)(features, num, base) as victim:
        put_tables(victim, [*rx_tables[:2], *tx_tables[2:]])
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        both = Both(victim, features, num, base, PackedRing)
        if both.start():
            both.play([step for step in steps if isinstance(step, Poke | Wake)])


# --- rings made by a die ----------------------------------------------------------------------

MANY = settings(HOSTILE, max_examples=6 * EXAMPLES)
FLAWS = st.sampled_from([0.0, 0.0, 0.01, 0.03, 0.1])
SEEDS = st.integers(0, 2**32)


def steps_of(dice: random.Random, is_split: bool) -> list[Step]:
    """Wakes with packets and kicks; between them more is offered, or something is overwritten."""
    steps: list[Step] = []
    for _ in range(dice.randrange(1, 8)):
        what = dice.randrange(8)
        index = dice.choice([RX, TX])
        if what == 0:
            data = dice.randbytes(dice.choice([1, 2, 4]))
            steps.append(Poke(index, dice.choice([0, 1, 2]), dice.randrange(DESC_BYTES), data))
        elif what < 4 and is_split:
            steps.append(Offer(index, dice.choice([1, 1, 1, 2, 3, NUM])))
        elif what == 4 and is_split:
            steps += [Ask(index, dice.randrange(-2, 5)), Offer(index, dice.randrange(1, 4))]
        sizes = [dice.choice([3, 13, 40, 60, 200, 700, 1514]) for _ in range(dice.randrange(4))]
        packets = tuple(dice.randbytes(size) for size in sizes)
        steps.append(Wake(dice.choice([(RX,), (TX,), (RX, TX), (RX, TX)]), packets))
    return steps


@MANY
@given(FEATURES, BASES, HOLES | st.just([]), FLAWS, SEEDS)
def test_split_rings_in_which_packets_move_have_the_models_outcome(
    features, base, holes, flaw, seed
):
    dice = random.Random(seed)

    def fill(victim):
        victim.memory.fill(dice.randbytes(dice.choice([7, 50])))
        for index in (RX, TX):
            ring = RingDice(dice, victim.memory.scatter, index, False, flaw).split(base)
            victim.put(index, ring)

    play_split(features, base, holes, fill, steps_of(dice, is_split=True))


@MANY
@given(PACKED_FEATURES, SIZES, st.integers(0, NUM - 1), st.integers(0, 1), FLAWS, SEEDS)
def test_packed_rings_in_which_packets_move_have_the_models_outcome(
    features, num, pos, wrap, flaw, seed
):
    dice = random.Random(seed)
    pos %= num
    base = packed_base(pos, wrap)
    with SteppedPacked(features, num, base) as victim:
        victim.memory.fill(dice.randbytes(dice.choice([7, 50])))
        both = Both(victim, features, num, base, PackedRing)
        for index in (RX, TX):
            made = RingDice(dice, victim.memory.scatter, index, True, flaw)
            ring = made.packed(num, pos, wrap)
            victim.put(index, (*ring, bytes(EVENT_BYTES)))
        assert both.start()
        both.play(steps_of(dice, is_split=False))
        # The driver recycles: each ring is offered anew, a lap later.
        for _ in range(2):
            for index in (RX, TX):
                at, lap = victim.position(index)[0]
                made = RingDice(dice, both.scatter, index, True, flaw)
                ring = made.packed(num, at, lap)
                for part, content in enumerate(ring):
                    both.write(victim.parts[index][part][0], clean(content))
            both.play([Wake((RX, TX), (dice.randbytes(60),)), Wake((RX, TX), ())])


def test_every_ring_error_of_a_mapped_ring_is_one_that_the_model_knows() -> None:
    translated_only = {codes.RING_FORBIDDEN}
    assert set(codes.RING_ERRORS) - translated_only == {code for code in CODE.values() if code}

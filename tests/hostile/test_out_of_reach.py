"""Memory that is reached with system calls: the same as mapped memory, whatever the rings say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_ring_bytes import (
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

from instance import RX, TX
from islands import ISLANDS
from vhostnet.datapath.layout import COUNTERS
from victim import EVENT_BYTES, HOSTILE, NUM, PackedVictim, SplitVictim, Victim

BATCHED = st.booleans()
POSITIONS = {
    SplitVictim: ("last_avail_idx", "last_used_idx"),
    PackedVictim: ("avail_pos", "avail_wrap", "seen_pos", "seen_wrap", "used_pos", "used_wrap"),
}


def outcome(victim: Victim, packets: list[bytes]) -> dict[str, Any]:
    """Run a victim; all that its guest, its wire and its operator can see."""
    victim.run(packets)
    victim.check_borders()
    seen: dict[str, Any] = {
        "sent": [len(frame) for frame in victim.sent],
        "memory": [victim.memory.read(i.gpa, i.size) for i in ISLANDS],
        "calls": [victim.pair.called(index) for index in (RX, TX)],
        "errors": [victim.pair.erred(index) > 0 for index in (RX, TX)],
    }
    for index in (RX, TX):
        # how often a broken ring is looked at depends on who is quicker
        counted = [name for name in COUNTERS if name != "ring_errors"]
        for name in (*counted, "last_error", *POSITIONS[type(victim)]):
            seen[f"{index}.{name}"] = victim.pair.counter(index, name)
    return seen


# What is sent may be taken from the rings themselves, which change meanwhile: its length only is
# compared.  What is received may be written over them, so that is not compared at all.
@HOSTILE
@given(FEATURES, BASES, tables(TX), rings(TX), BATCHED)
def test_transmit_rings_that_are_nearly_right_do_the_same(features, base, contents, tx, batched):
    seen = []
    for is_remote in (False, True):
        with SplitVictim(features, base) as victim:
            put_tables(victim, contents)
            victim.put(TX, counted_from(base, tx))
            if is_remote:
                victim.pair.put_out_of_reach(batched=batched)
            seen.append(outcome(victim, []))
    assert seen[0] == seen[1]


@HOSTILE
@given(FEATURES, BASES, rings(RX), tables(RX), PACKETS, BATCHED)
def test_receive_rings_that_are_nearly_right_touch_nothing_but_the_guests_memory(
    features, base, rx, contents, packets, batched
):
    with SplitVictim(features, base) as victim:
        put_tables(victim, contents)
        victim.put(RX, counted_from(base, rx))
        victim.pair.put_out_of_reach(batched=batched)
        outcome(victim, packets or [b"\x09" * 300])
        victim.check_it_works_again()


@HOSTILE
@given(FEATURES, BASES, RAW, RAW, st.binary(min_size=1, max_size=200), PACKETS, BATCHED)
def test_arbitrary_bytes_touch_nothing_but_the_guests_memory(
    features, base, rx, tx, filling, packets, batched
):
    with SplitVictim(features, base) as victim:
        victim.memory.fill(filling)
        victim.put(RX, counted_from(base, rx))
        victim.put(TX, counted_from(base, tx))
        victim.pair.put_out_of_reach(batched=batched)
        outcome(victim, packets)
        victim.check_it_works_again()


POSITION = st.tuples(st.integers(0, NUM - 1), st.integers(0, 1))


@HOSTILE
@given(PACKED_FEATURES, SIZES, POSITION, tables(TX), packed_rings(TX), BATCHED)
def test_packed_transmit_rings_that_are_nearly_right_do_the_same(
    features, num, position, contents, tx, batched
):
    base = packed_base(position[0] % num, position[1])
    seen = []
    for is_remote in (False, True):
        with PackedVictim(features, num, base) as victim:
            put_tables(victim, contents)
            victim.put(TX, (*tx, bytes(EVENT_BYTES)))
            if is_remote:
                victim.pair.put_out_of_reach(batched=batched)
            seen.append(outcome(victim, []))
    assert seen[0] == seen[1]


@HOSTILE
@given(PACKED_FEATURES, SIZES, POSITION, packed_rings(RX), tables(RX), PACKETS, BATCHED)
def test_packed_receive_rings_that_are_nearly_right_touch_nothing_but_the_guests_memory(
    features, num, position, rx, contents, packets, batched
):
    with PackedVictim(features, num, packed_base(position[0] % num, position[1])) as victim:
        put_tables(victim, contents)
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.pair.put_out_of_reach(batched=batched)
        outcome(victim, packets or [b"\x09" * 300])
        victim.check_it_works_again()


@HOSTILE
@given(PACKED_FEATURES, SIZES, POSITION, RAW_PACKED, RAW_PACKED, PACKETS, BATCHED)
def test_arbitrary_bytes_in_packed_rings_touch_nothing_but_the_guests_memory(
    features, num, position, rx, tx, packets, batched
):
    with PackedVictim(features, num, packed_base(position[0] % num, position[1])) as victim:
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        victim.pair.put_out_of_reach(batched=batched)
        outcome(victim, packets)
        victim.check_it_works_again()

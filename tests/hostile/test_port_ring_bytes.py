"""Whatever bytes a guest puts into its rings: the guest it is joined to is not harmed.

As test_ring_bytes.py, with an honest guest in the place of the wire.  Nothing beyond the hostile
guest's memory is read or written (`islands`), the honest one always gets its buffers back and its
ring is never found broken; and when the hostile one's rings are put right, packets flow again.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from instance import MRG, RX, TX, V1
from islands import CANARY
from port_instance import AblePortInstance, PortInstance
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
from victim import AVAIL_BYTES, EVENT_BYTES, HOSTILE, NUM, PackedVictim, SplitVictim, Victim


class PortSplitVictim(SplitVictim):
    make_pair = PortInstance


class SeenThroughVictim(SplitVictim):
    """A checksum of ours could look like a canary: the partner wants none."""

    make_pair = AblePortInstance


class PortPackedVictim(PackedVictim):
    make_pair = PortInstance


def check(victim: Victim) -> None:
    victim.check_borders()
    victim.check_it_works_again()
    partner: Any = victim.pair.partner
    for ring in partner.net.vqs:
        assert ring.counters()["ring_errors"] == ring.counters()["drop_malformed"] == 0


@HOSTILE
@given(FEATURES, BASES, RAW, RAW, st.binary(min_size=1, max_size=200), PACKETS)
def test_arbitrary_bytes_in_split_rings(features, base, rx, tx, filling, packets):
    with PortSplitVictim(features, base) as victim:
        victim.memory.fill(filling)
        victim.put(RX, counted_from(base, rx))
        victim.put(TX, counted_from(base, tx))
        victim.run(packets)
        check(victim)


@HOSTILE
@given(FEATURES, BASES, rings(RX), tables(RX), PACKETS)
def test_receive_rings_that_are_nearly_right(features, base, rx, contents, packets):
    with PortSplitVictim(features, base) as victim:
        put_tables(victim, contents)
        victim.put(RX, counted_from(base, rx))
        victim.run(packets or [b"\x09" * 300])
        check(victim)


@HOSTILE
@given(FEATURES, BASES, rings(TX), tables(TX), PACKETS)
def test_transmit_rings_that_are_nearly_right(features, base, tx, contents, packets):
    with PortSplitVictim(features, base) as victim:
        put_tables(victim, contents)
        victim.put(TX, counted_from(base, tx))
        victim.repair(RX)
        victim.run(packets)
        check(victim)


@HOSTILE
@given(st.sampled_from([0, V1, MRG | V1]), rings(TX), tables(TX))
def test_no_byte_from_beyond_a_guests_memory_comes_to_the_other(features, tx, contents):
    with SeenThroughVictim(features, 0) as victim:
        victim.memory.fill(b"guest")
        put_tables(victim, contents)
        victim.memory.write(victim.pair.rx.avail, bytes(AVAIL_BYTES))
        victim.put(TX, counted_from(0, tx))
        victim.run([], n_kicks=1)
        victim.check_borders()
        assert [frame for frame in victim.sent if CANARY in frame] == []


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
def test_arbitrary_bytes_in_packed_rings(features, num, pos, wrap, rx, tx, packets):
    with PortPackedVictim(features, num, packed_base(pos % num, wrap)) as victim:
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        victim.run(packets)
        check(victim)


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
def test_packed_rings_that_are_nearly_right(
    features, num, pos, rx, tx, rx_contents, tx_contents, packets
):
    with PortPackedVictim(features, num, packed_base(pos % num, 1)) as victim:
        put_tables(victim, [*rx_contents[:2], *tx_contents[2:]])
        victim.put(RX, (*rx, bytes(EVENT_BYTES)))
        victim.put(TX, (*tx, bytes(EVENT_BYTES)))
        victim.run(packets or [b"\x09" * 300])
        check(victim)

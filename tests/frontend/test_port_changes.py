"""`port:NAME` at run time: one of two joined cards goes and comes again, the other goes on."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from unittest import mock

import pytest
from beds import frame
from port_bed import LEGACY, MRG, OFFLOADS, PACKED_MRG, V1, PortBed, received

from flooding import flooding
from serve_process import PATIENCE_S
from vhostnet.backends.port import PortBackend
from vhostnet.datapath import catalogue
from vhostnet.device import port_net
from vhostnet.device.port_net import part_ports
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.native._jit import JIT_ENABLED
from vhostnet_frontend import NetDriver

TURNS = 20 if JIT_ENABLED else 4
FEATURES = (MRG, PACKED_MRG, LEGACY, V1 | OFFLOADS)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    if JIT_ENABLED:
        catalogue.warm(catalogue.kernels_for("port"))


@pytest.fixture(params=[1, 2], ids=["one pair", "two pairs"])
def bed(request: pytest.FixtureRequest) -> Iterator[PortBed]:
    made = PortBed(pairs=request.param)
    yield made
    made.close()


def guests(bed: PortBed, card: int, features: int = MRG) -> list[NetDriver]:
    """One on each pair of a card, started."""
    return [bed.open(card, features, pair=pair).start() for pair in range(bed.pairs)]


def check_both_ways(ours: list[NetDriver], theirs: list[NetDriver], number: int) -> None:
    """Each pair's guests have each other."""
    for pair, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for sender, receiver in ((a, b), (b, a)):
            wanted = frame(10 * number + pair)
            sender.send(wanted)
            while (found := receiver.receive(timeout=PATIENCE_S)) != wanted:
                assert found is not None, f"turn {number}, pair {pair}"


def check_unharmed(bed: PortBed, card: int) -> None:
    """Nothing that the other card did is a fault of this one's guests."""
    for pair in range(bed.pairs):
        tx = bed.tx(card, pair)
        assert tx["ring_errors"] == bed.rx(card, pair)["ring_errors"] == 0
        assert tx["drop_bad_header"] == tx["drop_refused"] == tx["drop_malformed"] == 0


@pytest.mark.parametrize("stayer", [0, 1])
def test_a_card_alone_drops_and_counts_until_another_comes(bed: PortBed, stayer: int) -> None:
    bed.remove(1 - stayer)
    ours = guests(bed, stayer)
    for k in range(300):  # more than the ring has
        ours[0].send(frame(k))
    ours[0].flush()
    assert bed.tx(stayer)["drop_no_peer"] == 300
    bed.add(1 - stayer)
    ours[0].send(frame(300))  # a card, and no guest yet
    ours[0].flush()
    assert bed.tx(stayer)["drop_no_peer"] == 301
    check_both_ways(ours, guests(bed, 1 - stayer), 50)
    assert bed.tx(stayer)["packets"] == 1


@pytest.mark.parametrize("stayer", [0, 1])
def test_a_partner_removed_under_traffic_and_added_with_other_features(
    bed: PortBed, stayer: int
) -> None:
    ours = guests(bed, stayer)
    theirs = guests(bed, 1 - stayer)
    with flooding(ours[0], frame(1, 300)):
        for turn in range(TURNS):
            assert theirs[0].receive(timeout=PATIENCE_S) == frame(1, 300), turn
            for other in theirs:
                other.send(frame(turn))  # what it sends last may be under way
            bed.remove(1 - stayer)
            bed.add(1 - stayer)
            theirs = guests(bed, 1 - stayer, FEATURES[turn % len(FEATURES)])
    bed.flush()
    for driver in (*ours, *theirs):
        received(driver)
    check_both_ways(ours, theirs, 50)
    check_unharmed(bed, stayer)
    check_unharmed(bed, 1 - stayer)
    assert theirs[0].ring_errors() == ours[0].ring_errors() == {}


@pytest.mark.parametrize("first", [0, 1])
def test_both_removed_under_traffic_and_added_in_either_order(bed: PortBed, first: int) -> None:
    for turn in range(TURNS // 2):
        a, b = guests(bed, 0), guests(bed, 1)
        check_both_ways(a, b, 50)
        with (
            flooding(a[0], frame(1, 300), to_the_end=False),
            flooding(b[-1], frame(1, 300), to_the_end=False),
        ):
            assert b[0].receive(timeout=PATIENCE_S) is not None
            assert a[-1].receive(timeout=PATIENCE_S) is not None
            for card in (first, 1 - first):
                for net in bed.cards[card]:
                    net.reset_owner()
                part_ports(bed.cards[card])
        bed.remove(first)
        bed.remove(1 - first)
        bed.add((first + turn) % 2)
        bed.add((first + turn + 1) % 2)
    check_both_ways(guests(bed, 0), guests(bed, 1), 50)


@pytest.mark.parametrize("stayer", [0, 1])
def test_a_worker_that_saw_nothing_of_a_change_finds_the_new_partner(
    bed: PortBed, stayer: int
) -> None:
    ours, theirs = guests(bed, stayer), guests(bed, 1 - stayer)
    for turn in range(TURNS):
        check_both_ways(ours, theirs, turn)
        with contextlib.ExitStack() as parked:
            for net in bed.cards[stayer]:
                assert net.worker is not None
                parked.enter_context(net.worker.quiesced())
            bed.remove(1 - stayer)
            bed.add(1 - stayer)
            theirs = guests(bed, 1 - stayer, FEATURES[turn % len(FEATURES)])
            theirs[0].send(frame(1000 + turn))
        assert ours[0].receive(timeout=PATIENCE_S) == frame(1000 + turn)
    check_unharmed(bed, stayer)


def test_whoever_may_see_a_card_is_parked_while_it_is_joined_or_left(bed: PortBed) -> None:
    ours = guests(bed, 0)
    seen: list[bool] = []
    connect = port_net._connect

    def look(*cards: list[port_net.PortNet]) -> None:
        workers = [net.worker for net in bed.cards[0]]
        seen.append(all(worker is not None and worker.is_parked for worker in workers))
        connect(*cards)

    with mock.patch.object(port_net, "_connect", look):
        bed.remove(1)
        n_parts = len(seen)
        bed.add(1)
    assert n_parts == 2  # both have nobody now
    assert seen[:2] == [True, True]
    assert seen[-1] is True
    check_both_ways(ours, guests(bed, 1), 50)


def test_nothing_is_left_of_cards_that_have_gone(bed: PortBed) -> None:
    ours = guests(bed, 0)
    gone = []
    counts = []
    for turn in range(TURNS):
        theirs = guests(bed, 1, FEATURES[turn % len(FEATURES)])
        check_both_ways(ours, theirs, turn)
        gone += [weakref.ref(net) for net in bed.cards[1]]
        theirs.clear()
        bed.remove(1)
        bed.add(1)
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[1:] == counts[:-1]
    gc.collect()
    kept = [ref for ref in gone[: -bed.pairs] if ref() is not None]
    assert kept == []


def test_a_device_that_is_closed_is_held_by_nobody() -> None:
    first, second = (
        VhostUserDevice(PortBackend(2), queue_pairs=2, name=name, call_later=mock.Mock())
        for name in ("first", "second")
    )
    first.join(second)
    gone = [weakref.ref(net) for net in second.nets]
    second.close()
    del second
    gc.collect()
    assert [ref for ref in gone if ref() is not None] == []
    first.close()

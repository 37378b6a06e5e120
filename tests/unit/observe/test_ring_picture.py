"""A ring's picture: what it shows, and that it finds what the compiled device finds."""

from __future__ import annotations

import json
import os
import random
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from driver_ring import INDIRECT, NEXT, WRITE
from frontend.beds import SocketTap, in_process
from instance import EVENT_IDX, MRG, RX, TX, V1, Instance
from vhostnet.cli.ring_view import ring_view
from vhostnet.datapath.codes import RING_ERRORS, RING_FORBIDDEN
from vhostnet.observe.chain_picture import WAITS_FOR_IOTLB
from vhostnet.observe.ring_picture import MAX_DESCRIPTORS, ring_picture
from vhostnet_frontend import GuestMemory, NetDriver, RegionSpec
from vhostnet_frontend.netdev import DEFAULT_FEATURES
from vhostnet_frontend.scenarios import PACKED, SPLIT, Severity

HDR = bytes(12)
ACCESS_PLATFORM = 1 << 33


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance(MRG | V1 | EVENT_IDX).start()
    yield made
    made.close()


def draw(instance: Instance, index: int, limit: int = 16) -> dict[str, Any]:
    picture = ring_picture(instance.net, instance.net.vqs[index], limit)
    return json.loads(json.dumps(picture))


def text(picture: dict[str, Any]) -> str:
    return "\n".join(ring_view({"device": "dev0", "queue": "tx0", **picture}))


def test_an_idle_ring(instance):
    instance.tx.send(HDR + b"a" * 60)
    instance.tx.send(HDR + b"b" * 60)
    instance.kick(TX)
    instance.tx.set_used_event(7)
    picture = draw(instance, TX)
    assert (picture["running"], picture["format"], picture["num"]) == (True, "split", 16)
    assert picture["device-side"] == {
        "last-avail": 2,
        "last-used": 2,
        "unpublished": 0,
        "waiting": 0,
    }
    assert (picture["avail"]["idx"], picture["avail"]["used-event"]) == (2, 7)
    assert picture["used"]["idx"] == 2
    assert picture["used"]["avail-event"] == instance.tx.avail_event()
    assert picture["used"]["entries"][-2:] == [
        {"idx": 0, "slot": 0, "id": 0, "len": 0},
        {"idx": 1, "slot": 1, "id": 1, "len": 0},
    ]
    assert (picture["chains"], picture["problems"]) == ([], [])
    assert text(picture).endswith("what is wrong: nothing")


def test_waiting_chains_with_their_descriptors(instance):
    instance.net.set_backend(TX, None)
    first = instance.tx.chain(
        [(instance.memory.alloc(12), 12, 0), (instance.memory.alloc(60), 60, 0)]
    )
    table = instance.tx.indirect([(instance.memory.alloc(72), 72, 0, 0)])
    instance.tx.offer(first, table)
    picture = draw(instance, TX)
    plain, indirect = picture["chains"]
    assert (plain["head"], plain["readable"], plain["writable"]) == (first, 72, 0)
    assert [d["flags"] for d in plain["descriptors"]] == [["NEXT"], []]
    assert plain["descriptors"][0]["next"] == plain["descriptors"][1]["index"]
    assert [d.get("in-table", False) for d in indirect["descriptors"]] == [False, True]
    assert (picture["running"], picture["device-side"]["waiting"]) == (False, 2)
    assert picture["problems"] == []
    assert len(draw(instance, TX, limit=1)["chains"]) == 1
    assert f"chain 0, head {first}: 72 bytes to read, 0 to write" in text(picture)


def test_a_chain_that_is_no_packet_has_a_note_and_breaks_no_rule(instance):
    instance.net.set_backend(TX, None)
    instance.tx.post(100)
    picture = draw(instance, TX)
    assert "to be written" in picture["chains"][0]["note"]
    assert picture["problems"] == []


def test_a_ring_without_a_place(instance):
    bare = type(instance.net)("bare")
    assert ring_picture(bare, bare.tx, 16)["problems"] == [
        "the front-end has not said where the ring is"
    ]
    instance.net.set_backend(TX, None)
    instance.net.vqs[TX].addresses = instance.net.vqs[RX].addresses.__class__(1 << 40, 2, 4)
    picture = draw(instance, TX)
    assert picture["problems"][0] == f"desc: {1 << 40:#x} is not in the guest's memory"
    assert "avail" not in picture
    assert "not in the guest's memory" in text(picture)


def test_memory_of_another_process_is_read_there(instance):
    instance.net.set_backend(TX, None)
    instance.put_out_of_reach(batched=False)
    instance.tx.send(HDR + b"a" * 60)
    (chain,) = draw(instance, TX)["chains"]
    assert (chain["readable"], chain["problem"]) == (72, None)


def test_behind_an_iommu_an_address_is_there_missing_or_forbidden():
    instance = Instance(MRG | V1 | ACCESS_PLATFORM)
    memory, net = instance.memory, instance.net
    at = memory.gpa + memory.size // 2
    net.iotlb_update(memory.uva, memory.size, memory.uva, 3)  # the rings
    net.iotlb_update(memory.gpa, memory.size // 2, memory.uva, 3)
    net.iotlb_update(at, 4096, memory.uva + memory.size // 2, 2)  # to write only
    ring = instance.tx
    ring.offer(*(ring.chain([(gpa, 60, 0)]) for gpa in (at - 60, at + 8192, at - 30)))
    picture = draw(instance, TX)
    assert [chain["problem"] for chain in picture["chains"]] == [
        None,
        WAITS_FOR_IOTLB,
        RING_ERRORS[RING_FORBIDDEN],
    ]
    assert picture["problems"] == [f"chain 2 (head 2): {RING_ERRORS[RING_FORBIDDEN]}"]
    text(picture)
    instance.close()


def test_a_ring_under_traffic_goes_on_and_nothing_is_said_against_it(instance):
    n_sent, drawn = 0, 0
    is_over = threading.Event()
    problems: list[str] = []

    def look() -> None:
        nonlocal drawn
        while not is_over.is_set():
            for index in (RX, TX):
                problems.extend(draw(instance, index)["problems"])
            drawn += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        while drawn < 50 or n_sent < 500:
            heads = [
                instance.tx.chain([(instance.memory.gpa, 12, 0), (instance.memory.gpa, 60, 0)])
                for _ in range(4)
            ]
            instance.tx.offer(*heads)
            os.eventfd_write(instance.kicks[TX], 1)
            n_sent += len(heads)
            instance.flush()
            assert len(instance.tx.collect()) == len(heads)
            assert len(instance.sent()) == len(heads)
    finally:
        is_over.set()
        watcher.join()
    assert problems == []


CASES = [
    pytest.param(case, direction, features, id=f"{form}-{direction}-{case.name}")
    for form, cases, features in (
        ("split", SPLIT, DEFAULT_FEATURES),
        ("packed", PACKED, DEFAULT_FEATURES | 1 << 34),
    )
    for case in cases.values()
    for direction in case.directions
]


@pytest.mark.parametrize(("case", "direction", "features"), CASES)
def test_it_finds_what_the_device_finds(case, direction, features):
    tap = SocketTap()
    memory = GuestMemory([RegionSpec(1 << 20)])
    options = {"num": 16, "rx_size": 256, "tx_size": 256, "memory": memory, "features": features}
    with NetDriver(in_process(tap.queue), **options) as driver:
        driver.start(post_rx=direction == "tx")
        queue = driver.tx[0] if direction == "tx" else driver.rx[0]
        net = driver.transport.net
        ring = net.vqs[queue.index]
        if direction == "rx":
            tap.wire.send(HDR + bytes(60))  # something that wants a buffer
            driver.transport.flush()
        case.apply(queue.ring)
        picture = ring_picture(net, ring, 16)
        os.eventfd_write(queue.kick_fd, 1)
        driver.transport.flush()
        found = int(ring.vq["last_error"])
    memory.close()
    tap.close()
    if case.severity is Severity.RING_STOPS:
        assert found
        assert any(RING_ERRORS[found] in problem for problem in picture["problems"])
    else:
        assert (found, picture["problems"]) == (0, [])
    text(picture)


@pytest.mark.parametrize("seed", range(150))
def test_it_finds_what_the_device_finds_in_any_ring(seed):
    dice = random.Random(seed)
    instance = Instance(num=8)
    base = instance.memory.gpa
    ring = instance.tx

    def address() -> int:
        return dice.choice(
            (base + dice.randrange(4096), base + instance.memory.size - 8, 0, 1 << 63)
        )

    def flags() -> int:
        return dice.choice((0, 0, 0, NEXT, NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT))

    tables = [instance.memory.alloc(64) for _ in range(2)]
    for table in tables:
        entries = [
            struct.pack(
                "<QIHH",
                address(),
                dice.choice((0, 16, 60)),
                flags() & ~(INDIRECT * dice.choice((0, 1, 1))),
                0,
            )
            for _ in range(4)
        ]
        instance.memory.write(table, b"".join(entries))
    for slot in range(8):
        bits = flags()
        at = dice.choice(tables) if bits & INDIRECT else address()
        length = dice.choice((64, 64, 32, 17, 0)) if bits & INDIRECT else dice.choice((0, 12, 60))
        ring.set_desc(slot, at, length, bits, dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 8)))
    ring.offer(*(dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 9)) for _ in range(dice.randrange(1, 9))))
    for index in (RX, TX):  # placed, and not yet looked at
        instance.net.place_ring(index)
    picture = draw(instance, TX)
    try:
        instance.start()
        found = int(instance.net.tx.vq["last_error"])
        stopped_at = instance.net.get_vring_base(TX)
    finally:
        instance.close()
    expected = f"chain {stopped_at} " if found else None
    first = picture["problems"][0] if picture["problems"] else ""
    assert bool(found) == bool(first), (RING_ERRORS.get(found), picture["problems"])
    if found:
        assert first.startswith(expected)
        assert first.endswith(RING_ERRORS[found])


def test_a_hostile_ring_costs_no_more_than_the_budget(instance, monkeypatch):
    instance.net.set_backend(TX, None)
    ring = instance.tx
    table = instance.memory.alloc(16 * 1000)
    entry = struct.pack("<QIHH", instance.memory.gpa, 1, NEXT, 0)
    instance.memory.write(table, entry * 999 + struct.pack("<QIHH", instance.memory.gpa, 1, 0, 0))
    for slot in range(16):
        ring.set_desc(slot, table, 16 * 1000, INDIRECT, 0)
    ring.offer(*range(16))
    looked = 0
    pread = os.pread

    def counted(*args: int) -> bytes:
        nonlocal looked
        looked += 1
        return pread(*args)

    monkeypatch.setattr(os, "pread", counted)
    picture = draw(instance, TX)
    assert looked <= MAX_DESCRIPTORS + 10
    assert not picture["chains"][-1]["complete"]
    assert "not all of it is shown" in text(picture)

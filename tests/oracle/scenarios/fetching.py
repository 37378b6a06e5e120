"""Sections 4.2 and 4.3: taking chains from a ring, and what a broken one does to the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oracle.lab import EVENT_IDX, MRG, RX, TX, V1, Card, End, Lab, frame, scenario
from vhostnet_frontend import Buffer, RegionSpec
from vhostnet_frontend.split_ring import pack_desc

NEXT, WRITE, INDIRECT = 1, 2, 4
NOWHERE = 0x7FFF_0000_0000


def good(card: Card, number: int = 1, size: int = 60) -> tuple[int, int]:
    """(gpa, length) of a good packet."""
    packet = bytes(card.hdr_len) + frame(number, size)
    gpa = card.memory.alloc(max(len(packet), 4096))
    card.memory.write(gpa, packet)
    return gpa, len(packet)


def indirect(
    end: End, table: bytes, size: int | None = None, flags: int = 0, head: int = 0, next_: int = 0
) -> None:
    gpa = end.card.memory.alloc(max(len(table), 16))
    end.card.memory.write(gpa, table)
    length = len(table) if size is None else size
    end.ring.write_desc(head, gpa, length, INDIRECT | flags, next_)
    end.offer(head)


def broken(
    lab: Lab,
    breaks: Callable[[End], None],
    index: int = TX,
    *,
    features: int = V1 | MRG,
    before: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """A ring that is broken, kicked twice, then repaired and kicked.

    Args:
        before: good packets in front.
    """
    card = lab.card(features, **options).start()
    end = card.ends[index]
    for k in range(before):
        if index == TX:
            end.send(frame(100 + k))
        else:
            end.post(2048)
    breaks(end)
    if index == RX:
        for k in range(before + 1):
            card.arrive(frame(200 + k))
    end.kick()
    said: dict[str, Any] = {"broken": end.look()}
    end.kick()
    said["kicked again"] = end.look()
    end.repair(frame(1), frame(2))
    end.kick()
    said["repaired"] = end.look()
    if index == TX:
        said["sent"] = card.tap.sent(before + 2)
    return said


@scenario("4.2.a", "4.2.g", "4.3.err1", "4.3.dead", "4.3.retry", "7.recover")
def avail_index_jumps(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.ring.write_avail_idx(17))


@scenario("4.2.a", "4.3.dead")
def avail_index_goes_back(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.ring.write_avail_idx(0xFFFF))


@scenario("4.2.a")
def avail_index_moves_by_exactly_num(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    for k in range(16):
        card.tx.ring.write_desc(k, gpa, size)
        card.tx.ring.write_avail(k, k)
    card.tx.ring.write_avail_idx(16)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(16)}


@scenario("4.2.a")
def an_unchanged_avail_index_is_empty(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.kick()
    return {"tx": card.tx.look()}


@scenario("4.2.a", "4.3.dead", "4.3.err1")
def avail_index_jumps_with_event_idx(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.ring.write_avail_idx(40), features=V1 | MRG | EVENT_IDX)


@scenario("4.2.a", "4.3.dead")
def avail_index_of_rx_jumps(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.ring.write_avail_idx(17), RX)


@scenario("4.2.b", "4.2.g", "4.3.err1")
def head_is_num(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.offer(16))


@scenario("4.2.b", "4.3.published")
def head_is_ffff_after_good_packets(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.offer(0xFFFF), before=3)


@scenario("4.2.b", "4.3.published")
def head_is_num_after_good_rx_buffers(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: end.offer(16), RX, before=2)


@scenario("4.2.c", "4.3.err1")
def next_is_num(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, *good(end.card), NEXT, 16)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.c", "4.3.err1")
def descriptor_loop(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, _ = good(end.card)
        for i in range(16):
            end.ring.write_desc(i, gpa, 1, NEXT, (i + 1) % 16)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.c")
def a_chain_of_exactly_num_descriptors(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    for i in range(16):
        length = 1 if i < 15 else size - 15
        card.tx.ring.write_desc(i, gpa + i, length, NEXT if i < 15 else 0, i + 1)
    card.tx.offer(0)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.unnegotiated")
def an_indirect_table_that_was_not_negotiated(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    table = pack_desc(gpa, 12, NEXT, 1) + pack_desc(gpa + 12, size - 12)
    indirect(card.tx, table, flags=WRITE)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.next")
def next_on_an_indirect_descriptor_goes_on_in_the_main_table(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    card.tx.ring.write_desc(7, gpa + 12, size - 12)
    indirect(card.tx, pack_desc(gpa, 12), flags=NEXT, next_=7)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.next")
def two_indirect_descriptors_in_a_chain(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    place = card.memory.alloc(16)
    card.memory.write(place, pack_desc(gpa + 12, size - 12))
    card.tx.ring.write_desc(7, place, 16, INDIRECT)
    indirect(card.tx, pack_desc(gpa, 12), flags=NEXT, next_=7)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.length", "4.3.err2")
def indirect_length_is_no_multiple_of_16(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: indirect(end, pack_desc(*good(end.card)) * 2, 31))


@scenario("4.2.d.order")
def indirect_entries_are_taken_in_order(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    table = pack_desc(gpa, 12, NEXT, 55) + pack_desc(gpa + 12, size - 12, 0, 3) + bytes(32)
    indirect(card.tx, table)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.overrun", "4.3.err2")
def indirect_chain_runs_past_its_table(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: indirect(end, pack_desc(*good(end.card), NEXT, 1) * 2))


@scenario("4.2.d.overrun", "4.3.err2")
def indirect_table_of_length_0(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: indirect(end, bytes(16), 0))


@scenario("4.2.d.nested", "4.3.err2")
def nested_indirect(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: indirect(end, pack_desc(*good(end.card), INDIRECT)))


@scenario("4.2.d.unmapped", "4.3.err2")
def indirect_table_nowhere(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, NOWHERE, 32, INDIRECT)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.d.unmapped", "4.3.err2")
def indirect_table_that_ends_beyond_memory(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        own = end.card.memory.regions[0]
        end.card.memory.write(own.gpa + own.size - 16, pack_desc(*good(end.card)))
        end.ring.write_desc(0, own.gpa + own.size - 16, 32, INDIRECT)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.d.big", "4.3.err2")
def indirect_table_of_65537_entries(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa = end.card.memory.alloc(65537 * 16)
        end.card.memory.write(gpa, pack_desc(*good(end.card)))
        end.ring.write_desc(0, gpa, 65537 * 16, INDIRECT)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.d.big")
def indirect_table_of_65536_entries(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa = card.memory.alloc(65536 * 16)
    card.memory.write(gpa, pack_desc(*good(card)))
    card.tx.ring.write_desc(0, gpa, 65536 * 16, INDIRECT)
    card.tx.offer(0)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.d.unmapped", "4.3.err2")
def unmapped_buffer_in_an_indirect_table(lab: Lab) -> dict[str, Any]:
    return broken(lab, lambda end: indirect(end, pack_desc(NOWHERE, 72)))


@scenario("4.2.f", "4.3.err2")
def readable_after_writable_in_an_indirect_table(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, size = good(end.card)
        indirect(end, pack_desc(gpa, 12, WRITE | NEXT, 1) + pack_desc(gpa, size))

    return broken(lab, breaks)


@scenario("4.2.e.iovecs", "4.3.err2", "7.recover")
def indirect_table_of_1025_pieces(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, _ = good(end.card)
        indirect(end, pack_desc(gpa, 1, NEXT, 1) * 1024 + pack_desc(gpa, 1))

    return broken(lab, breaks)


@scenario("4.2.e.iovecs")
def indirect_table_of_1024_pieces(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card, 1, 1500)
    table = b"".join(pack_desc(gpa + k, 1, NEXT, k + 1) for k in range(1023))
    indirect(card.tx, table + pack_desc(gpa + 1023, size - 1023))
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.e.iovecs", "4.3.err1")
def direct_chain_of_1025_pieces(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, _ = good(end.card)
        for i in range(1025):
            end.ring.write_desc(i, gpa, 1, NEXT if i < 1024 else 0, i + 1)
        end.offer(0)

    return broken(lab, breaks, num=2048)


@scenario("4.2.e.unmapped", "4.2.g", "4.3.err1")
def unmapped_buffer(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, NOWHERE, 72)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.e.unmapped", "7.wrap")
def buffers_at_the_ends_of_the_address_space(lab: Lab) -> dict[str, Any]:
    said = {}
    for name, gpa, size in (
        ("top", (1 << 64) - 4, 72),
        ("signed", (1 << 63) - 4, 72),
        ("all", 0, 0xFFFFFFFF),
    ):

        def breaks(end: End, gpa: int = gpa, size: int = size) -> None:
            end.ring.write_desc(0, gpa, size)
            end.offer(0)

        said[name] = broken(lab, breaks)
    return said


@scenario("4.2.e.unmapped")
def buffer_that_ends_beyond_memory(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        own = end.card.memory.regions[0]
        end.ring.write_desc(0, own.gpa + own.size - 32, 72)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.e.unmapped", "4.3.dead")
def unmapped_rx_buffer(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, NOWHERE, 2048, WRITE)
        end.offer(0)

    return broken(lab, breaks, RX)


@scenario("4.2.e.regions")
def a_buffer_over_adjoining_regions(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(
        [RegionSpec(1 << 20), RegionSpec(8192, gpa=0x9000_0000), RegionSpec(8192, gpa=0x9000_2000)]
    )
    card = lab.card(memory=memory)
    packet = bytes(12) + frame(1, 1000)
    memory.write(0x9000_2000 - 500, packet)
    card.start()
    card.tx.ring.write_desc(0, 0x9000_2000 - 500, len(packet))
    card.tx.offer(0)
    # an indirect table over the border too
    gpa, size = good(card, 2)
    memory.write(
        0x9000_2000 - 24,
        pack_desc(gpa, 12, NEXT) + pack_desc(gpa + 12, 20, NEXT) + pack_desc(gpa + 32, size - 32),
    )
    card.tx.ring.write_desc(1, 0x9000_2000 - 24, 48, INDIRECT)
    card.tx.offer(1)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("4.2.e.zero")
def descriptors_of_length_0_add_nothing(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    card.tx.ring.write_desc(0, NOWHERE, 0, NEXT, 1)
    card.tx.ring.write_desc(1, gpa, 12, NEXT, 2)
    card.tx.ring.write_desc(2, 0, 0, NEXT, 3)
    card.tx.ring.write_desc(3, gpa + 12, size - 12, NEXT, 4)
    card.tx.ring.write_desc(4, NOWHERE, 0)
    card.tx.offer(0)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.e.zero", "4.2.f", "4.3.tx_writable")
def a_writable_descriptor_of_length_0_in_front(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    gpa, size = good(card)
    card.tx.ring.write_desc(0, gpa, 0, WRITE | NEXT, 1)
    card.tx.ring.write_desc(1, gpa, size)
    card.tx.offer(0)
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.2.f", "4.3.err1")
def readable_after_writable(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, size = good(end.card)
        end.ring.write_desc(0, gpa, 12, WRITE | NEXT, 1)
        end.ring.write_desc(1, gpa, size)
        end.offer(0)

    return broken(lab, breaks)


@scenario("4.2.f", "4.3.err1")
def readable_after_writable_rx(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa = end.card.memory.alloc(4096)
        end.ring.write_desc(0, gpa, 2048, WRITE | NEXT, 1)
        end.ring.write_desc(1, gpa, 10)
        end.offer(0)

    return broken(lab, breaks, RX)


def leaked(lab: Lab, breaks: Callable[[End], None], index: int) -> dict[str, Any]:
    """A chain that cannot be a packet, then a good one, kicked until it is through."""
    card = lab.card().start()
    end = card.ends[index]
    breaks(end)
    if index == RX:
        card.tap.arrive(frame(1))
    end.kick()
    said: dict[str, Any] = {"first": end.look()}
    if index == TX:
        gpa, size = good(card)
        end.ring.write_desc(9, gpa, size)
    else:
        end.ring.write_desc(9, card.memory.alloc(2048), 2048, WRITE)
    end.offer(9)
    end.kick()
    said["kicked"] = end.look()
    if index == TX:
        said["sent"] = card.tap.sent(1)
    return said


@scenario("4.3.tx_writable")
def a_tx_chain_with_a_writable_part(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa, size = good(end.card)
        end.ring.write_desc(0, gpa, size, NEXT, 1)
        end.ring.write_desc(1, gpa, 10, WRITE)
        end.offer(0)

    return leaked(lab, breaks, TX)


@scenario("4.3.tx_empty")
def a_tx_chain_without_bytes(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, good(end.card)[0], 0)
        end.offer(0)

    return leaked(lab, breaks, TX)


@scenario("4.3.rx_readable")
def an_rx_chain_with_a_readable_part(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        gpa = end.card.memory.alloc(4096)
        end.ring.write_desc(0, gpa, 12, NEXT, 1)
        end.ring.write_desc(1, gpa, 2048, WRITE)
        end.offer(0)

    return leaked(lab, breaks, RX)


@scenario("4.3.rx_empty")
def an_rx_chain_without_room(lab: Lab) -> dict[str, Any]:
    def breaks(end: End) -> None:
        end.ring.write_desc(0, end.card.memory.alloc(64), 0, WRITE)
        end.offer(0)

    return leaked(lab, breaks, RX)


@scenario("4.3.rx_mrg", "7.cve-2014-0055")
def a_bad_chain_after_good_ones_of_the_same_packet(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.rx.post(50, 50)
    card.rx.ring.write_desc(9, card.memory.alloc(64), 64)
    card.rx.offer(9)
    card.arrive(frame(1, 200))
    said: dict[str, Any] = {"first": card.rx.look()}
    card.rx.kick()
    return said | {"kicked": card.rx.look()}


@scenario("7.cve-2014-0055", "4.2.g")
def a_fetch_error_after_good_ones_of_the_same_packet(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.rx.post(50, 50)
    card.rx.offer(77)
    card.arrive(frame(1, 200))
    said: dict[str, Any] = {"first": card.rx.look()}
    card.rx.ring.write_avail(2, 9)
    card.rx.ring.write_desc(9, card.memory.alloc(4096), 4096, WRITE)
    card.rx.kick()
    return said | {"repaired": card.rx.look()}


@scenario("4.3.setbackend", "4.3.retry")
def a_new_backend_runs_a_repaired_ring(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.offer(99)
    card.tx.kick()
    said: dict[str, Any] = {"broken": card.tx.look()}
    card.tx.repair(frame(1))
    card.stop(TX)
    card.start(TX)
    return said | {"restarted": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.3.published")
def completions_before_an_error_are_signalled(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    card.tx.send(frame(1), frame(2))
    card.tx.ring.add([Buffer(NOWHERE, 72)])
    card.tx.publish()
    card.tx.kick()
    return {"tx": card.tx.look(), "sent": card.tap.sent(2)}

"""Malformed rings with names: what a broken or hostile driver can make available.

Each `Misbehaviour` names the rule that it breaks and knows how to break it on a ring of good
memory.  The same catalogue is for any back-end: apply one, kick, and see what the device does
(`RING_STOPS`: it must refuse the ring and not touch a byte; `CHAIN_IS_BAD`: it may complete the
chain or refuse it; `IS_LEGAL`: strange, but it has to work).

A misbehaviour publishes one chain, the good descriptors it needs included.  `repair` makes a
split ring sane again at the place where it stopped.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
)

from .packed_ring import PackedRing, avail_flags
from .packed_ring import pack_desc as pack_packed_desc
from .split_ring import SplitRing, pack_desc

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
#: No guest has memory here.
NOWHERE = 0x7FFF_0000_0000_0000
#: A plain packet: 12 bytes of header, addresses, an experimental ethertype.
GOOD_PACKET = bytes(12) + b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46)


class Severity(enum.Enum):
    """What is left of the ring."""

    RING_STOPS = "the device must refuse the ring: what it holds means nothing"
    CHAIN_IS_BAD = "the ring is sane, the chain cannot be a packet"
    IS_LEGAL = "allowed, if unusual"


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One way to break a rule.

    Attributes:
        name: an identifier.
        rule: the rule that is broken, with its section of VIRTIO 1.2.
        severity: what is left of the ring.
        directions: "tx", "rx": the rings on which it breaks that rule.
        apply: does it to a split ring.
    """

    name: str
    rule: str
    severity: Severity
    directions: tuple[str, ...]
    apply: Callable[[SplitRing], None]


@dataclass(frozen=True, slots=True)
class PackedMisbehaviour:
    """As `Misbehaviour`, for a packed ring."""

    name: str
    rule: str
    severity: Severity
    directions: tuple[str, ...]
    apply: Callable[[PackedRing], None]


BOTH = ("tx", "rx")
SPLIT: dict[str, Misbehaviour] = {}
"""All misbehaviours of a split ring, by name."""
PACKED: dict[str, PackedMisbehaviour] = {}
"""All misbehaviours of a packed ring, by name."""


def _split(
    rule: str, severity: Severity, directions: tuple[str, ...] = BOTH
) -> Callable[[Callable[[SplitRing], None]], Callable[[SplitRing], None]]:
    def register(apply: Callable[[SplitRing], None]) -> Callable[[SplitRing], None]:
        name = apply.__name__
        SPLIT[name] = Misbehaviour(name, rule, severity, directions, apply)
        return apply

    return register


def _packed(
    rule: str, severity: Severity, directions: tuple[str, ...] = BOTH
) -> Callable[[Callable[[PackedRing], None]], Callable[[PackedRing], None]]:
    def register(apply: Callable[[PackedRing], None]) -> Callable[[PackedRing], None]:
        name = apply.__name__.removeprefix("packed_")
        PACKED[name] = PackedMisbehaviour(name, rule, severity, directions, apply)
        return apply

    return register


# --- helpers ------------------------------------------------------------------------------------


def good_buffer(ring: SplitRing | PackedRing, size: int = 0) -> tuple[int, int]:
    """(gpa, size) of a buffer with a good packet in it, at least *size* bytes long."""
    size = max(size, len(GOOD_PACKET))
    gpa = ring.memory.alloc(size)
    ring.memory.write(gpa, GOOD_PACKET)
    return gpa, size


def offer(ring: SplitRing, head: int) -> None:
    """Make *head* available, whatever it is."""
    ring.write_avail(ring.avail_idx, head)
    ring.avail_idx = (ring.avail_idx + 1) & 0xFFFF
    ring.write_avail_idx(ring.avail_idx)


def repair(ring: SplitRing, buffers: int = 1, *, writable: bool = False) -> None:
    """Put good chains at all places that were published and not used."""
    for at in range(ring.used_idx, ring.used_idx + max(buffers, 1)):
        gpa, size = good_buffer(ring, 2048 if writable else 0)
        slot = at % ring.num
        ring.write_desc(slot, gpa, size, WRITE if writable else 0)
        ring.write_avail(at, slot)
    ring.avail_idx = (ring.used_idx + max(buffers, 1)) & 0xFFFF
    ring.write_avail_idx(ring.avail_idx)


def _indirect(ring: SplitRing, table: bytes, size: int | None = None, flags: int = 0) -> None:
    gpa = ring.memory.alloc(max(len(table), VRING_DESC_SIZE))
    ring.memory.write(gpa, table)
    ring.write_desc(0, gpa, len(table) if size is None else size, INDIRECT | flags)
    offer(ring, 0)


# --- split: the ring itself ---------------------------------------------------------------------

_STOPS, _BAD, _LEGAL = Severity.RING_STOPS, Severity.CHAIN_IS_BAD, Severity.IS_LEGAL


@_split("2.7.13.3: avail->idx grows by the heads that were added, at most num", _STOPS)
def avail_idx_jumps(ring: SplitRing) -> None:
    ring.avail_idx = (ring.avail_idx + ring.num + 1) & 0xFFFF
    ring.write_avail_idx(ring.avail_idx)


@_split("2.7.13.3: avail->idx never goes back", _STOPS)
def avail_idx_goes_back(ring: SplitRing) -> None:
    ring.avail_idx = (ring.avail_idx - 1) & 0xFFFF
    ring.write_avail_idx(ring.avail_idx)


@_split("2.7.6: an avail entry is a descriptor's index, below num", _STOPS)
def head_beyond_num(ring: SplitRing) -> None:
    offer(ring, ring.num)


@_split("2.7.6: an avail entry is a descriptor's index, below num", _STOPS)
def head_is_ffff(ring: SplitRing) -> None:
    offer(ring, 0xFFFF)


@_split("2.7.5: next is a descriptor's index, below num", _STOPS)
def next_beyond_num(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.write_desc(0, gpa, size, NEXT, ring.num)
    offer(ring, 0)


@_split("2.7.5.2: there are no loops in a chain", _STOPS)
def descriptor_points_at_itself(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.write_desc(0, gpa, size, NEXT, 0)
    offer(ring, 0)


@_split("2.7.5.2: there are no loops in a chain", _STOPS)
def descriptor_loop(ring: SplitRing) -> None:
    for i in range(ring.num):
        ring.write_desc(i, 0, 0, NEXT, (i + 1) % ring.num)
    offer(ring, 0)


# --- split: buffers -----------------------------------------------------------------------------


@_split("2.7.5: addr is guest memory", _STOPS)
def unmapped_buffer(ring: SplitRing) -> None:
    ring.write_desc(0, NOWHERE, 64, WRITE)
    ring.write_desc(1, NOWHERE, 64)
    offer(ring, 0)


@_split("2.7.5: all of [addr, addr + len) is guest memory", _STOPS)
def buffer_ends_beyond_memory(ring: SplitRing) -> None:
    region = ring.memory.regions[-1]
    ring.write_desc(0, region.gpa + region.size - 32, 4096, 0)
    offer(ring, 0)


@_split("2.7.5: addr + len does not wrap", _STOPS)
def buffer_wraps_around(ring: SplitRing) -> None:
    ring.write_desc(0, 2**64 - 16, 0x1000, 0)
    offer(ring, 0)


@_split("2.7.5: a length of 4 GiB is not in guest memory", _STOPS)
def buffer_of_4_gib(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    ring.write_desc(0, gpa, 0xFFFF_FFFF, 0)
    offer(ring, 0)


@_split("2.7.4.2: readable buffers come before writable ones", _STOPS)
def readable_after_writable(ring: SplitRing) -> None:
    first, second = good_buffer(ring), good_buffer(ring)
    ring.write_desc(0, *first, WRITE | NEXT, 1)
    ring.write_desc(1, *second, 0)
    offer(ring, 0)


@_split("2.7.5: a descriptor of length 0 describes nothing", _LEGAL, ("tx",))
def zero_length_descriptors_between(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.write_desc(0, 0, 0, NEXT, 1)
    ring.write_desc(1, gpa, size, NEXT, 2)
    ring.write_desc(2, 0, 0, 0)
    offer(ring, 0)


@_split("2.7.4.1: no assumption about where header and frame are split", _LEGAL, ("tx",))
def one_byte_a_descriptor(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    n = min(ring.num, len(GOOD_PACKET))
    for i in range(n - 1):
        ring.write_desc(i, gpa + i, 1, NEXT, i + 1)
    ring.write_desc(n - 1, gpa + n - 1, len(GOOD_PACKET) - n + 1)
    offer(ring, 0)


# --- split: indirect tables ---------------------------------------------------------------------


@_split("2.7.5.3.1: an indirect table is whole descriptors", _STOPS)
def indirect_length_is_no_multiple(ring: SplitRing) -> None:
    _indirect(ring, pack_desc(*good_buffer(ring)) + bytes(8), 24)


@_split("2.7.5.3.1: an indirect table has at least one descriptor", _STOPS)
def indirect_of_length_0(ring: SplitRing) -> None:
    _indirect(ring, b"")


@_split("2.7.5.3.1: no INDIRECT within an indirect table", _STOPS)
def indirect_nested(ring: SplitRing) -> None:
    inner = ring.memory.alloc(VRING_DESC_SIZE)
    ring.memory.write(inner, pack_desc(*good_buffer(ring)))
    _indirect(ring, pack_desc(inner, VRING_DESC_SIZE, INDIRECT))


@_split("2.7.5.3: the table is guest memory", _STOPS)
def indirect_table_unmapped(ring: SplitRing) -> None:
    ring.write_desc(0, NOWHERE, 16, INDIRECT)
    offer(ring, 0)


@_split("2.7.5.3.1: a chain ends within its table", _STOPS)
def indirect_chain_leaves_the_table(ring: SplitRing) -> None:
    _indirect(ring, pack_desc(*good_buffer(ring), NEXT, 1))


@_split("2.7.5.3.1: a chain has at most num descriptors", _STOPS)
def indirect_of_70000_entries(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    ring.write_desc(0, gpa, 70000 * VRING_DESC_SIZE, INDIRECT)
    offer(ring, 0)


@_split("2.7.5.3: buffers of an indirect table are guest memory", _STOPS)
def indirect_buffer_unmapped(ring: SplitRing) -> None:
    _indirect(ring, pack_desc(NOWHERE, 64))


@_split("2.7.5.3.1: a descriptor is not both INDIRECT and NEXT", _LEGAL, ("tx",))
def indirect_with_next(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.write_desc(1, gpa + 32, size - 32)
    table = ring.memory.alloc(VRING_DESC_SIZE)
    ring.memory.write(table, pack_desc(gpa, 32))
    ring.write_desc(0, table, VRING_DESC_SIZE, INDIRECT | NEXT, 1)
    offer(ring, 0)


# --- split: chains that are no packets ----------------------------------------------------------


@_split("5.1.6.2: a transmitted packet is read by the device", _BAD, ("tx",))
def tx_chain_is_writable(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.write_desc(0, gpa, size, WRITE)
    offer(ring, 0)


@_split("5.1.6.2: a transmitted packet is read by the device", _BAD, ("tx",))
def tx_chain_has_a_writable_part(ring: SplitRing) -> None:
    ring.write_desc(0, *good_buffer(ring), NEXT, 1)
    ring.write_desc(1, *good_buffer(ring), WRITE)
    offer(ring, 0)


@_split("5.1.6.2: there is a frame behind the header", _BAD, ("tx",))
def tx_header_only(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    ring.write_desc(0, gpa, 12)
    offer(ring, 0)


@_split("5.1.6.2: a packet begins with a whole header", _BAD, ("tx",))
def tx_shorter_than_the_header(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    ring.write_desc(0, gpa, 5)
    offer(ring, 0)


@_split("5.1.6.2: a packet has bytes", _BAD, ("tx",))
def tx_chain_of_zero_bytes(ring: SplitRing) -> None:
    ring.write_desc(0, 0, 0)
    offer(ring, 0)


@_split("5.1.6.2: gso_type is one that was negotiated", _BAD, ("tx",))
def tx_unknown_gso_type(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.memory.write(gpa + 1, b"\x7f")
    ring.write_desc(0, gpa, size)
    offer(ring, 0)


@_split("5.1.6.2: csum_start lies within the packet", _BAD, ("tx",))
def tx_checksum_beyond_the_packet(ring: SplitRing) -> None:
    gpa, size = good_buffer(ring)
    ring.memory.write(gpa, b"\x01\0\0\0\0\0\xff\xff\xff\xff")
    ring.write_desc(0, gpa, size)
    offer(ring, 0)


@_split("5.1.6.3.1: a receive buffer is written by the device", _BAD, ("rx",))
def rx_chain_is_readable(ring: SplitRing) -> None:
    ring.write_desc(0, *good_buffer(ring, 2048))
    offer(ring, 0)


@_split("5.1.6.3.1: a receive buffer is written by the device", _BAD, ("rx",))
def rx_chain_has_a_readable_part(ring: SplitRing) -> None:
    ring.write_desc(0, *good_buffer(ring, 2048), NEXT, 1)
    ring.write_desc(1, *good_buffer(ring, 2048), WRITE)
    offer(ring, 0)


@_split("5.1.6.3.1: a receive buffer has room", _BAD, ("rx",))
def rx_chain_of_zero_bytes(ring: SplitRing) -> None:
    ring.write_desc(0, 0, 0, WRITE)
    offer(ring, 0)


@_split("5.1.6.3.1: a receive buffer holds at least the header", _BAD, ("rx",))
def rx_buffer_smaller_than_the_header(ring: SplitRing) -> None:
    gpa, _ = good_buffer(ring)
    ring.write_desc(0, gpa, 4, WRITE)
    offer(ring, 0)


# --- packed -------------------------------------------------------------------------------------


def _offer_packed(ring: PackedRing, *entries: tuple[int, int, int, int]) -> None:
    """Write (gpa, size, id, flags) one after the other, the first one's flags last."""
    start, first_flags = ring.next_avail, 0
    for k, (gpa, size, id_, flags) in enumerate(entries):
        flags |= avail_flags(ring.avail_wrap)
        if k == 0:
            first_flags, flags = flags, avail_flags(1 - ring.avail_wrap)
        ring.write_desc(ring.next_avail, gpa, size, id_, flags)
        ring.next_avail += 1
        if ring.next_avail == ring.num:
            ring.next_avail, ring.avail_wrap = 0, 1 - ring.avail_wrap
    ring.write_flags(start, first_flags)


def _packed_indirect(ring: PackedRing, table: bytes, size: int | None = None) -> None:
    gpa = ring.memory.alloc(max(len(table), VRING_DESC_SIZE))
    ring.memory.write(gpa, table)
    _offer_packed(ring, (gpa, len(table) if size is None else size, 0, INDIRECT))


@_packed("2.8.6: a chain has at most num descriptors", _STOPS)
def packed_chain_without_end(ring: PackedRing) -> None:
    gpa, size = good_buffer(ring)
    _offer_packed(ring, *[(gpa, size, 0, NEXT)] * ring.num)


@_packed("2.8.6: a chain is available as a whole", _STOPS)
def packed_chain_runs_into_nothing(ring: PackedRing) -> None:
    gpa, size = good_buffer(ring)
    _offer_packed(ring, (gpa, size, 0, NEXT))


@_packed("2.8.5: addr is guest memory", _STOPS)
def packed_unmapped_buffer(ring: PackedRing) -> None:
    _offer_packed(ring, (NOWHERE, 64, 0, 0))


@_packed("2.8.5: addr + len does not wrap", _STOPS)
def packed_buffer_wraps_around(ring: PackedRing) -> None:
    _offer_packed(ring, (2**64 - 16, 0x1000, 0, 0))


@_packed("2.8.5: readable buffers come before writable ones", _STOPS)
def packed_readable_after_writable(ring: PackedRing) -> None:
    _offer_packed(ring, (*good_buffer(ring), 0, WRITE | NEXT), (*good_buffer(ring), 0, 0))


@_packed("2.8.7: an indirect table is whole descriptors", _STOPS)
def packed_indirect_length_is_no_multiple(ring: PackedRing) -> None:
    _packed_indirect(ring, pack_packed_desc(*good_buffer(ring), 0, 0) + bytes(8), 24)


@_packed("2.8.7: an indirect table has at least one descriptor", _STOPS)
def packed_indirect_of_length_0(ring: PackedRing) -> None:
    _packed_indirect(ring, b"")


@_packed("2.8.7: no INDIRECT within an indirect table", _STOPS)
def packed_indirect_nested(ring: PackedRing) -> None:
    inner = ring.memory.alloc(VRING_DESC_SIZE)
    ring.memory.write(inner, pack_packed_desc(*good_buffer(ring), 0, 0))
    _packed_indirect(ring, pack_packed_desc(inner, VRING_DESC_SIZE, 0, INDIRECT))


@_packed("2.8.7: the table is guest memory", _STOPS)
def packed_indirect_table_unmapped(ring: PackedRing) -> None:
    _offer_packed(ring, (NOWHERE, 16, 0, INDIRECT))


@_packed("2.8.21: a buffer id in flight is not used again", _LEGAL, ("tx",))
def packed_same_id_twice(ring: PackedRing) -> None:
    _offer_packed(ring, (*good_buffer(ring), 0, 0))
    _offer_packed(ring, (*good_buffer(ring), 0, 0))


@_packed("2.8.5: the id is the driver's own: any value comes back", _LEGAL, ("tx",))
def packed_id_is_ffff(ring: PackedRing) -> None:
    _offer_packed(ring, (*good_buffer(ring), 0xFFFF, 0))


@_packed("5.1.6.2: a transmitted packet is read by the device", _BAD, ("tx",))
def packed_tx_chain_is_writable(ring: PackedRing) -> None:
    _offer_packed(ring, (*good_buffer(ring), 0, WRITE))


@_packed("5.1.6.2: a packet begins with a whole header", _BAD, ("tx",))
def packed_tx_shorter_than_the_header(ring: PackedRing) -> None:
    gpa, _ = good_buffer(ring)
    _offer_packed(ring, (gpa, 5, 0, 0))


@_packed("5.1.6.3.1: a receive buffer is written by the device", _BAD, ("rx",))
def packed_rx_chain_is_readable(ring: PackedRing) -> None:
    _offer_packed(ring, (*good_buffer(ring, 2048), 0, 0))

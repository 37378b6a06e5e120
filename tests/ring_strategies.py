"""Hypothesis strategies for rings that a driver could nearly have meant, and for any bytes."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from driver_ring import GPA, INDIRECT, NEXT, WRITE
from instance import EVENT_IDX, MRG, RX, V1
from islands import DISTANT, HIGH, ISLANDS, NEXT_TO_MAIN, desc
from vhostnet.uapi.virtio import VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY, mask
from victim import AVAIL_BYTES, DESC_BYTES, EVENT_BYTES, NUM, USED_BYTES, Victim, clean

# Mostly right: a ring of wild numbers is found broken at its first word, and tests that word.

FEATURES = st.sampled_from(
    [
        0,
        V1,
        MRG,
        MRG | V1,
        MRG | V1 | EVENT_IDX,
        MRG | V1 | mask(VIRTIO_F_IN_ORDER),
        V1 | EVENT_IDX | mask(VIRTIO_F_NOTIFY_ON_EMPTY),
    ]
)
U16 = st.integers(0, 0xFFFF)
BASES = st.sampled_from([0, 1, 7, 0x7FFF, 0x8000, 0xFFFC, 0xFFFF, 0x1234])
PACKETS = st.lists(st.sampled_from([1, 11, 13, 60, 200, 1514, 2000]), max_size=3).map(
    lambda sizes: [bytes([k + 1]) * size for k, size in enumerate(sizes)]
)
BORDERS = [edge for island in ISLANDS for edge in (island.gpa, island.end)]
WILD_ADDRESSES = [0, GPA - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 16]
WILD_LENGTHS = [0, 1, 0x1_0000, 1 << 31, 0xFFFFFFFF]
# Where `tables` puts indirect tables: in the middle of a region, across borders without a gap, and
# across the end of one.
TABLES = [
    NEXT_TO_MAIN.gpa + 0x100,
    NEXT_TO_MAIN.gpa - 8,
    DISTANT.end - 0x88,
    HIGH.end - 0x40,
]
TABLE_ENTRIES = 10


@st.composite
def buffers(draw: st.DrawFn) -> tuple[int, int]:
    """Address and length: inside of a region, over its end or start by a little, or nowhere."""
    kind = draw(st.sampled_from(["inside"] * 14 + ["end"] * 5 + ["start", "wild"]))
    if kind == "wild":
        return draw(st.sampled_from(WILD_ADDRESSES)), draw(st.sampled_from(WILD_LENGTHS))
    island = draw(st.sampled_from(ISLANDS))
    if kind == "start":
        return island.gpa - draw(st.sampled_from([1, 2, 8, 40])), draw(st.integers(0, 100))
    if kind == "end":
        room = min(island.size, draw(st.sampled_from([1, 7, 12, 60, 300])))
        return island.end - room, room + draw(st.sampled_from([-1, 0, 0, 1, 2, 7, 40]))
    at = draw(st.integers(0, island.size - 1))
    return island.gpa + at, draw(st.integers(0, min(island.size - at, 600)))


@st.composite
def descriptors(draw: st.DrawFn, direction: int, k: int) -> bytes:
    """Descriptor *k* of a table, for transmission mostly readable, for reception writable."""
    usual = WRITE if direction == RX else 0
    flags = draw(
        st.sampled_from(
            [usual] * 12
            + [usual | NEXT] * 10
            + [INDIRECT] * 4
            + [INDIRECT | NEXT, usual ^ WRITE, (usual ^ WRITE) | NEXT, 0xFFFF]
        )
    )
    next_ = k + 1 if draw(st.integers(0, 7)) else draw(st.integers(0, NUM) | U16)
    if flags & INDIRECT:
        gpa = draw(st.sampled_from(TABLES)) + draw(st.sampled_from([0] * 8 + [-16, 16, 5]))
        length = 16 * draw(st.integers(1, TABLE_ENTRIES))
        if not draw(st.integers(0, 9)):
            length = draw(st.sampled_from([0, 8, 17, 16 * 65537, 0xFFFFFFF0]))
    else:
        gpa, length = draw(buffers())
    return desc(gpa, length, flags, next_)


@st.composite
def tables(draw: st.DrawFn, direction: int) -> list[bytes]:
    """One indirect table for each of TABLES, of the same entries in another order."""
    pool = [draw(descriptors(direction, k)) for k in range(TABLE_ENTRIES)]
    return [b"".join(pool[3 * k :] + pool[: 3 * k]) for k in range(len(TABLES))]


@st.composite
def rings(draw: st.DrawFn, direction: int) -> tuple[bytes, bytes, bytes]:
    """Descriptor table, avail ring and used ring that a driver could nearly have meant."""
    table = b"".join(draw(descriptors(direction, k)) for k in range(NUM))
    offered = draw(st.sampled_from([*range(1, NUM + 1)] * 2 + [0, NUM + 1, 0x7FFF, 0xFFFF]))
    heads = [
        draw(st.integers(0, NUM - 1)) if draw(st.integers(0, 19)) else draw(st.integers(0, 0x9FFF))
        for _ in range(NUM)
    ]
    flags, event = draw(st.integers(0, 1)), draw(st.integers(0, 20))
    avail = struct.pack(f"<HH{NUM}HH", flags, offered, *heads, event)
    return table, avail, bytes(USED_BYTES)


RAW = st.tuples(
    st.binary(min_size=DESC_BYTES, max_size=DESC_BYTES),
    st.binary(min_size=AVAIL_BYTES, max_size=AVAIL_BYTES),
    st.binary(min_size=USED_BYTES, max_size=USED_BYTES),
)


def counted_from(base: int, parts: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    """A ring's parts, with avail->idx meant as so many more than *base*."""
    table, avail, used = parts
    (offered,) = struct.unpack_from("<H", avail, 2)
    idx = struct.pack("<H", (base + offered) & 0xFFFF)
    return table, avail[:2] + idx + avail[4:], used


def put_tables(victim: Victim, contents: list[bytes]) -> None:
    for gpa, content in zip(TABLES, contents, strict=True):
        victim.memory.scatter(gpa, clean(content))


# --- packed rings ---------------------------------------------------------------------------

PACKED_FEATURES = st.sampled_from(
    [V1, MRG | V1, MRG | V1 | EVENT_IDX, MRG | V1 | mask(VIRTIO_F_IN_ORDER)]
)
SIZES = st.sampled_from([1, 2, 3, 5, NUM])
RAW_PACKED = st.tuples(
    st.binary(min_size=DESC_BYTES, max_size=DESC_BYTES),
    st.binary(min_size=EVENT_BYTES, max_size=EVENT_BYTES),
)


def packed_base(pos: int, wrap: int) -> int:
    """SET_VRING_BASE for an idle ring: available and used at the same place."""
    half = pos | wrap << 15
    return half | half << 16


@st.composite
def packed_rings(draw: st.DrawFn, direction: int) -> tuple[bytes, bytes]:
    """Descriptors of which most are available, and a driver's event area."""
    ring = b""
    for k in range(NUM):
        gpa, length, flags, id_ = struct.unpack("<QIHH", draw(descriptors(direction, k)))
        if flags != 0xFFFF:
            flags |= draw(st.sampled_from([1 << 7] * 6 + [1 << 15] * 2 + [0, 0x8080]))
        ring += struct.pack("<QIHH", gpa, length, id_, flags)
    return ring, draw(st.binary(min_size=EVENT_BYTES, max_size=EVENT_BYTES))

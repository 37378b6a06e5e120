"""Regions are checked before they are mapped, and mapped once."""

from __future__ import annotations

import os

import pytest

from driver_ring import GPA, UVA, Memory
from vhostnet.device.memory import MemoryTable, drop_unheld, map_region, same_region
from vhostnet.errors import PeerError


@pytest.fixture
def memory():
    memory = Memory(1 << 16)
    yield memory
    memory.close()


def mapped_ranges() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:guest" in line for line in maps)


@pytest.mark.parametrize(
    ("gpa", "size", "uva", "offset", "rule"),
    [
        (GPA, 0, UVA, 0, "empty"),
        (2**64 - 4096, 8192, UVA, 0, "wraps"),
        (2**63, 4096, UVA, 0, "wraps"),
        (GPA, 4096, 2**64 - 16, 0, "wraps"),
        (GPA, 1 << 17, UVA, 0, "beyond its file"),
        (GPA, 4096, UVA, 1 << 16, "beyond its file"),
        (GPA, 4096, UVA, 2**64 - 4096, "beyond its file"),
    ],
)
def test_a_bad_region_is_refused_with_its_rule(memory, gpa, size, uva, offset, rule):
    with pytest.raises(PeerError, match=rule):
        map_region(gpa, size, uva, offset, memory.fd)


def test_a_descriptor_that_is_no_file_is_named_as_unshared_memory():
    read_end, write_end = os.pipe()
    with pytest.raises(PeerError, match="memory-backend-memfd,share=on"):
        map_region(GPA, 4096, UVA, 0, read_end)
    os.close(read_end)
    os.close(write_end)


def test_a_file_that_cannot_be_written_is_refused(memory):
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY)
    with pytest.raises(PeerError, match="Permission denied"):
        map_region(GPA, 4096, UVA, 0, fd)
    os.close(fd)


def test_overlapping_regions_are_refused_and_unmapped(memory):
    before = mapped_ranges()
    regions = [
        map_region(GPA, 8192, UVA, 0, memory.fd),
        map_region(GPA + 4096, 8192, UVA + 8192, 8192, memory.fd),
    ]
    with pytest.raises(PeerError, match="overlap"):
        MemoryTable(regions)
    drop_unheld(regions)
    assert mapped_ranges() == before


def test_a_mapping_lives_as_long_as_some_table_holds_it(memory):
    before = mapped_ranges()
    region = memory.region()
    old = MemoryTable([region])
    new = MemoryTable([region])
    old.release()
    assert mapped_ranges() == before + 1
    new.release()
    assert mapped_ranges() == before


def test_the_same_region_offered_again_is_recognised(memory):
    region = memory.region()
    table = MemoryTable([region])
    assert same_region(region, GPA, memory.size, UVA, 0, memory.fd)
    assert not same_region(region, GPA, memory.size, UVA, 4096, memory.fd)
    other = Memory(1 << 16)
    assert not same_region(region, GPA, memory.size, UVA, 0, other.fd)
    other.close()
    table.release()


def test_an_offset_within_a_page_is_honoured(memory):
    memory.write(GPA + 100, b"here")
    region = map_region(GPA, 4096, UVA, 100, memory.fd)
    table = MemoryTable([region])
    import ctypes

    assert ctypes.string_at(region.hva, 4) == b"here"
    table.release()


def test_ring_addresses_must_lie_in_one_region(memory):
    table = MemoryTable(
        [
            map_region(GPA, 4096, UVA, 0, memory.fd),
            map_region(GPA + 4096, 4096, UVA + 4096, 4096, memory.fd),
        ]
    )
    assert table.uva_to_hva(UVA, 4096) == table.regions[0].hva
    assert table.uva_to_hva(UVA + 4090, 10) is None
    assert table.uva_to_hva(UVA + 8192, 1) is None
    table.release()

"""Guest memory as the driver half has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vhostnet_frontend import DirtyLog, GuestMemory, RegionSpec
from vhostnet_frontend.guest_memory import NotGuestMemory, OutOfGuestMemory


def test_the_three_addresses_of_a_byte_are_three() -> None:
    with GuestMemory([RegionSpec(8192, gpa=0x5000, uva=0x9_0000)]) as memory:
        memory.write(0x5010, b"hello")
        (region,) = memory.regions
        assert (memory.uva(0x5010), memory.hva(0x5010)) == (0x9_0010, region.hva + 0x10)
        assert region.fd is not None
        assert os.pread(region.fd, 5, region.offset + 0x10) == b"hello"


def test_user_addresses_are_true_addresses_unless_said_otherwise() -> None:
    with GuestMemory(4096) as memory:
        assert memory.regions[0].uva == memory.regions[0].hva != memory.regions[0].gpa


def test_a_read_may_cross_regions_that_touch_and_no_others() -> None:
    specs = [RegionSpec(4096, 0x1000), RegionSpec(4096, 0x2000), RegionSpec(4096, 0x9000)]
    with GuestMemory(specs) as memory:
        memory.write(0x1FFE, b"abcd")
        assert memory.read(0x1FFC, 8) == b"\0\0abcd\0\0"
        with pytest.raises(NotGuestMemory):
            memory.read(0x2FFF, 2)
        with pytest.raises(NotGuestMemory):
            memory.hva(0)


def test_allocations_are_aligned_apart_and_bounded() -> None:
    with GuestMemory([RegionSpec(4096, 0x1000), RegionSpec(8192, 0x10000)]) as memory:
        first, second = memory.alloc(10), memory.alloc(100, 64)
        assert (first, second) == (0x1000, 0x1040)
        assert memory.alloc(5000) == 0x10000
        assert memory.alloc(8, region=1) == 0x10000 + 5008
        with pytest.raises(OutOfGuestMemory):
            memory.alloc(5000)


def test_scratch_allocations_are_taken_back() -> None:
    with GuestMemory(4096) as memory:
        before = memory.alloc(16)
        with memory.scratch():
            memory.alloc(2048, canary=True)
        assert memory.alloc(16) == before + 16
        assert memory.check_canaries() == []


@pytest.mark.parametrize("at", [-1, 100])
def test_a_write_beside_an_allocation_kills_its_canary(at: int) -> None:
    with GuestMemory(4096) as memory:
        gpa = memory.alloc(100, canary=True)
        memory.write(gpa, bytes(100))
        assert memory.check_canaries() == []
        memory.write(gpa + at, b"\0")
        assert len(memory.check_canaries()) == 1


@pytest.mark.parametrize("at", [-1, 5000])
def test_a_write_to_the_file_beside_a_region_kills_its_canary(at: int) -> None:
    with GuestMemory([RegionSpec(5000)], canaries=True) as memory:
        (region,) = memory.regions
        assert region.offset > 0
        assert region.fd is not None
        assert memory.check_canaries() == []
        os.pwrite(region.fd, b"\0", region.offset + at)
        assert len(memory.check_canaries()) == 1


def test_the_pages_around_a_mapping_cannot_be_touched() -> None:
    program = (
        "import ctypes, vhostnet_frontend as v\n"
        "m = v.GuestMemory(4096)\n"
        "print(ctypes.string_at(m.regions[0].hva, 4096) == bytes(4096), flush=True)\n"
        "ctypes.string_at(m.regions[0].hva + {at}, 1)\n"
    )
    for at in (-1, 4096):
        done = subprocess.run(
            [sys.executable, "-c", program.format(at=at)], capture_output=True, check=False
        )
        assert (done.stdout, done.returncode) == (b"True\n", -11)


def test_private_memory_has_no_file() -> None:
    with GuestMemory(4096, private=True) as memory:
        assert memory.regions[0].fd is None
        memory.write(memory.alloc(4), b"abcd")
        with pytest.raises(ValueError, match="no file"):
            memory.truncate_file()
    with pytest.raises(ValueError, match="file"):
        GuestMemory(4096, private=True, canaries=True)


def test_a_file_can_be_cut_under_a_back_end() -> None:
    with GuestMemory(8192) as memory:
        memory.truncate_file(4096)
        fd = memory.regions[0].fd
        assert fd is not None
        assert os.fstat(fd).st_size == 4096


def test_closing_gives_everything_back() -> None:
    def state() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("guest-memory" in line for line in maps)

    before = state()
    memory = GuestMemory([RegionSpec(4096, 0x1000), RegionSpec(4096, 0x2000)])
    assert state() != before
    memory.close()
    memory.close()
    assert state() == before


def test_a_dirty_log_tells_its_pages() -> None:
    log = DirtyLog(1 << 24)
    assert (log.size, log.pages()) == (512, set())
    os.pwrite(log.fd, b"\x81", log.offset + 3)
    assert log.pages() == {24, 31}
    log.clear()
    assert log.pages() == set()
    log.close()

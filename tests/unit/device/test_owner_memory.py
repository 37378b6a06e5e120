"""The owner's memory: mapped where it is shared, reached with few system calls where it is not."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vhostnet.datapath.ring_access import fetch_used, push_used_word
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.owner_memory import OwnerMemory
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import PeerError
from vhostnet.uapi.vhost import MemoryRegion

SIZE = 1 << 20
GPA = 0x10_0000


class Owner:
    """Another process with a piece of memory, which writes what it is told and says what is there.

    Args:
        kind: "private", "shared" (a memfd) or "closed" (a memfd that is mapped and not open).
    """

    def __init__(self, kind: str) -> None:
        fd = -1
        if kind == "private":
            self.memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            fd = os.memfd_create("owner")
            os.ftruncate(fd, SIZE)
            self.memory = mmap.mmap(fd, SIZE)
        self.uva = _address_of(self.memory)
        self.orders, orders = os.pipe()[::-1]
        answers, self.answers = os.pipe()[::-1]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if kind == "closed":
                    os.close(fd)
                self._obey(orders, answers)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)
        if fd >= 0:
            os.close(fd)

    def _obey(self, orders: int, answers: int) -> None:
        while order := os.read(orders, 4096):
            at, size = int.from_bytes(order[:8], "little"), int.from_bytes(order[8:16], "little")
            if size == SIZE + 1:
                os.execv("/bin/sleep", ["sleep", "60"])
            self.memory[at : at + len(order) - 16] = order[16:]
            os.write(answers, bytes(self.memory[at : at + size]))

    def tell(self, at: int, data: bytes = b"", size: int = 1) -> bytes:
        """Write *data* at *at*; returns *size* bytes of what is there then."""
        os.write(self.orders, at.to_bytes(8, "little") + size.to_bytes(8, "little") + data)
        return os.read(self.answers, size)

    def exec(self) -> None:
        os.write(self.orders, bytes(8) + (SIZE + 1).to_bytes(8, "little"))
        while os.readlink(f"/proc/{self.pid}/exe").rpartition("/")[2] not in ("sleep", "busybox"):
            pass

    def region(self) -> MemoryRegion:
        return MemoryRegion(GPA, SIZE, self.uva, 0)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.orders)
        os.close(self.answers)


def _address_of(memory: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(view)


@pytest.fixture
def owner_of() -> Iterator[Callable[[str], Owner]]:
    made: list[Owner] = []

    def make(kind: str) -> Owner:
        made.append(Owner(kind))
        return made[-1]

    yield make
    for owner in made:
        owner.close()


def test_shared_memory_is_mapped(owner_of: Any) -> None:
    owner = owner_of("shared")
    memory = OwnerMemory(owner.pid)
    (region,) = memory.regions([owner.region()])
    assert memory.remote is None
    assert (region.gpa, region.size, region.uva) == (GPA, SIZE, owner.uva)
    owner.tell(5, b"hello")
    assert ctypes.string_at(region.hva + 5, 5) == b"hello"
    ctypes.memmove(region.hva + 9, b"p!", 2)
    assert owner.tell(5, b"", 6) == b"hellp!"
    memory.release()


def test_the_same_table_again_maps_nothing_new(owner_of: Any) -> None:
    owner = owner_of("shared")
    memory = OwnerMemory(owner.pid)
    (first,) = memory.regions([owner.region()])
    (again,) = memory.regions([owner.region()])
    assert again.hva == first.hva
    assert again.mapping is first.mapping
    memory.release()


@pytest.mark.parametrize("kind", ["private", "beyond its end"])
def test_memory_that_cannot_be_mapped_is_remote(owner_of: Any, kind: str) -> None:
    owner = owner_of("private" if kind == "private" else "shared")
    size = SIZE if kind == "private" else SIZE + 4096
    memory = OwnerMemory(owner.pid, batched=True)
    (region,) = memory.regions([MemoryRegion(GPA, size, owner.uva, 0)])
    assert memory.remote is not None
    assert memory.remote.pid == owner.pid
    assert memory.remote.batched
    assert (region.hva, region.uva) == (owner.uva, owner.uva)
    assert memory.space().lookup(owner.uva + 7, 5, 1) == (owner.uva + 7, 0)
    memory.release()


#: Below all that Linux maps by itself.
NOBODYS = 0x20000


def test_one_private_region_makes_all_remote(owner_of: Any) -> None:
    owner = owner_of("shared")
    beside = MemoryRegion(GPA + SIZE, 4096, NOBODYS, 0)
    memory = OwnerMemory(owner.pid)
    regions = memory.regions([owner.region(), beside])
    assert [r.hva for r in regions] == [owner.uva, beside.userspace_addr]
    memory.release()


def test_no_mapping_and_no_descriptor_is_left_behind(owner_of: Any) -> None:
    owners = [owner_of("shared"), owner_of("private")]

    def held() -> tuple[int, int]:
        with open("/proc/self/maps", encoding="ascii") as lines:
            return len(os.listdir("/proc/self/fd")), sum("memfd:owner" in line for line in lines)

    gc.collect()  # the test before this one has left a mapping to it
    before = held()
    for _ in range(200):
        for owner in owners:
            memory = OwnerMemory(owner.pid)
            memory.regions([owner.region()])
            memory.maps(owner.uva + 100, 50)
            memory.release()
    assert held() == before


def test_a_process_that_is_not_there_has_no_memory(owner_of: Any) -> None:
    owner = owner_of("private")
    pid = owner.pid
    owner.close()
    with pytest.raises(PeerError) as refused:
        OwnerMemory(pid)
    assert refused.value.errno == errno.EPERM
    owner.__init__("private")  # so that the fixture can close it


@pytest.mark.parametrize("batched", [False, True])
def test_after_exec_a_ring_finds_nothing_and_touches_nothing(owner_of: Any, batched: bool) -> None:
    owner = owner_of("private")
    net = VhostNet("test")
    memories: list[OwnerMemory] = []

    def memory_of(pid: int) -> OwnerMemory:
        memories.append(OwnerMemory(pid, batched=batched))
        return memories[-1]

    verbs = KernelVerbs(net, memory_of)
    verbs.set_owner(owner.pid)
    verbs.set_mem_table([owner.region()])
    assert net.rx.is_remote
    verbs.stop_batching()  # what a door does before it lets exec go on
    owner.exec()
    vq = net.tx.vq
    net.tx.put_part("used_hva", owner.uva, 64)
    assert fetch_used(vq) == -1
    assert push_used_word(vq, 2) == -1
    assert int(vq["owner_faults"]) == 2
    verbs.close()

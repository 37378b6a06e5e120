"""Our device as a scenario's device: the verbs of the character device, called in process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vhostnet.device import owner_memory
from vhostnet.device.kernel_verbs import KernelVerbs, OwnerMemory
from vhostnet.device.memory import Mapping, MemoryTable, Region
from vhostnet.device.vhost_net import VhostNet
from vhostnet.uapi.vhost import IotlbMsg, MemoryRegion, VringAddr
from vhostnet_frontend import Conversions, DirtyLog, GuestMemory, InProcessTransport
from vhostnet_frontend import Region as DriverRegion


class OurMemory:
    """The owner's address space: all guest memory that the scenario has made (uva = hva)."""

    remote = None
    n_mapped = 0
    mem_fd = -1

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def note(self, memory: GuestMemory, alive: bool) -> None:
        for r in memory.regions:
            if alive:
                self._ranges.append((r.hva, r.size))
            else:
                self._ranges.remove((r.hva, r.size))

    @staticmethod
    def _region(gpa: int, size: int, uva: int) -> Region:
        return Region(gpa, size, uva, (0, 0, uva), uva, Mapping(0, 0, holders=1))

    def space(self) -> MemoryTable:
        return MemoryTable([self._region(hva, size, hva) for hva, size in self._ranges])

    def regions(self, wanted: Sequence[MemoryRegion]) -> list[Region]:
        found = []
        for r in wanted:
            size = r.memory_size or (1 << 64) - 1
            for hva, length in self._ranges:
                low = max(r.userspace_addr, hva)
                high = min(r.userspace_addr + size, hva + length)
                gpa = r.guest_phys_addr + low - r.userspace_addr
                if low < high and gpa + high - low <= 1 << 63:
                    found.append(self._region(gpa, high - low, low))
        return found

    def maps(self, uva: int, size: int) -> bool:  # noqa: ARG002
        return True  # or it is nowhere

    def log(self, address: int) -> tuple[int, int]:
        raise NotImplementedError

    def stop_batching(self) -> None:
        """Nothing is batched."""

    def release(self) -> None:
        """It is the scenario's."""


class OutOfReach(owner_memory.OwnerMemory):
    """A real process's memory, of which nothing is mapped."""

    def __init__(self, pid: int, *, batched: bool) -> None:
        super().__init__(pid, batched=batched)
        self._go_remote()


class OurDevice(InProcessTransport):
    """One open file of ours.

    Differs from other objects in a process: descriptors are numbers that the device copies, as
    those of an ioctl are.
    """

    def __init__(self, linux_abi: str, memory_of: Callable[[int], OwnerMemory]) -> None:
        self._logs: dict[int, int] = {}

        def noting_logs(pid: int) -> OwnerMemory:
            memory = memory_of(pid)
            if isinstance(memory, OurMemory):
                memory.log = lambda address: (address, self._logs.get(address, 0))  # type: ignore[method-assign]
            return memory

        verbs = KernelVerbs(VhostNet("oracle", linux_abi), noting_logs)
        self._messages = verbs.messages
        super().__init__(
            verbs,
            Conversions(
                mem_table=lambda regions: [MemoryRegion(r.gpa, r.size, r.uva, 0) for r in regions],
                vring_addr=lambda addr: addr,
                backend=lambda _index, fd: fd,
            ),
        )

    def set_mem_table(self, regions: Sequence[DriverRegion]) -> None:
        self._call("set_mem_table", self._make.mem_table(regions))

    def reset_owner(self) -> None:
        self._call("reset_owner")

    def set_vring_addr(self, addr: VringAddr) -> None:
        self._call("set_vring_addr", addr)

    def _set_fd(self, verb: str, index: int, fd: int | None) -> None:
        self._call(verb, index, -1 if fd is None else fd)

    def set_log_fd(self, fd: int | None) -> None:
        self._call("set_log_fd", -1 if fd is None else fd)

    def set_log_base(self, log: DirtyLog) -> None:
        self._logs[log.uva] = log.size
        self._call("set_log_base", log.uva)

    def set_backend(self, index: int, fd: int | None) -> None:
        self._call("set_backend", index, -1 if fd is None else fd)

    def write(self, data: bytes) -> int:
        with self._errors("write"):
            return self._messages.write(data)

    def read(self, size: int) -> bytes:
        with self._errors("read"):
            return self._messages.read(size)

    def readable(self) -> tuple[bool, bool]:
        return self._messages.readable(), False

    def send_iotlb(self, message: IotlbMsg) -> None:
        with self._errors("send_iotlb"):
            self._messages.send(message)

    def close(self) -> None:
        self._call("close")

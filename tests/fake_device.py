"""A device that does nothing but write down what it was told, and owns what it was given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vhostnet.errors import PeerError
from vhostnet.protocol.verbs import MemoryRegion, VringAddr

FEATURES = 1 << 32 | 1 << 30 | 1 << 15


class FakeDevice:
    """Implements SessionDevice.

    Args:
        close_fd: what happens to descriptors it owns when the session ends.
    """

    def __init__(self, n_rings: int = 4, close_fd: Callable[[int], None] = os.close) -> None:
        self.n_rings = n_rings
        self.max_mem_slots = 32
        self.iommu = True
        self.calls: list[tuple[object, ...]] = []
        self.owned: list[int] = []
        self.status = 0
        self.failure: Exception | None = None
        self.pid: int | None = None
        self.sessions = 0
        self.is_session_open = False
        self.is_closed = False
        self._close_fd = close_fd

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]

    def open_session(self, pid: int | None) -> None:
        assert not self.is_session_open
        self.pid = pid
        self.is_session_open = True
        self.sessions += 1

    def close_session(self) -> None:
        self.is_session_open = False
        for fd in self.owned:
            self._close_fd(fd)
        self.owned.clear()

    def check_memory(self) -> None:
        self._note("check_memory")

    def close(self) -> None:
        self.close_session()
        self.is_closed = True

    def get_features(self) -> int:
        return FEATURES

    def set_features(self, features: int) -> None:
        self._note("set_features", features)

    def set_owner(self) -> None:
        self._note("set_owner")

    def reset_owner(self) -> None:
        self._note("reset_owner")

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        self._note("set_mem_table", tuple(regions), tuple(fds))

    def add_mem_reg(self, region: MemoryRegion, fd: int) -> None:
        self._note("add_mem_reg", region, fd)

    def rem_mem_reg(self, region: MemoryRegion) -> None:
        self._note("rem_mem_reg", region)

    def set_backend_req_fd(self, fd: int) -> None:
        self._own("set_backend_req_fd", 0, fd)

    def iotlb_update(self, iova: int, size: int, uva: int, perm: int) -> None:
        self._note("iotlb_update", iova, size, uva, perm)

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        self._note("iotlb_invalidate", iova, size)

    def set_log_base(self, size: int, offset: int, fd: int) -> None:
        self._note("set_log_base", size, offset, fd)

    def set_log_fd(self, fd: int) -> None:
        self._own("set_log_fd", 0, fd)

    def set_vring_num(self, index: int, num: int) -> None:
        self._note("set_vring_num", index, num)

    def set_vring_addr(self, addr: VringAddr) -> None:
        self._note("set_vring_addr", addr)

    def set_vring_base(self, index: int, base: int) -> None:
        self._note("set_vring_base", index, base)

    def get_vring_base(self, index: int) -> int:
        self._note("get_vring_base", index)
        return 0x80000000 + index

    def _own(self, name: str, index: int, fd: int | None) -> None:
        if fd is not None:
            self.owned.append(fd)
        if index >= self.n_rings:
            raise PeerError("the session has not checked the index")
        self._note(name, index, fd)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._own("set_vring_kick", index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._own("set_vring_call", index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._own("set_vring_err", index, fd)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        self._note("set_vring_enable", index, enable)

    def set_mtu(self, mtu: int) -> None:
        self._note("set_mtu", mtu)

    def send_rarp(self, mac: bytes) -> None:
        self._note("send_rarp", mac)

    def set_status(self, status: int) -> None:
        self._note("set_status", status)
        self.status = status

    def get_status(self) -> int:
        self._note("get_status")
        return self.status

    def reset_device(self) -> None:
        self._note("reset_device")

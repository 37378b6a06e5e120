"""Both rings of a queue pair in memory between guard pages, for handlers that are called directly.

Every region ends at a page that cannot be touched: one byte too many ends the process.  The part
of a page that is not a region's is filled with canaries.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from instance import EVENT_IDX, MRG, RX, TX, V1
from vhostnet.datapath.layout import (
    GEN,
    HOLD_SIZE,
    IOTLB_ENTRY,
    IOVEC,
    MAPPED_REGION,
    RX_HEAD,
    UIO_MAXIOV,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_RW,
    VHOST_ACCESS_WO,
    WORKER,
)
from vhostnet.device.ring_formats import VringAddresses
from vhostnet.device.vring import Vring
from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    mask,
)

PAGE = 4096
CANARY = 0xA7
NUM = 8
HDR_LEN = 12
#: (guest address, bytes); the second follows the first, the third begins within a page.
REGIONS = ((0x10000, 0x2000), (0x12000, 0x1000), (0x20000, 0xC08), ((1 << 63) - 0x2000, 0x1000))
PERMISSIONS = (VHOST_ACCESS_RW, VHOST_ACCESS_RW, VHOST_ACCESS_RO, VHOST_ACCESS_WO)
TABLE = REGIONS[0][0]
TABLE_ENTRIES = 256
FEATURES = (
    MRG | V1,
    V1,
    MRG | V1 | EVENT_IDX,
    MRG | V1 | mask(VIRTIO_F_IN_ORDER),
    V1 | EVENT_IDX | mask(VIRTIO_F_NOTIFY_ON_EMPTY),
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NONE, _READ_WRITE, _PRIVATE_ANONYMOUS = 0, 3, 0x22


class Guarded:
    """The regions' memory; `lookup` makes it a ring's address space."""

    def __init__(self) -> None:
        pages = [-(-size // PAGE) for _, size in REGIONS]
        size = PAGE * (sum(pages) + len(pages) + 1)
        at = _libc.mmap(None, size, _NONE, _PRIVATE_ANONYMOUS, -1, 0)
        assert at not in (None, ctypes.c_void_p(-1).value)
        self.hvas: list[int] = []
        self.margins: list[tuple[int, int]] = []
        for (_, length), n in zip(REGIONS, pages, strict=True):
            at += PAGE
            assert _libc.mprotect(at, n * PAGE, _READ_WRITE) == 0
            margin = n * PAGE - length
            ctypes.memset(at, CANARY, margin)
            self.margins.append((at, margin))
            self.hvas.append(at + margin)
            at += n * PAGE

    def lookup(self, address: int, size: int, access: int) -> tuple[int | None, int]:  # noqa: ARG002
        for (gpa, length), hva in zip(REGIONS, self.hvas, strict=True):
            if gpa <= address and address + size <= gpa + length:
                return hva + address - gpa, 0
        return None, address

    def hva(self, gpa: int) -> int:
        found, _ = self.lookup(gpa, 1, 0)
        assert found is not None
        return found

    def check(self) -> None:
        """No canary has changed."""
        for at, size in self.margins:
            assert ctypes.string_at(at, size).count(CANARY) == size, "a byte outside was written"


class Rig:
    """What `handle_rx` and `handle_tx` are called with.

    Args:
        is_packed: the ring format.
        is_translated: behind an IOMMU, where regions have permissions.
    """

    def __init__(self, is_packed: bool, is_translated: bool, features: int = MRG | V1) -> None:
        self.is_packed = is_packed
        self.memory = Guarded()
        self.worker = np.zeros(1, WORKER)
        self.iov = np.zeros(2 * UIO_MAXIOV + 1, IOVEC)
        self.heads = np.zeros(UIO_MAXIOV, RX_HEAD)
        self.regions = np.zeros(len(REGIONS), MAPPED_REGION)
        entries = np.zeros(len(REGIONS), IOTLB_ENTRY)
        for k, (gpa, size) in enumerate(REGIONS):
            self.regions[k] = (gpa, size, self.memory.hvas[k])
            entries[k] = (gpa, size, self.memory.hvas[k], PERMISSIONS[k])
        self.mem = entries if is_translated else self.regions
        self._frame = np.arange(64 + HOLD_SIZE, dtype=np.uint8)
        self._sink = np.zeros(HOLD_SIZE, np.uint8)
        self.backend: Any = np.zeros(1, GEN)
        backend = self.backend[0]
        backend["frame_hva"] = self._frame.ctypes.data + 64
        backend["frame_len"] = 200
        backend["gen_hdr_len"] = HDR_LEN
        backend["gen_sink_hva"], backend["gen_sink_size"] = self._sink.ctypes.data, HOLD_SIZE
        self.place(features)

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Guest address and bytes of each part, every one at the end of a region."""
        sizes = (16 * NUM, 4, 4) if self.is_packed else (16 * NUM, 6 + 2 * NUM, 6 + 8 * NUM)
        ends = [REGIONS[k][0] + REGIONS[k][1] for k in (1, 2, 0)]
        return tuple((end - n & ~3, n) for end, n in zip(ends, sizes, strict=True))

    def place(self, features: int) -> None:
        """Start both rings anew, at the same place."""
        self.rings = [Vring(RX), Vring(TX)]
        desc, avail, used = (gpa for gpa, _ in self.parts)
        if self.is_packed:
            features &= ~mask(VIRTIO_F_NOTIFY_ON_EMPTY)
            features |= mask(VIRTIO_F_RING_PACKED)
        for ring in self.rings:
            ring.set_features(features)
            ring.set_num(NUM)
            ring.set_base(0x8000 if self.is_packed else 0)
            ring.set_addresses(VringAddresses(desc, avail, used))
            assert ring.place(self.memory) is None
            ring.init_access()
        self.rx, self.tx = (ring.record for ring in self.rings)

"""What control has to know of a ring's format: its parts, its position, how it starts.

Tables of plain functions over a vring record, `SPLIT` and `PACKED`, and `REMOTE_SPLIT` and
`REMOTE_PACKED` for rings in memory that cannot be mapped; the data path's half of each is
`datapath/split_ring.py`, `packed_ring.py`, `remote_split_ring.py` and `remote_packed_ring.py`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vhostnet.datapath.dirty_log_raw import log_used, log_write
from vhostnet.datapath.layout import (
    PACKED_VRING,
    REMOTE_PACKED_VRING,
    REMOTE_VRING,
    SPLIT_VRING,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_RW,
    VHOST_ACCESS_WO,
)
from vhostnet.datapath.packed_ring import is_available
from vhostnet.datapath.ring_access import fetch_used, push_device_event, push_used_word
from vhostnet.datapath.vring_ops import signal_eventfd
from vhostnet.errors import PeerError
from vhostnet.native.ordering import load_acquire_u16, smp_mb, store_relaxed_u16
from vhostnet.uapi.virtio import (
    VRING_AVAIL_IDX,
    VRING_DESC_SIZE,
    VRING_NUM_MAX,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    VRING_PACKED_EVENT_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_FLAGS,
    VRING_USED_IDX,
)

Record = Any


@dataclass(frozen=True, slots=True)
class VringAddresses:
    """Where the three parts lie, as the front-end sees them (uva).

    In a packed ring `desc` is the ring, `avail` the driver's and `used` the device's event area.
    """

    desc_uva: int
    avail_uva: int
    used_uva: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a ring: the record's field for it, where it is, how large, how aligned."""

    field: str
    address: int
    size: int
    align: int
    access: int


class RingFormat(Protocol):
    """The functions that differ."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The record that kernels take."""

    @property
    def is_packed(self) -> bool:
        """Whether it is VIRTIO_F_RING_PACKED's."""

    @property
    def num_field(self) -> str:
        """Where the record has the ring's size."""

    def is_size(self, num: int) -> bool:
        """Whether a ring can have *num* entries."""

    def is_base(self, base: int) -> bool:
        """Whether *base* is a position (SET_VRING_BASE)."""

    def is_within(self, vq: Record) -> bool:
        """Whether the position is one of a ring of this size: the ring may start."""

    def set_base(self, vq: Record, base: int) -> None:
        """Go on at *base*."""

    def get_base(self, vq: Record) -> int:
        """Where to go on (GET_VRING_BASE)."""

    def parts(self, addresses: VringAddresses, num: int) -> tuple[Part, ...]:
        """The parts of a ring of *num* entries; the last is all that `init_access` touches."""

    def better_base(self, vq: Record) -> int | None:
        """What the guest's memory says of the position, if it is not the base; placed."""

    def init_access(self, vq: Record) -> None:
        """Start with what memory says; the ring must be placed."""

    def look(self, vq: Record) -> tuple[int, bool]:
        """See Vring.look."""


def _owners_u16(vq: Record, uva: int, otherwise: int) -> int:
    """A word of the owner's, not through the copies, which are the worker's.

    Args:
        otherwise: what it is if the owner is about to go.
    """
    try:
        word = os.pread(int(vq["owner_mem_fd"]), 2, uva)
    except OSError:
        word = b""
    return int.from_bytes(word, "little") if len(word) == 2 else otherwise


def _packed_flags_at(pos: int) -> int:
    return pos * VRING_DESC_SIZE + 14


class SplitFormat:
    """VIRTIO 1.2 section 2.7."""

    dtype = SPLIT_VRING
    is_packed = False
    num_field = "split_num"

    def is_size(self, num: int) -> bool:
        return 1 <= num <= VRING_NUM_MAX and not num & (num - 1)

    def is_base(self, base: int) -> bool:
        return base <= 0xFFFF

    def is_within(self, vq: Record) -> bool:  # noqa: ARG002
        return True  # indices run freely

    def set_base(self, vq: Record, base: int) -> None:
        vq["last_avail_idx"] = base
        vq["avail_idx"] = base

    def get_base(self, vq: Record) -> int:
        return int(vq["last_avail_idx"])

    def parts(self, addresses: VringAddresses, num: int) -> tuple[Part, ...]:
        # avail and used end with the event words, acked or not: the spec reserves them
        avail_size = 6 + 2 * num
        used_size = 6 + VRING_USED_ELEM_SIZE * num
        desc_size = num * VRING_DESC_SIZE
        return (
            Part("desc_hva", addresses.desc_uva, desc_size, 1, VHOST_ACCESS_RO),
            Part("avail_hva", addresses.avail_uva, avail_size, 2, VHOST_ACCESS_RO),
            Part("used_hva", addresses.used_uva, used_size, 4, VHOST_ACCESS_WO),
        )

    def look(self, vq: Record) -> tuple[int, bool]:
        idx = self._avail_idx(vq)
        return (idx - int(vq["last_avail_idx"])) & 0xFFFF, idx != int(vq["avail_idx"])

    def _avail_idx(self, vq: Record) -> int:
        return load_acquire_u16(int(vq["avail_hva"]) + VRING_AVAIL_IDX)

    def _used_idx(self, vq: Record) -> int:
        return load_acquire_u16(int(vq["used_hva"]) + VRING_USED_IDX)

    def better_base(self, vq: Record) -> int | None:
        used_idx = self._used_idx(vq)
        return used_idx if used_idx != self.get_base(vq) else None

    def init_access(self, vq: Record) -> None:
        """Linux vhost_vq_init_access().

        used->flags is ours and written at once; used->idx is taken from memory, which is how
        a stopped ring goes on; the next signal is unconditional.
        """
        fetched = fetch_used(vq)
        store_relaxed_u16(int(vq["used_hva"]) + VRING_USED_FLAGS, 0)
        if fetched < 0 or push_used_word(vq, VRING_USED_FLAGS) < 0:
            raise PeerError("the used ring cannot be written", errno.EFAULT)
        smp_mb()
        if vq["log_used"]:
            log_used(vq, VRING_USED_FLAGS, 2)
            signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))
        vq["last_used_idx"] = self._used_idx(vq)
        vq["signalled_used"] = vq["last_used_idx"]
        vq["avail_idx"] = vq["last_avail_idx"]


class RemoteSplitFormat(SplitFormat):
    """A split ring that the data path has copies of; see Vring.set_remote."""

    dtype = REMOTE_VRING

    def _avail_idx(self, vq: Record) -> int:
        return _owners_u16(vq, int(vq["avail_uva"]) + VRING_AVAIL_IDX, int(vq["avail_idx"]))


class PackedFormat:
    """VIRTIO 1.2 section 2.8.

    A base has the avail position in bits 0-14 and its wrap counter in bit 15; the used position
    and wrap counter in bits 16-31, or nothing there (DPDK), which means the same again.
    """

    dtype = PACKED_VRING
    is_packed = True
    num_field = "packed_num"

    def is_size(self, num: int) -> bool:
        return 1 <= num <= VRING_NUM_MAX

    def is_base(self, base: int) -> bool:
        return base <= 0xFFFF_FFFF

    def is_within(self, vq: Record) -> bool:
        return max(int(vq["avail_pos"]), int(vq["used_pos"])) < int(vq["packed_num"])

    def set_base(self, vq: Record, base: int) -> None:
        avail, used = base & 0xFFFF, base >> 16
        if used == 0:
            used = avail
        vq["avail_pos"] = vq["seen_pos"] = avail & 0x7FFF
        vq["avail_wrap"] = vq["seen_wrap"] = avail >> 15
        vq["used_pos"], vq["used_wrap"] = used & 0x7FFF, used >> 15

    def get_base(self, vq: Record) -> int:
        avail = int(vq["avail_pos"]) | int(vq["avail_wrap"]) << 15
        used = int(vq["used_pos"]) | int(vq["used_wrap"]) << 15
        return avail | used << 16

    def parts(self, addresses: VringAddresses, num: int) -> tuple[Part, ...]:
        ring_size = num * VRING_DESC_SIZE
        event_size = VRING_PACKED_EVENT_SIZE
        return (
            Part("ring_hva", addresses.desc_uva, ring_size, 16, VHOST_ACCESS_RW),
            Part("driver_hva", addresses.avail_uva, event_size, 4, VHOST_ACCESS_RO),
            Part("device_hva", addresses.used_uva, event_size, 4, VHOST_ACCESS_WO),
        )

    def better_base(self, vq: Record) -> int | None:
        """Some front-ends send 0 for a ring that never ran, where 0x8000 is meant.

        A real 0 comes after a whole number of even laps: then the first descriptor is used, or
        available in a lap with wrap counter 0.  Either has the USED bit set, and a fresh ring
        has not.
        """
        if self.get_base(vq) != 0:
            return None
        ring_hva = int(vq["ring_hva"])
        flags = load_acquire_u16(ring_hva + 14)
        return None if flags & 1 << VRING_PACKED_DESC_F_USED else 1 << VRING_PACKED_DESC_F_USED

    def look(self, vq: Record) -> tuple[int, bool]:
        flags = self._flags(vq, int(vq["seen_pos"]))
        unseen = bool(is_available(flags, int(vq["seen_wrap"])))
        has_seen = (int(vq["seen_pos"]), int(vq["seen_wrap"])) != (
            int(vq["avail_pos"]),
            int(vq["avail_wrap"]),
        )
        return int(unseen or has_seen), unseen

    def _flags(self, vq: Record, pos: int) -> int:
        return load_acquire_u16(int(vq["ring_hva"]) + _packed_flags_at(pos))

    def init_access(self, vq: Record) -> None:
        fetched = fetch_used(vq)
        store_relaxed_u16(int(vq["device_hva"]) + 2, VRING_PACKED_EVENT_FLAG_ENABLE)
        if fetched < 0 or push_device_event(vq) < 0:
            raise PeerError("the device event area cannot be written", errno.EFAULT)
        smp_mb()
        if vq["log_used"]:
            log_write(vq, int(vq["log_event_gpa"]), VRING_PACKED_EVENT_SIZE)
            signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))
        vq["signalled_used"] = vq["used_pos"]
        vq["seen_pos"], vq["seen_wrap"] = vq["avail_pos"], vq["avail_wrap"]


class RemotePackedFormat(PackedFormat):
    """A packed ring that the data path has copies of; see Vring.set_remote."""

    dtype = REMOTE_PACKED_VRING

    def _flags(self, vq: Record, pos: int) -> int:
        # a descriptor of the lap before, if the owner is about to go: nothing is available
        used = 0 if vq["seen_wrap"] else 1 << VRING_PACKED_DESC_F_USED
        return _owners_u16(vq, int(vq["ring_uva"]) + _packed_flags_at(pos), used)


SPLIT: RingFormat = SplitFormat()
REMOTE_SPLIT: RingFormat = RemoteSplitFormat()
PACKED: RingFormat = PackedFormat()
REMOTE_PACKED: RingFormat = RemotePackedFormat()

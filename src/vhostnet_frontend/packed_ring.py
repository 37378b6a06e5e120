"""The packed virtqueue, driver side (VIRTIO 1.2 section 2.8), plain and slow; stdlib only.

Theory of operation
-------------------
One ring of descriptors serves both directions: the driver writes a chain at `next_avail`, the
device overwrites entries at `next_used`.  A descriptor is available if its AVAIL bit equals
the driver's wrap counter and its USED bit does not; it is used if both bits equal the used
wrap counter.  Both counters start at 1 and flip at the ring's end; `num` need not be a power
of two.

A chain takes as many descriptors as it has buffers (one, if it is indirect) and one buffer id.
The device gives back one descriptor for it, with the id, and both sides skip the rest: so the
driver remembers how many each id took.

Ordering:
1. the flags of a chain's first descriptor are written last, so the device sees all or nothing
   (2.8.21.1).
2. those flags are written before the device's event suppression is read (full barrier).
3. flags are read before id and length of a used descriptor (2.8.22).
4. our event suppression is written before the next used descriptor is looked at (full barrier).

The driver's event suppression structure says when the device may interrupt; the device's says
when the driver has to kick.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

from vhostnet.uapi.vhost_user import VringAddr
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    VRING_PACKED_EVENT_SIZE,
)

from .guest_memory import GuestMemory
from .memory_raw import load_u16, read_bytes, smp_mb, store_u16, write_bytes
from .ring import Buffer, RingFull, Used, full_length

AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL
USED = 1 << VRING_PACKED_DESC_F_USED
_WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
_DESC = struct.Struct("<QIHH")
_FLAGS_AT = 14
_U64, _U32, _U16 = (1 << 64) - 1, (1 << 32) - 1, (1 << 16) - 1


def avail_flags(wrap: int) -> int:
    """The two bits of a descriptor that the driver makes available."""
    return AVAIL if wrap else USED


def used_flags(wrap: int) -> int:
    """The two bits of a descriptor that the device has used."""
    return AVAIL | USED if wrap else 0


def pack_desc(gpa: int, size: int, id_: int, flags: int) -> bytes:
    """The 16 bytes of struct pvirtq_desc; numbers too large are cut, not refused."""
    return _DESC.pack(gpa & _U64, size & _U32, id_ & _U16, flags & _U16)


class PackedRing:
    """One packed virtqueue in guest memory.

    Args:
        memory: where it is allocated.
        num: descriptors, 1 to 32768.
        event_idx: VIRTIO_RING_F_EVENT_IDX is negotiated.
        in_order: VIRTIO_F_IN_ORDER is negotiated.

    Attributes:
        desc_gpa, driver_gpa, device_gpa: the ring and the two event suppression structures.
        next_avail, avail_wrap: where the next chain goes, and the wrap counter there.
        next_used, used_wrap: where the next used descriptor is looked for.
    """

    def __init__(
        self,
        memory: GuestMemory,
        num: int,
        *,
        event_idx: bool = False,
        in_order: bool = False,
    ) -> None:
        self.memory, self.num = memory, num
        self.event_idx, self.in_order = event_idx, in_order
        self.desc_gpa = memory.alloc(VRING_DESC_SIZE * num, 16)
        self.driver_gpa = memory.alloc(VRING_PACKED_EVENT_SIZE, 4)
        self.device_gpa = memory.alloc(VRING_PACKED_EVENT_SIZE, 4)
        self._desc = memory.hva(self.desc_gpa)
        self._driver = memory.hva(self.driver_gpa)
        self._device = memory.hva(self.device_gpa)
        self._tables: dict[int, tuple[int, int]] = {}
        self.restart()

    def restart(self) -> None:
        """Empty the ring as a driver's reset does."""
        write_bytes(self._desc, bytes(VRING_DESC_SIZE * self.num))
        write_bytes(self._driver, bytes(VRING_PACKED_EVENT_SIZE))
        write_bytes(self._device, bytes(VRING_PACKED_EVENT_SIZE))
        self.next_avail, self.avail_wrap = 0, 1
        self.next_used, self.used_wrap = 0, 1
        self.n_free = self.num
        self._ids = deque(range(self.num))
        self._chains: dict[int, tuple[int, Any, Sequence[Buffer]]] = {}
        self._held: list[tuple[int, int]] = []
        self._unkicked = 0

    # --- what an honest driver does --------------------------------------------------------

    @property
    def base(self) -> int:
        """Both positions as SET_VRING_BASE wants them, if the device has taken nothing yet."""
        return self.next_used | self.used_wrap << 15 | self.next_used << 16 | self.used_wrap << 31

    def addr(self, index: int, *, log: bool = False) -> VringAddr:
        """The argument of SET_VRING_ADDR: driver area as avail, device area as used."""
        uva = self.memory.uva
        return VringAddr(
            index=index,
            flags=int(log),
            desc_user_addr=uva(self.desc_gpa),
            used_user_addr=uva(self.device_gpa),
            avail_user_addr=uva(self.driver_gpa),
            log_guest_addr=self.desc_gpa if log else 0,
        )

    def add(self, buffers: Sequence[Buffer], token: Any = None, *, indirect: bool = False) -> int:
        """Write a chain, all but the flags of its first descriptor; returns the buffer id.

        Raises:
            RingFull: there are not enough free descriptors.
        """
        n = 1 if indirect else len(buffers)
        if n == 0 or n > self.n_free:
            raise RingFull(f"{n} descriptors wanted, {self.n_free} of {self.num} are free")
        id_ = self._ids.popleft()
        entries = [(buffer.gpa, buffer.size, _flags(buffer)) for buffer in buffers]
        if indirect:
            entries = [(*self._table(id_, buffers), VRING_DESC_F_INDIRECT)]
        for k, (gpa, size, flags) in enumerate(entries):
            flags |= avail_flags(self.avail_wrap)
            if k + 1 < n:
                flags |= VRING_DESC_F_NEXT
            if k == 0:  # not yet: (1)
                self._held.append((self.next_avail, flags))
                flags = used_flags(1 - self.avail_wrap)
            self.write_desc(self.next_avail, gpa, size, id_, flags)
            self.next_avail += 1
            if self.next_avail == self.num:
                self.next_avail, self.avail_wrap = 0, 1 - self.avail_wrap
        self.n_free -= n
        self._chains[id_] = (n, token, tuple(buffers))
        self._unkicked += n
        return id_

    def _table(self, id_: int, buffers: Sequence[Buffer]) -> tuple[int, int]:
        """Write an indirect table: entries in order, only WRITE means anything (2.8.7)."""
        size = VRING_DESC_SIZE * len(buffers)
        table, room = self._tables.get(id_, (0, 0))
        if room < size:
            table = self.memory.alloc(size, 16)
            self._tables[id_] = (table, size)
        data = b"".join(pack_desc(b.gpa, b.size, 0, _flags(b)) for b in buffers)
        self.memory.write(table, data)
        return table, size

    def publish(self) -> None:
        """Let the device see what was added: the first flags, the last chain's first.

        Backwards, so that the device sees the whole batch once it sees the first chain.
        """
        for at, flags in reversed(self._held):
            self.write_flags(at, flags)
        self._held.clear()

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was published since the last call."""
        smp_mb()  # our flags must be visible before the device's wish is read (2)
        added, self._unkicked = self._unkicked, 0
        if added == 0:
            return False
        off_wrap, flags = self.read_device_event()
        if flags != VRING_PACKED_EVENT_FLAG_DESC:
            return flags != VRING_PACKED_EVENT_FLAG_DISABLE
        event = off_wrap & ~_WRAP
        if bool(off_wrap & _WRAP) != bool(self.avail_wrap):
            event -= self.num
        new = self.next_avail
        return (new - event - 1) & _U16 < (new - (new - added)) & _U16

    def has_used(self) -> bool:
        flags = self.read_flags(self.next_used)
        return flags & (AVAIL | USED) == used_flags(self.used_wrap)

    def collect(self, limit: int | None = None) -> list[Used]:
        """Take back what the device has used, at most *limit* chains if that is given.

        With IN_ORDER one used descriptor may stand for a batch; the chains before the last of
        it come back with all their room counted as written.
        """
        entries: list[Used] = []
        while (limit is None or len(entries) < limit) and self.has_used():
            _, length, id_, _ = self.read_desc(self.next_used)  # after its flags (3)
            batch = self._batch_up_to(id_) if self.in_order else [id_]
            for member in batch:
                n, token, buffers = self._chains.pop(member, (1, None, ()))
                if buffers:
                    self._ids.append(member)
                    self.n_free += n
                written = length if member == id_ else full_length(buffers)
                entries.append(Used(member, written, token, buffers))
                self._advance_used(n)
        return entries

    def _batch_up_to(self, id_: int) -> list[int]:
        ids = list(self._chains)
        return ids[: ids.index(id_) + 1] if id_ in self._chains else [id_]

    def _advance_used(self, n: int) -> None:
        self.next_used += n
        if self.next_used >= self.num:
            self.next_used -= self.num
            self.used_wrap = 1 - self.used_wrap

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask to be interrupted; with EVENT_IDX only when the device passes *after* descriptors.

        Returns:
            Whether there is something to collect already: no interrupt will tell of that.
        """
        if self.event_idx:
            event, wrap = self.next_used + after, self.used_wrap
            if event >= self.num:
                event, wrap = event - self.num, 1 - wrap
            # the offset before the flags that make it valid
            store_u16(self._driver, event | (_WRAP if wrap else 0))
            store_u16(self._driver + 2, VRING_PACKED_EVENT_FLAG_DESC)
        else:
            store_u16(self._driver + 2, VRING_PACKED_EVENT_FLAG_ENABLE)
        smp_mb()  # our wish must be visible before the descriptor is looked at again (4)
        return self.has_used()

    def disable_interrupts(self) -> None:
        store_u16(self._driver + 2, VRING_PACKED_EVENT_FLAG_DISABLE)

    def outstanding(self) -> list[Used]:
        """What was added and has not come back, oldest first."""
        return [Used(id_, 0, token, buffers) for id_, (_, token, buffers) in self._chains.items()]

    def resume(self, avail: tuple[int, int], used: tuple[int, int], free: Sequence[int]) -> None:
        """Go on from where another driver (`fast_ring`) left the ring, with nothing in flight.

        Args:
            avail, used: position and wrap counter.
        """
        self.next_avail, self.avail_wrap = avail
        self.next_used, self.used_wrap = used
        self._ids = deque(free)
        self._unkicked = 0

    # --- any word of the ring ----------------------------------------------------------------

    def write_desc(self, i: int, gpa: int, size: int, id_: int, flags: int) -> None:
        """All 16 bytes; *flags* with the bits of `avail_flags` or whatever is wanted."""
        write_bytes(self._desc + VRING_DESC_SIZE * i, pack_desc(gpa, size, id_, flags))

    def read_desc(self, i: int) -> tuple[int, int, int, int]:
        """(gpa, size, id, flags)."""
        gpa, size, id_, flags = _DESC.unpack(
            read_bytes(self._desc + VRING_DESC_SIZE * i, VRING_DESC_SIZE)
        )
        return gpa, size, id_, flags

    def write_flags(self, i: int, flags: int) -> None:
        store_u16(self._desc + VRING_DESC_SIZE * i + _FLAGS_AT, flags & _U16)

    def read_flags(self, i: int) -> int:
        return load_u16(self._desc + VRING_DESC_SIZE * i + _FLAGS_AT)

    def write_driver_event(self, off_wrap: int, flags: int) -> None:
        store_u16(self._driver, off_wrap & _U16)
        store_u16(self._driver + 2, flags & _U16)

    def read_driver_event(self) -> tuple[int, int]:
        """(offset and wrap, flags)."""
        return load_u16(self._driver), load_u16(self._driver + 2)

    def write_device_event(self, off_wrap: int, flags: int) -> None:
        """The device's to write; for models of a device, and for lies."""
        store_u16(self._device, off_wrap & _U16)
        store_u16(self._device + 2, flags & _U16)

    def read_device_event(self) -> tuple[int, int]:
        """(offset and wrap, flags); the flags are read first: they make the offset valid."""
        flags = load_u16(self._device + 2)
        return load_u16(self._device), flags


def _flags(buffer: Buffer) -> int:
    return VRING_DESC_F_WRITE if buffer.writable else 0

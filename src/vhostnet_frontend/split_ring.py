"""The split virtqueue, driver side (VIRTIO 1.2 section 2.7), plain and slow; stdlib only.

Theory of operation
-------------------
The driver owns the descriptor table and the avail ring, the device owns the used ring.
`add` takes descriptors from a queue of free ones and puts them back, in order, when the chain
comes back: with a device that works in order (VIRTIO_F_IN_ORDER) descriptors are then used in
ring order, as that feature demands.  The avail entry is written at once, the index only by
`publish`, so a batch is one store.

Ordering, the driver's half of the specification's:
1. descriptors and avail entries are written before avail->idx (2.7.13.3).
2. avail->idx is written before avail_event or used->flags is read (2.7.13.4, full barrier).
3. used->idx is read before the used entries (2.7.14).
4. used_event or avail->flags is written before used->idx is read again (2.7.14, full barrier).

Two ways to use it:
    `add`, `publish`, `needs_kick`, `collect`    what an honest driver does
    `write_*`, `read_*`                          any word of the ring, right or wrong
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

from vhostnet.uapi.vhost_user import VringAddr
from vhostnet.uapi.virtio import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_AVAIL_FLAGS,
    VRING_AVAIL_IDX,
    VRING_AVAIL_RING,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_F_NO_NOTIFY,
    VRING_USED_FLAGS,
    VRING_USED_IDX,
    VRING_USED_RING,
)

from .guest_memory import GuestMemory
from .memory_raw import load_u16, load_u32, read_bytes, smp_mb, store_u16, write_bytes
from .ring import Buffer, RingFull, Used, full_length

_DESC = struct.Struct("<QIHH")
_U64, _U32, _U16 = (1 << 64) - 1, (1 << 32) - 1, (1 << 16) - 1


def pack_desc(gpa: int, size: int, flags: int = 0, next_: int = 0) -> bytes:
    """The 16 bytes of struct virtq_desc; numbers too large are cut, not refused."""
    return _DESC.pack(gpa & _U64, size & _U32, flags & _U16, next_ & _U16)


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from *old* to *new* passes *event* (2.7.10)."""
    return (new - event - 1) & _U16 < (new - old) & _U16


class SplitRing:
    """One split virtqueue in guest memory.

    Args:
        memory: where it is allocated.
        num: entries, a power of two.
        base: index to start at, as after a migration.
        event_idx: VIRTIO_RING_F_EVENT_IDX is negotiated.
        in_order: VIRTIO_F_IN_ORDER is negotiated.

    Attributes:
        desc_gpa, avail_gpa, used_gpa: the three parts.
        avail_idx: next avail entry to fill.
        used_idx: next used entry to look at.
    """

    def __init__(
        self,
        memory: GuestMemory,
        num: int,
        *,
        base: int = 0,
        event_idx: bool = False,
        in_order: bool = False,
    ) -> None:
        self.memory, self.num = memory, num
        self.event_idx, self.in_order = event_idx, in_order
        self.desc_gpa = memory.alloc(VRING_DESC_SIZE * num, 16)
        self.avail_gpa = memory.alloc(6 + 2 * num, 2)
        self.used_gpa = memory.alloc(6 + VRING_USED_ELEM_SIZE * num, 4)
        self._desc = memory.hva(self.desc_gpa)
        self._avail = memory.hva(self.avail_gpa)
        self._used = memory.hva(self.used_gpa)
        self._tables: dict[int, tuple[int, int]] = {}
        self.restart(base)

    def restart(self, base: int = 0) -> None:
        """Empty the ring as a driver's reset does, and start at index *base*."""
        for hva, size in (
            (self._desc, VRING_DESC_SIZE * self.num),
            (self._avail, 6 + 2 * self.num),
            (self._used, 6 + VRING_USED_ELEM_SIZE * self.num),
        ):
            write_bytes(hva, bytes(size))
        first = base % self.num
        self._free: deque[int] = deque([*range(first, self.num), *range(first)])
        self._chains: dict[int, tuple[list[int], Any, Sequence[Buffer]]] = {}
        self.avail_idx: int = base
        self.used_idx: int = base
        self._kicked_idx: int = base
        self.write_avail_idx(base)
        self.write_used_idx(base)
        if self.event_idx:
            self.write_used_event(base)

    # --- what an honest driver does --------------------------------------------------------

    @property
    def base(self) -> int:
        """avail index that the device has to start at if it has taken nothing yet."""
        return self.used_idx

    @property
    def n_free(self) -> int:
        return len(self._free)

    def addr(self, index: int, *, log: bool = False) -> VringAddr:
        """The argument of SET_VRING_ADDR, in user addresses."""
        uva = self.memory.uva
        return VringAddr(
            index=index,
            flags=int(log),
            desc_user_addr=uva(self.desc_gpa),
            used_user_addr=uva(self.used_gpa),
            avail_user_addr=uva(self.avail_gpa),
            log_guest_addr=self.used_gpa if log else 0,
        )

    def add(self, buffers: Sequence[Buffer], token: Any = None, *, indirect: bool = False) -> int:
        """Fill descriptors with a chain and write its avail entry; returns the head.

        Args:
            buffers: readable ones before writable ones.
            token: comes back with `collect`.
            indirect: one descriptor for a table of the buffers.

        Raises:
            RingFull: there are not enough free descriptors.
        """
        n = 1 if indirect else len(buffers)
        if n == 0 or n > len(self._free):
            raise RingFull(f"{n} descriptors wanted, {len(self._free)} of {self.num} are free")
        slots = [self._free.popleft() for _ in range(n)]
        head = slots[0]
        if indirect:
            table, size = self._table(head, buffers)
            self.write_desc(head, table, size, VRING_DESC_F_INDIRECT)
        else:
            for k, buffer in enumerate(buffers):
                flags, next_ = _flags(buffer), 0
                if k + 1 < n:
                    flags, next_ = flags | VRING_DESC_F_NEXT, slots[k + 1]
                self.write_desc(slots[k], buffer.gpa, buffer.size, flags, next_)
        self._chains[head] = (slots, token, tuple(buffers))
        self.write_avail(self.avail_idx, head)
        self.avail_idx = (self.avail_idx + 1) & _U16
        return head

    def _table(self, head: int, buffers: Sequence[Buffer]) -> tuple[int, int]:
        """Write an indirect table; each head keeps its own and grows it when it must."""
        size = VRING_DESC_SIZE * len(buffers)
        table, room = self._tables.get(head, (0, 0))
        if room < size:
            table = self.memory.alloc(size, 16)
            self._tables[head] = (table, size)
        data = b""
        for k, buffer in enumerate(buffers):
            more = VRING_DESC_F_NEXT if k + 1 < len(buffers) else 0
            data += pack_desc(buffer.gpa, buffer.size, _flags(buffer) | more, k + 1 if more else 0)
        self.memory.write(table, data)
        return table, size

    def publish(self) -> None:
        """Let the device see what was added (1)."""
        self.write_avail_idx(self.avail_idx)

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was published since the last call."""
        smp_mb()  # avail->idx must be visible before the device's wish is read (2)
        old, self._kicked_idx = self._kicked_idx, self.avail_idx
        if old == self.avail_idx:
            return False
        if self.event_idx:
            return need_event(self.read_avail_event(), self.avail_idx, old)
        return not self.read_used_flags() & VRING_USED_F_NO_NOTIFY

    def has_used(self) -> bool:
        return self.read_used_idx() != self.used_idx

    def collect(self, limit: int | None = None) -> list[Used]:
        """Take back what the device has used, at most *limit* chains if that is given.

        With IN_ORDER one used entry may stand for a batch; the chains before the last of it
        come back with all their room counted as written (2.7.9).
        """
        entries: list[Used] = []
        idx = self.read_used_idx()  # before the entries (3)
        while self.used_idx != idx and (limit is None or len(entries) < limit):
            id_, length = self.read_used(self.used_idx)
            batch = self._batch_up_to(id_) if self.in_order else [id_]
            for member in batch:
                slots, token, buffers = self._chains.pop(member, ([], None, ()))
                self._free.extend(slots)
                written = length if member == id_ else full_length(buffers)
                entries.append(Used(member, written, token, buffers))
                self.used_idx = (self.used_idx + 1) & _U16
        return entries

    def _batch_up_to(self, id_: int) -> list[int]:
        heads = list(self._chains)
        return heads[: heads.index(id_) + 1] if id_ in self._chains else [id_]

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask to be interrupted once more than *after* further chains are used.

        Returns:
            Whether there is something to collect already: no interrupt will tell of that.
        """
        if self.event_idx:
            self.write_used_event(self.used_idx + after)
        else:
            self.write_avail_flags(0)
        smp_mb()  # our wish must be visible before used->idx is read again (4)
        return self.has_used()

    def disable_interrupts(self) -> None:
        """Ask not to be interrupted; with EVENT_IDX that is an event long past."""
        if self.event_idx:
            self.write_used_event(self.used_idx - 1)
        else:
            self.write_avail_flags(VRING_AVAIL_F_NO_INTERRUPT)

    def outstanding(self) -> list[Used]:
        """What was added and has not come back, oldest first."""
        return [Used(head, 0, token, buffers) for head, (_, token, buffers) in self._chains.items()]

    def resume(self, avail_idx: int, used_idx: int, free: Sequence[int]) -> None:
        """Go on from where another driver (`fast_ring`) left the ring, with nothing in flight."""
        self.avail_idx = self._kicked_idx = avail_idx
        self.used_idx = used_idx
        self._free = deque(free)

    # --- any word of the ring ----------------------------------------------------------------

    def write_desc(self, i: int, gpa: int, size: int, flags: int = 0, next_: int = 0) -> None:
        write_bytes(self._desc + VRING_DESC_SIZE * i, pack_desc(gpa, size, flags, next_))

    def read_desc(self, i: int) -> tuple[int, int, int, int]:
        """(gpa, size, flags, next)."""
        gpa, size, flags, next_ = _DESC.unpack(
            read_bytes(self._desc + VRING_DESC_SIZE * i, VRING_DESC_SIZE)
        )
        return gpa, size, flags, next_

    def write_avail(self, at: int, head: int) -> None:
        """The avail entry of a free-running index."""
        store_u16(self._avail + VRING_AVAIL_RING + 2 * (at % self.num), head)

    def read_avail(self, at: int) -> int:
        return load_u16(self._avail + VRING_AVAIL_RING + 2 * (at % self.num))

    def write_avail_idx(self, value: int) -> None:
        store_u16(self._avail + VRING_AVAIL_IDX, value & _U16)

    def read_avail_idx(self) -> int:
        return load_u16(self._avail + VRING_AVAIL_IDX)

    def write_avail_flags(self, value: int) -> None:
        store_u16(self._avail + VRING_AVAIL_FLAGS, value)

    def read_avail_flags(self) -> int:
        return load_u16(self._avail + VRING_AVAIL_FLAGS)

    def write_used_event(self, value: int) -> None:
        store_u16(self._avail + VRING_AVAIL_RING + 2 * self.num, value & _U16)

    def read_used_event(self) -> int:
        return load_u16(self._avail + VRING_AVAIL_RING + 2 * self.num)

    def write_used(self, at: int, id_: int, length: int) -> None:
        """A used entry: the device's to write; for models of a device, and for lies."""
        hva = self._used + VRING_USED_RING + VRING_USED_ELEM_SIZE * (at % self.num)
        write_bytes(hva, struct.pack("<II", id_ & _U32, length & _U32))

    def read_used(self, at: int) -> tuple[int, int]:
        """(id, length) of the used entry of a free-running index."""
        hva = self._used + VRING_USED_RING + VRING_USED_ELEM_SIZE * (at % self.num)
        return load_u32(hva), load_u32(hva + 4)

    def write_used_idx(self, value: int) -> None:
        store_u16(self._used + VRING_USED_IDX, value & _U16)

    def read_used_idx(self) -> int:
        return load_u16(self._used + VRING_USED_IDX)

    def write_used_flags(self, value: int) -> None:
        store_u16(self._used + VRING_USED_FLAGS, value)

    def read_used_flags(self) -> int:
        return load_u16(self._used + VRING_USED_FLAGS)

    def write_avail_event(self, value: int) -> None:
        hva = self._used + VRING_USED_RING + VRING_USED_ELEM_SIZE * self.num
        store_u16(hva, value & _U16)

    def read_avail_event(self) -> int:
        return load_u16(self._used + VRING_USED_RING + VRING_USED_ELEM_SIZE * self.num)


def _flags(buffer: Buffer) -> int:
    return VRING_DESC_F_WRITE if buffer.writable else 0

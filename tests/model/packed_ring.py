"""The packed virtqueue as the device sees it (VIRTIO 1.2 section 2.8)."""

from __future__ import annotations

import struct

from .chains import DESCRIPTOR_SIZE, INDIRECT, NEXT, WRITE, Chain, Refusal, Refused
from .memory import GuestMemory
from .split_ring import RingFeatures

AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2


class PackedRing:
    """One ring that runs.  Positions are counted from the beginning and never fall back; the
    place in the ring and the wrap counter follow from them."""

    def __init__(
        self,
        memory: GuestMemory,
        num: int,
        parts: tuple[int, int, int],
        base: int,
        features: RingFeatures,
        one_entry_a_batch: bool = False,
    ) -> None:
        """As `SplitRing`: *one_entry_a_batch* is for IN_ORDER."""
        self.memory, self.num, self.features = memory, num, features
        self.one_entry_a_batch = one_entry_a_batch and features.in_order
        self.ring, self.driver, self.device = parts
        avail, used = base & 0xFFFF, base >> 16 or base & 0xFFFF
        self.next_avail = self._count(avail)
        self.seen = self.next_avail
        self.next_used = self._count(used)
        #: where the batch's first used descriptor is, and the flags that will publish it
        self.first: tuple[int, int] | None = None
        self.unpublished = 0
        self.notified_for: int | None = None
        self.is_quiet = False
        memory.put_u16(self.device + 2, ENABLE)

    def _count(self, half: int) -> int:
        """Wrap counters start as 1 (section 2.8.1): the first lap is lap 0."""
        return (half & 0x7FFF) + self.num * (1 - (half >> 15))

    def _wrap(self, count: int) -> int:
        return 1 - count // self.num % 2

    def _at(self, count: int) -> int:
        return self.ring + DESCRIPTOR_SIZE * (count % self.num)

    def position(self, count: int) -> tuple[int, int]:
        """Place in the ring and wrap counter."""
        return count % self.num, self._wrap(count)

    def _is_available(self, count: int) -> bool:
        """Section 2.8.1: AVAIL is as our wrap counter and USED is not."""
        flags = self.memory.u16(self._at(count) + 14)
        wrap = self._wrap(count)
        return bool(flags & AVAIL) == wrap and bool(flags & USED) != wrap

    # --- taking -----------------------------------------------------------------------------

    def take(self) -> Chain | None:
        """The next available chain, None if there is none."""
        at = self.next_avail
        if not self._is_available(at):
            self.seen = at
            return None
        chain = Chain(self.memory)
        while True:
            chain.n_ring += 1
            if chain.n_ring > self.num:
                raise Refused(Refusal.LOOP)
            raw = self.memory.read(self._at(at), DESCRIPTOR_SIZE)
            addr, length, chain.id, flags = struct.unpack("<QIHH", raw)
            at += 1
            if flags & INDIRECT:
                chain.add_table(addr, length, is_packed=True)
            else:
                chain.add(addr, length, flags)
            if not flags & NEXT:
                break
            if not self._is_available(at):
                raise Refused(Refusal.BAD_NEXT)
        self.next_avail = self.seen = at
        return chain

    def give_back(self, chains: list[Chain]) -> None:
        """These, the last ones, will be taken again."""
        self.next_avail -= sum(chain.n_ring for chain in chains)

    # --- completing -------------------------------------------------------------------------

    def complete(self, chains: list[Chain], lengths: list[int]) -> None:
        """Section 2.8.6: one used descriptor a chain, and then as many are skipped as it took.

        In order one may do for a batch, with the id of its last chain.
        """
        for chain, length in zip(chains, lengths, strict=True):
            if self.one_entry_a_batch and self.unpublished and self.first:
                self.memory.put_u16(self.first[0] + 12, chain.id)
                self.unpublished += 1
                self.next_used += chain.n_ring
                continue
            at = self._at(self.next_used)
            flags = (AVAIL | USED if self._wrap(self.next_used) else 0) | (WRITE if length else 0)
            self.memory.write(at + 8, struct.pack("<IH", length, chain.id))
            if self.unpublished == 0:
                self.first = at, flags  # the driver stops here until it is published
            else:
                self.memory.put_u16(at + 14, flags)
            self.unpublished += 1
            self.next_used += chain.n_ring

    def publish(self) -> bool:
        """Let the driver see the batch; whether there was anything."""
        if self.unpublished == 0 or self.first is None:
            return False
        at, flags = self.first
        self.memory.put_u16(at + 14, flags)
        self.unpublished = 0
        return True

    def wants_signal(self) -> bool:
        """Section 2.8.10: by the driver's event suppression structure."""
        before, self.notified_for = self.notified_for, self.next_used
        off_wrap, flags = self.memory.u16(self.driver), self.memory.u16(self.driver + 2)
        if flags == DISABLE:
            return False
        if flags != DESC or not self.features.event_idx or before is None:
            return True
        event = off_wrap & 0x7FFF, off_wrap >> 15
        return any(self.position(count) == event for count in range(before, self.next_used))

    # --- being notified ----------------------------------------------------------------------

    def be_quiet(self) -> None:
        """No notifications, please.  With EVENT_IDX an old event does it."""
        if not self.is_quiet:
            self.is_quiet = True
            if not self.features.event_idx:
                self.memory.put_u16(self.device + 2, DISABLE)

    def listen(self) -> bool:
        """Ask for notifications; whether something became available before the driver knew."""
        if not self.is_quiet:
            return False
        self.is_quiet = False
        if self.features.event_idx:
            place, wrap = self.position(self.seen)
            self.memory.put_u16(self.device, place | wrap << 15)
            self.memory.put_u16(self.device + 2, DESC)
        else:
            self.memory.put_u16(self.device + 2, ENABLE)
        return self._is_available(self.seen)
